"""Which way a batch takes through the kernels: the choice of path, lanes and threads.

The constants that decide it stand here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, assert_never

import numpy as np

from rmac._dtypes import DTYPES, Kind
from rmac._options import Pool, PoolingOptions
from rmac.cpu.isa import kernels, second_level_cache
from rmac.cpu.plan import region_plan
from rmac.cpu.threads import workers_for

_LINE = 64  # bytes that the kernels work on at once; a cache line
_SMALL_PLANE = 128  # cells of a plane that is better transposed than reduced along its rows
_CACHE = second_level_cache() * 3 // 4  # bytes of scratch that stay in it, with room to spare
_SMALL_SCRATCH = 48 << 10  # bytes of it that are as good as in the first-level cache
_SMALL_TASK = 1 << 16  # bytes of input that are not worth a thread of their own

Path = kernels.Path


@dataclass(frozen=True, eq=False)
class KernelSpec:
    """How the kernels go about the values of a dtype."""

    bits: np.dtype[Any]  # that they see
    kind: int
    p: float  # the power that they sum, 0 for the values themselves
    sums: bool  # or maxima
    shift: float  # explained there
    itemsize: int  # of a key, or of a number that they sum
    line: int  # of those that they work on at once
    pool: Any
    rmac: Any


@lru_cache(maxsize=1024)
def kernel_spec(dtype: np.dtype[Any], pooling: PoolingOptions) -> KernelSpec:
    """Return how the kernels pool values of a dtype."""
    info = DTYPES[dtype.name]
    real = "double" if info.kind is Kind.FLOAT64 else "float"
    bits = np.dtype(f"int{8 * info.itemsize}")
    match pooling.pool:
        case Pool.MAX:
            sums, key, shift, itemsize = False, f"{bits.name}_t", info.key_shift, info.itemsize
        case Pool.MEAN | Pool.GEM:
            sums, key = True, real if pooling.sums_in_float32 else "double"
            shift, itemsize = 0, 4 if key == "float" else 8
        case unknown:
            assert_never(unknown)
    return KernelSpec(
        bits,
        info.kind,
        pooling.p,
        sums,
        shift,
        itemsize,
        _LINE // itemsize,
        kernels.pool[key],
        kernels.rmac[key, real],
    )


@lru_cache(maxsize=1024)
def region_route(
    boxes: bytes, shape: tuple[int, ...], strides: tuple[int, ...], spec: KernelSpec, threads: int
) -> kernels.Route:
    """Return the way through maps of these sizes and strides to the regions `boxes`."""
    plan = region_plan(boxes, *shape[2:], overlapping=not spec.sums)
    return route_of(plan, shape, strides, spec, threads)


def route_of(
    plan: kernels.Plan,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    spec: KernelSpec,
    threads: int,
) -> kernels.Route:
    """Return the way through maps of these sizes and strides to the regions of a plan."""
    path = _path(plan, shape, strides, spec)
    return kernels.Route(plan, path, _lanes(plan, shape, spec, path, threads))


def threads_for(workers: int | None, size: int) -> int:
    """Return how many threads `size` bytes of maps are worth."""
    most = size // _SMALL_TASK
    return min(workers_for(workers), most) if most > 1 else 1


def _path(
    plan: kernels.Plan, shape: tuple[int, ...], strides: tuple[int, ...], spec: KernelSpec
) -> int:
    """Choose how the kernels get at pixels; the one place where that is decided.

    Vectors of channels in memory are what they want. Where rows are contiguous instead, reducing
    them first leaves little to transpose, unless there is little to reduce: small planes, and those
    with rows that fill little of a line, are transposed whole. Both need an image's intervals of
    rows in memory at hand, of which boxes of the user's may have very many. What remains is
    collected row by row, at any strides, slowly; so are rows too short to be worth a vector each.
    """
    _, channels, height, width = shape
    _, channel_stride, row_stride, pixel_stride = strides
    itemsize, line = spec.bits.itemsize, spec.line
    if channel_stride == itemsize and channels > 1:
        # Most of a line is better copied to a whole one than taken value by value.
        return Path.GATHER if 3 * line < 4 * channels < 4 * line else Path.CHANNELS
    if pixel_stride == itemsize:
        packed = row_stride == width * itemsize and channel_stride == height * row_stride
        # A row shorter than a line is read as one, unless it is copied to be summed: it must not
        # reach past the plane that follows.
        nested = row_stride >= width * itemsize and channel_stride >= height * row_stride
        nested = (nested and channel_stride + width * itemsize >= _LINE) or spec.sums
        small = height * width <= (_SMALL_PLANE if 8 * width >= 7 * line else 4 * _SMALL_PLANE)
        planes = packed and (small or 2 * width < line) and channels >= line
        rows = width >= line or (nested and 4 * width >= line)
        for path, possible, most in (
            (Path.PLANES, planes, _CACHE),
            (Path.ROWS, rows, 4 * _CACHE),  # much of it is written and read once
        ):
            if possible and _scratch_of_line(plan, path, spec) <= most:
                return path
    return Path.GATHER


def _lanes(
    plan: kernels.Plan, shape: tuple[int, ...], spec: KernelSpec, path: int, threads: int
) -> int:
    """Choose how many channels a task takes, in whole lines.

    Parts of pixels are read the faster the longer they are, so that scratch may even exceed the
    cache by far: what a band is reduced to is written, and read once at the end. Of planes and rows
    a few lines make little enough of what a task costs besides, if scratch stays small: of planes,
    all of which goes through it, yet smaller. Channels that are gathered are best not too many at
    once.
    """
    line = spec.line
    images, channels = shape[:2]
    if path == Path.GATHER:
        return line
    scratch = _scratch_of_line(plan, path, spec)
    if path == Path.CHANNELS:
        lines = max(6 * _CACHE // scratch, 1)
    else:
        most = _CACHE // 4 if path == Path.ROWS else _SMALL_SCRATCH
        lines = min(max(most // scratch, 1), 4)
    blocks = max(-(-channels // (lines * line)), -(-2 * threads // images))
    lanes = _even_lanes(channels, blocks, line)
    if path == Path.PLANES and lanes > channels:  # those that are not there cannot be transposed
        lanes = _even_lanes(channels, blocks + 1, line)
    return lanes


def _even_lanes(channels: int, blocks: int, line: int) -> int:
    """Return the whole lines that each of so many blocks of channels takes."""
    lanes = -(-channels // blocks)
    return lanes + -lanes % line


def _scratch_of_line(plan: kernels.Plan, path: int, spec: KernelSpec) -> int:
    return kernels.scratch_bytes(plan, path, spec.line, spec.itemsize, spec.sums)
