"""Run the GPU kernels on random maps in guarded memory, by the shim, and compare with the oracle.

PYTHONPATH=tests python -m fuzz.kernels [--cases 10000] [--first 0] [--seed 1]
"""

import argparse
import faulthandler
import sys
import time
import warnings
from functools import partial
from unittest import mock

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
from fuzz.maps import (  # noqa: E402
    check_descriptors,
    draw_boxes,
    grid_options,
    pool_options,
    rmac_options,
)
from fuzz.memory import Memory  # noqa: E402
from rmac.cuda import launches  # noqa: E402


def main():
    parser = argparse.ArgumentParser(prog="python -m fuzz.kernels", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    faulthandler.enable()
    warnings.simplefilter("ignore")  # of grids with gaps, and of NaN in the oracle
    started, wrong = time.monotonic(), 0
    for case in range(options.first, options.first + options.cases):
        if case % 100 == 0:
            print(f"from case {case} on", end="\r", file=sys.stderr, flush=True)
        rng = np.random.default_rng([options.seed, case])
        memory = Memory(rng)
        try:
            shim.allocate = partial(_noise, rng, memory)
            pick(rng, _CASES)(rng, memory)
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


def _rmac(rng, memory):
    """Descriptors by a kernel of their own, or by the last block of an image."""
    x, maps, layout = _maps(rng, memory)
    boxes = rmac.region_grid(*x.shape[2:], **grid_options(rng)).boxes
    if chance(rng, 0.4):
        some, _ = draw_boxes(rng, memory, *x.shape[2:])
        boxes = some if len(some) else boxes
    own, dtype = rmac_options(rng), result_dtype(x.dtype)
    _, check = check_descriptors(reference.region_pool(x, boxes), dtype, own)
    memory.freeze()
    check(_described(rng, maps, regions=boxes, layout=layout, **own))


def _rmac_list(rng, memory):
    channels, dtype = pick(rng, (1, 3, 16, 33, 65)), pick(rng, DTYPES)
    grid, own = grid_options(rng), rmac_options(rng)
    own["aggregate"] = pick(rng, ("sum", "mean"))
    maps, checks = [], []
    for _ in range(int(rng.integers(1, 13))):
        x = draw_values(rng, (1, channels, *rng.integers(1, 12, 2)), dtype, pick(rng, (0.0, 0.01)))
        maps.append(shim.ndarray(stored(rng, memory, x)[0]))
        vectors = reference.region_pool(x, rmac.region_grid(*x.shape[2:], **grid).boxes)
        checks.append(check_descriptors(vectors, result_dtype(dtype), own)[1])
    memory.freeze()
    result = _described(rng, maps, **grid, **own)
    assert len(result) == len(checks)
    for i, check in enumerate(checks):
        check(result[i : i + 1])


def _described(rng, x, **options):
    """Return descriptors."""
    launches._descriptors_call.cache.clear()
    with mock.patch.object(launches, "MANY_IMAGES", pick(rng, (1, 1000))):
        return rmac.rmac(x, **options).get()


def _roi_pool(rng, memory):
    x, maps, layout = _maps(rng, memory)
    count = pick(rng, (0, 1, 7)) if len(x) else 0
    rois = rng.uniform(-3, 2 * max(x.shape[2:]), (count, 5)).astype(np.float32)
    rois[:, 0] = rng.integers(0, max(1, len(x)), count)
    some = rng.random(count) < 0.3
    rois[some, 1:] = 0, 0, x.shape[3], x.shape[2]
    size = tuple(int(rng.integers(1, pick(rng, (3, 5, 9, 20)))) for _ in range(2))
    scale = pick(rng, (1.0, 0.5, 1 / 16))
    given = memory.input(rois)
    memory.freeze()
    blocks = {"MOST_BLOCKS": pick(rng, (1, 3, 1000)), "_FEW_ROI_BLOCKS": pick(rng, (1, 1000))}
    with mock.patch.multiple("rmac.cuda.rois", **blocks):
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


_CASES = (_region_pool, _region_pool, _rmac, _rmac_list, _roi_pool, _localize)


if __name__ == "__main__":
    sys.exit(main())
