"""The CPU backend: the operators of `rmac._backend.Backend`, and its arrays.

Twin of `rmac.cuda`. Arguments are checked already: maps are of a dtype in `rmac._dtypes`, an array
`x` of them is a view (N, C, H, W), `boxes` (R, 4) int64, or their bytes, lie on the map, `out` is
C-ordered and apart from the maps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rmac._options import MAX_POOLING, AggregationOptions, PoolingOptions, SearchOptions
from rmac.cpu.arrays import (
    ARRAY,
    DEVICE,
    DLPACK_DEVICES,
    batches,
    can_compute_into,
    device_context,
    device_index,
    empty,
    from_dlpack,
    namespace,
    owns,
    plain,
    read_only,
    require_finite,
    require_writeable,
    to_device,
    to_host,
    view,
)
from rmac.cpu.isa import available_isas, kernels
from rmac.cpu.plan import make_plan
from rmac.cpu.rois import blocks_of_bins, check_rois
from rmac.cpu.route import (
    kernel_spec,
    region_route,
    route_of,
    threads_for,
    workers_before_product,
)
from rmac.cpu.search import search_boxes
from rmac.cpu.threads import workers_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rmac._maps import Batch

__all__ = [
    "ARRAY",
    "DEVICE",
    "DLPACK_DEVICES",
    "batches",
    "can_compute_into",
    "config",
    "describe",
    "device_context",
    "device_index",
    "empty",
    "from_dlpack",
    "localize",
    "namespace",
    "owns",
    "plain",
    "read_only",
    "region_pool",
    "require_finite",
    "require_writeable",
    "rmac",
    "rmac_regions",
    "roi_pool",
    "to_device",
    "to_host",
    "view",
    "workers_before_product",
]

Array = npt.NDArray[Any]


def config() -> dict[str, Any]:
    """Return how the kernels were built, and what they use on this machine."""
    build = kernels.build_info()
    return {
        "compiler": build["compiler"],
        "ISA": build["isa"],
        "ISAs": ", ".join(available_isas()),
        "OpenMP": build["openmp"] or "not in this build",
        "threads": workers_for(None),
    }


def rmac_regions(boxes: npt.NDArray[np.int64], images: int, like: Array) -> Array:  # noqa: ARG001
    """Return every image's boxes in turn as RoIs, (N * R, 5) float32."""
    rois = np.empty((images, len(boxes), 5), np.float32)
    rois[:, :, 0] = np.arange(images)[:, None]
    rois[:, :, 1:] = boxes
    return rois.reshape(-1, 5)


def region_pool(
    batch: Batch,
    boxes: bytes,
    out: Array,
    pooling: PoolingOptions,
    *,
    workers: int | None,
) -> None:
    """Write what each region is pooled to: (N, R, C)."""
    x, shape, strides = batch
    spec = kernel_spec(x.dtype, pooling)
    threads = threads_for(workers, x.nbytes)
    route = region_route(boxes, shape, strides, spec, threads)
    kernels.pool(x, route, spec, out, threads)


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
    spec = kernel_spec(x.dtype, MAX_POOLING)
    threads = threads_for(workers, x.nbytes // max(images, 1))
    index, corners = check_rois(rois, images)
    if not out.size:
        return
    out.fill(0)
    for bins in blocks_of_bins(index, corners, height, width, output_size, spatial_scale):
        by_image = np.argsort(bins.image, kind="stable")
        found, first = np.unique(bins.image[by_image], return_index=True)
        for image, of_image in zip(found, np.split(by_image, first[1:]), strict=False):
            plan = make_plan(bins.boxes[of_image], height, width, bins.target[of_image], ph * pw)
            one = x[image : image + 1]
            route = route_of(plan, one.shape, one.strides, spec, threads)
            kernels.pool(one, route, spec, out, threads)


def rmac(
    batches: Sequence[Batch],
    boxes: Sequence[bytes],
    out: Array,
    pooling: PoolingOptions,
    aggregation: AggregationOptions,
    *,
    workers: int | None,
) -> None:
    """Write the descriptor of each image, (N, D), or (N, R, D) unaggregated.

    The images are one batch, or several batches of one image each.
    """
    arrays = [x for x, _, _ in batches]
    spec = kernel_spec(arrays[0].dtype, pooling)
    threads = threads_for(workers, sum([x.nbytes for x in arrays]))
    routes = [
        region_route(boxes[i], shape, strides, spec, threads)
        for i, (_, shape, strides) in enumerate(batches)
    ]
    order = _largest_first(arrays) if len(arrays) > 1 and threads > 1 else None
    kernels.rmac(arrays, routes, spec, aggregation, order, out, threads)


def describe(vectors: Array, out: Array, aggregation: AggregationOptions) -> None:
    """Write descriptors (N, D) of regional vectors (N, R, D), which are overwritten.

    For the aggregates NONE and CONCAT, `vectors` and `out` are the same memory.
    """
    kernels.describe(vectors, aggregation, out.reshape(len(out), -1))


def localize(
    batches: Sequence[Array],
    queries: npt.NDArray[np.float64],
    aspects: Sequence[float | None],
    search: SearchOptions,
    *,
    workers: int | None,
) -> tuple[Array, Array]:
    """Return the boxes (Q, N, 4) that are most similar to queries, and their scores (Q, N)."""
    return search_boxes(batches, queries, aspects, search, workers)


def _largest_first(arrays: Sequence[Array]) -> npt.NDArray[np.intp]:
    """Return the order in which threads take images: a large one at the end would keep one busy."""
    return np.argsort([-x.size for x in arrays], kind="stable")
