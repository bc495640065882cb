"""How a batch goes through the kernels: the choice of path, channel blocks and threads."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, assert_never

import numpy as np

from rmac._dtypes import DTYPES, Kind
from rmac._options import Pool, PoolingOptions
from rmac.cpu.isa import kernels, second_level_cache
from rmac.cpu.plan import region_plan
from rmac.cpu.tables import LINE_BYTES, KernelSpec, Path, Route
from rmac.cpu.threads import default_workers, workers_for

if TYPE_CHECKING:
    from rmac.cpu.tables import Plan

# CONSTANTS

# Bytes of workspace that stay in the second-level cache: not all, as the map passes through it too.
_CACHE = second_level_cache() * 3 // 4

# PLANES or ROWS. Cells of a plane up to which it is transposed whole, and the same where a row
# fills less than `_WIDE_ROW` of a line. Rows that fill less than `_NARROW_ROW` of a line are
# transposed whole in planes of any size.
_SMALL_PLANE = 128
_SMALL_PLANE_OF_NARROW_ROWS = 512
_WIDE_ROW = 7 / 8
_NARROW_ROW = 1 / 2

# ROWS or GATHER. The least part of a line that a row must fill to be read as a whole line.
_SHORTEST_ROW = 1 / 4

# CHANNELS or GATHER. Pixels that fill more than this part of one line are copied to a whole line.
_ALMOST_A_LINE = 3 / 4

# Workspace of one line of lanes, in caches, up to which PLANES and ROWS are possible.
_MOST_OF_PLANES = 1.0
_MOST_OF_ROWS = 4.0

# Lanes of a task: as many lines as fit so much workspace, in caches or in bytes; of ROWS and
# PLANES never more than `_MOST_LINES`.
_BLOCK_OF_CHANNELS = 6.0
_BLOCK_OF_ROWS = 1 / 4
_BLOCK_OF_PLANES = 48 << 10
_MOST_LINES = 4

# Tasks for each thread, at least.
_TASKS_PER_THREAD = 2

# Intervals of all bands, in vectors, that CHANNELS and GATHER keep to the end.
_MOST_BANDS = 4096

# Bytes between what is read and what is prefetched.
_PREFETCH = 1 << 16

# Bytes of maps that are worth a thread.
_SMALL_TASK = 1 << 16

# Bytes of maps that are pooled while OpenMP's threads wait busily for more work.
_BUSY_WAIT = 1 << 26


@lru_cache(maxsize=1024)
def kernel_spec(dtype: np.dtype[Any], pooling: PoolingOptions) -> KernelSpec:
    """Return how the kernels pool values of a dtype."""
    info = DTYPES[dtype.name]
    bits = np.dtype(f"int{8 * info.itemsize}")
    match pooling.pool:
        case Pool.MAX:
            sums, shift, itemsize = False, info.key_shift, info.itemsize
        case Pool.MEAN | Pool.GEM:
            in_float32 = pooling.sums_in_float32 and info.kind is not Kind.FLOAT64
            sums, shift, itemsize = True, 0, 4 if in_float32 else 8
        case unknown:
            assert_never(unknown)
    return KernelSpec(bits, info.kind, sums=sums, p=pooling.p, shift=shift, itemsize=itemsize)


@lru_cache(maxsize=1024)
def region_route(
    boxes: bytes, shape: tuple[int, ...], strides: tuple[int, ...], spec: KernelSpec, threads: int
) -> Route:
    """Return how maps of these sizes and strides are read, to pool the regions `boxes`."""
    plan = region_plan(boxes, *shape[2:], overlapping=not spec.sums)
    return route_of(plan, shape, strides, spec, threads)


def route_of(
    plan: Plan, shape: tuple[int, ...], strides: tuple[int, ...], spec: KernelSpec, threads: int
) -> Route:
    """Return how maps of these sizes and strides are read, to pool the regions of a plan."""
    path = _path(plan, shape, strides, spec)
    return _route(plan, path, _lanes(plan, shape, spec, path, threads))


def threads_for(workers: int | None, size: int) -> int:
    """Return how many threads `size` bytes of maps are worth."""
    most = size // _SMALL_TASK
    return min(workers_for(workers), most) if most > 1 else 1


def workers_before_product(workers: int | None, size: int) -> int | None:
    """Return the `workers` to pool so many bytes of maps with before a BLAS multiplies.

    OpenMP's threads wait busily for milliseconds when they are done, on CPUs that the BLAS needs.
    So unless workers are asked for, there is one, or all if they save more time than that.
    """
    if workers is None and (default_workers() - 1) * size < _BUSY_WAIT:
        return 1
    return workers


def _path(plan: Plan, shape: tuple[int, ...], strides: tuple[int, ...], spec: KernelSpec) -> Path:
    """Choose the path; no other place chooses it.

    CHANNELS is best, if the channels of a pixel are contiguous. If rows are contiguous instead,
    ROWS combines them before it transposes, so that little is transposed. PLANES transposes first,
    which is better for small planes and narrow rows: there is little to combine. Both need
    workspace for all intervals of rows, which may be very many for a user's boxes. GATHER takes
    all else: any strides, and rows too short for vectors. It is slow.
    """
    _, channels, height, width = shape
    _, channel_stride, row_stride, pixel_stride = strides
    itemsize, line = spec.bits.itemsize, spec.line
    if channel_stride == itemsize and channels > 1:
        almost_a_line = _ALMOST_A_LINE * line < channels < line
        return Path.GATHER if almost_a_line else Path.CHANNELS
    if pixel_stride == itemsize:
        if _planes_are_better(shape, strides, spec) and _fits(
            plan, Path.PLANES, spec, _MOST_OF_PLANES
        ):
            return Path.PLANES
        # A row shorter than a line is read as a whole line, which must end inside the next plane.
        # Rows that are summed are copied first.
        nested = row_stride >= width * itemsize and channel_stride >= height * row_stride
        readable = (nested and channel_stride + width * itemsize >= LINE_BYTES) or spec.sums
        rows = width >= line or (readable and width >= _SHORTEST_ROW * line)
        if rows and _fits(plan, Path.ROWS, spec, _MOST_OF_ROWS):
            return Path.ROWS
    return Path.GATHER


def _planes_are_better(shape: tuple[int, ...], strides: tuple[int, ...], spec: KernelSpec) -> bool:
    """Return whether contiguous rows are better transposed before they are combined, if at all."""
    _, channels, height, width = shape
    _, channel_stride, row_stride, _ = strides
    itemsize, line = spec.bits.itemsize, spec.line
    if row_stride != width * itemsize or channel_stride != height * row_stride or channels < line:
        return False  # transposition needs whole planes, a line's worth of them
    most = _SMALL_PLANE if width >= _WIDE_ROW * line else _SMALL_PLANE_OF_NARROW_ROWS
    return height * width <= most or width < _NARROW_ROW * line


def _fits(plan: Plan, path: Path, spec: KernelSpec, caches: float) -> bool:
    """Return whether the workspace of one line of lanes is at most so many caches."""
    return _workspace_of_line(plan, path, spec) <= caches * _CACHE


def _lanes(plan: Plan, shape: tuple[int, ...], spec: KernelSpec, path: Path, threads: int) -> int:
    """Choose how many channels a task takes, in whole lines.

    The longer a contiguous part of a pixel, the faster it is read. So blocks of CHANNELS are long:
    their workspace may exceed the cache, since most of it is written once and read once. Blocks of
    ROWS and PLANES are a few lines, which divides the fixed cost of a task among more channels.
    The blocks of PLANES have the least workspace, since all values go through it.
    """
    line = spec.line
    images, channels = shape[:2]
    if path == Path.GATHER:
        return line
    workspace = _workspace_of_line(plan, path, spec)
    match path:
        case Path.CHANNELS:
            lines = int(_BLOCK_OF_CHANNELS * _CACHE) // workspace
        case Path.ROWS:
            lines = min(int(_BLOCK_OF_ROWS * _CACHE) // workspace, _MOST_LINES)
        case Path.PLANES:
            lines = min(_BLOCK_OF_PLANES // workspace, _MOST_LINES)
        case unknown:
            assert_never(unknown)
    lines = max(lines, 1)
    blocks = max(-(-channels // (lines * line)), -(-_TASKS_PER_THREAD * threads // images))
    lanes = _even_lanes(channels, blocks, line)
    if path == Path.PLANES and lanes > channels:  # there are no further channels to transpose
        lanes = _even_lanes(channels, blocks + 1, line)
    return lanes


def _even_lanes(channels: int, blocks: int, line: int) -> int:
    """Return the whole lines that each of so many channel blocks takes."""
    lanes = -(-channels // blocks)
    return lanes + -lanes % line


def _route(plan: Plan, path: Path, lanes: int) -> Route:
    keep_bands = plan.n_band_vectors <= _MOST_BANDS
    return Route(plan, path, lanes, keep_bands=keep_bands, prefetch=_PREFETCH)


def _workspace_of_line(plan: Plan, path: Path, spec: KernelSpec) -> int:
    """Return the bytes of workspace for one line of lanes."""
    return kernels.workspace_bytes(_route(plan, path, spec.line), spec)
