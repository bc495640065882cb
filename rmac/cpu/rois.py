"""From RoIs in image coordinates to bins on the feature map, in Caffe2's arithmetic."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rmac._floats import default_floats

if TYPE_CHECKING:
    from collections.abc import Iterator

Integers = npt.NDArray[np.int64]

_BLOCK = 1 << 18  # bins
_FAR = 1 << 61  # the difference of two such coordinates fits int64


class Bins(NamedTuple):
    """The bins of some RoIs that hold at least one cell."""

    boxes: Integers  # (B, 4) inclusive
    target: Integers  # (B,) index among all bins: (roi * ph + i) * pw + j
    image: Integers  # (B,) index of the map


def check_rois(rois: npt.NDArray[Any], images: int) -> tuple[Integers, npt.NDArray[np.float32]]:
    """Return batch indices and corners of RoIs, or raise if one is not finite or not on a map."""
    # Both are copies: another thread may write RoIs after they are checked.
    with default_floats():  # overflows to inf, which is an error below
        corners = rois[:, 1:].astype(np.float32)
    index = rois[:, 0].copy()
    finite = np.isfinite(corners).all(axis=1) & np.isfinite(index)
    whose = f"0..{images - 1}" if images else "none, of no images"
    for what, error, wrong in (
        ("finite float32 numbers", ValueError, ~finite),
        (f"a batch index in {whose}", IndexError, (index < 0) | (index >= images)),
        ("a whole batch index", ValueError, index != np.floor(index)),
    ):
        if wrong.any():
            row = int(wrong.argmax())
            got = [index[row].item(), *corners[row].tolist()]
            raise error(f"rois: expected {what}, got {got} in row {row}")
    return index.astype(np.int64), corners


def blocks_of_bins(
    index: Integers,
    corners: npt.NDArray[np.float32],
    height: int,
    width: int,
    output_size: tuple[int, int],
    spatial_scale: float,
) -> Iterator[Bins]:
    """Yield the non-empty bins of checked RoIs, with corners (K, 4), on maps of one size.

    They are yielded some at a time, since a bin and its part of a plan take about 300 bytes.
    """
    with default_floats():  # overflows to inf, which is clipped to _FAR
        cells = _round_half_away(corners * np.float32(spatial_scale))
    bin_rows, bin_columns = output_size
    shape = (len(cells), *output_size)
    for parts in product(
        _parts(len(cells), bin_rows * bin_columns),
        _parts(bin_rows, bin_columns),
        _parts(bin_columns, 1),
    ):
        rois, rows, columns = parts
        some = cells[rois.start : rois.stop]
        x1, x2 = _bin_edges(some[:, 0], some[:, 2], columns, bin_columns, width)
        y1, y2 = _bin_edges(some[:, 1], some[:, 3], rows, bin_rows, height)
        full = np.nonzero((x1 < x2)[:, None, :] & (y1 < y2)[:, :, None])
        roi, row, column = full
        boxes = np.stack(
            [x1[roi, column], y1[roi, row], x2[roi, column] - 1, y2[roi, row] - 1], axis=1
        )
        places = [axis + part.start for axis, part in zip(full, parts, strict=True)]
        yield Bins(boxes, np.ravel_multi_index(places, shape), index[places[0]])


def _parts(count: int, size: int) -> list[range]:
    """Return the numbers up to `count`, of `size` bins each, in parts of few bins."""
    step = max(1, _BLOCK // size)
    return [range(first, min(first + step, count)) for first in range(0, count, step)]


def _round_half_away(values: npt.NDArray[np.float32]) -> Integers:
    exact = values.astype(np.float64)
    rounded = np.copysign(np.floor(np.abs(exact) + 0.5), exact)
    return np.clip(rounded, -_FAR, _FAR).astype(np.int64)


def _bin_edges(
    first: Integers, last: Integers, part: range, count: int, size: int
) -> tuple[Integers, Integers]:
    """Return where a part of `count` bins start and stop along one axis, clipped to the map."""
    length = np.maximum(last - first + 1, 1).astype(np.float32)
    step = (length / np.float32(count))[:, None]
    index = np.arange(part.start, part.stop + 1).astype(np.float32)
    start = np.floor(index[:-1] * step).astype(np.int64) + first[:, None]
    stop = np.ceil(index[1:] * step).astype(np.int64) + first[:, None]
    return np.clip(start, 0, size), np.clip(stop, 0, size)
