"""Which kernel pools a batch, how wide its loads are, and how many threads and channels it takes.

The constants that decide this stand here. Where one says "not measured", no GPU was at hand to try
other values.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple, assert_never

import numpy as np
import numpy.typing as npt

from rmac._dtypes import DTYPES, Kind
from rmac._options import Aggregate, Pool, PoolingOptions
from rmac.cuda.c_types import kernel_types
from rmac.cuda.plan import Plan, region_plans

Array = Any  # cupy.ndarray

# The channel block of pool_rows and pool_means. With float32 keys, shared memory holds 768 tiles of
# 16 channels. Not measured.
CHANNEL_BLOCK = 16
# The channel block of pool_channels, in vectors: 8 of 16 bytes are 128, a cache line. Not measured.
_CHANNEL_VECTORS = 8
# A block that pools has 256 threads, so several blocks fit a multiprocessor. Not measured.
THREADS = 256
# The most threads of pool_rows that read one row. Not measured.
_ROW_THREADS = 64
# An image's descriptor is made by one block, so it has the most threads that a block can have. Not
# measured.
DESCRIBE_THREADS = 1024
WARP = 32  # threads, on every device

_WIDEST_LOAD = 16  # bytes; there is no wider instruction
_SHARED_MEMORY = 48 << 10  # bytes that a block has on every device
MOST_BLOCKS = 1 << 30  # of one launch; CUDA's limit is 2**31 - 1, and kernels count blocks in int


class KernelSpec(NamedTuple):
    """How the kernels pool the values of a dtype."""

    kind: Kind
    sums: bool  # or maxima
    p: float  # the power that is summed, 0 for the values themselves
    zero_point: int  # of integers, the value that stands for 0
    tile: np.dtype[Any]  # one tile's maximum, as a key, or its sum
    out: np.dtype[Any]  # of the results; maxima of the map's dtype are written as their bits


class Route(NamedTuple):
    """How the kernels reach some regions of a batch."""

    plan: Plan
    by_channels: bool  # whether threads lie along channels, or along rows
    vector: int  # elements of one load


@lru_cache(maxsize=1024)
def kernel_spec(dtype: np.dtype[Any], pooling: PoolingOptions, out: np.dtype[Any]) -> KernelSpec:
    """Return how the kernels pool values of a dtype into results of the dtype `out`."""
    info = DTYPES[dtype.name]
    types = kernel_types(info)
    match pooling.pool:
        case Pool.MAX:
            result = types.bits if out == dtype else types.real
            return KernelSpec(info.kind, False, 0.0, pooling.zero_point, types.key, result)
        case Pool.MEAN | Pool.GEM:
            sums = types.real if pooling.sums_in_float32 else np.dtype(np.float64)
            return KernelSpec(info.kind, True, pooling.p, pooling.zero_point, sums, types.real)
        case unknown:
            assert_never(unknown)


def region_routes(x: Array, boxes: npt.NDArray[np.int64], spec: KernelSpec) -> list[Route]:
    """Choose the kernel and the width of its loads; the one place where that is decided.

    Threads lie along channels if these are contiguous, else along rows. Loads are as wide as
    alignment allows. Narrower loads make a smaller channel block, so that shared memory holds more
    tiles; they are taken if the regions then need fewer plans, since each plan reads the map.
    """
    by_channels = x.strides[1] == x.itemsize and x.shape[1] > 1
    vector = 1 if spec.sums else _widest_vector(x, axis=1 if by_channels else 3)
    plans = _plans(boxes, by_channels, vector, spec)
    while by_channels and vector > 1:
        fewer = _plans(boxes, by_channels, vector // 2, spec)
        if len(fewer) >= len(plans):
            break
        plans, vector = fewer, vector // 2
    return [Route(plan, by_channels, vector) for plan in plans]


def channel_block(by_channels: bool, vector: int, spec: KernelSpec) -> int:
    """Return how many channels a thread block takes."""
    return _CHANNEL_VECTORS * vector if by_channels and not spec.sums else CHANNEL_BLOCK


def block_shape(route: Route, width: int) -> tuple[int, int]:
    """Return the threads of a block that takes maxima of maps up to `width`.

    The first number is along vectors of channels, or along a row. The second is over tiles, or over
    channels and bands.
    """
    along = _CHANNEL_VECTORS if route.by_channels else min(-(-width // route.vector), _ROW_THREADS)
    return along, THREADS // along


def blocks_for(elements: int) -> int:
    """Return the blocks of a kernel that has a thread for each element of the result."""
    return min(-(-elements // THREADS), MOST_BLOCKS)


def leaves_in_place(aggregate: Aggregate) -> bool:
    """Return whether the regional vectors are the descriptors, and no sum of them is."""
    match aggregate:
        case Aggregate.NONE | Aggregate.CONCAT:
            return True
        case Aggregate.SUM | Aggregate.MEAN:
            return False
        case unknown:
            assert_never(unknown)


def _widest_vector(x: Array, axis: int) -> int:
    """Return the most elements along an axis that one load takes, if all loads are aligned."""
    if x.strides[axis] != x.itemsize:
        return 1
    steps = [
        stride
        for i, (length, stride) in enumerate(zip(x.shape, x.strides, strict=True))
        if i != axis and length > 1
    ]
    aligned = math.gcd(x.shape[axis] * x.itemsize, x.data.ptr, *steps)
    vector: int = _WIDEST_LOAD // x.itemsize
    while vector > 1 and aligned % (vector * x.itemsize):
        vector //= 2
    return vector


def _plans(
    boxes: npt.NDArray[np.int64], by_channels: bool, vector: int, spec: KernelSpec
) -> tuple[Plan, ...]:
    """Return plans with tiles that fit in shared memory, for all channels of a thread block."""
    channels = channel_block(by_channels, vector, spec)
    return region_plans(boxes.tobytes(), _SHARED_MEMORY // (channels * spec.tile.itemsize))
