"""The GPU backend: allocation, launches, and the choice of kernels.

Twin of `rmac.cpu`. Inputs are checked already, as there. Nothing here waits for the device or reads
from it, and the current stream is used throughout.
"""

from __future__ import annotations

import math
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple, assert_never

import numpy as np
import numpy.typing as npt

from rmac._dtypes import DTYPES, Kind
from rmac._options import (
    MAX_POOLING,
    Aggregate,
    AggregationOptions,
    Pool,
    PoolingOptions,
)
from rmac.cuda.arrays import (
    ARRAY,
    DEVICE,
    DLPACK_DEVICES,
    can_compute_into,
    device_context,
    device_index,
    empty,
    keep_for_graph,
    namespace,
    owns,
    plain,
    read_only,
    readable,
    require_finite,
    require_writeable,
    to_device,
    to_host,
)
from rmac.cuda.plan import WORDS, Table, region_tables

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Array = Any  # cupy.ndarray

__all__ = [
    "ARRAY",
    "DEVICE",
    "DLPACK_DEVICES",
    "can_compute_into",
    "describe",
    "device_context",
    "device_index",
    "empty",
    "namespace",
    "owns",
    "plain",
    "read_only",
    "readable",
    "region_pool",
    "require_finite",
    "require_writeable",
    "rmac",
    "rmac_regions",
    "roi_pool",
    "to_device",
    "to_host",
    "workers_before_product",
]

_MAPS = 10  # of one launch
_PLANES = 16  # that a block of pool_rows or pool_means takes
_LANES = 8  # vectors of channels that a block of pool_channels takes
_THREADS = 256  # of a block that pools
_DESCRIBERS = 1024  # threads of a block that describes
_VECTOR = 16  # bytes of the widest load
_SHARED = 48 << 10  # bytes of shared memory that every device has
_BOXES = 200  # that one launch writes as RoIs
_COUNTED = 900  # images of one launch that have their own number of regions
_MOST_BLOCKS = 1 << 30

_IN_PLACE = (Aggregate.NONE, Aggregate.CONCAT)  # the descriptors are the regional vectors

OPTIONS = ("-std=c++17",)  # of the compiler
_SOURCES = ("keys.cu", "regions.cu", "means.cu", "rois.cu", "describe.cu")
_CONSTANTS = {  # that the kernels have too
    "MAPS": _MAPS,
    "WORDS": WORDS,
    "PLANES": _PLANES,
    "BOXES": _BOXES,
    "COUNTED": _COUNTED,
}

_MAP = np.dtype(
    [
        ("data", np.intp),
        ("strides", np.int64, 4),
        ("first_image", np.int64),
        ("width", np.int32),
        ("first_block", np.int32),
        ("table", np.int32),
    ],
    align=True,
)
_LAUNCH = np.dtype(
    [
        ("maps", np.int32),
        ("channels", np.int32),
        ("regions", np.int64),
        ("map", _MAP, _MAPS),
        ("words", np.int32, WORDS),
    ],
    align=True,
)
_MAPS_OF_ROIS = np.dtype(
    [("data", np.intp), ("strides", np.int64, 4), ("sizes", np.int32, 4)], align=True
)
_COUNTS = np.dtype([("same", np.int32), ("of_image", np.int32, _COUNTED)], align=True)

_BOXES_OF_LAUNCH = np.dtype(
    [
        ("first", np.int32),
        ("count", np.int32),
        ("regions", np.int64),
        ("at", np.int32, 4 * _BOXES),
    ],
    align=True,
)


class _Dtype(NamedTuple):
    """How the kernels see a dtype."""

    kind: int
    bits: str
    real: str
    key_size: int


_TYPES = {
    Kind.UINT8: ("unsigned char", "float", 4),
    Kind.INT8: ("signed char", "float", 4),
    Kind.FLOAT16: ("short", "float", 4),
    Kind.BFLOAT16: ("short", "float", 4),
    Kind.FLOAT32: ("int", "float", 4),
    Kind.FLOAT64: ("long long", "double", 8),
}
_DTYPES = {name: _Dtype(int(info.kind), *_TYPES[info.kind]) for name, info in DTYPES.items()}


def rmac_regions(boxes: npt.NDArray[np.int64], images: int, like: Array) -> Array:
    """Return every image's boxes in turn as RoIs, (N * R, 5) float32."""
    rois = empty((images * len(boxes), 5), np.dtype(np.float32), like)
    with _device_of(like):
        for first in range(0, len(boxes) if images else 0, _BOXES):
            some = boxes[first : first + _BOXES]
            value = np.zeros((), _BOXES_OF_LAUNCH)
            value["first"], value["count"], value["regions"] = first, len(some), len(boxes)
            value["at"][: some.size] = some.ravel()
            _function("write_rois")(
                (_blocks(images * len(some)),), (_THREADS,), (value, np.int64(images), rois)
            )
    return rois


def region_pool(
    x: Array,
    boxes: npt.NDArray[np.int64],
    out: Array,
    pooling: PoolingOptions,
    *,
    workers: int | None,
) -> None:
    """Write what each region is pooled to: (N, R, C)."""
    _no_workers(workers)
    dtype = _dtype_of(x)
    way = _way(dtype, pooling, dtype.bits if pooling == MAX_POOLING else dtype.real)
    with _device_of(x):
        _pool([x], [boxes], out, len(boxes), way)


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
    _no_workers(workers)
    if not out.size:
        return
    with _device_of(x):
        maps = np.zeros((), _MAPS_OF_ROIS)
        maps["data"], maps["strides"], maps["sizes"] = x.data.ptr, x.strides, x.shape
        corners = keep_for_graph(rois.astype(np.float32, order="C"))
        _function(f"pool_rois<{_dtype_of(x).kind}>")(
            (_blocks(out.size),),
            (_THREADS,),
            (
                maps,
                corners,
                np.int64(out.size),
                np.int32(output_size[0]),
                np.int32(output_size[1]),
                np.float32(spatial_scale),
                out,
            ),
        )


def rmac(
    batches: Sequence[Array],
    boxes: Sequence[npt.NDArray[np.int64]],
    out: Array,
    pooling: PoolingOptions,
    aggregation: AggregationOptions,
    *,
    workers: int | None,
) -> None:
    """Write the descriptor of each image, (N, D), or (N, R, D) unaggregated.

    The images are one batch, or several batches of one image each.
    """
    _no_workers(workers)
    dtype = _dtype_of(batches[0])
    images, channels = len(out), batches[0].shape[1]
    regions = [len(grid) for grid in boxes]
    in_place = aggregation.aggregate in _IN_PLACE
    with _device_of(batches[0]):
        vectors = out
        if not in_place:
            vectors = keep_for_graph(namespace().empty((images, max(regions), channels), out.dtype))
        _pool(batches, boxes, vectors, max(regions), _way(dtype, pooling, dtype.real))
        _describe(vectors.reshape(images, max(regions), channels), regions, out, aggregation)


def describe(vectors: Array, out: Array, aggregation: AggregationOptions) -> None:
    """Write descriptors of regional vectors (N, R, D), which are overwritten: (N, D).

    Where they are not aggregated, they are `out`.
    """
    with _device_of(vectors):
        _describe(vectors, [vectors.shape[1]], out, aggregation)


def _describe(
    vectors: Array, regions: list[int], out: Array, aggregation: AggregationOptions
) -> None:
    """Describe images by their regional vectors (N, most, D), so many of each."""
    images, most, channels = vectors.shape
    norms = keep_for_graph(namespace().empty((images, most), vectors.dtype))
    function = _function("describe<double>" if vectors.itemsize == 8 else "describe<float>")
    for first, counts, blocks in _counts(regions, images):
        function(
            (blocks,),
            (_DESCRIBERS,),
            (
                vectors,
                norms,
                out,
                np.int64(first),
                np.int32(most),
                np.int32(channels),
                counts,
                np.int32(aggregation.normalize_regions),
                np.int32(aggregation.aggregate),
                np.int32(aggregation.normalize),
                np.float64(aggregation.eps),
            ),
            shared_mem=8 * _DESCRIBERS // 32,  # a float64 for each warp
        )


def workers_before_product(workers: int | None, size: int) -> int | None:  # noqa: ARG001
    """Return `workers` as they are: no thread of the host computes."""
    return workers


def _no_workers(workers: int | None) -> None:
    if workers is not None:
        raise ValueError(f"workers: expected None with an array on the GPU, got {workers}")


def _blocks(items: int) -> int:
    return min(-(-items // _THREADS), _MOST_BLOCKS)


def _dtype_of(x: Array) -> _Dtype:
    return _DTYPES[x.dtype.name]


def _device_of(x: Any) -> Any:
    return (x[0] if isinstance(x, (list, tuple)) else x).device


@cache
def _function(name: str) -> Any:
    """Return a kernel by its name with template arguments, compiled when it is first used."""
    module = namespace().RawModule(code=source(), options=OPTIONS, name_expressions=(name,))
    return module.get_function(name)


def source() -> str:
    """Return the source of the kernels, after the constants that they share with this module."""
    constants = "".join(f"const int {name} = {value};\n" for name, value in _CONSTANTS.items())
    folder = files("rmac.cuda")
    return constants + "".join(
        f'#line 1 "{name}"\n{folder.joinpath(name).read_text(encoding="utf-8")}'
        for name in _SOURCES
    )


def _counts(regions: list[int], images: int) -> Iterator[tuple[int, npt.NDArray[Any], int]]:
    """Tell launches of `describe` how many regions images have: first image, numbers, images."""
    if len(set(regions)) == 1:
        yield 0, np.array((regions[0], 0), _COUNTS), images
        return
    for first in range(0, images, _COUNTED):
        some = regions[first : first + _COUNTED]
        counts = np.zeros((), _COUNTS)
        counts["of_image"][: len(some)] = some
        yield first, counts, len(some)


class _Way(NamedTuple):
    """What becomes of the values of a region."""

    dtype: _Dtype
    out: str  # the type of results
    sums: str  # the type that is summed in, none for maxima
    p: float  # the power that is summed, 0 for the values themselves

    @property
    def cell(self) -> int:
        """Bytes of what a cell is reduced to."""
        return {"": self.dtype.key_size, "float": 4, "double": 8}[self.sums]


def _way(dtype: _Dtype, pooling: PoolingOptions, out: str) -> _Way:
    match pooling.pool:
        case Pool.MAX:
            return _Way(dtype, out, "", 0)
        case Pool.MEAN | Pool.GEM:
            sums = dtype.real if pooling.sums_in_float32 else "double"
            return _Way(dtype, out, sums, pooling.p)
        case unknown:
            assert_never(unknown)


class _Job(NamedTuple):
    """One map or batch of maps, some of its regions, and the kernel that pools them."""

    x: Array
    first_image: int
    table: Table
    by_channels: bool
    vector: int  # elements of a load


def _pool(
    batches: Sequence[Array],
    boxes: Sequence[npt.NDArray[np.int64]],
    out: Array,
    regions: int,
    way: _Way,
) -> None:
    """Write regional vectors: (N, R, C), rows past the regions of a map left as they are."""
    jobs: dict[tuple[bool, int], list[_Job]] = {}
    first_image = 0
    for x, grid in zip(batches, boxes, strict=True):
        for job in _jobs(x, first_image, grid, way):
            jobs.setdefault((job.by_channels, job.vector), []).append(job)
        first_image += len(x)
    for (by_channels, vector), some in jobs.items():
        channels = _channels(by_channels, vector, way)
        while some:
            launch, blocks, taken = _launch(some, channels, regions)
            cells = max(job.table.cells for job in some[:taken]) * channels
            if way.sums:
                function = _function(f"pool_means<{way.dtype.kind}, {way.sums}, {way.out}>")
                arguments = (launch, np.float64(way.p), np.int32(by_channels), out)
                shared = max(cells, _THREADS) * way.cell
                function((blocks,), (_THREADS,), arguments, shared_mem=shared)
            else:
                name = "pool_channels" if by_channels else "pool_rows"
                function = _function(f"{name}<{way.dtype.kind}, {vector}, {way.out}>")
                block = _block(some[:taken], by_channels, vector)
                function((blocks,), block, (launch, out), shared_mem=cells * way.cell)
            del some[:taken]


def _channels(by_channels: bool, vector: int, way: _Way) -> int:
    """Return how many channels a block takes."""
    return _LANES * vector if by_channels and not way.sums else _PLANES


def _jobs(x: Array, first_image: int, boxes: npt.NDArray[np.int64], way: _Way) -> Iterator[_Job]:
    """Choose how to go through a batch; the one place where that is decided.

    Vectors of channels where they are contiguous, else vectors along rows: as wide as sizes,
    strides and address allow, and as leaves room for the cells of all regions at once. Sums take
    one element at a time.
    """
    _, channels, _, width = x.shape
    by_channels = x.strides[1] == x.itemsize and channels > 1
    axis, size = (1, channels) if by_channels else (3, width)
    others = [
        stride
        for i, (length, stride) in enumerate(zip(x.shape, x.strides, strict=True))
        if i != axis and length > 1
    ]
    vector = _VECTOR // x.itemsize if x.strides[axis] == x.itemsize and not way.sums else 1
    while vector > 1 and math.gcd(size * x.itemsize, x.data.ptr, *others) % (vector * x.itemsize):
        vector //= 2
    tables = _tables(boxes, by_channels, vector, way)
    while by_channels and vector > 1:
        fewer = _tables(boxes, by_channels, vector // 2, way)
        if len(fewer) >= len(tables):
            break
        tables, vector = fewer, vector // 2
    for table in tables:
        yield _Job(x, first_image, table, by_channels, vector)


def _tables(
    boxes: npt.NDArray[np.int64], by_channels: bool, vector: int, way: _Way
) -> tuple[Table, ...]:
    """Return tables of which each one's cells fit shared memory, for the channels of a block."""
    room = _SHARED // (_channels(by_channels, vector, way) * way.cell)
    return region_tables(boxes.tobytes(), room)


def _launch(jobs: list[_Job], channels: int, regions: int) -> tuple[npt.NDArray[Any], int, int]:
    """Return what a launch takes of the first jobs, its blocks, and how many jobs these are."""
    launch = np.zeros((), _LAUNCH)
    launch["channels"], launch["regions"] = jobs[0].x.shape[1], regions
    blocks = room = taken = 0
    for job, entry in zip(jobs, launch["map"], strict=False):
        words = job.table.words
        more = job.x.shape[0] * -(-job.x.shape[1] // channels)
        if taken and (room + len(words) > WORDS or blocks + more > _MOST_BLOCKS):
            break
        launch["words"][room : room + len(words)] = words
        entry["data"], entry["strides"] = job.x.data.ptr, job.x.strides
        entry["first_image"], entry["width"] = job.first_image, job.x.shape[3]
        entry["first_block"], entry["table"] = blocks, room
        blocks, room, taken = blocks + more, room + len(words), taken + 1
    launch["maps"] = taken
    return launch, blocks, taken


def _block(jobs: list[_Job], by_channels: bool, vector: int) -> tuple[int, int]:
    """Return the shape of a block: along vectors, and over planes and bands, or cells."""
    along = _LANES
    if not by_channels:
        along = min(max(-(-job.x.shape[3] // vector) for job in jobs), 64)
    return along, _THREADS // along
