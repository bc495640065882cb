"""From RoIs in image coordinates to bins on the feature map, in Caffe2's arithmetic."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

_FAR = 1 << 61  # the difference of two such coordinates fits int64


class Bins(NamedTuple):
    """The bins of some RoIs that hold at least one cell."""

    boxes: Integers  # (B, 4) inclusive
    target: Integers  # (B,) index among all bins: (roi * ph + i) * pw + j
    image: Integers  # (B,) index of the map


def check_rois(rois: npt.NDArray[Any], images: int) -> tuple[Integers, npt.NDArray[np.float32]]:
    """Return batch indices and corners of RoIs, or raise if one is not finite or not on a map."""
    with np.errstate(over="ignore"):  # overflows to inf, which is an error below
        corners = rois[:, 1:].astype(np.float32)
    index = rois[:, 0]
    finite = np.isfinite(corners).all(axis=1) & np.isfinite(index)
    whose = f"0..{images - 1}" if images else "none, of no images"
    for what, error, wrong in (
        ("finite float32 numbers", ValueError, ~finite),
        (f"a batch index in {whose}", IndexError, (index < 0) | (index >= images)),
        ("a whole batch index", ValueError, index != np.floor(index)),
    ):
        if wrong.any():
            row = int(wrong.argmax())
            raise error(f"rois: expected {what}, got {rois[row].tolist()} in row {row}")
    return index.astype(np.int64), corners


def roi_bins(
    index: Integers,
    corners: npt.NDArray[np.float32],
    height: int,
    width: int,
    output_size: tuple[int, int],
    spatial_scale: float,
) -> Bins:
    """Return the non-empty bins of checked RoIs, with corners (K, 4), on maps of one size."""
    with np.errstate(over="ignore"):  # overflows to inf, which is clipped to _FAR
        cells = _round_half_away(corners * np.float32(spatial_scale))
    x1, x2 = _bin_edges(cells[:, 0], cells[:, 2], output_size[1], width)
    y1, y2 = _bin_edges(cells[:, 1], cells[:, 3], output_size[0], height)
    shape = (len(corners), *output_size)
    edges = (x1[:, None, :], y1[:, :, None], x2[:, None, :] - 1, y2[:, :, None] - 1)
    boxes = np.stack([np.broadcast_to(edge, shape) for edge in edges], axis=-1).reshape(-1, 4)
    target = np.flatnonzero((boxes[:, :2] <= boxes[:, 2:]).all(axis=1))
    return Bins(boxes[target], target, index[target // (output_size[0] * output_size[1])])


def _round_half_away(values: npt.NDArray[np.float32]) -> Integers:
    exact = values.astype(np.float64)
    rounded = np.copysign(np.floor(np.abs(exact) + 0.5), exact)
    return np.clip(rounded, -_FAR, _FAR).astype(np.int64)


def _bin_edges(first: Integers, last: Integers, count: int, size: int) -> tuple[Integers, Integers]:
    """Return where bins start and stop along one axis, (K, count), clipped to the map."""
    length = np.maximum(last - first + 1, 1).astype(np.float32)
    step = (length / np.float32(count))[:, None]
    index = np.arange(count + 1).astype(np.float32)
    start = np.floor(index[:-1] * step).astype(np.int64) + first[:, None]
    stop = np.ceil(index[1:] * step).astype(np.int64) + first[:, None]
    return np.clip(start, 0, size), np.clip(stop, 0, size)
