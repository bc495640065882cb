"""Calls that belong together: of what changes meanwhile, and of maps that are huge."""

import sys
import threading
import warnings
from contextlib import suppress

import numpy as np

import rmac
from fuzz.calls import Call, draw_values, pick
from fuzz.floats import CAN_CHANGE, subnormals_as_zero
from fuzz.values import Index
from rmac._options import POOLS

_NO_ARGUMENTS = {"x": "none"}


def _scenario(run):
    """Return a call of no arguments; `run` raises AssertionError if something is wrong."""
    return Call(lambda _: run(), None, {}, lambda _: None, _NO_ARGUMENTS)


def _nothing():
    return _scenario(lambda: None)


def changed_option(rng, memory):
    """An option object that changes between two calls counts with its value of each call."""
    x = memory.input(draw_values(rng, (1, 3, 6, 9), np.dtype("f4")))
    first, second = 2, 4
    option = pick(rng, ("levels", "overlap", "p", "eps", "workers"))

    def run():
        scale = 1 if option in ("levels", "workers") else 0.1
        changing = Index(first * scale)
        rmac.rmac(x, pool="gem", **{option: changing})
        changing._values = [second * scale]
        result = rmac.rmac(x, pool="gem", **{option: changing})
        plain = rmac.rmac(x, pool="gem", **{option: second * scale})
        assert result.tobytes() == plain.tobytes(), f"{option} is still of the first call"

    return _scenario(run)


def changed_grid(rng, memory):
    """Nobody can change a grid that others share."""
    x = memory.input(draw_values(rng, (1, 3, 6, 9), np.dtype("f4")))
    what = pick(rng, ("shape", "strides", "dtype", "flags", "values"))

    def run():
        grid = rmac.region_grid(6, 9)
        expected, before = rmac.region_pool(x, grid), grid.boxes.tobytes()
        for boxes in (grid.boxes, grid.level):
            with suppress(ValueError, TypeError, AttributeError), warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # NumPy is to forbid it
                _change(boxes, what)
        assert grid.boxes.shape == (len(grid), 4)
        assert grid.boxes.tobytes() == before
        assert rmac.region_pool(x).tobytes() == expected.tobytes()

    return _scenario(run)


def _change(boxes, what):
    if what == "shape":
        boxes.shape = boxes.shape[::-1]
    elif what == "strides":
        boxes.strides = (0,) * boxes.ndim
    elif what == "dtype":
        boxes.dtype = np.float64
    elif what == "flags":
        boxes.flags.writeable = True
        boxes[...] = 10**6
    else:
        boxes[...] = 10**6


def huge_maps(rng, memory):
    """Maps of stride 0 with an axis up to 2**62 long, and small boxes: a result or an error."""
    del memory
    shape, dtype = [1, 1, 1, 1], pick(rng, ("f4", "f2", "f8", "u1"))
    axis = int(rng.integers(4))
    shape[axis] = 2 ** int(pick(rng, (36, 40, 58, 59, 60, 61, 62)))  # none is computed in full
    if np.prod([float(side) for side in shape]) * np.dtype(dtype).itemsize >= 2**63:
        return _nothing()
    x = np.broadcast_to(np.ones((), dtype), shape)
    box = [0, 0, min(5, shape[3] - 1), min(5, shape[2] - 1)]
    pool = pick(rng, POOLS)

    def run():
        for call in (
            lambda: rmac.region_pool(x, [box], pool=pool),
            lambda: rmac.roi_pool(x, np.array([[0, *box]])),
            lambda: rmac.rmac_regions(x),
        ):
            try:
                result = call()
            except (ValueError, MemoryError) as error:
                text = str(error)
            else:
                text = "a result" if result.size < 2**30 else ""
            assert 0 < len(text) <= 500

    return _scenario(run)


def flushed_subnormals(rng, memory):
    """A processor that takes subnormals as 0 changes no maximum, and agrees on all threads."""
    if not CAN_CHANGE:
        return _nothing()
    dtype = np.dtype(pick(rng, ("f2", "f4", "f8")))
    bits = rng.integers(0, 2 ** (8 * dtype.itemsize - 12), (8, 64, 24, 32))
    x = memory.input(bits.astype(f"u{dtype.itemsize}").view(dtype))
    pool = pick(rng, ("max", "mean"))

    def run():
        expected = rmac.region_pool(x, pool="max", workers=1)
        rmac.rmac(x, workers=4)  # starts threads, which keep their own treatment of subnormals
        with subnormals_as_zero():
            one, four = (rmac.rmac(x, pool=pool, workers=n) for n in (1, 4))
            maxima = rmac.region_pool(x, workers=1)
        assert maxima.tobytes() == expected.tobytes()
        assert one.tobytes() == four.tobytes(), "results depend on the number of threads"
        plain = rmac.rmac(x, pool=pool, workers=1)
        assert one.tobytes() == plain.tobytes(), "results depend on the floating-point mode"

    return _scenario(run)


def written_boxes(rng, memory):
    """Boxes that another thread writes meanwhile are all right or an error, and never a crash."""
    x = memory.input(draw_values(rng, (1, 8, 16, 16), np.dtype("f4")))
    boxes = np.full((2000, 4), 3, np.int64)

    def write():
        boxes[:] = 2**40
        boxes[:] = 3

    def run():
        expected = x[:, :, 3, 3]
        for _ in range(20):
            with suppress(ValueError):
                result = rmac.region_pool(x, boxes)
                assert (result == expected[:, None]).all()

    return _scenario(lambda: _beside(write, run))


def refitted_whitening(rng, memory):
    """A whitening that another thread refits gives what it had before, or has then, or an error."""
    x = memory.input(draw_values(rng, (8, 64, 6, 9), np.dtype("f4")))
    wide, narrow = rng.standard_normal((3, 64)), rng.standard_normal((3, 2))
    whitening, results = rmac.Whitening().fit(wide), set()
    results.add(rmac.rmac(x, whitening=whitening).tobytes())

    def write():
        whitening.fit(wide)
        whitening.fit(narrow)

    def run():
        for _ in range(20):
            with suppress(ValueError):
                results.add(rmac.rmac(x, whitening=whitening, workers=1).tobytes())
        assert len(results) == 1, "a result of no whitening"

    return _scenario(lambda: _beside(write, run))


def added_vectors(rng, memory):
    """Vectors that many threads add to one whitening are all counted."""
    vectors = memory.input(rng.standard_normal((10, 8)))

    def add(whitening):
        for _ in range(20):
            whitening.partial_fit(vectors)

    def run():
        whitening = rmac.Whitening()
        threads = [threading.Thread(target=add, args=(whitening,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert whitening.count == 1600, f"{whitening.count} of 1600 vectors are counted"

    return _scenario(lambda: _quickly_switched(run))


def _quickly_switched(run):
    """Run a function while threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        run()
    finally:
        sys.setswitchinterval(interval)


def _beside(write, run):
    """Run a function while another thread calls `write` all the time."""
    done = threading.Event()

    def work():
        while not done.is_set():
            write()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        _quickly_switched(run)
    finally:
        done.set()
        thread.join()
