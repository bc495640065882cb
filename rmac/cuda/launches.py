"""How work is split over launches of the kernels, and their structs filled.

The current device must be that of the arrays. Launches go to the current stream. Nothing here waits
for the device or reads from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rmac._dtypes import DTYPES
from rmac._options import AggregationOptions
from rmac.cuda.arrays import keep_for_graph, namespace
from rmac.cuda.c_types import c_name
from rmac.cuda.route import (
    DESCRIBE_THREADS,
    MOST_BLOCKS,
    NORM_PARTS,
    THREADS,
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
    from collections.abc import Iterator, Sequence

Array = Any  # cupy.ndarray
Struct = npt.NDArray[Any]  # of no dimensions: one struct

_INT_MAX = (1 << 31) - 1  # of the kernels' sizes


def _by_value(struct: Struct) -> Struct:
    """Return a struct as an argument of a kernel.

    CuPy takes 20 us for an argument with fields, and less than 1 us for the same bytes without.
    """
    return struct.view(f"V{struct.itemsize}")


class _Job(NamedTuple):
    """A batch, and how the kernels reach some of its regions."""

    x: Array
    first_image: int  # of the batch, in the output
    route: Route


def _require_32_bits(x: Array) -> None:
    """Raise if a side of the maps is beyond the kernels' int."""
    for axis, size in zip(("channels", "rows", "columns"), x.shape[1:], strict=True):
        if size > _INT_MAX:
            raise ValueError(f"x: expected fewer than 2**31 {axis} on the GPU, got {size}")


def _images_of_launch(x: Array, channels: int) -> int:
    """Return how many images one launch can take, in blocks of so many channels."""
    blocks: int = -(-x.shape[1] // channels)
    return max(1, MOST_BLOCKS // max(1, blocks))


def launch_pooling(
    batches: Sequence[Array],
    boxes: Sequence[npt.NDArray[np.int64]],
    out: Array,
    most_regions: int,
    spec: KernelSpec,
) -> None:
    """Write regional vectors (N, most_regions, C).

    A map with fewer regions leaves its last rows as they are.
    """
    jobs_of_kernel: dict[tuple[str, Form], list[_Job]] = {}
    first_image = 0
    for x, grid in zip(batches, boxes, strict=True):
        _require_32_bits(x)
        for route in region_routes(x, grid, spec):
            jobs = jobs_of_kernel.setdefault((kernel_name(route, spec), route.form), [])
            most = _images_of_launch(x, route.channels)
            for first in range(0, len(x), most):
                some = x if len(x) <= most else x[first : first + most]
                jobs.append(_Job(some, first_image + first, route))
        first_image += len(x)
    for (name, _), jobs in jobs_of_kernel.items():
        while jobs:
            taken = _launch_first_jobs(name, jobs, out, most_regions, spec)
            del jobs[:taken]


def _launch_first_jobs(
    name: str, jobs: list[_Job], out: Array, most_regions: int, spec: KernelSpec
) -> int:
    """Launch one kernel for the first jobs, and return how many these are."""
    launch, blocks = _pool_launch(jobs, most_regions)
    launch["zero_point"] = spec.zero_point
    taken = int(launch["batches"])
    shared = max(job.route.shared for job in jobs[:taken])
    height, width = (max(job.x.shape[axis] for job in jobs[:taken]) for axis in (2, 3))
    block = block_shape(jobs[0].route, spec, height, width)
    args = [_by_value(launch), out]
    if spec.sums:
        by_channels = jobs[0].route.form is Form.CHANNELS
        args.insert(1, _by_value(np.array((spec.p, by_channels), MEAN_OPTIONS)))
        shared = max(shared, THREADS * spec.tile.itemsize)
    kernel(name)((blocks,), block, tuple(args), shared_mem=shared)
    return taken


def _pool_launch(jobs: list[_Job], most_regions: int) -> tuple[Struct, int]:
    """Return a launch of the first jobs, up to its capacity, and the number of its blocks."""
    launch = np.zeros((), POOL_LAUNCH)
    launch["channels"], launch["regions"] = jobs[0].x.shape[1], most_regions
    blocks = words_used = taken = 0
    for job, batch in zip(jobs, launch["batch"], strict=False):
        words = job.route.plan.words
        more_blocks = job.x.shape[0] * -(-job.x.shape[1] // job.route.channels)
        full = words_used + len(words) > PLAN_WORDS or blocks + more_blocks > MOST_BLOCKS
        if full and taken:
            break
        launch["words"][words_used : words_used + len(words)] = words
        batch["data"], batch["strides"] = job.x.data.ptr, job.x.strides
        batch["first_image"], batch["width"] = job.first_image, job.x.shape[3]
        batch["first_block"], batch["first_word"] = blocks, words_used
        blocks, words_used, taken = blocks + more_blocks, words_used + len(words), taken + 1
    launch["batches"] = taken
    return launch, blocks


def launch_roi_pooling(
    x: Array, rois: Array, out: Array, output_size: tuple[int, int], spatial_scale: float
) -> None:
    """Write the maximum of each bin of each RoI (K, 5): (K, C, ph, pw)."""
    _require_32_bits(x)
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
    vectors: Array, regions: list[int], out: Array, aggregation: AggregationOptions
) -> None:
    """Describe images by their regional vectors (N, most_regions, D), which are overwritten.

    `regions` holds each image's number of regions, or one number for all images.
    """
    images, most_regions, _ = vectors.shape
    divisors = keep_for_graph(namespace().empty((images, most_regions), vectors.dtype))
    describe = kernel(f"describe<{c_name(vectors.dtype)}>")
    for launch, blocks in _describe_launches(vectors.shape, regions, aggregation):
        describe(
            (blocks,),
            (DESCRIBE_THREADS,),
            (_by_value(launch), vectors, divisors, out),
            shared_mem=NORM_PARTS * np.dtype(np.float64).itemsize,
        )


def _describe_launches(
    shape: tuple[int, int, int], regions: list[int], aggregation: AggregationOptions
) -> Iterator[tuple[Struct, int]]:
    """Yield launches that describe all images, and the number of images of each."""
    images, most_regions, channels = shape
    launch = np.zeros((), DESCRIBE_LAUNCH)
    launch["most_regions"], launch["channels"] = most_regions, channels
    options = launch["options"]
    options["in_place"] = leaves_in_place(aggregation.aggregate)
    for name in AggregationOptions._fields:
        options[name] = getattr(aggregation, name)
    if len(set(regions)) == 1:
        launch["same_count"] = regions[0]
        for first in range(0, images, MOST_BLOCKS):
            launch["first_image"] = first
            yield launch, min(MOST_BLOCKS, images - first)
        return
    for first in range(0, images, COUNTS):
        some = regions[first : first + COUNTS]
        launch["first_image"], launch["counts"][: len(some)] = first, some
        yield launch, len(some)
