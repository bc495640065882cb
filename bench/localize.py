"""Measure rmac.localize against one read of its input, rmac.rmac and a naive search in NumPy.

    python bench/localize.py [--workers 2] [--json FILE]

See bench/README.md for what the columns mean.
"""

import argparse
import statistics

import numpy as np
from run import feature_maps, measure, shape_of, shape_text, summary, write_json

import rmac
from rmac.cpu.isa import kernels

SHAPES = [(1, 512, 24, 32), (1, 2048, 24, 32), (1, 512, 48, 64)]
DTYPES = ["float16", "uint8", "float64"]
QUERIES = 16
NAIVE_BOXES = 20_000  # that NumPy scores in some seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--aspect", type=float, default=0.75)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--shapes", nargs="+", type=shape_of, default=SHAPES, metavar="NxCxHxW")
    parser.add_argument("--json", metavar="FILE", help="write the results there too")
    options = parser.parse_args()
    results = []
    print(f"{'shape':>14} {'candidate':<18} {'ms':>9} {'x read':>8} {'x rmac':>8} {'x best':>8}")
    for shape in options.shapes:
        times = measure(candidates_for(shape, options), options.repeats)
        for name, samples in times.items():
            results.append({"shape": shape} | summary(name, samples))
            show(results[-1], times)
    write_json(options, results)


def candidates_for(shape, options):
    """Return functions without arguments, by name; those that search are checked first."""
    x = feature_maps(shape, "NCHW", "float32")
    rng = np.random.default_rng(1)
    queries = rng.random((QUERIES, shape[1]))
    boxes = boxes_of(*shape[2:], options.aspect)
    words = x.reshape(-1).view(np.int64)

    def search(maps, queries=queries[0], workers=1, **settings):
        return lambda: rmac.localize(
            maps, queries, aspect=options.aspect, workers=workers, **settings
        )

    candidates = {
        "read": lambda: kernels.read(words, 1),
        "rmac": lambda: rmac.rmac(x, workers=1),
        "best": search(x),
        f"{options.workers} workers": search(x, workers=options.workers),
        f"{QUERIES} queries": search(x, queries),
    }
    candidates |= {name: search(feature_maps(shape, "NCHW", name)) for name in DTYPES}
    candidates["grid"] = search(x, search="grid")
    levels = rmac.quantize(x * 40)
    candidates["aml"] = search(levels, search="aml")
    if len(boxes) <= NAIVE_BOXES:
        candidates["naive NumPy"] = lambda: naive(x, queries[0], boxes)
        check(candidates, candidates["naive NumPy"]())
    return candidates


def boxes_of(height, width, aspect, tolerance=1.1):
    """Return the boxes (R, 4) that the search may choose from."""
    y1, y2, x1, x2 = np.indices((height, height, width, width), np.int16).reshape(4, -1)
    keep = (y1 <= y2) & (x1 <= x2)
    boxes = np.stack([x1, y1, x2, y2], axis=1)[keep]
    sides = boxes[:, 2:].astype(float) - boxes[:, :2] + 1
    return boxes[abs(np.log(aspect * sides[:, 0] / sides[:, 1])) <= np.log(tolerance)]


def naive(x, query, boxes):
    """Return the best box of each map and its score, box by box."""
    scores = np.empty((len(x), len(boxes)), np.float32)
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        maxima = x[:, :, y1 : y2 + 1, x1 : x2 + 1].max(axis=(2, 3))
        scores[:, i] = maxima @ query / np.linalg.norm(maxima, axis=1)
    best = scores.argmax(axis=1)
    return boxes[best], scores.max(axis=1) / np.linalg.norm(query)


def check(candidates, expected):
    """Raise unless searches of the float32 maps give the box and the score that NumPy finds."""
    boxes, scores = expected
    for name, run in candidates.items():
        if name == "best" or name.endswith("workers"):
            found = run()
            np.testing.assert_array_equal(found.boxes, boxes, err_msg=name)
            np.testing.assert_allclose(found.scores, scores, rtol=1e-6, err_msg=name)


def show(row, times):
    medians = {name: 1e3 * statistics.median(times[name]) for name in ("read", "rmac", "best")}
    ratios = " ".join(f"{row['ms'] / ms:8.2f}" for ms in medians.values())
    print(
        f"{shape_text(row['shape']):>14} {row['candidate']:<18} {row['ms']:9.4f} {ratios}",
        flush=True,
    )


if __name__ == "__main__":
    main()
