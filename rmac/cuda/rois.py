"""Launches of the kernels that pool RoIs, and that write boxes as RoIs. Twin of `rmac.cpu.rois`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rmac._dtypes import DTYPES
from rmac.cuda.arrays import keep_for_graph
from rmac.cuda.launches import INT_MAX, launch_struct, require_32_bits
from rmac.cuda.route import THREADS, blocks_for
from rmac.cuda.structs import BOX_LAUNCH, BOXES, ROI_LAUNCH

Array = Any  # cupy.ndarray


def launch_roi_pooling(
    x: Array, rois: Array, out: Array, output_size: tuple[int, int], spatial_scale: float
) -> None:
    """Write the maximum of each bin of each RoI (K, 5): (K, C, ph, pw)."""
    require_32_bits(x.shape)
    if len(x) > INT_MAX:
        raise ValueError(f"x: expected fewer than 2**31 images on the GPU, got {len(x)}")
    corners = keep_for_graph(rois.astype(np.float32, order="C", copy=False))
    launch = np.zeros((), ROI_LAUNCH)
    launch["data"], launch["strides"] = x.data.ptr, x.strides
    launch["images"], launch["channels"], launch["height"], launch["width"] = x.shape
    launch["bin_rows"], launch["bin_columns"] = output_size
    launch["scale"], launch["elements"] = spatial_scale, out.size
    name = f"pool_rois<{DTYPES[x.dtype.name].kind.name}>"
    launch_struct(name, blocks_for(out.size), THREADS, launch, corners, out)


def launch_boxes(boxes: npt.NDArray[np.int64], images: int, rois: Array) -> None:
    """Write every image's boxes in turn as RoIs, (images * R, 5)."""
    for first in range(0, len(boxes) if images else 0, BOXES):
        some = boxes[first : first + BOXES]
        launch = np.zeros((), BOX_LAUNCH)
        launch["images"], launch["regions"] = images, len(boxes)
        launch["first_box"], launch["boxes"] = first, len(some)
        launch["corners"][: some.size] = some.ravel()
        launch_struct("write_rois", blocks_for(images * len(some)), THREADS, launch, rois)
