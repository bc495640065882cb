"""Run the GPU kernels on random maps in guarded memory, by the shim, and compare with the oracle.

PYTHONPATH=tests python -m fuzz.kernels [--cases 10000] [--first 0] [--seed 1]
"""

import argparse
import faulthandler
import sys
import time
from functools import partial

import numpy as np
import reference
import shim

sys.modules["cupy"] = shim  # before rmac looks for it

import rmac  # noqa: E402
from fuzz import retrieval  # noqa: E402
from fuzz.calls import (  # noqa: E402
    DTYPES,
    LAYOUTS,
    chance,
    close_values,
    draw_map_shape,
    draw_values,
    pick,
    result_dtype,
    same_values,
    stored,
)
from fuzz.maps import draw_boxes, grid_options, pool_options  # noqa: E402
from fuzz.memory import Memory  # noqa: E402


def main():
    parser = argparse.ArgumentParser(prog="python -m fuzz.kernels", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    faulthandler.enable()
    started, wrong = time.monotonic(), 0
    for case in range(options.first, options.first + options.cases):
        if case % 100 == 0:
            print(f"from case {case} on", end="\r", file=sys.stderr, flush=True)
        rng = np.random.default_rng([options.seed, case])
        memory = Memory(rng)
        try:
            shim.allocate = partial(_noise, rng, memory)
            pick(rng, (_region_pool, _region_pool, _roi_pool, _localize))(rng, memory)
            memory.check()
        except Exception as error:
            wrong += 1
            print(f"case {case}: {type(error).__name__}: {str(error)[:300]}", flush=True)
    seconds = time.monotonic() - started
    print(f"fuzz.kernels: {options.cases} cases, {wrong} wrong, {seconds:.0f} seconds", flush=True)
    return 1 if wrong else 0


def _noise(rng, memory, size):
    """Return guarded bytes for a result or for the kernels alone, full of noise."""
    array = memory.output((size,), np.uint8)
    array[...] = np.frombuffer(rng.bytes(size), np.uint8)
    return array


def _maps(rng, memory):
    """Return maps, and the same on the device, in a layout."""
    x = draw_values(rng, draw_map_shape(rng), pick(rng, DTYPES), pick(rng, (0.0, 0.01, 0.5)))
    layout = pick(rng, ("NCHW", "NHWC"))
    view = stored(rng, memory, x)
    return x, shim.ndarray(view.transpose(LAYOUTS[layout])), layout


def _region_pool(rng, memory):
    x, maps, layout = _maps(rng, memory)
    grid, pool = grid_options(rng), pool_options(rng, x.dtype.name, keeps_maxima=True)
    boxes = rmac.region_grid(*x.shape[2:], **grid).boxes
    if chance(rng, 0.4):
        boxes, _ = draw_boxes(rng, memory, *x.shape[2:])
    dtype = x.dtype if pool["pool"] == "max" else result_dtype(x.dtype)
    out = memory.output((len(x), len(boxes), x.shape[1]), dtype)
    memory.freeze()
    rmac.region_pool(maps, boxes, layout=layout, out=shim.ndarray(out), **pool)
    if not out.size:
        return
    if pool["pool"] == "max":
        same_values(out, reference.region_pool(x, boxes))
    else:
        close_values(out, *reference.region_mean(x, boxes, dtype, **pool), dtype)


def _roi_pool(rng, memory):
    x, maps, layout = _maps(rng, memory)
    count = pick(rng, (0, 1, 7)) if len(x) else 0
    rois = rng.uniform(-3, 2 * max(x.shape[2:]), (count, 5)).astype(np.float32)
    rois[:, 0] = rng.integers(0, max(1, len(x)), count)
    size, scale = (int(rng.integers(1, 5)), int(rng.integers(1, 5))), pick(rng, (1.0, 0.5, 1 / 16))
    given = memory.input(rois)
    memory.freeze()
    result = rmac.roi_pool(
        maps, shim.ndarray(given), output_size=size, spatial_scale=scale, layout=layout
    )
    same_values(result.get(), reference.roi_pool(x, rois, size, scale))


def _localize(rng, memory):
    call = retrieval.localize(rng, memory)
    options = {name: value for name, value in call.options.items() if name != "workers"}
    options["queries"] = shim.ndarray(options["queries"])
    memory.freeze()
    found = rmac.localize(shim.ndarray(call.first), **options)
    call.check(rmac.localization.Localization(found.boxes.get(), found.scores.get()))
    found = rmac.localize(shim.ndarray(call.first), search="grid", **options)
    assert (found.boxes.get() >= 0).all()


if __name__ == "__main__":
    sys.exit(main())
