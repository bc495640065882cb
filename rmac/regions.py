"""The grids of R-MAC: which regions lie on a feature map.

Grids are integers on the host. They are computed once for each size of map, and all backends share
them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rmac._caches import cached
from rmac._checks import positive_int, real, unmade
from rmac._cuts import covered_cells
from rmac._options import GridOptions, PresetName, grid_options
from rmac._windows import PRESETS, Windows, cached_windows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PRESETS", "RegionGrid", "region_grid", "sequence_grid"]


class RegionGrid:
    """The regions of an R-MAC pyramid on a feature map of one size, or on a sequence of one length.

    `region_grid` and `sequence_grid` make grids. A grid is immutable, so that callers can share it.

    Attributes
    ----------
    boxes : ndarray of int64, shape (R, 4)
        ``x1, y1, x2, y2`` of each region in cells, inclusive on both ends. Read-only.
    level : ndarray of int64, shape (R,)
        The level of each region, 1 to `levels`. Only the preset ``"cirtorch"`` has level 0, the
        whole map. Read-only.
    height, width : int
        Size of the feature map in cells. A sequence has height 1 and its length as width.
    levels : int
        Number of levels asked for.
    overlap : float or None
        Overlap asked for between neighbouring windows along the longer side; None on a sequence.
    preset : str
        The implementation that the grid reproduces.
    """

    __slots__ = ("_boxes", "_level", "height", "levels", "overlap", "preset", "width")

    _boxes: npt.NDArray[np.int64]
    _level: npt.NDArray[np.int64]
    height: int
    width: int
    levels: int
    overlap: float | None
    preset: PresetName

    def __init__(self) -> None:
        raise TypeError("RegionGrid: expected to be made by rmac.region_grid or rmac.sequence_grid")

    @classmethod
    def _of(cls, boxes: npt.NDArray[Any], level: npt.NDArray[Any], **fields: Any) -> RegionGrid:
        grid = object.__new__(cls)
        fields |= {"_boxes": boxes.view(), "_level": level.view()}
        for name, value in fields.items():
            object.__setattr__(grid, name, value)
        return grid

    if not TYPE_CHECKING:  # else type checkers would allow any name

        def __getattr__(self, name: str) -> Any:
            raise unmade(self, name, RegionGrid.__slots__, "region_grid or sequence_grid")

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
        return len(self._boxes)

    def __repr__(self) -> str:
        if self.overlap is None:
            where, overlap = f"a sequence of {self.width}", ""
        else:
            where, overlap = f"{self.height}x{self.width} cells", f"overlap={self.overlap:g}, "
        return (
            f"<RegionGrid: {len(self)} regions on {where}, "
            f"levels={self.levels}, {overlap}preset={self.preset!r}>"
        )

    # New views at each call: a view whose shape is changed in place changes nothing else.

    @property
    def boxes(self) -> npt.NDArray[np.int64]:
        """``x1, y1, x2, y2`` of each region in cells, inclusive on both ends. Read-only."""
        return self._boxes.view()

    @property
    def level(self) -> npt.NDArray[np.int64]:
        """The level of each region."""
        return self._level.view()

    @property
    def coverage(self) -> float:
        """Share of the map's cells that lie inside at least one region, 0 to 1.

        It is less than 1 on very long maps, where the windows of every level leave gaps. The first
        such grid of a process warns.
        """
        return covered_cells(self._boxes) / (self.height * self.width)

    def to_image(self, image_height: float, image_width: float) -> npt.NDArray[np.float64]:
        """Scale the regions to the image that the feature map was computed from.

        Parameters
        ----------
        image_height, image_width : float
            Size of the image in pixels.

        Returns
        -------
        ndarray of float64, shape (R, 4)
            ``x1, y1, x2, y2`` in pixels, where x2 and y2 are the far edges: ``x2 - x1`` is the
            width of a region, and the whole map is ``(0, 0, image_width, image_height)``.

        Raises
        ------
        TypeError
            If a size is not a number.
        ValueError
            If a size is not positive and finite.
        """
        across = real("image_width", image_width, low=0, strict=True) / self.width
        down = real("image_height", image_height, low=0, strict=True) / self.height
        edges = self._boxes + np.array([0, 0, 1, 1])
        scaled: npt.NDArray[np.float64] = edges * np.array([across, down, across, down])
        return scaled

    def plot(self, image: npt.ArrayLike | None = None, ax: Axes | None = None) -> Axes:
        """Draw the regions, one colour for each level.

        Regions of a map are outlines. Neighbours have two shades of one colour, and outlines are
        slightly inset so that shared edges can be seen. Regions of a sequence are bars, one below
        the other. The number at a region is its row in `boxes` and in the result of `region_pool`;
        numbers are left out if there are more than 30 regions.

        Parameters
        ----------
        image : array_like, shape (height, width) or (height, width, 3 or 4), optional
            Picture of any size to draw over; the regions are scaled to it. By default the cells of
            the map are drawn.
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
            If `image` is not an array of real numbers on the host, or `ax` is not axes.
        ValueError
            If `image` is of another shape.
        """
        from rmac._plot import plot_grid

        return plot_grid(self, image, ax)


def region_grid(
    height: int, width: int, *, levels: int = 3, overlap: float = 0.4, preset: PresetName = "caffe2"
) -> RegionGrid:
    """Lay the R-MAC pyramid of windows over a feature map.

    Level ``l`` has square windows of side ``s = floor(2 * min(height, width) / (l + 1))``. They are
    evenly spread: ``l`` along the shorter side and ``l + extra`` along the longer. ``extra`` is 0
    on square maps. On others it is the number in 1..6 for which neighbours of level 1 overlap by
    the share closest to `overlap`. Levels with ``s = 0`` give no region.

    Parameters
    ----------
    height, width : int
        Size of the feature map in cells, at least 1.
    levels : int, default 3
        Number of window sizes, at least 1.
    overlap : float, default 0.4
        Overlap to aim for between neighbouring windows along the longer side, in [0, 1).
    preset : {"caffe2", "matlab", "cirtorch"}, default "caffe2"
        The implementation to reproduce exactly, in its arithmetic and order: ``"caffe2"`` is
        Caffe2's RMACRegions; ``"matlab"`` is the paper's MATLAB code, and VISSL; ``"cirtorch"`` is
        cnnimageretrieval-pytorch, whose first region is the whole map. On about 4 % of sizes they
        differ by a cell.

    Returns
    -------
    RegionGrid
        The regions. Grids are cached: the same arguments usually give the same object.

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
    options = grid_options(levels, overlap, preset)
    height, width = positive_int("height", height), positive_int("width", width)
    return _cached_grid(height, width, *options)


def sequence_grid(length: int, *, levels: int = 3, preset: PresetName = "caffe2") -> RegionGrid:
    """Lay the R-MAC pyramid of windows along a sequence.

    Level ``l`` has ``l`` windows of ``floor(2 * length / (l + 1))`` positions, evenly spread from
    end to end: neighbours overlap by half. Levels whose windows have no position give no region.

    Parameters
    ----------
    length : int
        Number of positions, at least 1.
    levels : int, default 3
        Number of window sizes, at least 1.
    preset : {"caffe2", "matlab", "cirtorch"}, default "caffe2"
        The arithmetic that places the windows, as in `region_grid`. The first region of
        ``"cirtorch"`` is the whole sequence.

    Returns
    -------
    RegionGrid
        The regions, on a map of height 1 and width `length`. Its `overlap` is None. Grids are
        cached: the same arguments usually give the same object.

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
    options = grid_options(levels, 0.0, preset)
    length = positive_int("length", length)
    return _cached_grid(1, length, options.levels, None, options.preset)


def grid_windows(height: int, width: int, options: GridOptions, *, sequence: bool) -> Windows:
    """Return the windows of the grid of checked options, which no caller of rmac can change.

    On a sequence, `width` is its length.
    """
    levels, overlap, preset = options
    return cached_windows(height, width, levels, None if sequence else overlap, preset)


def make_grid(
    height: int, width: int, levels: int, overlap: float | None, preset: PresetName
) -> RegionGrid:
    """Return the grid of checked options on a map; on a sequence if `overlap` is None."""
    height, width = positive_int("height", height), positive_int("width", width)
    windows = cached_windows(height, width, levels, overlap, preset)
    return RegionGrid._of(
        windows.boxes,
        windows.level,
        height=height,
        width=width,
        levels=levels,
        overlap=overlap,
        preset=preset,
    )


_cached_grid = cached(lambda grid: grid._boxes.nbytes + grid._level.nbytes)(make_grid)
