"""The windows of the pyramid: where they lie, and in which order, by the rules of each preset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rmac import _hints
from rmac._caches import cached
from rmac._checks import positive_int, warn
from rmac._cuts import covered_cells

if TYPE_CHECKING:
    from rmac._options import PresetName

_MAX_EXTRA_WINDOWS = 6
_MOST_REGIONS = 1 << 24  # of a grid: they take 640 MiB
_warned_of_gaps = False


class _Preset(NamedTuple):
    """How a preset computes and orders its windows."""

    dtype: type[np.floating[Any]]  # of every intermediate result
    centred: bool  # the centres of windows are rounded, not their edges
    x_outer: bool  # within a level, windows are ordered by x, then by y
    whole_map: bool  # the first region is the whole map, with level 0


PRESETS: dict[PresetName, _Preset] = {
    "caffe2": _Preset(np.float32, centred=False, x_outer=True, whole_map=False),
    "matlab": _Preset(np.float64, centred=True, x_outer=False, whole_map=False),
    "cirtorch": _Preset(np.float32, centred=True, x_outer=False, whole_map=True),
}


class Windows(NamedTuple):
    """The windows of a grid, in the memory of bytes objects, which nobody can write."""

    boxes: npt.NDArray[np.int64]  # (R, 4)
    level: npt.NDArray[np.int64]  # (R,)
    memory: bytes  # of the boxes; as part of keys it is quicker than an array


def _make_windows(
    height: int, width: int, levels: int, overlap: float | None, preset: PresetName
) -> Windows:
    """Return the windows of a grid of checked options."""
    height, width = positive_int("height", height), positive_int("width", width)
    rules = PRESETS[preset]
    of_levels = _boxes_of_levels(height, width, levels, overlap, rules)
    whole = [np.array([[0, 0, width - 1, height - 1]])] if rules.whole_map else []
    parts = [*whole, *of_levels]
    level = np.repeat(range(1 - len(whole), len(of_levels) + 1), [len(part) for part in parts])
    boxes, memory = _frozen(np.concatenate(parts))
    windows = Windows(boxes, _frozen(level)[0], memory)
    # Counting cells is slow. All are covered unless the windows of level 1 are too few for that.
    may_have_gaps = len(of_levels[0]) * min(height, width) < max(height, width)
    if may_have_gaps and not _warned_of_gaps:
        _warn_of_gaps(windows.boxes, height, width)
    return windows


cached_windows = cached(lambda windows: windows.boxes.nbytes + windows.level.nbytes)(_make_windows)


def _warn_of_gaps(boxes: npt.NDArray[np.int64], height: int, width: int) -> None:
    """Warn of cells outside all regions, if there are any, once in a process."""
    global _warned_of_gaps
    cells, covered = height * width, covered_cells(boxes)
    if covered == cells:
        return
    _warned_of_gaps = True
    warn(
        f"{cells - covered} of the {cells} cells of a {height}x{width} map are in no R-MAC region "
        f"(coverage {covered / cells:.3g}): "
        "preset='cirtorch' adds the whole map as a region, region_pool takes boxes of your own, "
        "and layout='NCT' is for sequences. This warning comes once, also for other sizes of map."
        f"{_hints.for_long_map(height, width)}"
    )


def _boxes_of_levels(
    height: int, width: int, levels: int, overlap: float | None, rules: _Preset
) -> list[npt.NDArray[np.int64]]:
    """Return the boxes of each level that has regions."""
    sequence = overlap is None
    shorter = width if sequence else min(height, width)
    extra = 0 if overlap is None else _extra_windows(height, width, overlap, rules.dtype)
    extra_rows, extra_columns = (extra, 0) if height > width else (0, extra)
    levels = min(levels, 2 * shorter - 1)  # windows of further levels have no cell
    _require_few_regions(levels, overlap)
    levels_of_boxes = []
    for level in range(1, levels + 1):
        side = 2 * shorter // (level + 1)
        rows, window_height = (1, 1) if sequence else (level + extra_rows, side)
        xs = _starts(width, side, level + extra_columns, rules)
        ys = _starts(height, window_height, rows, rules)
        levels_of_boxes.append(_boxes(xs, ys, side, window_height, x_outer=rules.x_outer))
    return levels_of_boxes


def _require_few_regions(levels: int, overlap: float | None) -> None:
    """Raise if so many levels that have regions are too many to hold."""
    regions = levels * (levels + 1) // 2  # of a sequence; a map has at least its squares
    if overlap is not None:
        regions = regions * (2 * levels + 1) // 3
    if regions > _MOST_REGIONS:
        raise ValueError(
            f"levels: expected a grid of at most {_MOST_REGIONS} regions, got {levels} levels, "
            f"which have {regions} or more"
        )


def _extra_windows(height: int, width: int, overlap: float, dtype: Any) -> int:
    """Return how many windows more lie along the longer side than along the shorter side.

    Windows of level 1 are as wide as the shorter side, and neighbours are `stride` apart. So they
    share short * (short - stride) of their short * short cells. Each intermediate result is rounded
    to the preset's dtype, so the formula must stay as it is.
    """
    if height == width:
        return 0
    short, long = min(height, width), max(height, width)
    area = dtype(short * short)
    counts = np.arange(1, _MAX_EXTRA_WINDOWS + 1).astype(dtype)
    stride = dtype(long - short) / counts
    error = np.abs((area - dtype(short) * stride) / area - dtype(overlap))
    return int(np.argmin(error)) + 1


def _starts(length: int, side: int, count: int, rules: _Preset) -> npt.NDArray[np.int64]:
    """Return the starts of `count` windows of length `side` along an axis."""
    if count == 1:
        return np.zeros(1, dtype=np.int64)
    dtype = rules.dtype
    # The paper's code rounds down the position of a window's centre, not of its start.
    offset = dtype((side - 2) // 2 if rules.centred else 0)
    stride = dtype(length - side) / dtype(count - 1)
    starts = np.floor(offset + np.arange(count).astype(dtype) * stride) - offset
    inside: npt.NDArray[np.int64] = np.minimum(starts.astype(np.int64), length - side)
    return inside


def _boxes(
    xs: npt.NDArray[np.int64],
    ys: npt.NDArray[np.int64],
    width: int,
    height: int,
    *,
    x_outer: bool,
) -> npt.NDArray[np.int64]:
    """Return the boxes of the windows that start at every x and y."""
    windows = (len(xs), len(ys)) if x_outer else (len(ys), len(xs))
    boxes = np.empty((*windows, 4), np.int64)
    boxes[..., 0] = xs[:, None] if x_outer else xs
    boxes[..., 1] = ys if x_outer else ys[:, None]
    boxes[..., 2:] = boxes[..., :2] + (width - 1, height - 1)
    return boxes.reshape(-1, 4)


def _frozen(values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], bytes]:
    """Return a copy in the memory of a bytes object, which NumPy refuses to make writeable."""
    memory = values.astype(np.int64).tobytes()
    return np.frombuffer(memory, np.int64).reshape(values.shape), memory
