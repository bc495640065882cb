"""Many small calls, after which a process must hold no more memory than before."""

import argparse
import gc
import sys
import time
import tracemalloc
import warnings
from contextlib import suppress

import numpy as np

import rmac

CALLS = 100_000
GROWTH = 8 << 20  # bytes of resident memory that all calls together may add; 0.9 MB measured
MANY = 320  # calls to one with many boxes
TRACED = 2 << 20  # bytes of Python's and NumPy's objects that they may add; 0.2 MB measured
TOLD = 20_000  # calls before objects are counted: those in caches are all traced then


def resident():
    """Return the bytes of memory that this process holds."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def small_calls(rng):
    """One call of each public function; sizes, boxes and lengths of lists are new each time."""
    channels, height, width = (int(n) for n in rng.integers(1, 40, 3))
    x = rng.random((1, channels, height, width), np.float32)
    xs, ys = (np.sort(rng.integers(0, side, (3, 2)), axis=1) for side in (width, height))
    boxes = np.stack([xs[:, 0], ys[:, 0], xs[:, 1], ys[:, 1]], axis=1)
    rois = np.column_stack([np.zeros(3), boxes]).astype(np.float32)
    maps = [x[0]] * int(rng.integers(1, 9))
    vectors = rng.random((4, 3))
    yield lambda: rmac.rmac(x)
    yield lambda: rmac.rmac(maps)
    yield lambda: rmac.region_pool(x, boxes)
    yield lambda: rmac.region_pool(x, boxes.tolist(), pool="gem", p=float(rng.uniform(1, 5)))
    yield lambda: rmac.roi_pool(x, rois, output_size=2)
    yield lambda: rmac.rmac_regions(x, overlap=float(rng.uniform(0, 0.9)))
    yield lambda: rmac.region_grid(height, width, overlap=float(rng.uniform(0, 0.9)))
    yield lambda: rmac.sequence_grid(int(rng.integers(1, 10**4)))
    yield lambda: rmac.merge_scales([vectors, vectors], float(rng.uniform(1, 9)))
    yield lambda: rmac.branch_pool(x, [rng.random((2, channels, 1, 1))], [None])
    yield lambda: rmac.Whitening(2).fit(vectors).merge(rmac.Whitening()).apply(vectors)
    yield lambda: rmac.operators.run_on_device("RMAC", x, levels=int(rng.integers(1, 4)))
    yield lambda: rmac.region_pool(x, [[0, 0, width, 0]])
    yield lambda: rmac.rmac(x, pool=f"pool {rng.random()}")
    yield lambda: rmac.roi_pool(x, rois - 1)
    yield lambda: rmac.rmac(x.astype(complex), out=x)


def many_boxes(rng):
    """Pool over boxes whose plan needs much more memory than the map."""
    ends = np.sort(rng.integers(0, 40, (1000, 2, 2)), axis=1)
    rmac.region_pool(np.zeros((1, 1, 40, 40), np.float32), ends.reshape(-1, 4))


def make(rng, calls):
    done = 0
    while done < calls:
        for call in small_calls(rng):
            with suppress(TypeError, ValueError, IndexError):
                call()
            done += 1
        if done % MANY == 0:
            many_boxes(rng)


def main():
    parser = argparse.ArgumentParser(prog="python -m fuzz.leaks", description=__doc__)
    parser.add_argument("--calls", type=int, default=CALLS)
    calls = parser.parse_args().calls
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(1)
    start = time.monotonic()
    make(rng, calls // 5)  # fills caches that are bounded in entries
    for _ in range(MANY):  # and those that are bounded in bytes
        many_boxes(rng)
    gc.collect()
    before = resident()
    make(rng, calls)
    gc.collect()
    grown = resident() - before
    tracemalloc.start()
    make(rng, TOLD)
    gc.collect()
    traced = tracemalloc.get_traced_memory()[0]
    make(rng, calls // 10)
    gc.collect()
    traced = tracemalloc.get_traced_memory()[0] - traced
    seconds = time.monotonic() - start
    print(f"leaks: {calls} calls, {grown} bytes resident, {traced} bytes traced, {seconds:.0f} s")
    return 1 if grown > GROWTH or traced > TRACED else 0


if __name__ == "__main__":
    sys.exit(main())
