"""Launches of the kernels that pool RoIs, and that write boxes as RoIs. Twin of `rmac.cpu.rois`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rmac._dtypes import DTYPES
from rmac.cuda.arrays import keep_for_graph
from rmac.cuda.launches import INT_MAX, launch_struct, require_32_bits
from rmac.cuda.route import MOST_BLOCKS, THREADS, WARP, WIDEST_LOAD, blocks_for, widest_vector
from rmac.cuda.structs import BOX_LAUNCH, BOXES, ROI_LAUNCH, ROI_SHARED

Array = Any  # cupy.ndarray

# Nothing here is measured on a GPU yet.
# The most channels whose values a lane of pool_rois loads at once, by the bytes of an element. More
# of float64 do not fit in registers.
CHANNELS_AT_ONCE = {1: 8, 2: 8, 4: 8, 8: 4}
# A lane of pool_rois finds the edges of a bin once for a group of so many channels.
_GROUP = 32
# The most groups of a block. With fewer, more threads are idle after the last bin.
_MOST_GROUPS = 4
# A block has fewer groups if a launch would have fewer blocks than this: four for each
# multiprocessor of an H100.
_FEW_ROI_BLOCKS = 528
# pool_rois_by_channels is for pixels of so many bytes or more, the least that is read from memory.
# In smaller ones few threads would walk a bin.
_LEAST_PIXEL = 32


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
    launch["scale"], launch["rois"] = spatial_scale, len(rois)
    name, group = _kernel_of(x)
    groups_of_map = -(-x.shape[1] // group)
    groups = min(_MOST_GROUPS, max(1, len(rois) * groups_of_map // _FEW_ROI_BLOCKS))
    launch["group"], launch["groups"] = group, groups
    blocks = len(rois) * -(-groups_of_map // groups)
    launch_struct(name, min(blocks, MOST_BLOCKS), THREADS, launch, corners, out, shared=ROI_SHARED)


def _kernel_of(x: Array) -> tuple[str, int]:
    """Return the kernel for maps, and the channels of a group."""
    kind, channels = DTYPES[x.dtype.name].kind.name, x.shape[1]
    if x.strides[1] == x.itemsize and channels * x.itemsize >= _LEAST_PIXEL:
        vector = widest_vector(x.shape, x.strides, x.data.ptr % WIDEST_LOAD, x.itemsize, 1)
        team_size = min(WARP, 1 << (channels // vector - 1).bit_length())
        return f"pool_rois_by_channels<{kind}, {vector}>", team_size * vector
    at_once = CHANNELS_AT_ONCE[x.itemsize]
    count = at_once if channels >= at_once else 1
    return f"pool_rois<{kind}, {count}>", -(-channels // -(-channels // _GROUP))


def launch_boxes(boxes: npt.NDArray[np.int64], images: int, rois: Array) -> None:
    """Write every image's boxes in turn as RoIs, (images * R, 5)."""
    for first in range(0, len(boxes) if images else 0, BOXES):
        some = boxes[first : first + BOXES]
        launch = np.zeros((), BOX_LAUNCH)
        launch["images"], launch["regions"] = images, len(boxes)
        launch["first_box"], launch["boxes"] = first, len(some)
        launch["corners"][: some.size] = some.ravel()
        launch_struct("write_rois", blocks_for(images * len(some)), THREADS, launch, rois)
