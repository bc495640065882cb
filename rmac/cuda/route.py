"""Which kernel pools a batch, how wide its loads are, and how many threads and channels it takes.

The constants that decide this stand here, with the measurements that chose them. "Not measured"
means that no other value was tried on a GPU.
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
from rmac.cuda.plan import Plan, chunk_width, region_plans

Array = Any  # cupy.ndarray

# Numbers such as 0.90 are the column "of copy" of bench/gpu.py: the bytes of maps that are read in
# a second, divided by the bytes that a copy on the device reads and writes in a second. They are of
# an H100 and float32 maps.

# The channel block of pool_rows. With keys of 32 bits, shared memory holds 722 tiles of it.
# 64 maps of 24x32: 8, 16 and 32 channels 0.90. 256 of 14x14: 8 channels 0.62, 16 0.64, 32 0.69.
CHANNEL_BLOCK = 16

# The channel block of pool_channels, in vectors of one load.
# 64 maps of 24x32: 4 vectors 0.79, 8 0.90, 16 0.93, 32 0.92.
_CHANNEL_VECTORS = 16
# It is halved, but not below the least, while a launch has fewer blocks than this: two for each
# multiprocessor of an H100.
# One map of 24x32: 8.3 us with 4 vectors, 11.8 us with 16.
_LEAST_VECTORS, _FEW_BLOCKS = 4, 264

# The most threads of a block that pools.
# 256 maps of 7x7: 128 threads 0.68, 256 0.72, 512 0.56.
THREADS = 256
_ROW_THREADS = 64  # the most threads of pool_rows that read one row; not measured

# The largest plane for pool_planes, in bytes; not measured.
_LARGEST_PLANE = 1024
# How many planes a lane may take, best first.
# 256 maps of 7x7: 2 planes 0.67, 4 0.72; without pool_planes 0.23.
_PLANES_OF_LANE = (4, 2, 1)
_PLANES_OF_SUMS = (4, 1)  # the same for sums; not measured, and others would be more kernels

# The threads of `describe`, one block for each image.
# 64 images of 2048 channels, pooled from 24x32: 256 threads 0.72, 512 0.77, 1024 0.80. 256 images,
# pooled from 7x7: 0.42, 0.47, 0.43. At that time `describe` squared all vectors itself.
DESCRIBE_THREADS = 1024
DESCRIBE_SHARED = 4112  # bytes of shared memory of a block that describes an image
# The channels whose squares are summed first, before these sums are added; not measured. The blocks
# that pool sum them if the channel block is a multiple of this and one plan has all regions. Else
# `describe` sums them.
NORM_GROUP = 16
# In calls of this many images or more, the block that pools the last channels of an image also
# describes it, while other blocks still pool. In other calls `describe` follows, with more threads
# for each image. Not measured: the first should be faster where images outnumber multiprocessors.
MANY_IMAGES = 128

# The most tiles of a plan for sums. Shared memory has room for these on each path, with a channel
# block of some size. It is one number for all paths and loads, since sums depend on the plan.
_MOST_SUMS = 360
# Elements of one load of pool_rows for sums, if the widest is not aligned. 4 are for 16-bit maps
# with 20 or 28 columns; not measured.
_ROWS_OF_SUMS = (4, 1)
# Powers up to this one, if whole, are products; not measured.
_MOST_FACTORS = 6

WARP = 32  # threads, on every device
WIDEST_LOAD = 16  # bytes; no instruction loads more
_MOST_ELEMENTS = 8  # of one load; with 16, a thread has no registers for several loads
SHARED_MEMORY = 48 << 10  # bytes that a block has on every device
MOST_BLOCKS = 1 << 30  # of one launch; CUDA's limit is 2**31 - 1, and kernels count blocks in int


class KernelSpec(NamedTuple):
    """How the kernels pool the values of a dtype."""

    kind: Kind
    value_bytes: int  # of an element of the map
    sums: bool  # whether values are summed; else their maximum is taken
    p: float  # the power of the values that is summed, 0 for the values themselves
    zero_point: int  # of integers, the value that stands for 0
    partial: np.dtype[Any]  # what a tile is reduced to: a key or a sum
    out: np.dtype[Any]  # of the results; maxima of the map's dtype are written as their bits

    @property
    def operation(self) -> str:
        """The C++ type of the operation: see operations.cu."""
        if not self.sums:
            return f"Maximum<{self.kind.name}>"
        name = "PowerMean" if self.is_arithmetic else "Mean"
        return f"{name}<{self.kind.name}, {c_name(self.partial)}>"

    @property
    def factors(self) -> int:
        """How many factors the power has if it is a product, else 0."""
        return int(self.p) if self.p <= _MOST_FACTORS and self.p == int(self.p) else 0

    @property
    def is_arithmetic(self) -> bool:
        """Whether loads take little of the time: powers that are no products, or in wider sums."""
        wider = self.partial.itemsize > max(self.value_bytes, 4)
        return self.p > 0 and (wider or not self.factors)

    @property
    def widest_load(self) -> int:
        """The most elements of one load."""
        return 1 if self.is_arithmetic else min(WIDEST_LOAD // self.value_bytes, _MOST_ELEMENTS)


class Path(StrEnum):
    """How a kernel goes through a map. The values are the kernels."""

    ROWS = "pool_rows"
    CHANNELS = "pool_channels"
    PLANES = "pool_planes"


class Route(NamedTuple):
    """How the kernels reach some regions of a batch."""

    plan: Plan
    path: Path
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
    """Choose the kernel of regions and the width of its loads; no other place chooses them.

    `misalignment` is the address of the maps modulo `WIDEST_LOAD`. `images` is the number of images
    in all batches of the call, rounded down: see `_routes` in `launches.py`.

    Neighbouring threads take neighbouring channels if these are contiguous, else neighbouring cells
    of a row. Loads are as wide as alignment allows. Those of maxima are narrower if the regions
    then need fewer plans.
    """
    by_channels = strides[1] == spec.value_bytes and shape[1] > 1
    path = Path.CHANNELS if by_channels else Path.ROWS
    axis = 1 if by_channels else 3
    vector = widest_vector(shape, strides, misalignment, spec.value_bytes, axis)
    vector = min(vector, spec.widest_load)
    if path is Path.ROWS and vector == 1:
        route = _route_of_planes(shape, strides, misalignment, boxes, spec)
        if route is not None:
            return (route,)
    if spec.sums:
        return _routes_of_sums(shape, path, vector, boxes, images, spec)
    if path is Path.CHANNELS:
        return _routes_of_channels(shape[1], vector, boxes, images, spec)
    return _routes_of_block(boxes, path, vector, CHANNEL_BLOCK, spec)


def _routes_of_sums(
    shape: tuple[int, ...], path: Path, vector: int, boxes: bytes, images: int, spec: KernelSpec
) -> tuple[Route, ...]:
    """Return routes of pool_rows or pool_channels for sums.

    Loads have few widths, to have fewer kernels. If the tiles do not fit in shared memory, the
    channel block is halved.
    """
    narrower = _ROWS_OF_SUMS if path is Path.ROWS else (1,)
    vector = next(width for width in (spec.widest_load, *narrower) if vector % width == 0)
    plans = _plans_of_sums(boxes, shape[3])
    channels, tile_bytes = CHANNEL_BLOCK, (CHANNEL_BLOCK + 1) * spec.partial.itemsize
    if path is Path.CHANNELS:
        channels = vector * _vectors_of_block(shape[1], vector, images)
        most = max(plan.tiles for plan in plans)
        while most * channels * spec.partial.itemsize > SHARED_MEMORY:
            channels //= 2
        tile_bytes = channels * spec.partial.itemsize
    return tuple(Route(plan, path, vector, channels, plan.tiles * tile_bytes) for plan in plans)


def _plans_of_sums(boxes: bytes, width: int) -> tuple[Plan, ...]:
    return region_plans(boxes, _MOST_SUMS, 0, width)


def _vectors_of_block(channels: int, vector: int, images: int) -> int:
    """Return the channel block of pool_channels, in vectors."""
    vectors = _CHANNEL_VECTORS
    while vectors > _LEAST_VECTORS and images * -(-channels // (vectors * vector)) < _FEW_BLOCKS:
        vectors //= 2
    return vectors


def _routes_of_channels(
    channels: int, vector: int, boxes: bytes, images: int, spec: KernelSpec
) -> tuple[Route, ...]:
    """Return routes of pool_channels for maxima, with loads of `vector` elements or narrower ones.

    With narrower loads the channel block is smaller, and shared memory holds more tiles. So the
    regions may need fewer plans, and each plan reads the map once.
    """
    vectors = _vectors_of_block(channels, vector, images)
    routes = _routes_of_block(boxes, Path.CHANNELS, vector, vectors * vector, spec)
    while vector > 1:
        vector //= 2
        narrower = _routes_of_block(boxes, Path.CHANNELS, vector, vectors * vector, spec)
        if len(narrower) >= len(routes):
            break
        routes = narrower
    return routes


def _routes_of_block(
    boxes: bytes, path: Path, vector: int, channels: int, spec: KernelSpec
) -> tuple[Route, ...]:
    """Return routes for maxima by blocks of so many channels, whose tiles fit in shared memory."""
    width, spare = channels, 0
    if path is Path.ROWS:
        width, spare = channels + 1, 1  # TILE_PITCH and find_offsets() in regions.cu
    tile_bytes = width * spec.partial.itemsize
    return tuple(
        Route(plan, path, vector, channels, plan.tiles * tile_bytes)
        for plan in region_plans(boxes, SHARED_MEMORY // tile_bytes, spare)
    )


def _route_of_planes(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    misalignment: int,
    boxes: bytes,
    spec: KernelSpec,
) -> Route | None:
    """Return the route for small packed planes; None for others, or if shared memory is too small.

    pool_planes copies the planes of a channel block with the widest loads. Then the lanes of a warp
    read the same cell of neighbouring planes: from different banks if planes have an odd number of
    cells.
    """
    images, channels, height, width = shape
    size = spec.value_bytes
    plane = height * width * size
    packed = strides[1:] == (plane, width * size, size)
    alignment = math.gcd(misalignment, strides[0] if images > 1 else 0, WARP * plane)
    odd = height * width % 2 == 1
    if not packed or not odd or plane > _LARGEST_PLANE or alignment % WIDEST_LOAD:
        return None
    if spec.is_arithmetic:  # there is no such kernel
        return None
    if spec.sums:
        plan, *more = _plans_of_sums(boxes, width)
    else:
        plan, *more = region_plans(boxes, SHARED_MEMORY // (WARP * spec.partial.itemsize), 0)
    if more:
        return None
    for many in _PLANES_OF_SUMS if spec.sums else _PLANES_OF_LANE:
        shared = WARP * many * (plan.tiles * spec.partial.itemsize + plane)
        enough = many == 1 or channels > WARP * many // 2  # else half of the lanes would be idle
        if enough and shared <= SHARED_MEMORY:
            return Route(plan, Path.PLANES, WIDEST_LOAD // size, WARP * many, shared)
    return None


def kernel_name(route: Route, spec: KernelSpec) -> str:
    """Return the kernel of a route, with its template arguments."""
    many = route.channels // WARP if route.path is Path.PLANES else route.vector
    return _kernel_name(route.path, many, spec)


@lru_cache(maxsize=1024)
def _kernel_name(path: Path, many: int, spec: KernelSpec) -> str:
    return f"{path}<{spec.operation}, {many}, {c_name(spec.out)}>"


def block_shape(route: Route, spec: KernelSpec, height: int, width: int) -> tuple[int, int]:
    """Return the threads of a block, along x and y, for maps of up to this size.

    With CHANNELS, x is over vectors of channels, and y over rows, or over chunks of columns. With
    ROWS, x is along a row and y over channels. A block has at least a whole warp, which sums
    squares.
    """
    if route.path is Path.PLANES:
        return THREADS, 1
    if route.path is Path.CHANNELS:
        vectors = route.channels // route.vector
        lines = -(-width // chunk_width(width)) if spec.sums else height
        rounds = -(-lines * vectors // THREADS)
        return vectors, max(-(-lines // rounds), WARP // vectors)
    columns = max(chunk_width(width), route.vector) if spec.sums else route.vector
    along = min(-(-width // columns), _ROW_THREADS)
    return along, min(max(CHANNEL_BLOCK, WARP // along), THREADS // along)


def blocks_for(elements: int) -> int:
    """Return the blocks of a kernel whose threads take one element of the result at a time."""
    return min(-(-elements // THREADS), MOST_BLOCKS)


def leaves_in_place(aggregate: Aggregate) -> bool:
    """Return whether descriptors are the regional vectors themselves, not a sum of them."""
    match aggregate:
        case Aggregate.NONE | Aggregate.CONCAT:
            return True
        case Aggregate.SUM | Aggregate.MEAN:
            return False
        case unknown:
            assert_never(unknown)


def widest_vector(
    shape: tuple[int, ...], strides: tuple[int, ...], misalignment: int, size: int, axis: int
) -> int:
    """Return the most elements along an axis that one load can take so that all are aligned.

    `size` is the bytes of an element.
    """
    if strides[axis] != size:
        return 1
    steps = [
        stride
        for i, (length, stride) in enumerate(zip(shape, strides, strict=True))
        if i != axis and length > 1
    ]
    alignment = math.gcd(shape[axis] * size, misalignment, *steps)
    vector = min(WIDEST_LOAD // size, _MOST_ELEMENTS)
    while vector > 1 and alignment % (vector * size):
        vector //= 2
    return vector
