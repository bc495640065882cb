"""Measure how rmac's time changes with types, levels, sizes, workers, and for a single small map.

    python bench/ratios.py [--workers 2] [--json FILE]

See bench/README.md for what the columns mean.
"""

import argparse
import resource
import statistics
import sys
from functools import partial

import numpy as np
from run import feature_maps, measure, naive, write_json

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
    print(f"{'case':<14} {'candidate':<14} {'ms':>9} {'GB/s':>6} {'time':>6} {'rate':>6}")
    for case in (dtypes, levels, sizes, workers, one_map):
        for title, sizes_and_functions in case(options.workers):
            sizes_of = {name: size for name, (size, _) in sizes_and_functions.items()}
            functions = {name: run for name, (_, run) in sizes_and_functions.items()}
            for row in rows(measure(functions, options.repeats), sizes_of):
                results.append({"case": title} | row)
                show(results[-1])
    write_json(options, results, memory=memory)


def dtypes(workers):
    """The same maps in every type; the time is a multiple of float32's."""
    for layout in ("NCHW", "NHWC"):
        names = ["float32", "float16", "uint8"] + (["bfloat16"] if has("ml_dtypes") else [])
        maps = {name: feature_maps(SHAPE, layout, name) for name in names}
        yield (
            f"types {layout}",
            {
                name: (x.nbytes, described(x, layout=layout, workers=workers))
                for name, x in maps.items()
            },
        )


def levels(workers):
    """More regions of the same maps."""
    for layout in ("NCHW", "NHWC"):
        x = feature_maps(SHAPE, layout, "float32")
        yield (
            f"levels {layout}",
            {
                f"levels={count}": (
                    x.nbytes,
                    described(x, layout=layout, levels=count, workers=workers),
                )
                for count in (3, 4, 5, 6)
            },
        )


def sizes(workers):
    """Maps of their own sizes in one call, and one by one, against batches of one size."""
    rng = np.random.default_rng(0)
    maps = [
        feature_maps((1, 512, *size), "NCHW", "float32")[0]
        for size in rng.integers(16, 41, (256, 2))
    ]
    square = feature_maps((256, 512, 28, 28), "NCHW", "float32")
    oblong = feature_maps((256, 512, 24, 32), "NCHW", "float32")
    size = sum(x.nbytes for x in maps)
    ragged = rmac.rmac(maps)
    for x, descriptor in zip(maps, ragged, strict=True):
        np.testing.assert_array_equal(rmac.rmac(x[None])[0], descriptor)
    yield (
        "sizes",
        {
            "24x32": (oblong.nbytes, described(oblong, workers=workers)),
            "28x28": (square.nbytes, described(square, workers=workers)),
            "16..40, a list": (size, lambda: rmac.rmac(maps, workers=workers)),
            "one by one": (size, lambda: [rmac.rmac(x[None], workers=workers) for x in maps]),
        },
    )


def workers(workers):
    """More than the caches hold, by one worker and by all; and reading it alone."""
    x = feature_maps(LARGE, "NCHW", "float32")
    words = x.reshape(-1).view(np.int64)
    counts = (1, workers)
    yield "workers", {f"rmac, {n}": (x.nbytes, described(x, workers=n)) for n in counts}
    yield "workers", {f"read, {n}": (x.nbytes, partial(kernels.read, words, n)) for n in counts}


def one_map(_):
    """One small map, by one worker: what a call costs at least."""
    for layout in ("NCHW", "NHWC"):
        x = feature_maps((1, 512, 7, 7), layout, "float32")
        yield "1x512x7x7", {layout: (x.nbytes, described(x, layout=layout, workers=1))}


def described(x, *, layout="NCHW", levels=3, workers):
    """A function that describes maps, after a check of the first."""
    first = rmac.rmac(x[:1], layout=layout, levels=levels)
    maps = x[:1] if layout == "NCHW" else x[:1].transpose(0, 3, 1, 2)
    np.testing.assert_allclose(first, naive(maps, levels), rtol=1e-3, atol=1e-5)
    return lambda: rmac.rmac(x, layout=layout, levels=levels, workers=workers)


def has(module):
    try:
        __import__(module)
    except ImportError:
        return False
    return True


def rows(times, sizes):
    """Medians; time and bytes a second as multiples of the first candidate's."""
    first = next(iter(times))
    of_first = statistics.median(times[first])
    for name, samples in times.items():
        median = statistics.median(samples)
        time = median / of_first
        yield {
            "candidate": name,
            "ms": 1e3 * median,
            "ms_min": 1e3 * min(samples),
            "samples": len(samples),
            "bytes": sizes[name],
            "time": time,
            "rate": sizes[name] / sizes[first] / time,
        }


def show(row):
    rate = row["bytes"] / row["ms"] / 1e6
    print(
        f"{row['case']:<14} {row['candidate']:<14} {row['ms']:9.4f} {rate:6.1f} "
        f"{row['time']:6.2f} {row['rate']:6.2f}",
        flush=True,
    )


def added_memory(shape, workers):
    """How much more memory than ever before the process has in a call; the first thing it does."""
    x = feature_maps(shape, "NCHW", "float32")
    before = peak()
    rmac.rmac(x, workers=workers)
    return {"input": x.nbytes, "added": peak() - before}


def peak():
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
