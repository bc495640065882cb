"""How work is split over launches of the kernels, and their structs filled.

The current device must be that of the arrays. Launches go to the current stream. Nothing here waits
for the device or reads from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rmac._caches import cached
from rmac._dtypes import DTYPES
from rmac._options import AggregationOptions
from rmac.cuda.arrays import keep_for_graph, namespace
from rmac.cuda.c_types import c_name
from rmac.cuda.route import (
    DESCRIBE_THREADS,
    MOST_BLOCKS,
    NORM_PARTS,
    THREADS,
    WIDEST_LOAD,
    Form,
    KernelSpec,
    Route,
    block_shape,
    blocks_for,
    kernel_name,
    leaves_in_place,
    region_routes,
)
from rmac.cuda.source import kernel
from rmac.cuda.structs import (
    BATCHES,
    BOX_LAUNCH,
    BOXES,
    COUNTS,
    DESCRIBE_LAUNCH,
    MEAN_OPTIONS,
    PLAN_WORDS,
    POOL_LAUNCH,
    ROI_LAUNCH,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Array = Any  # cupy.ndarray
Struct = npt.NDArray[Any]  # of no dimensions: one struct

_INT_MAX = (1 << 31) - 1  # of the kernels' sizes
# Where the first batch's address is, and how far apart addresses are, in words of 8 bytes.
_FIRST_ADDRESS = POOL_LAUNCH.fields["batch"][1] // 8  # type: ignore[index]
_BATCH_WORDS = POOL_LAUNCH["batch"].base.itemsize // 8
_NORM_BYTES = NORM_PARTS * np.dtype(np.float64).itemsize
_DESCRIBE = {np.dtype(real): f"describe<{c_name(np.dtype(real))}>" for real in ("f4", "f8")}


def _by_value(struct: Struct) -> Any:
    """Return a struct as an argument of launches: CuPy keeps where its memory is.

    At each launch CuPy takes 20 us for an array with fields, 1.2 us for one without, and nothing
    for such an argument.
    """
    return namespace().cuda.function.CNumpyArray(struct.view(f"V{struct.nbytes}"))


def address(pointer: int) -> Any:
    """Return an address as an argument of a kernel; CuPy takes 0.4 us more for a number."""
    return namespace().cuda.function.CIntptr(pointer)


def launch_struct(
    name: str, blocks: int, threads: int, struct: Struct, *arrays: Array, shared: int = 0
) -> None:
    """Launch a kernel that takes a struct, which is copied, and then arrays."""
    arguments = (_by_value(struct.copy()), *arrays)
    kernel(name)((blocks,), (threads,), arguments, shared_mem=shared)


class _Maps(NamedTuple):
    """What of a batch decides how it is pooled."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    misalignment: int  # of the address, in bytes beyond the widest alignment


class _Job(NamedTuple):
    """Images of a batch, and how the kernels reach some of its regions."""

    batch: int  # its number
    maps: _Maps
    images: int
    offset: int  # of the first of them, in bytes from the batch's address
    first_image: int  # of them, in the output
    route: Route


class _Launch(NamedTuple):
    """A launch of a kernel that pools. Only the addresses of the maps are still missing."""

    name: str
    blocks: int
    threads: tuple[int, int]
    shared: int
    words: npt.NDArray[np.int64]  # the struct PoolLaunch
    addresses: list[tuple[int, int, int]]  # a place in words; a batch's number; bytes to add
    options: tuple[Any, ...]  # further arguments
    # Copies of the words, as arguments too, that no call uses now. A call takes one and returns it.
    spare: list[tuple[npt.NDArray[np.int64], Any]]


def launch_pooling(
    batches: Sequence[Array],
    boxes: Sequence[npt.NDArray[np.int64]],
    out: Any,
    most_regions: int,
    spec: KernelSpec,
) -> None:
    """Write regional vectors (N, most_regions, C) to `out`, an array or an `address`.

    A map with fewer regions leaves its last rows as they are.
    """
    pointers = [x.data.ptr for x in batches]
    maps = tuple(
        [(x.shape, x.strides, at % WIDEST_LOAD) for x, at in zip(batches, pointers, strict=True)]
    )
    grids = tuple([grid.tobytes() for grid in boxes])
    for launch in _pool_launches(maps, grids, most_regions, spec):
        try:
            words, argument = spare = launch.spare.pop()
        except IndexError:
            words = launch.words.copy()
            argument = _by_value(words)
            spare = words, argument
        for place, batch, offset in launch.addresses:
            words[place] = pointers[batch] + offset
        kernel(launch.name)(
            (launch.blocks,),
            launch.threads,
            (argument, *launch.options, out),
            shared_mem=launch.shared,
        )
        launch.spare.append(spare)


@cached(lambda launches: sum(2 * launch.words.nbytes for launch in launches))  # with a copy
def _pool_launches(
    batches: tuple[tuple[tuple[int, ...], tuple[int, ...], int], ...],
    boxes: tuple[bytes, ...],
    most_regions: int,
    spec: KernelSpec,
) -> list[_Launch]:
    """Return the launches that pool batches, as few as their capacity allows.

    The batches are given as the fields of `_Maps`.
    """
    launches = []
    for jobs in _jobs_by_kernel([_Maps(*maps) for maps in batches], boxes, spec):
        while jobs:
            launch = _launch_of_first_jobs(jobs, most_regions, spec)
            launches.append(launch)
            del jobs[: len(launch.addresses)]
    return launches


def _jobs_by_kernel(
    batches: list[_Maps], boxes: Sequence[bytes], spec: KernelSpec
) -> Iterable[list[_Job]]:
    """Return lists of jobs that one kernel does with one shape of its blocks."""
    jobs_of_kernel: dict[tuple[Form, int, int], list[_Job]] = {}
    first_image = 0
    all_images = sum(maps.shape[0] for maps in batches)
    least = 1 << min(all_images, 256).bit_length() >> 1  # few numbers, since routes are cached
    for batch, (maps, grid) in enumerate(zip(batches, boxes, strict=True)):
        require_32_bits(maps.shape)
        images, channels = maps.shape[:2]
        for route in region_routes(*maps, grid, least, spec):
            jobs = jobs_of_kernel.setdefault((route.form, route.vector, route.channels), [])
            most = max(1, MOST_BLOCKS // max(1, -(-channels // route.channels)))
            for first in range(0, images, most):
                some, offset = min(most, images - first), first * maps.strides[0]
                jobs.append(_Job(batch, maps, some, offset, first_image + first, route))
        first_image += images
    return jobs_of_kernel.values()


def require_32_bits(shape: tuple[int, ...]) -> None:
    """Raise if a side of the maps is beyond the kernels' int."""
    if max(shape[1:]) <= _INT_MAX:
        return
    for axis, size in zip(("channels", "rows", "columns"), shape[1:], strict=True):
        if size > _INT_MAX:
            raise ValueError(f"x: expected fewer than 2**31 {axis} on the GPU, got {size}")


def _launch_of_first_jobs(jobs: list[_Job], most_regions: int, spec: KernelSpec) -> _Launch:
    """Return one launch for the first jobs, as many as it has room for."""
    launch = np.zeros((), POOL_LAUNCH)
    launch["channels"], launch["regions"] = jobs[0].maps.shape[1], most_regions
    launch["zero_point"] = spec.zero_point
    batch, words = launch["batch"], launch["words"]
    blocks = words_used = 0
    taken: list[_Job] = []
    for job in jobs[:BATCHES]:
        plan = job.route.plan.words
        more_blocks = job.images * -(-job.maps.shape[1] // job.route.channels)
        full = words_used + len(plan) > PLAN_WORDS or blocks + more_blocks > MOST_BLOCKS
        if full and taken:
            break
        words[words_used : words_used + len(plan)] = plan
        width = job.maps.shape[3]
        batch[len(taken)] = 0, job.maps.strides, job.first_image, width, blocks, words_used
        blocks, words_used = blocks + more_blocks, words_used + len(plan)
        taken.append(job)
    launch["batches"] = len(taken)
    places = range(_FIRST_ADDRESS, _FIRST_ADDRESS + len(taken) * _BATCH_WORDS, _BATCH_WORDS)
    shared = max(job.route.shared for job in taken)
    options: tuple[Any, ...] = ()
    if spec.sums:
        by_channels = taken[0].route.form is Form.CHANNELS
        options = (_by_value(np.array((spec.p, by_channels), MEAN_OPTIONS)),)
        shared = max(shared, THREADS * spec.tile.itemsize)
    height, width = (max(job.maps.shape[axis] for job in taken) for axis in (2, 3))
    return _Launch(
        kernel_name(taken[0].route, spec),
        blocks,
        block_shape(taken[0].route, spec, height, width),
        shared,
        launch.reshape(1).view(np.int64),
        [(place, job.batch, job.offset) for place, job in zip(places, taken, strict=True)],
        options,
        spare=[],
    )


def launch_roi_pooling(
    x: Array, rois: Array, out: Array, output_size: tuple[int, int], spatial_scale: float
) -> None:
    """Write the maximum of each bin of each RoI (K, 5): (K, C, ph, pw)."""
    require_32_bits(x.shape)
    if len(x) > _INT_MAX:
        raise ValueError(f"x: expected fewer than 2**31 images on the GPU, got {len(x)}")
    corners = keep_for_graph(rois.astype(np.float32, order="C", copy=False))
    launch = np.zeros((), ROI_LAUNCH)
    launch["data"], launch["strides"] = x.data.ptr, x.strides
    launch["images"], launch["channels"], launch["height"], launch["width"] = x.shape
    launch["bin_rows"], launch["bin_columns"] = output_size
    launch["scale"], launch["elements"] = spatial_scale, out.size
    kernel(f"pool_rois<{DTYPES[x.dtype.name].kind.name}>")(
        (blocks_for(out.size),), (THREADS,), (_by_value(launch), corners, out)
    )


def launch_boxes(boxes: npt.NDArray[np.int64], images: int, rois: Array) -> None:
    """Write every image's boxes in turn as RoIs, (images * R, 5)."""
    for first in range(0, len(boxes) if images else 0, BOXES):
        some = boxes[first : first + BOXES]
        launch = np.zeros((), BOX_LAUNCH)
        launch["images"], launch["regions"] = images, len(boxes)
        launch["first_box"], launch["boxes"] = first, len(some)
        launch["corners"][: some.size] = some.ravel()
        kernel("write_rois")(
            (blocks_for(images * len(some)),), (THREADS,), (_by_value(launch), rois)
        )


def launch_description(
    vectors: Any,
    shape: tuple[int, int, int],
    regions: list[int],
    divisors: Any,
    out: Array,
    aggregation: AggregationOptions,
) -> None:
    """Describe images by their regional vectors (N, most_regions, D), which are overwritten.

    `divisors` is memory for the kernels, (N, most_regions, 2). It and `vectors` are arrays, or an
    `address`. `regions` holds each image's number of regions, or one number for all images.
    """
    same = regions[0] if len(set(regions)) == 1 else 0
    counts = () if same else tuple(regions)
    for launch, blocks in _describe_launches(shape, same, counts, aggregation):
        kernel(_DESCRIBE[out.dtype])(
            (blocks,),
            (DESCRIBE_THREADS,),
            (launch, vectors, divisors, out),
            shared_mem=_NORM_BYTES,
        )


@cached(lambda launches: len(launches) * DESCRIBE_LAUNCH.itemsize)
def _describe_launches(
    shape: tuple[int, int, int],
    same_count: int,
    counts: tuple[int, ...],
    aggregation: AggregationOptions,
) -> list[tuple[Any, int]]:
    """Return launches that describe all images, and the number of images of each.

    All images have the same number of regions, or each has its own in `counts`.
    """
    images, most_regions, channels = shape
    launch = np.zeros((), DESCRIBE_LAUNCH)
    launch["most_regions"], launch["channels"] = most_regions, channels
    launch["same_count"] = same_count
    options = launch["options"]
    options["in_place"] = leaves_in_place(aggregation.aggregate)
    for name in AggregationOptions._fields:
        options[name] = getattr(aggregation, name)
    launches = []
    most = COUNTS if counts else MOST_BLOCKS
    for first in range(0, images, most):
        launch["first_image"], some = first, counts[first : first + most]
        launch["counts"][: len(some)] = some
        launches.append((_by_value(launch.copy()), min(most, images - first)))
    return launches
