"""Every dtype, layout and function on the GPU against the CPU; the first that differs is an error.

    python .ci/gpu_smoke.py [all | small | profile] [DTYPE...]

`small` leaves out large maps, for the sanitizers. `profile` launches each kernel that matters for
speed once, for a profiler. Half a second a kernel is its compilation, so dtypes that are named are
the only ones: processes that have one each compile at the same time.
"""

import sys
from functools import partial

import cupy as cp
import ml_dtypes
import numpy as np

import rmac

SMALL = [(2, 37, 7, 7), (1, 70, 24, 32), (3, 5, 1, 9), (2, 16, 61, 3)]
LARGE = [(2, 512, 48, 64), (5, 2048, 14, 14), (1, 3, 130, 260)]
PROFILED = [((16, 2048, 24, 32), "NCHW"), ((64, 2048, 7, 7), "NCHW"), ((16, 24, 32, 2048), "NHWC")]
DTYPES = ["float32", "float16", "bfloat16", "float64", "uint8", "int8"]


def main(mode="all", *dtypes):
    """Check all cases of a mode, or those of some dtypes."""
    if mode not in ("all", "small", "profile"):
        raise SystemExit(f"expected all, small or profile, got {mode}")
    rng = np.random.default_rng(1)
    if mode == "profile":
        for shape, layout in PROFILED:
            x = cp.asarray(rng.random(shape, dtype=np.float32))
            rmac.rmac(x, layout=layout)
            if layout == "NCHW":
                rmac.localize(x, cp.asarray(rng.random(shape[1])), aspect=0.75)
        cp.cuda.Device().synchronize()
        return
    if mode == "small":  # a pool would hide from memcheck what is beyond the end of an array
        cp.cuda.set_allocator(None)
    checks = 0
    shapes = SMALL if mode == "small" else SMALL + LARGE
    for name, call, exact, args in cases(rng, shapes, [np.dtype(one) for one in dtypes or DTYPES]):
        check(name, call, exact, args)
        checks += 1
    print(f"{checks} of {checks} right:", *dtypes or DTYPES)


def cases(rng, shapes, dtypes):
    """Yield a name, a function of arrays, whether its results are exact, and the arrays."""
    for shape in shapes:
        for dtype in dtypes:
            x = (rng.standard_normal(shape) * 30).astype(np.float32).astype(dtype)
            yield from cases_of_map(x, "NCHW")
            yield from cases_of_map(np.ascontiguousarray(x.transpose(0, 2, 3, 1)), "NHWC")
    if np.float32 not in dtypes:
        return
    yield "rmac_regions", rmac.rmac_regions, True, [x]
    x = rng.standard_normal((2, 9, 12, 16)).astype(np.float32)
    x[0, 3, 4, 5], x[1, 2] = np.nan, -np.inf
    yield "NaN and -inf", rmac.region_pool, True, [x]
    sizes = rng.integers(5, 30, (30, 2))
    ragged = [rng.standard_normal((40, *size)).astype(np.float32) for size in sizes]
    yield "list", lambda *maps: rmac.rmac(list(maps)), False, ragged


def cases_of_map(x, layout):
    """Yield the cases of a batch of maps, as `cases` does."""
    where = f"{x.shape} {x.dtype} {layout}"
    rmac_of = partial(partial, rmac.rmac, layout=layout)
    pool = partial(rmac.region_pool, layout=layout)
    yield f"region_pool {where}", pool, True, [x]
    yield f"rmac {where}", rmac_of(), False, [x]
    yield f"concat {where}", rmac_of(aggregate="concat", levels=2), False, [x]
    yield f"mean {where}", rmac_of(pool="mean"), False, [x]
    for p in (2.5, 3, 7):  # in float32 by pow(), in float32 by products, in float64
        yield f"gem {p} {where}", rmac_of(pool="gem", p=p), False, [x]
    strided = x[:, ::-1, :, ::2] if x.shape[3] > 1 else x[:, ::-1]
    yield f"strided {where}", pool, True, [strided]
    rois = np.array([[0, 0, 0, 40, 30], [len(x) - 1, 5.5, -3, 9, 200]], np.float32)
    bins = partial(rmac.roi_pool, spatial_scale=0.5, layout=layout)
    for size in (1, 3, 7):
        yield f"roi_pool {size} {where}", partial(bins, output_size=size), True, [x, rois]
    channels = x.shape[1] if layout == "NCHW" else x.shape[3]
    queries = np.random.default_rng(2).random((2, channels))
    for name in ("best", "grid"):
        yield f"localize {name} {where}", scores_of(name, layout), False, [x, queries]


def scores_of(name, layout):
    """Return a function that gives scores alone: of nearly equal boxes, any may be found."""

    def scores(x, queries):
        return rmac.localize(
            x, queries, search=name, aspect=0.75, tolerance=1.02, layout=layout
        ).scores

    return scores


def check(name, call, exact, args):
    """Compare the GPU with the CPU, or raise."""
    got, expected = on_host(call(*map(on_device, args))), call(*args)
    if (got.shape, got.dtype) != (expected.shape, expected.dtype):
        raise SystemExit(f"{name}: {got.shape} {got.dtype}, not {expected.shape} {expected.dtype}")
    if exact and got.tobytes() != expected.tobytes():
        raise SystemExit(f"{name}: {(got != expected).sum()} of {got.size} bits differ")
    if not exact and not np.allclose(got, expected, rtol=2e-5, atol=2e-6):
        raise SystemExit(f"{name}: differs by up to {np.abs(got - expected).max()}")


def on_device(x):
    """Return a copy on the device with the same strides."""
    memory = memory_of(x)
    offset = x.__array_interface__["data"][0] - memory.__array_interface__["data"][0]
    data = cp.asarray(memory.view(np.uint8)).data + offset
    bits = cp.ndarray(x.shape, f"i{x.itemsize}", data, x.strides)
    return bits.view(x.dtype)  # CuPy copies bfloat16 only as bits


def memory_of(x):
    """Return the array that holds the memory of a view, flat."""
    base = x if x.base is None else x.base
    return base.reshape(-1)


def on_host(x):
    """Return a copy on the host."""
    if x.dtype == ml_dtypes.bfloat16:
        return cp.asnumpy(x.view(np.int16)).view(ml_dtypes.bfloat16)
    return cp.asnumpy(x)


if __name__ == "__main__":
    main(*sys.argv[1:])
