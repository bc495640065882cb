"""How boxes are searched on the GPU: the tables that the kernels get, and the launches.

Twin of `rmac.cpu.search`. boxes.cu tells what runs, stages and sums are. Nothing here waits for the
device or reads from it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rmac._caches import cached
from rmac._candidates import Candidates, candidates, sort_aspects
from rmac._dtypes import DTYPES, DtypeInfo, Kind
from rmac.cuda.arrays import empty, keep_for_graph, namespace
from rmac.cuda.c_types import c_name
from rmac.cuda.launches import launch_struct, require_32_bits
from rmac.cuda.route import MOST_BLOCKS, SHARED_MEMORY, THREADS, WARP
from rmac.cuda.source import kernel
from rmac.cuda.structs import FOUND, RUN, SEARCH_LAUNCH, STAGE, WORD_LAUNCH, WORDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rmac._options import SearchOptions

Array = Any  # cupy.ndarray
Struct = npt.NDArray[Any]  # of no dimensions: one struct
Aspects = tuple[tuple[float, int], ...]  # each with its number of queries

# The most channels of a channel block. Sums of so many in float32 are right to 1e-6.
_MOST_CHANNELS = 16
# The channels of a channel block if shared memory does not hold a single one; not measured.
_CHANNELS_IN_DEVICE_MEMORY = 4
# The most bytes of sums, and of cells outside of shared memory, that launches have in use. Not
# measured: they should fit in the cache of the device, which has 50 MB on an H100.
_MOST_BYTES = 1 << 25
_QUERIES_AT_ONCE = 4  # by which a thread multiplies a maximum in a register; not measured
_MOST_PARTS = 64  # of the boxes of an image: one block of compare_boxes for each; not measured
_LEAST_BOXES = 4  # that a thread of compare_boxes compares, if there are so many; not measured
_INT_MAX = (1 << 31) - 1


class Boxes(NamedTuple):
    """The boxes of maps of one size, as the kernels get them."""

    runs: npt.NDArray[Any]  # RUN
    stages: npt.NDArray[Any]  # STAGE
    step: int  # cells between boxes
    sums_before: npt.NDArray[np.int64]  # of the runs before each run; at the end, of all runs
    boxes: int
    most_queries: int  # of a run


class ChannelSplit(NamedTuple):
    """How the channels of an image are cut into channel blocks, for sums of one type.

    The cells of a block are in shared memory or in device memory: one of `shared` and `workspace`
    is 0.
    """

    sums: np.dtype[Any]
    channel_block: int  # its channels
    channel_blocks: int  # of an image
    blocks: int  # of search_boxes, for each image
    shared: int  # bytes of shared memory of a block
    workspace: int  # bytes of device memory of a block
    most_sums: int  # of a channel block in one launch, unless a single run has more


class Pass(NamedTuple):
    """A search of some images, see boxes.cu."""

    takes: int
    scale: float = 1
    least: float = 0  # of the lengths of boxes in marked images
    most: float = math.inf


_NOT_MARKED, _MARKED = 1, 2
# Of float64 maps. The ranges of lengths overlap, so that rounding leaves no length between them.
_WIDE_PASSES = (
    Pass(_NOT_MARKED | _MARKED, 1, 2.0**-460, 2.0**460),
    Pass(_MARKED, 2.0**600, 0, 2.0**150),
    Pass(_MARKED, 2.0**-600, 2.0**-150),
)


class Call(NamedTuple):
    """What all launches of a call have in common."""

    info: DtypeInfo
    options: SearchOptions
    order: Array  # the numbers of the queries, sorted by aspect
    units: dict[np.dtype[Any], Array]  # queries of length 1, by the type of sums
    boxes: Array  # the results
    scores: Array


def search_boxes(
    batches: Sequence[Array],
    queries: Array,
    aspects: Sequence[float | None],
    options: SearchOptions,
) -> tuple[Array, Array]:
    """Return the best boxes (Q, N, 4) of all maps, and their scores (Q, N)."""
    info, images = DTYPES[batches[0].dtype.name], sum([len(x) for x in batches])
    boxes = empty((len(queries), images, 4), np.dtype(np.int64), batches[0])
    scores = empty((len(queries), images), info.descriptor, batches[0])
    if not boxes.size:
        return boxes, scores
    order, counts = sort_aspects(aspects)
    places = _write_words(np.array(order, np.int32))
    call = Call(info, options, places, _unit_vectors(queries, places), boxes, scores)
    step = 0 if options.name == "best" else options.step
    tables: dict[tuple[int, int], tuple[Boxes, Array]] = {}
    first_image = 0
    for x in batches:
        require_32_bits(x.shape)
        size = x.shape[2:]
        if size not in tables:
            found = boxes_of(size[0], size[1], counts, options.tolerance, step)
            words = [table.view(np.int32) for table in (found.runs, found.stages)]
            tables[size] = found, _write_words(np.concatenate(words))
        _search_batch(x, first_image, *tables[size], call)
        first_image += len(x)
    return boxes, scores


def _write_words(words: npt.NDArray[np.int32]) -> Array:
    """Return an array on the device with these words, which are arguments of launches.

    So they are written in the order of the stream, and a graph captures them. A copy from the host
    would wait for the device.
    """
    out = keep_for_graph(namespace().ndarray(len(words), np.dtype(np.int32)))
    for first in range(0, len(words), WORDS):
        some = words[first : first + WORDS]
        launch = np.zeros((), WORD_LAUNCH)
        launch["first"], launch["count"], launch["words"][: len(some)] = first, len(some), some
        launch_struct("write_words", 1, THREADS, launch, out)
    return out


def _unit_vectors(queries: Array, order: Array) -> dict[np.dtype[Any], Array]:
    """Return the queries in this order, scaled to length 1, in float64 and in float32.

    A query of zeros stays as it is.
    """
    units = {
        dtype: keep_for_graph(namespace().ndarray(queries.shape, dtype))
        for dtype in (np.dtype(np.float64), np.dtype(np.float32))
    }
    count, channels = queries.shape
    arguments = order, queries, np.int32(channels), *units.values()
    kernel("scale_queries", queries.device.id)((count,), (WARP,), arguments)
    return units


@cached(lambda boxes: boxes.runs.nbytes + boxes.stages.nbytes + boxes.sums_before.nbytes)
def boxes_of(height: int, width: int, aspects: Aspects, tolerance: float, step: int) -> Boxes:
    """Return the boxes to compare with queries of some aspects, see `candidates`."""
    table = candidates(height, width, aspects, tolerance, step, False)
    runs = _runs(table)
    sizes = np.stack([runs["height"], runs["width"]], axis=1)
    stages, order = _stages(1 << (np.frexp(sizes)[1] - 1))  # the powers of 2 up to the sizes
    runs = runs[order]
    boxes = runs["rows"].astype(np.int64) * runs["columns"]
    sums_before = np.append(0, np.cumsum(boxes * (1 + runs["queries"])))
    runs["first_sum"] = sums_before[:-1]
    most = int(runs["queries"].max(initial=0))
    return Boxes(runs, stages, min(table.step, _INT_MAX), sums_before, int(boxes.sum()), most)


def _runs(table: Candidates) -> npt.NDArray[Any]:
    """Return the runs of all heights. A run of the kernels has all rows, not those of one strip."""
    runs = np.zeros(len(table.runs), RUN)
    heights = np.repeat(table.heights, table.heights[:, 7] - table.heights[:, 6], axis=0)
    runs["height"], runs["rows"] = heights[:, 0], heights[:, 2]
    for name, values in zip(
        ("width", "columns", "first_query", "queries"), table.runs.T, strict=True
    ):
        runs[name] = values
    return runs


def _stages(spans: npt.NDArray[np.intp]) -> tuple[npt.NDArray[Any], npt.NDArray[np.intp]]:
    """Return the stages of runs, and the runs in the order of their stages.

    `spans` (run, 2) are the rows and columns that a cell stands for, so that a box of the run is
    the maximum of four cells: the largest powers of 2 up to its height and width. Cells can only
    grow, so a stage of smaller cells than the stage before it reads the map again. The order is one
    in which few stages do.
    """
    found, stage_of_run = np.unique(spans[:, ::-1], axis=0, return_inverse=True)
    order: list[int] = []
    left = list(range(len(found)))  # by columns, then by rows
    while left:  # each turn takes stages whose rows do not shrink
        rows, later = 0, []
        for i in left:
            if found[i, 1] < rows:
                later.append(i)
            else:
                order.append(i)
                rows = found[i, 1]
        left = later
    place = np.argsort(np.array(order, np.intp))[stage_of_run.reshape(-1)]
    stops = np.cumsum(np.bincount(place, minlength=len(order)))
    stages = np.zeros(len(order), STAGE)
    stages["columns"], stages["rows"] = found[order].T
    stages["first_run"], stages["stop_run"] = np.append(0, stops)[:-1], stops
    return stages, np.argsort(place, kind="stable")


def channel_splits(shape: tuple[int, ...], info: DtypeInfo) -> list[ChannelSplit]:
    """Return how channels are cut into channel blocks, for each type of sums that maps may need.

    This does not depend on the number of images, so that scores do not either.
    """
    types = [info.descriptor]
    if info.kind in (Kind.FLOAT32, Kind.BFLOAT16):  # squares of other dtypes are in range
        types.append(np.dtype(np.float64))
    _, channels, height, width = shape
    return [_channel_split(channels, height, width, dtype) for dtype in types]


def _channel_split(channels: int, height: int, width: int, sums: np.dtype[Any]) -> ChannelSplit:
    channel = (height * width | 1) * sums.itemsize  # channel_pitch() of boxes.cu, in bytes
    in_shared = SHARED_MEMORY // channel
    channel_block = min(in_shared, _MOST_CHANNELS) if in_shared else _CHANNELS_IN_DEVICE_MEMORY
    channel_blocks = -(-channels // channel_block)
    channel_block = -(-channels // max(channel_blocks, 1))
    shared = channel_block * channel if in_shared else 0
    workspace = 0 if in_shared else channel_block * channel + -channel_block * channel % 8
    blocks = min(channel_blocks, max(1, _MOST_BYTES // workspace)) if workspace else channel_blocks
    most_sums = _MOST_BYTES // (max(channel_blocks, 1) * sums.itemsize)
    return ChannelSplit(sums, channel_block, channel_blocks, blocks, shared, workspace, most_sums)


def jobs_of(sums_before: npt.NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of runs that have at most `most` sums, or are one run.

    Without runs there is one empty range, because search_boxes() also finds the images whose
    squares may overflow in float32.
    """
    first, runs = 0, len(sums_before) - 1
    if not runs:
        yield 0, 0
    while first < runs:
        stop = int(np.searchsorted(sums_before, sums_before[first] + most, side="right")) - 1
        stop = max(first + 1, stop)
        yield first, stop
        first = stop


def _search_batch(x: Array, first_image: int, boxes: Boxes, words: Array, call: Call) -> None:
    """Search all images of a batch, as many at a time as there is memory for."""
    splits = channel_splits(x.shape, call.info)
    launch = np.zeros((), SEARCH_LAUNCH)
    launch["strides"] = x.strides
    launch["images"] = call.boxes.shape[1]
    launch["channels"], launch["height"], launch["width"] = x.shape[1:]
    launch["by_channels"] = x.strides[1] == x.itemsize and x.shape[1] > 1
    launch["step"], launch["stages"] = boxes.step, len(boxes.stages)
    launch["queries"] = len(call.order)
    launch["small_first"] = call.options.name == "best"
    launch["refine"], launch["sweeps"] = call.options.refine, call.options.sweeps
    threads = -(-boxes.boxes // _LEAST_BOXES)
    launch["parts"] = max(1, min(_MOST_PARTS, -(-threads // THREADS)))
    launch["run"] = words.data.ptr
    launch["stage"] = words.data.ptr + boxes.runs.nbytes
    launch["order"] = call.order.data.ptr
    launch["boxes"], launch["scores"] = call.boxes.data.ptr, call.scores.data.ptr
    most = min(_images_at_a_time(split, boxes, launch) for split in splits)
    for first in range(0, len(x), most):
        launch["data"] = x.data.ptr + first * x.strides[0]
        launch["first_image"] = first_image + first
        _search_images(min(most, len(x) - first), splits, boxes, launch, call)


def _images_at_a_time(split: ChannelSplit, boxes: Boxes, launch: Struct) -> int:
    """Return how many images are searched at a time: at least one."""
    blocks = max(split.blocks, int(launch["queries"]) * int(launch["parts"]))
    sums = min(int(boxes.sums_before[-1]), split.most_sums) * split.channel_blocks
    size = sums * split.sums.itemsize + split.blocks * split.workspace + blocks * FOUND.itemsize
    size += int(launch["queries"]) * _refinement_bytes(split, int(launch["channels"]))
    return max(1, min(_MOST_BYTES // size, MOST_BLOCKS // max(1, blocks)))


def _search_images(
    images: int, splits: list[ChannelSplit], boxes: Boxes, launch: Struct, call: Call
) -> None:
    """Search some images with each type of sums.

    `overflows` marks the images that need another type, or more passes. Blocks of a pass that an
    image does not need return at once.
    """
    queries, parts = int(launch["queries"]), int(launch["parts"])
    found = _memory(images * queries * parts * FOUND.itemsize)
    launch["found"] = found.data.ptr
    if len(splits) > 1 or call.info.kind == Kind.FLOAT64:
        overflows = keep_for_graph(namespace().zeros(images, np.dtype(np.int32)))
        launch["overflows"] = overflows.data.ptr
    for split, passes in zip(splits, _passes(splits, call.info), strict=True):
        launch["channel_block"] = split.channel_block
        launch["channel_blocks"] = split.channel_blocks
        launch["blocks"] = split.blocks
        launch["units"] = call.units[split.sums].data.ptr
        launch["is_first"] = True
        for one in passes:
            for name, value in one._asdict().items():
                launch[name] = value
            for first, stop in jobs_of(boxes.sums_before, split.most_sums):
                launch["first_run"], launch["stop_run"] = first, stop
                launch["first_sum"] = boxes.sums_before[first]
                launch["sums"] = boxes.sums_before[stop] - boxes.sums_before[first]
                _search_job(images, split, boxes, launch, call)
                launch["is_first"] = False
        launch["takes"] = passes[0].takes
        _choose(images, split, launch, call)


def _passes(splits: list[ChannelSplit], info: DtypeInfo) -> list[tuple[Pass, ...]]:
    """Return the passes with each type of sums."""
    if info.kind == Kind.FLOAT64:
        return [_WIDE_PASSES]
    if len(splits) > 1:
        return [(Pass(_NOT_MARKED),), (Pass(_MARKED),)]
    return [(Pass(_NOT_MARKED),)]


def _search_job(images: int, split: ChannelSplit, boxes: Boxes, launch: Struct, call: Call) -> None:
    """Sum the boxes of some runs, and compare them with the best so far."""
    sums = _memory(images * split.channel_blocks * int(launch["sums"]) * split.sums.itemsize)
    workspace = _memory(images * split.blocks * split.workspace)
    launch["all_sums"] = sums.data.ptr
    launch["workspace"] = workspace.data.ptr if split.workspace else 0
    launch["block_bytes"] = split.workspace
    kind, real = call.info.kind.name, c_name(split.sums)
    if split.blocks:
        many = _QUERIES_AT_ONCE if boxes.most_queries > 1 else 1
        launch_struct(
            f"search_boxes<{kind}, {real}, {many}>", images * split.blocks, THREADS, launch,
            shared=split.shared,
        )  # fmt: skip
    launch_struct(
        f"compare_boxes<{real}, {c_name(call.info.descriptor)}>",
        images * int(launch["queries"]) * int(launch["parts"]), THREADS, launch,
        shared=THREADS * FOUND.itemsize,
    )  # fmt: skip


def _choose(images: int, split: ChannelSplit, launch: Struct, call: Call) -> None:
    """Write the best boxes; those of a grid are refined first."""
    blocks, size = images * int(launch["queries"]), 0
    if call.options.name == "grid":
        size = _refinement_bytes(split, int(launch["channels"]))
    workspace = _memory(blocks * size)
    launch["workspace"] = workspace.data.ptr if size else 0
    launch["block_bytes"] = size
    threads = _threads_for(int(launch["channels"]) if size else 1)
    launch_struct(
        f"choose_boxes<{call.info.kind.name}, {c_name(split.sums)}>", blocks, threads, launch,
        shared=threads * FOUND.itemsize,
    )  # fmt: skip


def _refinement_bytes(split: ChannelSplit, channels: int) -> int:
    """Return the bytes of a block for the sums of channel blocks and the maxima of a box."""
    size = 16 * split.channel_blocks + split.sums.itemsize * channels
    return max(8, size + -size % 8)


def _threads_for(work: int) -> int:
    """Return the threads of a block that has so much to do in parallel: a power of 2."""
    return min(THREADS, max(WARP, 1 << (work - 1).bit_length()))


def _memory(size: int) -> Array:
    """Return so many bytes on the device."""
    return keep_for_graph(namespace().ndarray(size, np.dtype(np.uint8)))
