"""The CPU backend: allocation, threads, and the way through the kernels.

Twin of `rmac.cuda`. Inputs are checked already: `x` is a view (N, C, H, W) of one of the dtypes
below, `boxes` (R, 4) int64 lie on the map, `out` is C-ordered and apart from `x`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rmac._recipe import MAXIMA, Pooling, Recipe
from rmac.cpu.isa import kernels, second_level_cache
from rmac.cpu.plan import make_plan, region_plan
from rmac.cpu.rois import check_rois, roi_bins
from rmac.cpu.threads import workers_for

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = npt.NDArray[Any]

_LINE = 64  # bytes that the kernels work on at once; a cache line
_SMALL_PLANE = 128  # cells of a plane that is better transposed than reduced along its rows
_CACHE = second_level_cache() * 3 // 4  # bytes of scratch that stay in it, with room to spare
_SMALL_SCRATCH = 48 << 10  # bytes of it that are as good as in the first-level cache
_SMALL_TASK = 1 << 16  # bytes of input that are not worth a thread of their own

Aggregate, Kind, Path = kernels.Aggregate, kernels.Kind, kernels.Path

_AGGREGATES = {
    "sum": Aggregate.SUM,
    "mean": Aggregate.MEAN,
    "concat": Aggregate.CONCAT,
    "none": Aggregate.CONCAT,
}


@dataclass(frozen=True, eq=False)
class _Way:
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


_KEYS: dict[str, tuple[type[np.integer[Any]], int, int]] = {
    "uint8": (np.int8, -0x80, Kind.UINT8),
    "int8": (np.int8, 0, Kind.INT8),
    "float16": (np.int16, 0x3FF, Kind.FLOAT16),
    "bfloat16": (np.int16, 0x7F, Kind.BFLOAT16),
    "float32": (np.int32, 0x7F_FFFF, Kind.FLOAT32),
    "float64": (np.int64, 0xF_FFFF_FFFF_FFFF, Kind.FLOAT64),
}


@lru_cache(maxsize=1024)
def _way(dtype: np.dtype[Any], pooling: Pooling) -> _Way:
    bits, shift, kind = _KEYS[dtype.name]
    sums, p = pooling.pool != "max", pooling.p
    real = "double" if kind == Kind.FLOAT64 else "float"
    key, itemsize = f"{bits.__name__}_t", dtype.itemsize
    if sums:
        key = real if pooling.fits_float32 else "double"
        shift, itemsize = 0, 4 if key == "float" else 8
    return _Way(
        np.dtype(bits),
        kind,
        p,
        sums,
        shift,
        itemsize,
        _LINE // itemsize,
        kernels.pool[key],
        kernels.rmac[key, real],
    )


def empty(shape: tuple[int, ...], dtype: np.dtype[Any], like: Array) -> Array:  # noqa: ARG001
    """Return an uninitialised array; `like` tells the device, here always the host."""
    return np.empty(shape, dtype)


def rmac_regions(boxes: npt.NDArray[np.int64], images: int, like: Array) -> Array:  # noqa: ARG001
    """Return every image's boxes in turn as RoIs, (N * R, 5) float32."""
    rois = np.empty((images, len(boxes), 5), np.float32)
    rois[:, :, 0] = np.arange(images)[:, None]
    rois[:, :, 1:] = boxes
    return rois.reshape(-1, 5)


def region_pool(
    x: Array,
    boxes: npt.NDArray[np.int64],
    out: Array,
    pooling: Pooling,
    *,
    workers: int | None,
) -> None:
    """Write what each region is pooled to: (N, R, C)."""
    way = _way(x.dtype, pooling)
    threads = _threads(workers, x.nbytes)
    route = _region_route(boxes.tobytes(), x.shape, x.strides, way, threads)
    _pool(x, way, route, out, threads)


def roi_pool(
    x: Array,
    rois: Array,
    out: Array,
    *,
    output_size: tuple[int, int],
    spatial_scale: float,
    workers: int | None,
) -> None:
    """Write the maximum of each RoI's bins: (K, C, ph, pw), dtype of x."""
    images, _, height, width = x.shape
    ph, pw = output_size
    way = _way(x.dtype, MAXIMA)
    threads = _threads(workers, x.nbytes // max(images, 1))
    bins = roi_bins(*check_rois(rois, images), height, width, output_size, spatial_scale)
    out.fill(0)
    if not out.size:
        return
    by_image = np.argsort(bins.image, kind="stable")
    found, first = np.unique(bins.image[by_image], return_index=True)
    for image, of_image in zip(found, np.split(by_image, first[1:]), strict=False):
        plan = make_plan(bins.boxes[of_image], height, width, bins.target[of_image], ph * pw)
        one = x[image : image + 1]
        _pool(one, way, _route(plan, one.shape, one.strides, way, threads), out, threads)


def rmac(
    batches: Sequence[Array],
    boxes: Sequence[npt.NDArray[np.int64]],
    out: Array,
    pooling: Pooling,
    recipe: Recipe,
    *,
    workers: int | None,
) -> None:
    """Write the descriptor of each image, (N, D), or (N, R, D) unaggregated.

    The images are one batch, or several batches of one image each.
    """
    way = _way(batches[0].dtype, pooling)
    threads = _threads(workers, sum([x.nbytes for x in batches]))
    way.rmac(
        [x.view(way.bits) for x in batches],
        [
            _region_route(boxes[i].tobytes(), x.shape, x.strides, way, threads)
            for i, x in enumerate(batches)
        ],
        way.kind,
        way.p,
        way.shift,
        *_flags(recipe),
        _largest_first(batches) if len(batches) > 1 else None,
        out if out.ndim == 2 else out.reshape(len(out), -1),
        threads,
    )


def describe(vectors: Array, out: Array, recipe: Recipe) -> None:
    """Write descriptors of regional vectors (N, R, D), which are overwritten: (N, D).

    Where they are not aggregated, they are `out`.
    """
    kernels.describe["double" if vectors.dtype == np.float64 else "float"](
        vectors, *_flags(recipe), out.reshape(len(out), -1)
    )


def _flags(recipe: Recipe) -> tuple[bool, int, bool, float]:
    """Return a recipe as the kernels take it."""
    normalize_regions, aggregate, normalize, eps = recipe
    return normalize_regions, _AGGREGATES[aggregate], normalize and aggregate != "none", eps


def _largest_first(batches: Sequence[Array]) -> npt.NDArray[np.intp]:
    """Return the order in which threads take images, so that none is left with a large one."""
    return np.argsort([-x.size for x in batches], kind="stable")


@lru_cache(maxsize=1024)
def _region_route(
    boxes: bytes, shape: tuple[int, ...], strides: tuple[int, ...], way: _Way, threads: int
) -> kernels.Route:
    plan = region_plan(boxes, *shape[2:], overlapping=not way.sums)
    return _route(plan, shape, strides, way, threads)


def _route(
    plan: kernels.Plan, shape: tuple[int, ...], strides: tuple[int, ...], way: _Way, threads: int
) -> kernels.Route:
    path = _path(plan, shape, strides, way)
    return kernels.Route(plan, path, _lanes(plan, shape, way, path, threads))


def _threads(workers: int | None, size: int) -> int:
    """Return how many threads `size` bytes of maps are worth."""
    most = size // _SMALL_TASK
    return min(workers_for(workers), most) if most > 1 else 1


def _pool(x: Array, way: _Way, route: kernels.Route, out: Array, threads: int) -> None:
    way.pool(
        x.view(way.bits),
        route,
        way.kind,
        way.p,
        way.shift,
        out.itemsize,
        out.reshape(-1).view(np.uint8),
        threads,
    )


def _path(plan: kernels.Plan, shape: tuple[int, ...], strides: tuple[int, ...], way: _Way) -> int:
    """Choose how the kernels get at pixels; the one place where that is decided.

    Vectors of channels in memory are what they want. Where rows are contiguous instead, reducing
    them first leaves little to transpose, unless there is little to reduce: small planes, and those
    with rows that fill little of a line, are transposed whole. Both need an image's intervals of
    rows in memory at hand, of which boxes of the user's may have very many. What remains is
    collected row by row, at any strides, slowly; so are rows too short to be worth a vector each.
    """
    _, channels, height, width = shape
    _, channel_stride, row_stride, pixel_stride = strides
    itemsize, line = way.bits.itemsize, way.line
    if channel_stride == itemsize and channels > 1:
        # Most of a line is better copied to a whole one than taken value by value.
        return Path.GATHER if 3 * line < 4 * channels < 4 * line else Path.CHANNELS
    if pixel_stride == itemsize:
        packed = row_stride == width * itemsize and channel_stride == height * row_stride
        # A row shorter than a line is read as one, unless it is copied to be summed: it must not
        # reach past the plane that follows.
        nested = row_stride >= width * itemsize and channel_stride >= height * row_stride
        nested = (nested and channel_stride + width * itemsize >= _LINE) or way.sums
        small = height * width <= (_SMALL_PLANE if 8 * width >= 7 * line else 4 * _SMALL_PLANE)
        planes = packed and (small or 2 * width < line) and channels >= line
        rows = width >= line or (nested and 4 * width >= line)
        for path, possible, most in (
            (Path.PLANES, planes, _CACHE),
            (Path.ROWS, rows, 4 * _CACHE),  # much of it is written and read once
        ):
            if possible and _scratch_of_line(plan, path, way) <= most:
                return path
    return Path.GATHER


def _lanes(plan: kernels.Plan, shape: tuple[int, ...], way: _Way, path: int, threads: int) -> int:
    """Choose how many channels a task takes, in whole lines.

    Parts of pixels are read the faster the longer they are, so that scratch may even exceed the
    cache by far: what a band is reduced to is written, and read once at the end. Of planes and rows
    a few lines make little enough of what a task costs besides, if scratch stays small: of planes,
    all of which goes through it, yet smaller. Channels that are gathered are best not too many at
    once.
    """
    line = way.line
    images, channels = shape[:2]
    if path == Path.GATHER:
        return line
    scratch = _scratch_of_line(plan, path, way)
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


def _scratch_of_line(plan: kernels.Plan, path: int, way: _Way) -> int:
    return kernels.scratch_bytes(plan, path, way.line, way.itemsize, way.sums)
