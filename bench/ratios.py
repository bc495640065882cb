"""Measure how the time of rmac changes with dtypes, levels, sizes of maps and workers.

    python bench/ratios.py [--workers 2] [--json FILE]

See bench/README.md for what the columns mean.
"""

import argparse
import resource
import statistics
import sys
from functools import partial
from importlib.util import find_spec

import numpy as np
from run import COLD, feature_maps, in_turn, measure, naive, summary, write_json

import rmac
from rmac.cpu.isa import kernels

SHAPE = (8, 2048, 24, 32)
LARGE = (64, 2048, 24, 32)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", metavar="FILE", help="write the results there too")
    options = parser.parse_args()
    memory = added_memory(LARGE, options.workers)
    print(f"a call on {memory['input'] / 1e6:.0f} MB adds {memory['added'] / 1e6:.1f} MB")
    results = []
    print(
        f"{'case':<14} {'candidate':<14} {'ms':>9} {'least':>9} {'GB/s':>6} {'time':>6} {'rate':>6}"
    )
    for cases in (of_types, of_levels, of_sizes, of_workers, of_one_map):
        for title, candidates, nbytes in cases(options.workers):
            for row in rows(measure(candidates, options.repeats), nbytes):
                results.append({"case": title} | row)
                show(results[-1])
    write_json(options, results, memory=memory)


def of_types(workers):
    """The same maps in every dtype, read from memory: small dtypes would fit in caches."""
    names = ["float32", "float16", "uint8"] + (["bfloat16"] if find_spec("ml_dtypes") else [])
    for layout in ("NCHW", "NHWC"):
        candidates, nbytes = {}, {}
        for name in names:
            x = feature_maps(SHAPE, layout, name)
            copies = [x] + [x.copy() for _ in range(COLD // x.nbytes)]
            settings = {"layout": layout, "workers": workers}
            candidates |= in_turn([{name: described(copy, **settings)} for copy in copies])
            nbytes[name] = x.nbytes
        yield f"types {layout}", candidates, nbytes


def of_levels(workers):
    """The same maps with more levels."""
    for layout in ("NCHW", "NHWC"):
        x = feature_maps(SHAPE, layout, "float32")
        candidates = {
            f"levels={levels}": described(x, layout=layout, levels=levels, workers=workers)
            for levels in (3, 4, 5, 6)
        }
        yield f"levels {layout}", candidates, dict.fromkeys(candidates, x.nbytes)


def of_sizes(workers):
    """A list of maps of different sizes, and one call for each map, against batches of one size."""
    sizes = np.random.default_rng(0).integers(16, 41, (256, 2))
    maps = [feature_maps((1, 512, *size), "NCHW", "float32")[0] for size in sizes]
    oblong = feature_maps((256, 512, 24, 32), "NCHW", "float32")
    square = feature_maps((256, 512, 28, 28), "NCHW", "float32")
    for x, descriptor in zip(maps, rmac.rmac(maps), strict=True):
        np.testing.assert_array_equal(rmac.rmac(x[None])[0], descriptor)
    candidates = {
        "24x32": described(oblong, workers=workers),
        "28x28": described(square, workers=workers),
        "16..40, a list": lambda: rmac.rmac(maps, workers=workers),
        "one by one": lambda: [rmac.rmac(x[None], workers=workers) for x in maps],
    }
    nbytes = dict.fromkeys(candidates, sum(x.nbytes for x in maps))
    yield "sizes", candidates, nbytes | {"24x32": oblong.nbytes, "28x28": square.nbytes}


def of_workers(workers):
    """Maps larger than caches by one worker and by all, and one read of them likewise."""
    x = feature_maps(LARGE, "NCHW", "float32")
    words = x.reshape(-1).view(np.int64)
    for name, candidate in (
        ("rmac", partial(described, x)),
        ("read", lambda workers: partial(kernels.read, words, workers)),
    ):
        candidates = {f"{count} workers": candidate(workers=count) for count in (1, workers)}
        yield f"workers, {name}", candidates, dict.fromkeys(candidates, x.nbytes)


def of_one_map(_):
    """One small map by one worker: the cost of a call."""
    for layout in ("NCHW", "NHWC"):
        x = feature_maps((1, 512, 7, 7), layout, "float32")
        yield "1x512x7x7", {layout: described(x, layout=layout, workers=1)}, {layout: x.nbytes}


def described(x, *, layout="NCHW", levels=3, workers):
    """Return a function that describes the maps, after a check of the first map."""
    first = rmac.rmac(x[:1], layout=layout, levels=levels)
    maps = x[:1] if layout == "NCHW" else x[:1].transpose(0, 3, 1, 2)
    np.testing.assert_allclose(first, naive(maps, levels), rtol=1e-3, atol=1e-5)
    return lambda: rmac.rmac(x, layout=layout, levels=levels, workers=workers)


def rows(times, nbytes):
    """Yield medians, and times and rates as multiples of those of the first candidate."""
    first = next(iter(times))
    of_first = statistics.median(times[first])
    for name, samples in times.items():
        time = statistics.median(samples) / of_first
        rate = nbytes[name] / nbytes[first] / time
        yield summary(name, samples) | {"bytes": nbytes[name], "time": time, "rate": rate}


def show(row):
    print(
        f"{row['case']:<14} {row['candidate']:<14} {row['ms']:9.4f} {row['ms_min']:9.4f} "
        f"{row['bytes'] / row['ms'] / 1e6:6.1f} {row['time']:6.2f} {row['rate']:6.2f}",
        flush=True,
    )


def added_memory(shape, workers):
    """Return the growth of the process's peak memory in a call; this must be the first call."""
    x = feature_maps(shape, "NCHW", "float32")
    before = peak()
    rmac.rmac(x, workers=workers)
    return {"input": x.nbytes, "added": peak() - before}


def peak():
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
