"""Time builds of rmac side by side: those of several compilers, or of several commits.

    python bench/builds.py PYTHON PYTHON ... [--rounds 5] [--workers 1] [--json FILE]

See bench/README.md for what the columns mean.
"""

import itertools
import json
import statistics
import subprocess
import sys

import numpy as np
from pipeline import pools
from run import feature_maps, measure, options_of, shape_text, write_json

from rmac.cpu.tables import LINE_BYTES

SHAPES = [(1, 2048, 24, 32), (1, 512, 48, 64), (8, 2048, 7, 7), (2, 2048, 14, 14)]
DTYPES = ["float32", "float16", "bfloat16", "uint8", "int8", "float64"]


def main():
    options = parse()
    if not options.pythons:
        print(json.dumps(own_times(options)))
        return
    rounds = [times_of_all(options, i) for i in range(options.rounds)]
    results = []
    print(f"{'case':<36} {'us':>10}", "".join(f"{i + 1:>8}" for i in range(len(rounds[0]))))
    for case in rounds[0][options.pythons[0]]:
        us = [
            statistics.median([times[python][case] for times in rounds])
            for python in options.pythons
        ]
        results.append({"case": case, "us": us})
        print(f"{case:<36} {us[0]:10.1f}", "".join(f"{one / us[0]:8.3f}" for one in us), flush=True)
    write_json(options, results)


def parse():
    parser = options_of(__doc__, SHAPES, DTYPES, repeats=3)
    parser.add_argument("pythons", nargs="*", metavar="PYTHON", help="each has a build installed")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each build")
    parser.add_argument("--workers", type=int, default=1)
    return parser.parse_args()


def times_of_all(options, turn):
    """Return the times of every build; every second turn goes backwards.

    A process times one shape and layout, so that a busy machine slows all builds alike.
    """
    command = [argument for argument in sys.argv if argument not in ("--", *options.pythons)]
    times = {python: {} for python in options.pythons}
    for shape, layout in itertools.product(options.shapes, options.layouts):
        some = [*command, "--shapes", shape_text(shape), "--layouts", layout]
        for python in options.pythons[:: 1 if turn % 2 == 0 else -1]:
            run = subprocess.run([python, *some], stdout=subprocess.PIPE, check=True)
            times[python] |= json.loads(run.stdout)
    return times


def aligned(x):
    """Return a copy that begins at a cache line.

    Else chance decides whether loads cross cache lines: maxima of 1x512x48x64 NHWC take up to 1.2
    times as long, so that builds seem to differ.
    """
    memory = np.empty(x.nbytes + LINE_BYTES, np.uint8)
    first = -memory.ctypes.data % LINE_BYTES
    copy = memory[first : first + x.nbytes].view(x.dtype).reshape(x.shape)
    copy[...] = x
    return copy


def own_times(options):
    """Return the least time of each case in this process, in microseconds."""
    times = {}
    for shape in options.shapes:
        for layout in options.layouts:
            for dtype in options.dtypes:
                x = aligned(feature_maps(shape, layout, dtype))
                for pool, run in pools(x, layout, options).items():
                    case = f"{'x'.join(map(str, shape))} {layout} {dtype} {pool}"
                    times[case] = 1e6 * min(measure({case: run}, options.repeats)[case])
    return times


if __name__ == "__main__":
    main()
