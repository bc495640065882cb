"""The GPU backend: the operators of `rmac._backend.Backend`, and its arrays.

Twin of `rmac.cpu`. Arguments are checked already, as there. Kernels are launched in the current
stream. Nothing here waits for the device or reads from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rmac.cuda.arrays import (
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
from rmac.cuda.launches import launch_description, launch_descriptors, launch_pooling
from rmac.cuda.rois import launch_boxes, launch_roi_pooling
from rmac.cuda.route import kernel_spec
from rmac.cuda.search import search_boxes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rmac._maps import Batch
    from rmac._options import AggregationOptions, PoolingOptions, SearchOptions

Array = Any  # cupy.ndarray

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


def config() -> dict[str, Any]:
    """Return the version of CuPy and the number of its devices, or why there are none."""
    try:
        cupy = namespace()
    except ImportError:
        return {"CUDA": "no CuPy"}
    try:
        devices = f"{cupy.cuda.runtime.getDeviceCount()} devices"
    except Exception as error:
        devices = str(error)
    return {"CUDA": f"CuPy {cupy.__version__}, {devices}"}


def rmac_regions(boxes: npt.NDArray[np.int64], images: int, like: Array) -> Array:
    """Return every image's boxes in turn as RoIs, (N * R, 5) float32."""
    rois = empty((images * len(boxes), 5), np.dtype(np.float32), like)
    with device_context(like):
        launch_boxes(boxes, images, rois)
    return rois


def region_pool(
    batch: Batch,
    boxes: bytes,
    out: Array,
    pooling: PoolingOptions,
    *,
    workers: int | None,
) -> None:
    """Write what each region is pooled to: (N, R, C)."""
    _require_no_workers(workers)
    x = batch[0]
    with device_context(x):
        launch_pooling([batch], [boxes], out, kernel_spec(x.dtype, pooling, out.dtype))


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
    _require_no_workers(workers)
    if not out.size:
        return
    with device_context(x):
        launch_roi_pooling(x, rois, out, output_size, spatial_scale)


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
    _require_no_workers(workers)
    x = batches[0][0]
    with device_context(x):
        spec = kernel_spec(x.dtype, pooling, out.dtype)
        launch_descriptors(batches, boxes, out, spec, aggregation)


def describe(vectors: Array, out: Array, aggregation: AggregationOptions) -> None:
    """Write descriptors (N, D) of regional vectors (N, R, D), which are overwritten.

    For the aggregates NONE and CONCAT, `vectors` and `out` are the same memory.
    """
    with device_context(vectors):
        launch_description(vectors, out, aggregation)


def localize(
    batches: Sequence[Array],
    queries: Array,
    aspects: Sequence[float | None],
    search: SearchOptions,
    *,
    workers: int | None,
) -> tuple[Array, Array]:
    """Return the best boxes (Q, N, 4) of all maps, and their scores (Q, N)."""
    _require_no_workers(workers)
    if search.name == "aml":
        raise TypeError(
            f'x: expected a numpy.ndarray for search="aml", got a {ARRAY}; '
            "cupy.asnumpy copies it to the host"
        )
    with device_context(batches[0]):
        return search_boxes(batches, queries, aspects, search)


def workers_before_product(workers: int | None, size: int) -> int | None:  # noqa: ARG001
    """Return `workers` as they are: no thread of the host computes."""
    return workers


def _require_no_workers(workers: int | None) -> None:
    if workers is not None:
        raise ValueError(f"workers: expected None with an array on the GPU, got {workers}")
