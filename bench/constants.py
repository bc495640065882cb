"""Measure what the constants of rmac/cpu/route.py decide: times at a quarter and four times each.

    python bench/constants.py [--only _PREFETCH ...] [--json FILE]

See bench/README.md for what the columns mean.
"""

import argparse
import statistics
import time
from typing import NamedTuple

import numpy as np
from run import feature_maps, measure, shape_text, write_json

import rmac
from rmac.cpu import route


class Case(NamedTuple):
    shape: tuple
    layout: str
    dtype: str
    regions: int  # random ones, 0 for those of a grid
    columns: int | None  # of the maps, from the first on; None for all
    workers: int | None
    whitened: bool = False


FACTORS = {"/ 4": 1 / 4, "as it is": 1, "x 4": 4}


def case(shape, layout="NCHW", dtype="float32", *, regions=0, columns=None, workers=1, **more):
    return Case(shape, layout, dtype, regions, columns, workers, **more)


CASES = {
    "_CACHE": [case((8, 2048, 24, 32)), case((1, 512, 48, 64), "NHWC", regions=40)],
    "_SMALL_PLANE": [case((16, 2048, 8, 14)), case((16, 2048, 14, 14))],
    "_SMALL_PLANE_OF_NARROW_ROWS": [case((16, 2048, 13, 13)), case((16, 1024, 60, 12))],
    "_WIDE_ROW": [case((16, 2048, 13, 13)), case((16, 2048, 14, 14))],
    "_NARROW_ROW": [case((8, 1024, 80, 7)), case((16, 1024, 24, 28))],
    "_SHORTEST_ROW": [
        case((8, 512, 24, 32), columns=2),
        case((8, 512, 24, 32), columns=8),
    ],
    "_ALMOST_A_LINE": [case((64, 8, 24, 32), "NHWC"), case((64, 56, 24, 32), "NHWC", "uint8")],
    "_LINE_WORKSPACE_OF_PLANES": [
        case((2, 512, 1000, 6), regions=40),
        case((1, 256, 4000, 6), regions=40),
    ],
    "_LINE_WORKSPACE_OF_ROWS": [
        case((1, 512, 48, 64), regions=300),
        case((1, 512, 48, 64), regions=2000),
    ],
    "_BLOCK_WORKSPACE_OF_CHANNELS": [
        case((1, 8192, 24, 32), "NHWC"),
        case((1, 512, 48, 64), "NHWC", regions=40),
    ],
    "_BLOCK_WORKSPACE_OF_ROWS": [case((8, 2048, 24, 32)), case((4, 512, 48, 64))],
    "_BLOCK_WORKSPACE_OF_PLANES": [case((64, 2048, 7, 7)), case((16, 2048, 20, 12))],
    "_MOST_LINES": [case((64, 2048, 7, 7)), case((16, 2048, 14, 14))],
    "_TASKS_PER_THREAD": [case((1, 2048, 24, 32), "NHWC", workers=2)],
    "_MOST_BAND_VECTORS": [
        case((1, 512, 48, 64), "NHWC", regions=40),
        case((1, 512, 48, 64), "NHWC", regions=200),
    ],
    "_PREFETCH": [case((8, 2048, 24, 32)), case((8, 2048, 24, 32), "NHWC")],
    "_SMALL_TASK": [case((1, 512, 7, 7), workers=2), case((1, 512, 14, 14), workers=2)],
    "_BUSY_WAIT": [
        case((4, 2048, 24, 32), workers=None, whitened=True),
        case((16, 2048, 24, 32), workers=None, whitened=True),
    ],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=CASES, metavar="NAME")
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--json", metavar="FILE", help="write the results there too")
    options = parser.parse_args()
    results = []
    print(f"{'constant':<28} {'case':<36} {'ms':>9} {'/ 4':>6} {'x 4':>6}")
    for name in options.only:
        for one in CASES[name]:
            value = getattr(route, name)
            # What other processes do to a thread on its own is not in the time of this process.
            clock = time.process_time if one.workers == 1 else time.perf_counter
            samples = measure(candidates_for(name, one), options.repeats, clock)
            with_constant(name, value, lambda: None)
            results.append({"constant": name, "case": one._asdict()} | ratios(samples))
            show(name, one, results[-1])
    write_json(options, results)


def candidates_for(name, one):
    """The same call with each value of a constant, once all are seen to agree bit for bit."""
    value, run = getattr(route, name), call_of(one)
    candidates = {}
    for title, factor in FACTORS.items():
        other = type(value)(value * factor)
        candidates[title] = lambda other=other: with_constant(name, other, run)
    outputs = [candidate().tobytes() for candidate in candidates.values()]
    assert len(set(outputs)) == 1
    return candidates


def with_constant(name, value, run):
    """Call `run` with a constant set to that value; routes are not kept when it changes."""
    if getattr(route, name) != value:
        setattr(route, name, value)
        route.region_route.cache.clear()
    return run()


def call_of(one):
    """A function without arguments that pools or describes the maps of a case."""
    x = feature_maps(one.shape, one.layout, one.dtype)[..., : one.columns]
    settings = {"layout": one.layout, "workers": one.workers}
    _, channels, height, width = one.shape
    if one.whitened:
        basis = np.linalg.qr(np.random.default_rng(0).standard_normal((channels, channels)))[0]
        mean, basis = np.zeros(channels, np.float32), basis.astype(np.float32)
        whitening = rmac.Whitening.from_projection(mean, basis)
        return lambda: rmac.rmac(x, whitening=whitening, **settings)
    if one.regions:
        corners = np.random.default_rng(0).integers(0, (width, height), (2, one.regions, 2))
        boxes = np.concatenate([corners.min(axis=0), corners.max(axis=0)], axis=1)
        return lambda: rmac.region_pool(x, boxes, **settings)
    return lambda: rmac.rmac(x, **settings)


def ratios(samples):
    """The median time as it is, and medians of ratios to it, of samples of one turn."""
    usual = samples["as it is"]
    row = {"ms": 1e3 * statistics.median(usual)}
    for title in ("/ 4", "x 4"):
        pairs = zip(samples[title], usual, strict=False)
        row[title] = statistics.median([changed / same for changed, same in pairs])
    return row


def show(name, one, row):
    words = [shape_text(one.shape), one.layout, one.dtype]
    words += [f"{one.regions} boxes"] if one.regions else []
    words += [f"{one.columns} columns"] if one.columns else []
    print(
        f"{name:<28} {' '.join(words):<36} {row['ms']:9.4f} {row['/ 4']:6.2f} {row['x 4']:6.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
