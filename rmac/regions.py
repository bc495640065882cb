"""The geometry of R-MAC: which windows lie on a feature map.

Plain integers on the host, computed once per shape and shared by every backend.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rmac._checks import cached_check, choice, positive_int, real, warn
from rmac._options import GridOptions, PresetName, grid_options

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PRESETS", "RegionGrid", "region_grid", "sequence_grid"]

_MAX_EXTRA_WINDOWS = 6
_warned_of_gaps = False


class _Preset(NamedTuple):
    """How one implementation in use computes and orders its windows."""

    dtype: type[np.floating[Any]]  # every intermediate result is rounded to this type
    centred: bool  # starts are rounded at the window's centre, not at its edge
    x_outer: bool  # within a level, x varies slowest
    whole_map: bool  # the whole map comes first, as a region of level 0


PRESETS: dict[PresetName, _Preset] = {
    "caffe2": _Preset(np.float32, centred=False, x_outer=True, whole_map=False),
    "matlab": _Preset(np.float64, centred=True, x_outer=False, whole_map=False),
    "cirtorch": _Preset(np.float32, centred=True, x_outer=False, whole_map=True),
}


class RegionGrid:
    """The regions of an R-MAC pyramid on a feature map of one size, or on a sequence of one length.

    Made by `region_grid` and `sequence_grid`; immutable, so that one object can be cached and
    shared.

    Attributes
    ----------
    boxes : ndarray of int64, shape (R, 4)
        ``x1, y1, x2, y2`` of each region in cells, inclusive on both ends. Read-only.
    level : ndarray of int64, shape (R,)
        The level each region belongs to, 1 to `levels`; 0 is the whole map, which only the
        preset ``"cirtorch"`` has. Read-only.
    height, width : int
        Size of the feature map in cells; 1 and the length of a sequence.
    levels : int
        Number of levels asked for.
    overlap : float or None
        Overlap of neighbouring windows asked for along the longer side; None on a sequence.
    preset : str
        The implementation that the grid reproduces.
    """

    __slots__ = ("boxes", "height", "level", "levels", "overlap", "preset", "width")

    boxes: npt.NDArray[np.int64]
    level: npt.NDArray[np.int64]
    height: int
    width: int
    levels: int
    overlap: float | None
    preset: PresetName

    def __init__(self) -> None:
        raise TypeError("RegionGrid: expected to be made by rmac.region_grid or rmac.sequence_grid")

    @classmethod
    def _of(cls, **fields: Any) -> RegionGrid:
        grid = object.__new__(cls)
        for name, value in fields.items():
            object.__setattr__(grid, name, value)
        return grid

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RegionGrid) and self.__reduce__() == other.__reduce__()

    def __hash__(self) -> int:
        return hash(self.__reduce__())

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"RegionGrid is immutable: cannot set {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"RegionGrid is immutable: cannot delete {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return make_grid, (self.height, self.width, self.levels, self.overlap, self.preset)

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        if self.overlap is None:
            where, overlap = f"a sequence of {self.width}", ""
        else:
            where, overlap = f"{self.height}x{self.width} cells", f"overlap={self.overlap:g}, "
        return (
            f"<RegionGrid: {len(self)} regions on {where}, "
            f"levels={self.levels}, {overlap}preset={self.preset!r}>"
        )

    @property
    def coverage(self) -> float:
        """Share of the map's cells that lie inside at least one region, 0 to 1.

        Less than 1 on maps so long that the windows of every level leave gaps; the first such grid
        of a process comes with a warning.
        """
        return _covered_cells(self.boxes) / (self.height * self.width)

    def to_image(self, image_height: float, image_width: float) -> npt.NDArray[np.float64]:
        """Scale the regions to the image that the feature map was computed from.

        Parameters
        ----------
        image_height, image_width : float
            Size of the image in pixels.

        Returns
        -------
        ndarray of float64, shape (R, 4)
            ``x1, y1, x2, y2`` in pixels, as edges: ``x2 - x1`` is a region's width, and a
            region over the whole map is ``(0, 0, image_width, image_height)``.

        Raises
        ------
        TypeError
            If a size is not a number.
        ValueError
            If a size is not positive and finite.
        """
        across = real("image_width", image_width, low=0, strict=True) / self.width
        down = real("image_height", image_height, low=0, strict=True) / self.height
        edges = self.boxes + np.array([0, 0, 1, 1])
        scaled: npt.NDArray[np.float64] = edges * np.array([across, down, across, down])
        return scaled

    def plot(self, image: npt.ArrayLike | None = None, ax: Axes | None = None) -> Axes:
        """Draw the regions, one colour a level.

        Regions of a map are outlines, in two shades so that neighbours are told apart, and slightly
        inset so that edges which coincide are; regions of a sequence are bars, one below the other.
        Numbers, where there is room, are rows of `boxes` and of what `region_pool` returns.

        Parameters
        ----------
        image : array_like, shape (height, width) or (height, width, 3 or 4), optional
            Picture to draw over, of any size; the regions are scaled to it. By default the map's
            own cells.
        ax : matplotlib.axes.Axes, optional
            Where to draw; by default a new figure.

        Returns
        -------
        matplotlib.axes.Axes
            The axes drawn on.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        TypeError
            If `image` is not an array of real numbers on the host, or `ax` not such axes.
        ValueError
            If `image` is of another shape.
        """
        from rmac._plot import plot_grid

        return plot_grid(self, image, ax)


def region_grid(
    height: int, width: int, *, levels: int = 3, overlap: float = 0.4, preset: PresetName = "caffe2"
) -> RegionGrid:
    """Lay the R-MAC pyramid of windows over a feature map.

    Level ``l`` has square windows of side ``s = floor(2 * min(height, width) / (l + 1))``: ``l``
    of them along the shorter side and ``l + extra`` along the longer, evenly spread. ``extra`` is
    0 on square maps, else the number in 1..6 that brings the overlap of level-1 neighbours closest
    to `overlap`. Levels with ``s = 0`` give no region.

    Parameters
    ----------
    height, width : int
        Size of the feature map in cells, at least 1.
    levels : int, default 3
        Number of window sizes, at least 1.
    overlap : float, default 0.4
        Overlap of neighbouring windows to aim for along the longer side, in [0, 1).
    preset : {"caffe2", "matlab", "cirtorch"}, default "caffe2"
        Whose arithmetic and order to reproduce exactly: Caffe2's RMACRegions; the paper's MATLAB
        code, and VISSL; or cnnimageretrieval-pytorch, which has the whole map as its first region.
        They place windows differently on about 4 % of sizes, by a cell.

    Returns
    -------
    RegionGrid
        The regions; the same object for the same arguments while it stays cached.

    Raises
    ------
    TypeError
        If an argument is of the wrong type.
    ValueError
        If an argument is out of its range.

    See Also
    --------
    sequence_grid : The same along one axis.

    References
    ----------
    .. [1] G. Tolias, R. Sicre and H. Jégou, "Particular object retrieval with integral
       max-pooling of CNN activations", ICLR 2016, arXiv:1511.05879, section 3.

    Examples
    --------
    >>> grid = rmac.region_grid(24, 32)
    >>> grid
    <RegionGrid: 20 regions on 24x32 cells, levels=3, overlap=0.4, preset='caffe2'>
    >>> grid.boxes[0]
    array([ 0,  0, 23, 23])
    """
    return _checked_grid(height, width, levels, overlap, preset)


def sequence_grid(length: int, *, levels: int = 3, preset: PresetName = "caffe2") -> RegionGrid:
    """Lay the R-MAC pyramid of windows along a sequence.

    Level ``l`` has ``l`` windows of ``floor(2 * length / (l + 1))`` positions, evenly spread from
    end to end, so that neighbours have half of them in common. Levels whose windows would have no
    position give no region.

    Parameters
    ----------
    length : int
        Number of positions, at least 1.
    levels : int, default 3
        Number of window sizes, at least 1.
    preset : {"caffe2", "matlab", "cirtorch"}, default "caffe2"
        Whose arithmetic to spread windows with; ``"cirtorch"`` has the whole sequence as its first
        region. See `region_grid`.

    Returns
    -------
    RegionGrid
        The regions, on a map of height 1 and width `length`; its `overlap` is None. The same object
        for the same arguments while it stays cached.

    Raises
    ------
    TypeError
        If an argument is of the wrong type.
    ValueError
        If an argument is out of its range.

    See Also
    --------
    region_grid : The pyramid on a feature map.

    Examples
    --------
    >>> grid = rmac.sequence_grid(12)
    >>> grid
    <RegionGrid: 6 regions on a sequence of 12, levels=3, preset='caffe2'>
    >>> grid.boxes[:, ::2].tolist()  # the first and the last position of each region
    [[0, 11], [0, 7], [4, 11], [0, 5], [3, 8], [6, 11]]
    """
    return _checked_sequence_grid(length, levels, preset)


@cached_check
def _checked_sequence_grid(length: int, levels: int, preset: PresetName) -> RegionGrid:
    length, levels = positive_int("length", length), positive_int("levels", levels)
    return make_grid(1, length, levels, None, choice("preset", preset, PRESETS))


@cached_check
def _checked_grid(
    height: int, width: int, levels: int, overlap: float, preset: PresetName
) -> RegionGrid:
    return make_grid(
        positive_int("height", height),
        positive_int("width", width),
        *grid_options(levels, overlap, preset),
    )


def default_grid(height: int, width: int, options: GridOptions, *, sequence: bool) -> RegionGrid:
    """Return the grid of checked options on a map, or on a sequence as long as it is wide."""
    levels, overlap, preset = options
    return make_grid(height, width, levels, None if sequence else overlap, preset)


@lru_cache(maxsize=1024)
def make_grid(
    height: int, width: int, levels: int, overlap: float | None, preset: PresetName
) -> RegionGrid:
    """Return a grid of checked options, of a sequence if there is no overlap to aim for."""
    height, width = positive_int("height", height), positive_int("width", width)
    rules = PRESETS[preset]
    windows = _windows(height, width, levels, overlap, rules)
    whole = [np.array([[0, 0, width - 1, height - 1]])] if rules.whole_map else []
    boxes = [*whole, *windows]
    grid = RegionGrid._of(
        boxes=_frozen(np.concatenate(boxes)),
        level=_frozen(np.repeat(range(1 - len(whole), len(windows) + 1), [len(b) for b in boxes])),
        height=height,
        width=width,
        levels=levels,
        overlap=overlap,
        preset=preset,
    )
    # Too few windows of level 1 to fill the map leave gaps, which those of others may fill.
    gaps = len(windows[0]) * min(height, width) < max(height, width)
    if gaps and not _warned_of_gaps and grid.coverage < 1:
        _warn_of_gaps(grid)
    return grid


def _warn_of_gaps(grid: RegionGrid) -> None:
    """Warn, once in a process."""
    global _warned_of_gaps
    _warned_of_gaps = True
    cells = grid.height * grid.width
    warn(
        f"{cells - _covered_cells(grid.boxes)} of the {cells} cells of a "
        f"{grid.height}x{grid.width} map are in no R-MAC region (coverage {grid.coverage:.3g}): "
        "preset='cirtorch' adds the whole map as a region, region_pool takes boxes of your own, "
        "and for sequences there is layout='NCT'. This is said once, also of other maps."
    )


def _windows(
    height: int, width: int, levels: int, overlap: float | None, rules: _Preset
) -> list[npt.NDArray[np.int64]]:
    """Return the boxes of each level that has any."""
    sequence = overlap is None
    extra = 0 if overlap is None else _extra_windows(height, width, overlap, rules.dtype)
    down, across = (extra, 0) if height > width else (0, extra)
    levels_of_boxes = []
    for number in range(1, levels + 1):
        side = 2 * (width if sequence else min(height, width)) // (number + 1)
        if side == 0:
            break
        rows, window_height = (1, 1) if sequence else (number + down, side)
        xs = _starts(width, side, number + across, rules)
        ys = _starts(height, window_height, rows, rules)
        levels_of_boxes.append(_boxes(xs, ys, side, window_height, x_outer=rules.x_outer))
    return levels_of_boxes


def _extra_windows(height: int, width: int, overlap: float, dtype: Any) -> int:
    """Return how many more windows lie along the longer side than along the shorter."""
    if height == width:
        return 0
    short, long = min(height, width), max(height, width)
    area = dtype(short * short)
    counts = np.arange(1, _MAX_EXTRA_WINDOWS + 1).astype(dtype)
    stride = dtype(long - short) / counts
    error = np.abs((area - dtype(short) * stride) / area - dtype(overlap))
    return int(np.argmin(error)) + 1


def _starts(length: int, side: int, count: int, rules: _Preset) -> npt.NDArray[np.int64]:
    """Return where `count` windows of one side begin along an axis."""
    if count == 1:
        return np.zeros(1, dtype=np.int64)
    dtype = rules.dtype
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
    """Return the box of a window at each x and y."""
    windows = (len(xs), len(ys)) if x_outer else (len(ys), len(xs))
    boxes = np.empty((*windows, 4), np.int64)
    boxes[..., 0] = xs[:, None] if x_outer else xs
    boxes[..., 1] = ys if x_outer else ys[:, None]
    boxes[..., 2:] = boxes[..., :2] + (width - 1, height - 1)
    return boxes.reshape(-1, 4)


def _frozen(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return a copy that nobody can make writeable again, since its memory is bytes."""
    integers = values.astype(np.int64)
    return np.frombuffer(integers.tobytes(), np.int64).reshape(integers.shape)


def _covered_cells(boxes: npt.NDArray[np.int64]) -> int:
    """Return how many cells lie in at least one box.

    Edges of boxes cut the map into pieces. Over the pieces, the running sums of 1 where a box
    begins and -1 where it ends, along both axes, count the boxes on each.
    """
    edges = boxes + np.array([0, 0, 1, 1])
    xs, (left, right) = _ranked(edges[:, ::2])
    ys, (top, bottom) = _ranked(edges[:, 1::2])
    top, bottom = top * len(xs), bottom * len(xs)
    steps = np.zeros(len(xs) * len(ys), np.int64)
    for corner, step in ((left, 1), (right, -1)):
        steps += step * np.bincount(top + corner, minlength=len(steps))
        steps -= step * np.bincount(bottom + corner, minlength=len(steps))
    counts = steps.reshape(len(ys), len(xs)).cumsum(axis=0).cumsum(axis=1)
    return int(np.diff(ys) @ (counts[:-1, :-1] > 0) @ np.diff(xs))


def elementary_segments(intervals: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Cut an axis at every edge of half-open `intervals` (I, 2).

    Returns start and stop of each piece that lies in some interval, in order.
    """
    edges, (starts, stops) = _ranked(intervals)
    begun = np.bincount(starts, minlength=len(edges)) - np.bincount(stops, minlength=len(edges))
    used = np.flatnonzero(begun.cumsum() > 0)  # never the last edge, where all have ended
    return np.stack([edges[used], edges[used + 1]], axis=1)


def _ranked(
    intervals: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.intp]]:
    """Return the edges of `intervals` (I, 2) in order, and which ones are their ends: (2, I)."""
    edges, ranks = np.unique(intervals, return_inverse=True)
    return edges, ranks.reshape(-1, 2).T
