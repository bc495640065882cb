"""Measure rmac on the CPU against one read of its input, and against its peers.

    python bench/run.py [--workers 2] [--json FILE]

See bench/README.md for what the columns mean.
"""

import argparse
import json
import statistics
import time
from itertools import cycle

import numpy as np
from peers import peers_for

import rmac
from rmac.cpu.isa import kernels

SHAPES = [
    (8, 2048, 24, 32),
    (4, 512, 48, 64),
    (64, 2048, 7, 7),
    (16, 2048, 14, 14),
    (1, 512, 7, 7),
]
SAMPLE = 5e-3  # seconds of calls in one sample, or more
PATIENCE = 2.0  # seconds of one candidate after which it gets no more samples than three
REST = 0.02  # seconds before a candidate, so that busy threads of the last one fall asleep
WARM = 0.01  # seconds of calls after a rest, until processors run at full speed again
COLD = 1 << 28  # bytes of copies that take turns; most caches hold less


def main():
    options = parse()
    results = []
    print(
        f"{'shape':>18} {'layout':>6} {'dtype':>8} {'candidate':<22} "
        f"{'ms':>9} {'x read':>7} {'x rmac':>7}"
    )
    for shape in options.shapes:
        for layout in options.layouts:
            for dtype in options.dtypes:
                x = feature_maps(shape, layout, dtype)
                candidates = checked(candidates_for(x, layout, options), x, layout, options.levels)
                if options.cold:
                    copies = [x.copy() for _ in range(COLD // x.nbytes)]
                    candidates = in_turn(
                        [candidates] + [candidates_for(copy, layout, options) for copy in copies]
                    )
                times = measure(candidates, options.repeats)
                for name, samples in times.items():
                    row = {"shape": list(shape), "layout": layout, "dtype": dtype}
                    row |= summary(name, samples) | {"bytes": x.nbytes}
                    results.append(row)
                    show(row, times)
    write_json(options, results)


def write_json(options, results, **more):
    """Write the results and the configuration to a file, if --json asks for it."""
    if options.json:
        chosen = {name: value for name, value in vars(options).items() if name != "json"}
        document = {"config": rmac.show_config("dicts")} | chosen | more | {"results": results}
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)


def parse():
    parser = options_of(__doc__, SHAPES, ["float32"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cold", action="store_true", help="maps that most caches cannot hold")
    add_no_peers(parser)
    return parser.parse_args()


def add_no_peers(parser):
    parser.add_argument("--no-peers", action="store_true", help="only rmac and the floor")


def options_of(doc, shapes, dtypes, repeats=25):
    """Return a parser of the options that several benchmarks share."""
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--layouts", nargs="+", default=["NCHW", "NHWC"], choices=["NCHW", "NHWC"])
    parser.add_argument("--dtypes", nargs="+", default=dtypes)
    parser.add_argument("--shapes", nargs="+", type=shape_of, default=shapes, metavar="NxCxHxW")
    parser.add_argument("--json", metavar="FILE", help="write the results there too")
    return parser


def shape_of(text):
    shape = tuple(int(size) for size in text.split("x"))
    if len(shape) != 4:
        raise argparse.ArgumentTypeError(f"expected NxCxHxW, got {text!r}")
    return shape


def shape_text(shape):
    """Return a shape as `shape_of` reads it."""
    return "x".join(map(str, shape))


def feature_maps(shape, layout, dtype):
    """Random maps like those of a network after a ReLU: half zeros, the rest positive."""
    images, channels, height, width = shape
    stored = shape if layout == "NCHW" else (images, height, width, channels)
    values = np.random.default_rng(0).standard_normal(stored, dtype=np.float32)
    np.maximum(values, 0, out=values)
    if dtype in ("uint8", "int8"):
        return (values * 30).astype(dtype)
    if dtype == "bfloat16":
        import ml_dtypes

        return values.astype(ml_dtypes.bfloat16)
    return values.astype(dtype, copy=False)


def candidates_for(x, layout, options):
    """Return functions without arguments, by name."""
    words = x.reshape(-1).view(np.int64)
    settings = {"layout": layout, "levels": options.levels}
    candidates = {
        "read": lambda: kernels.read(words, options.workers),
        "rmac": lambda: rmac.rmac(x, workers=options.workers, **settings),
    }
    if not options.no_peers:
        candidates |= peers_for(x, layout, options.levels, options.workers)
    return candidates


def checked(candidates, x, layout, levels):
    """Return the candidates, after a check that their descriptors agree."""
    expected = naive(x if layout == "NCHW" else x.transpose(0, 3, 1, 2), levels)
    for name, run in candidates.items():
        if name != "read":
            np.testing.assert_allclose(
                np.asarray(run()), expected, rtol=1e-3, atol=1e-5, err_msg=name
            )
    return candidates


def in_turn(sets):
    """One set of candidates. Each call of a candidate runs that of the next of these sets.

    Each candidate begins at another set, so that none finds in the cache what the last one left.
    """
    turns = {
        name: cycle(
            [candidates[name] for candidates in sets[i % len(sets) :] + sets[: i % len(sets)]]
        )
        for i, name in enumerate(sets[0])
    }
    return {name: lambda turn=turn: next(turn)() for name, turn in turns.items()}


def naive(x, levels, pool="max", p=3.0):
    """The descriptor in float64, region by region."""
    total = np.zeros(x.shape[:2])
    for x1, y1, x2, y2 in rmac.region_grid(*x.shape[2:], levels=levels).boxes:
        window = x[:, :, y1 : y2 + 1, x1 : x2 + 1]
        if pool == "gem":
            values = np.maximum(window.astype(np.float64), 1e-6)
            region = (values**p).mean(axis=(2, 3)) ** (1 / p)
        elif pool == "mean":
            region = window.mean(axis=(2, 3), dtype=np.float64)
        else:
            region = window.max(axis=(2, 3)).astype(np.float64)
        total += region / np.linalg.norm(region, axis=1, keepdims=True)
    return total / np.linalg.norm(total, axis=1, keepdims=True)


def measure(candidates, repeats, clock=time.perf_counter):
    """Time the candidates in turn, `repeats` times; slow candidates fewer times."""
    samples = {name: [] for name in candidates}
    rest = REST if len(candidates) > 1 else 0
    calls = {
        name: max(1, round(SAMPLE / seconds(run, 1, rest, clock)))
        for name, run in candidates.items()
    }
    for _ in range(repeats):
        for name, run in candidates.items():
            spent = sum(samples[name]) * calls[name]
            if len(samples[name]) < 3 or spent < PATIENCE:
                samples[name].append(seconds(run, calls[name], rest, clock))
    return samples


def seconds(run, calls, rest, clock=time.perf_counter):
    """Return the seconds of a call, after a rest and some calls to warm up."""
    time.sleep(rest)
    resumed = time.perf_counter()
    run()
    while time.perf_counter() < resumed + WARM:
        run()
    started = clock()
    for _ in range(calls):
        run()
    return (clock() - started) / calls


def summary(name, samples):
    """Return the median and the minimum of a candidate's samples, given in seconds."""
    return {
        "candidate": name,
        "ms": 1e3 * statistics.median(samples),
        "ms_min": 1e3 * min(samples),
        "samples": len(samples),
    }


def show(row, times):
    ratio = {name: row["ms"] / 1e3 / statistics.median(times[name]) for name in ("read", "rmac")}
    print(
        f"{case_of(row)} {row['candidate']:<22} "
        f"{row['ms']:9.4f} {ratio['read']:7.2f} {ratio['rmac']:7.2f}",
        flush=True,
    )


def case_of(row):
    """Return the first columns of a row: shape, layout and dtype."""
    return f"{shape_text(row['shape']):>18} {row['layout']:>6} {row['dtype']:>8}"


if __name__ == "__main__":
    main()
