"""Which kernel pools a batch, how wide its loads are, and how many threads and channels it takes.

The constants that decide this stand here. Where one says "not measured", other values were not
tried on a GPU.
"""

from __future__ import annotations

import math
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple, assert_never

import numpy as np

from rmac._caches import cached
from rmac._dtypes import DTYPES, Kind
from rmac._options import Aggregate, Pool, PoolingOptions
from rmac.cuda.c_types import c_name, kernel_types
from rmac.cuda.plan import Plan, region_plans

Array = Any  # cupy.ndarray

# Shares below are of the rate of a copy, on an H100 with float32 maps.
# The channel block of pool_rows and pool_means. With float32 keys, shared memory holds 722 tiles of
# 16 channels. 64 maps of 24x32: 8, 16 and 32 channels 0.90; 256 of 14x14: 0.62, 0.64, 0.69.
CHANNEL_BLOCK = 16
# The channel block of pool_channels, in vectors. 64 maps of 24x32: 4 vectors 0.79, 8 0.90, 16 0.93,
# 32 0.92. The number is halved while there are fewer blocks than two for each multiprocessor: one
# map of 24x32 takes 8.3 us with 4 vectors, and 11.8 us with 16.
_CHANNEL_VECTORS, _LEAST_VECTORS, _FEW_BLOCKS = 16, 4, 264
# The most threads of a block that pools. 256 maps of 7x7: 128 threads 0.68, 256 0.72, 512 0.56.
THREADS = 256
_ROW_THREADS = 64  # the most threads of pool_rows that read one row; not measured
# The largest plane for pool_planes in bytes, and how many planes a lane may take, best first. 256
# maps of 7x7: 2 planes 0.67, 4 0.72; without pool_planes it was 0.23.
_LARGEST_PLANE = 1024
_PLANES_OF_LANE = (4, 2, 1)
# An image's descriptor is made by one block of `describe`, where no block that pools does it. When
# `describe` squared all vectors itself: 64 and 256 images of 2048 channels, pooled from 24x32
# and 7x7: 256 threads 0.72 and 0.42, 512 0.77 and 0.47, 1024 0.80 and 0.43.
DESCRIBE_THREADS = 1024
DESCRIBE_SHARED = 4112  # bytes of shared memory of a block that describes an image
# Channels whose squares are summed first, by one block. Channel blocks are multiples of it.
NORM_GROUP = 16
# From so many images on, the block that pools the last channels of an image describes it, while
# others pool. Fewer are described by a kernel of its own, with more threads for an image. By
# analysis: the first is quicker where images outnumber multiprocessors. Not measured.
MANY_IMAGES = 128
WARP = 32  # threads, on every device

WIDEST_LOAD = 16  # bytes; there is no wider instruction
_MOST_ELEMENTS = 8  # of one load; with 16 keys a thread does not find room for several loads
SHARED_MEMORY = 48 << 10  # bytes that a block has on every device
MOST_BLOCKS = 1 << 30  # of one launch; CUDA's limit is 2**31 - 1, and kernels count blocks in int


class KernelSpec(NamedTuple):
    """How the kernels pool the values of a dtype."""

    kind: Kind
    itemsize: int  # of the map
    sums: bool  # or maxima
    p: float  # the power that is summed, 0 for the values themselves
    zero_point: int  # of integers, the value that stands for 0
    tile: np.dtype[Any]  # one tile's maximum, as a key, or its sum
    out: np.dtype[Any]  # of the results; maxima of the map's dtype are written as their bits


class Form(StrEnum):
    """The kernels that pool maxima, by how they go through a map."""

    ROWS = "pool_rows"
    CHANNELS = "pool_channels"
    PLANES = "pool_planes"


class Route(NamedTuple):
    """How the kernels reach some regions of a batch."""

    plan: Plan
    form: Form  # sums have one kernel, which knows rows and channels
    vector: int  # elements of one load
    channels: int  # the channel block
    shared: int  # bytes of shared memory for the tiles, and for the planes of PLANES


@lru_cache(maxsize=1024)
def kernel_spec(dtype: np.dtype[Any], pooling: PoolingOptions, out: np.dtype[Any]) -> KernelSpec:
    """Return how the kernels pool values of a dtype into results of the dtype `out`."""
    info = DTYPES[dtype.name]
    types = kernel_types(info)
    match pooling.pool:
        case Pool.MAX:
            result = types.bits if out == dtype else types.real
            return KernelSpec(
                info.kind, info.itemsize, False, 0.0, pooling.zero_point, types.key, result
            )
        case Pool.MEAN | Pool.GEM:
            sums = types.real if pooling.sums_in_float32 else np.dtype(np.float64)
            return KernelSpec(
                info.kind, info.itemsize, True, pooling.p, pooling.zero_point, sums, types.real
            )
        case unknown:
            assert_never(unknown)


@cached(lambda routes: sum(route.plan.words.nbytes for route in routes))
def region_routes(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    misalignment: int,
    boxes: bytes,
    images: int,
    spec: KernelSpec,
) -> tuple[Route, ...]:
    """Choose the kernel and the width of its loads; the one place where that is decided.

    The maps are at an address that is so many bytes beyond the widest alignment: `misalignment`.
    The call pools at least so many `images`, those of other batches too.

    Threads lie along channels if these are contiguous, else along rows. Loads are as wide as
    alignment allows. Narrower loads make a smaller channel block, so that shared memory holds more
    tiles; they are taken if the regions then need fewer plans, since each plan reads the map.
    """
    by_channels = strides[1] == spec.itemsize and shape[1] > 1
    form = Form.CHANNELS if by_channels else Form.ROWS
    vector = 1
    if not spec.sums:
        axis = 1 if by_channels else 3
        vector = _widest_vector(shape, strides, misalignment, spec.itemsize, axis)
        if vector == 1 and not by_channels:
            route = _route_of_planes(shape, strides, misalignment, boxes, spec)
            if route is not None:
                return (route,)
    if spec.sums or not by_channels:
        return _routes_of_channels(boxes, form, vector, CHANNEL_BLOCK, spec)
    lanes = _CHANNEL_VECTORS
    while lanes > _LEAST_VECTORS and images * -(-shape[1] // (lanes * vector)) < _FEW_BLOCKS:
        lanes //= 2
    routes = _routes_of_channels(boxes, form, vector, lanes * vector, spec)
    while vector > 1:
        narrower = _routes_of_channels(boxes, form, vector // 2, lanes * vector // 2, spec)
        if len(narrower) >= len(routes):
            break
        routes, vector = narrower, vector // 2
    return routes


def _routes_of_channels(
    boxes: bytes, form: Form, vector: int, channels: int, spec: KernelSpec
) -> tuple[Route, ...]:
    """Return routes with tiles that fit in shared memory, for all channels of a thread block."""
    width, spare = channels, 0
    if not spec.sums and form is Form.ROWS:
        width, spare = channels + 1, 1  # as pool_rows has it
    tile = width * spec.tile.itemsize
    return tuple(
        Route(plan, form, vector, channels, plan.tiles * tile)
        for plan in region_plans(boxes, SHARED_MEMORY // tile, spare)
    )


def _route_of_planes(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    misalignment: int,
    boxes: bytes,
    spec: KernelSpec,
) -> Route | None:
    """Return the route of small packed planes; None if they are none, or shared memory is short."""
    images, channels, height, width = shape
    size = spec.itemsize
    plane = height * width * size
    packed = strides[1:] == (plane, width * size, size)
    aligned = math.gcd(misalignment, strides[0] if images > 1 else 0, WARP * plane) % WIDEST_LOAD
    if not packed or aligned or plane > _LARGEST_PLANE or not height * width % 2:
        return None
    (plan, *more) = region_plans(boxes, SHARED_MEMORY // (WARP * spec.tile.itemsize), 0)
    for many in _PLANES_OF_LANE:
        shared = WARP * many * (plan.tiles * spec.tile.itemsize + plane)
        if not more and shared <= SHARED_MEMORY and (many == 1 or channels > WARP * many // 2):
            return Route(plan, Form.PLANES, WIDEST_LOAD // size, WARP * many, shared)
    return None


def kernel_name(route: Route, spec: KernelSpec) -> str:
    """Return the kernel of a route, with its template arguments."""
    many = route.channels // WARP if route.form is Form.PLANES else route.vector
    return _kernel_name(route.form, many, spec)


@lru_cache(maxsize=1024)
def _kernel_name(form: Form, many: int, spec: KernelSpec) -> str:
    kind, result = spec.kind.name, c_name(spec.out)
    if spec.sums:
        return f"pool_means<{kind}, {c_name(spec.tile)}, {result}>"
    return f"{form}<{kind}, {many}, {result}>"


def block_shape(route: Route, spec: KernelSpec, height: int, width: int) -> tuple[int, int]:
    """Return the threads of a block for maps of up to this size.

    The first number is along vectors of channels, or along a row. The second is over rows, or over
    channels. A warp at least, since warps sum squares.
    """
    if spec.sums or route.form is Form.PLANES:
        return THREADS, 1
    if route.form is Form.CHANNELS:
        lanes = route.channels // route.vector
        rounds = -(-height * lanes // THREADS)
        return lanes, max(-(-height // rounds), WARP // lanes)
    along = min(-(-width // route.vector), _ROW_THREADS)
    return along, min(max(CHANNEL_BLOCK, WARP // along), THREADS // along)


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


def _widest_vector(
    shape: tuple[int, ...], strides: tuple[int, ...], misalignment: int, size: int, axis: int
) -> int:
    """Return the most elements along an axis that one load takes, if all loads are aligned."""
    if strides[axis] != size:
        return 1
    steps = [
        stride
        for i, (length, stride) in enumerate(zip(shape, strides, strict=True))
        if i != axis and length > 1
    ]
    aligned = math.gcd(shape[axis] * size, misalignment, *steps)
    vector = min(WIDEST_LOAD // size, _MOST_ELEMENTS)
    while vector > 1 and aligned % (vector * size):
        vector //= 2
    return vector
