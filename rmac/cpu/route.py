"""How a batch goes through the kernels: the choice of path, channel blocks and threads."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, assert_never

from rmac._caches import cached
from rmac._dtypes import DTYPES, Kind
from rmac._options import Pool, PoolingOptions
from rmac.cpu.isa import kernels, second_level_cache
from rmac.cpu.plan import region_plan
from rmac.cpu.tables import LINE_BYTES, KernelSpec, Path, Route
from rmac.cpu.threads import default_workers, workers_for

if TYPE_CHECKING:
    import numpy as np

    from rmac.cpu.tables import Plan

# The constants that decide a path. `python bench/constants.py --only NAME` repeats a measurement.
# A pair of numbers, such as 1.09, 1.00, is the time at a quarter and at four times the value, each
# divided by the time at the value itself, to about 0.05. They are of one thread on Zen 5 with
# AVX-512, and of float32 and NCHW unless told otherwise. tests/test_route.py fails if a constant
# becomes a quarter or four times of itself.

# Bytes of workspace that stay in the second-level cache: less than all, as maps use it too.
# 1x512x48x64 NHWC with 40 random boxes: 1.09, 1.00.
_CACHE = second_level_cache() * 3 // 4

# PLANES or ROWS: cells of a plane up to which it is transposed whole.
# A quarter takes ROWS for 16x2048x8x14: 1.18. Four times takes PLANES for 16x2048x14x14: 1.65.
_SMALL_PLANE = 128
# The same where rows fill less than `_WIDE_ROW` of a line.
# A quarter takes ROWS for 16x2048x13x13: 1.01. Four times takes PLANES for 16x1024x60x12: 1.32.
_SMALL_PLANE_OF_NARROW_ROWS = 512
# A quarter takes ROWS for 16x2048x13x13 too: 1.01. Four times takes PLANES for 16x2048x14x14: 1.72.
_WIDE_ROW = 7 / 8
# Rows that fill less of a line than this are transposed whole, in planes of any size.
# A quarter takes ROWS for 8x1024x80x7: 1.12. Four times takes PLANES for 16x1024x24x28: 1.70.
_NARROW_ROW = 1 / 2

# ROWS or GATHER: rows that fill at least this part of a line are read as whole lines.
# Views of 8x512x24x32. A quarter takes ROWS for 2 columns: 1.80. Four times takes GATHER for 8:
# 1.62.
_SHORTEST_ROW = 1 / 4

# CHANNELS or GATHER: pixels that fill more than this part of one line are copied to a whole line.
# A quarter takes GATHER for 64x8x24x32 NHWC: 1.61. Four times takes CHANNELS for 64x56x24x32 NHWC
# of uint8: 1.72.
_ALMOST_A_LINE = 3 / 4

# The workspace of one line of lanes up to which PLANES may be taken, as a multiple of `_CACHE`.
# 40 random boxes. A quarter takes ROWS for 2x512x1000x6: 0.80, so less might do. Four times takes
# PLANES for 1x256x4000x6: 1.86.
_LINE_WORKSPACE_OF_PLANES = 1.0
# The same of ROWS. It may be more, as most of it is written once and read once.
# 1x512x48x64. A quarter takes GATHER for 300 random boxes: 3.17. Four times takes ROWS for 2000:
# 0.19, so more might do.
_LINE_WORKSPACE_OF_ROWS = 4.0

# The workspace of a channel block, which has as many lines of lanes as fit. It is a multiple of
# `_CACHE` for CHANNELS and ROWS, and in bytes for PLANES.
# 1x512x48x64 NHWC with 40 random boxes: 1.08, 1.01.
_BLOCK_WORKSPACE_OF_CHANNELS = 6.0
# 4x512x48x64: 1.04, 1.03. So it decides little; it bounds the workspace of a thread.
_BLOCK_WORKSPACE_OF_ROWS = 1 / 4
# 16x2048x20x12: 0.64, 1.01. 64x2048x7x7: 1.17, 0.99.
_BLOCK_WORKSPACE_OF_PLANES = 48 << 10
# The most lines of a channel block of ROWS or PLANES.
# 64x2048x7x7: 1.54, 1.36. 16x2048x14x14: 1.07, 1.05.
_MOST_LINES = 4

# The fewest tasks for each thread, so that no thread is left without work. With two threads, a
# quarter leaves all of 1x2048x24x32 NHWC to one of them.
_TASKS_PER_THREAD = 2

# Intervals of all bands, in vectors, that CHANNELS and GATHER keep to the end.
# 1x512x48x64 NHWC. A quarter with 40 random boxes: 1.00. Four times with 200: 1.12.
_MOST_BAND_VECTORS = 4096

# Bytes between what is read and what is prefetched: some rows or planes ahead, little of the cache.
# 8x2048x24x32: 0.95, 0.98; NHWC: 1.04, 0.99.
_PREFETCH = 1 << 16

# Bytes of maps that are worth a thread. Two threads, on a machine that may have had other work.
# 1x512x7x7: 8.93, 0.99. 1x512x14x14: 1.11, 1.32.
_SMALL_TASK = 1 << 16

# Bytes of maps that one thread pools in the time that OpenMP's threads wait busily for more work.
# Whitening on a machine with other work. A quarter takes two threads for 4x2048x24x32: 1.4. Four
# times takes one thread for 16x2048x24x32: 0.8. Not measured on an idle machine.
_BUSY_WAIT = 1 << 26


@lru_cache(maxsize=1024)
def kernel_spec(dtype: np.dtype[Any], pooling: PoolingOptions) -> KernelSpec:
    """Return how the kernels pool values of a dtype."""
    info = DTYPES[dtype.name]
    match pooling.pool:
        case Pool.MAX:
            sums, shift, itemsize = False, info.key_shift, info.itemsize
        case Pool.MEAN | Pool.GEM:
            in_float32 = pooling.sums_in_float32 and info.kind is not Kind.FLOAT64
            sums, shift, itemsize = True, 0, 4 if in_float32 else 8
        case unknown:
            assert_never(unknown)
    return KernelSpec(
        info.itemsize,
        info.kind,
        sums=sums,
        p=pooling.p,
        zero_point=pooling.zero_point,
        shift=shift,
        itemsize=itemsize,
    )


@cached(lambda route: route.plan.nbytes)  # which the cache of plans may have dropped
def region_route(
    boxes: bytes, shape: tuple[int, ...], strides: tuple[int, ...], spec: KernelSpec, threads: int
) -> Route:
    """Return how maps of these sizes and strides are read, to pool the regions `boxes`."""
    plan = region_plan(boxes, shape[2], shape[3], not spec.sums)
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
    itemsize, line = spec.value_bytes, spec.line
    if channel_stride == itemsize and channels > 1:
        almost_a_line = _ALMOST_A_LINE * line < channels < line
        return Path.GATHER if almost_a_line else Path.CHANNELS
    if pixel_stride == itemsize:
        if _planes_are_better(shape, strides, spec) and _fits(
            plan, Path.PLANES, spec, _LINE_WORKSPACE_OF_PLANES
        ):
            return Path.PLANES
        # A row shorter than a line is read as a whole line, which must end inside the next plane.
        # If its rows are summed, they are copied first.
        nested = row_stride >= width * itemsize and channel_stride >= height * row_stride
        readable = (nested and channel_stride + width * itemsize >= LINE_BYTES) or spec.sums
        rows = width >= line or (readable and width >= _SHORTEST_ROW * line)
        if rows and _fits(plan, Path.ROWS, spec, _LINE_WORKSPACE_OF_ROWS):
            return Path.ROWS
    return Path.GATHER


def _planes_are_better(shape: tuple[int, ...], strides: tuple[int, ...], spec: KernelSpec) -> bool:
    """Return whether contiguous rows are better transposed before they are combined, if at all."""
    _, channels, height, width = shape
    _, channel_stride, row_stride, _ = strides
    itemsize, line = spec.value_bytes, spec.line
    if row_stride != width * itemsize or channel_stride != height * row_stride or channels < line:
        return False  # transposition needs whole planes, a line's worth of them
    most = _SMALL_PLANE if width >= _WIDE_ROW * line else _SMALL_PLANE_OF_NARROW_ROWS
    return height * width <= most or width < _NARROW_ROW * line


def _fits(plan: Plan, path: Path, spec: KernelSpec, caches: float) -> bool:
    """Return whether the workspace of one line of lanes is at most `caches` times `_CACHE`."""
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
            lines = int(_BLOCK_WORKSPACE_OF_CHANNELS * _CACHE) // workspace
        case Path.ROWS:
            lines = min(int(_BLOCK_WORKSPACE_OF_ROWS * _CACHE) // workspace, _MOST_LINES)
        case Path.PLANES:
            lines = min(_BLOCK_WORKSPACE_OF_PLANES // workspace, _MOST_LINES)
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
    keep_bands = plan.n_band_vectors <= _MOST_BAND_VECTORS
    return Route(plan, path, lanes, keep_bands=keep_bands, prefetch=_PREFETCH)


def _workspace_of_line(plan: Plan, path: Path, spec: KernelSpec) -> int:
    """Return the bytes of workspace for one line of lanes."""
    return kernels.workspace_bytes(_route(plan, path, spec.line), spec)
