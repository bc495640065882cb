"""Many Python threads that make the same calls of the same objects at the same time."""

import argparse
import sys
import threading
import time

import numpy as np

import rmac

ROUNDS = 10


class Shared:
    """The objects that threads share: maps, lists, boxes, grids and a whitening."""

    def __init__(self, workers):
        rng = np.random.default_rng(64)
        self.x = rng.standard_normal((2, 70, 13, 17), np.float32)
        self.last = np.ascontiguousarray(self.x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        self.half = self.x.astype(np.float16)
        self.bytes = rng.integers(0, 256, (3, 33, 7, 7), np.uint8)
        self.large = rng.standard_normal((2, 128, 18, 31), np.float32)  # shared by workers
        self.maps = [rng.standard_normal((65, n, 2 * n), np.float32) for n in (3, 5, 8, 13)]
        self.boxes = np.array([[0, 0, 16, 12], [3, 2, 9, 9], [5, 5, 5, 5]])
        self.grid = rmac.region_grid(13, 17, levels=4)
        self.rois = np.array([[0, 0, 0, 9, 9], [1, 3, 3, 20, 20]], np.float32)
        self.vectors = rng.standard_normal((400, 70)) + 3
        self.weights = [rng.standard_normal((4, 70, 3, 3), np.float32)]
        self.workers = {"workers": workers}

    def whitening(self):
        """Return one that learns its projection when it is first applied."""
        return rmac.Whitening(8).partial_fit(self.vectors)

    def calls(self, whitening, size):
        """Return functions of no argument; `size` is new in each round, so that caches miss."""
        x, workers = self.x, self.workers
        new = np.broadcast_to(x[:, :, :1, :1], (2, 70, 5, size))
        return [
            lambda: rmac.region_pool(x, **workers),
            lambda: rmac.region_pool(x, self.boxes, pool="gem", **workers),
            lambda: rmac.region_pool(self.last, self.grid, **workers),
            lambda: rmac.region_pool(self.half, pool="mean", **workers),
            lambda: np.concatenate(rmac.region_pool(self.maps, **workers)),
            lambda: rmac.rmac(x, **workers),
            lambda: rmac.rmac(self.bytes, aggregate="concat", **workers),
            lambda: rmac.rmac(self.large, **workers),
            lambda: rmac.rmac(self.large[:1], pool="gem", **workers),
            lambda: rmac.rmac(self.maps, **workers),
            lambda: rmac.rmac(x, whitening=whitening, **workers),
            lambda: rmac.rmac(new, levels=4, preset="matlab", **workers),
            lambda: rmac.roi_pool(x, self.rois, output_size=3, **workers),
            lambda: rmac.rmac_regions(new),
            lambda: rmac.region_grid(size, 7, levels=5).boxes,
            lambda: rmac.sequence_grid(size).boxes,
            lambda: rmac.merge_scales([self.vectors, self.vectors + 1]),
            lambda: rmac.branch_pool(x, self.weights, [2]),
            lambda: whitening.apply(self.vectors),
            lambda: whitening.merge(whitening).mean,
            lambda: whitening.projection,
            lambda: rmac.operators.run_on_device("RMAC", x, "cpu", **workers),
        ]


def one_round(shared, threads, size):
    """Return how many calls of some threads gave other bits than those of one thread."""
    expected = [call().tobytes() for call in shared.calls(shared.whitening(), size)]
    # Others may have the results in caches by now: the threads' calls are of another object.
    calls = shared.calls(shared.whitening(), size)
    barrier, wrong = threading.Barrier(threads), []

    def run(number):
        barrier.wait()
        for i in range(len(calls)):
            place = (i + number) % len(calls)  # neighbours make different calls
            try:
                if calls[place]().tobytes() != expected[place]:
                    wrong.append(f"call {place}: another result")
            except Exception as error:
                wrong.append(f"call {place}: {error!r}")

    started = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    return wrong


def main():
    parser = argparse.ArgumentParser(prog="python -m fuzz.together", description=__doc__)
    parser.add_argument("--threads", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    start, wrong = time.monotonic(), []
    sys.setswitchinterval(1e-5)
    shared = Shared(options.workers)
    for number in range(options.rounds):
        wrong += one_round(shared, options.threads, 20 + number)
    for line in sorted(set(wrong)):
        print(line)
    calls = options.rounds * options.threads * len(shared.calls(shared.whitening(), 20))
    seconds = time.monotonic() - start
    print(
        f"together: {calls} calls of {options.threads} threads, {len(wrong)} wrong, {seconds:.0f} s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
