"""Drawing of region grids and boxes, which needs matplotlib."""

from __future__ import annotations

from math import dist
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rmac._checks import ask, type_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes

    from rmac.regions import RegionGrid

# Colour-blind readers can tell these apart. The first is for the whole map.
_COLOURS = ("#333333", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#A6761D", "#56B4E9")
_LIGHTER = 0.4  # how far towards white every other window of a level is drawn
_INSET = 0.011  # distance between outlines that share an edge, as a share of the shorter side
_MAX_INSET = 0.2  # the most that outlines are inset, as a share of the smallest window
_THIN = 8  # a map this many times longer than wide is not drawn with square cells
_MAX_TAGS = 30  # more regions than this are not numbered
_TAG_DISTANCE = 0.05  # between the numbers of two regions, as a share of the longer side

_Point = tuple[float, float]


def plot_grid(grid: RegionGrid, image: npt.ArrayLike | None, ax: Axes | None) -> Axes:
    """Draw `grid` over an image or over its own cells; see `RegionGrid.plot`."""
    try:
        import matplotlib.pyplot as plt
        from matplotlib.axes import Axes
    except ImportError as error:
        raise ImportError("RegionGrid.plot needs matplotlib: pip install matplotlib") from error

    picture = None if image is None else _picture(image)
    if ax is None:
        ax = plt.figure(figsize=(8, 4.8), layout="compressed").add_subplot()
    elif not issubclass(type(ax), Axes):
        raise TypeError(f"ax: expected a matplotlib.axes.Axes, got {type_name(ax)}")
    if grid.overlap is None:
        _draw_bars(grid, picture, ax)
        where = f"a sequence of {grid.width}"
    else:
        _draw_windows(grid, picture, ax)
        where = f"a map of {grid.height}×{grid.width} cells"
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, frameon=False)
    ax.set_title(f"{len(grid)} region{'s' * (len(grid) > 1)} on {where}, {grid.preset}")
    return ax


def plot_box(x: npt.NDArray[Any], box: list[int], ax: Axes) -> None:
    """Draw a box, in cells, over the activation of a map (C, H, W)."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    height, width = x.shape[1:]
    activation = np.sqrt(np.square(x, dtype=np.float64).sum(axis=0))
    ax.imshow(activation, cmap="gray", extent=(0, width, height, 0))
    x1, y1, x2, y2 = box
    outline = Rectangle(
        (x1, y1),
        x2 - x1 + 1,
        y2 - y1 + 1,
        edgecolor=_COLOURS[2],
        facecolor="none",
        linewidth=2.6,
        path_effects=[withStroke(linewidth=5, foreground="white")],
    )
    ax.add_patch(outline)
    ax.set(xlabel="x (cells)", ylabel="y (cells)")


def _picture(image: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return an image as an array that matplotlib can draw, or raise."""
    picture = ask("image", image, np.asarray, "an array on the host")  # no PyTorch tensor on a GPU
    height_width, colours = picture.shape[:2], picture.shape[2:]
    if len(height_width) != 2 or 0 in height_width or colours not in ((), (3,), (4,)):
        expected = "(height, width) or (height, width, 3 or 4)"
        raise ValueError(f"image: expected shape {expected}, got {picture.shape}")
    if picture.dtype.kind not in "biuf":
        raise TypeError(f"image: expected real numbers, got {picture.dtype.name}")
    return picture


def _draw_windows(grid: RegionGrid, picture: npt.NDArray[Any] | None, ax: Axes) -> None:
    from matplotlib.patches import FancyBboxPatch
    from matplotlib.patheffects import withStroke

    height, width = _backdrop(grid, picture, ax)
    boxes = grid.to_image(height, width)
    step = _inset_step(grid, boxes, min(height, width))
    tags: list[_Point] = []
    for style in _styles(grid):
        inset = step * (2 * style.rank + style.odd + 0.5)
        x1, y1, x2, y2 = boxes[style.region] + inset * np.array([1, 1, -1, -1])
        outline = FancyBboxPatch(
            (x1, y1),
            x2 - x1,
            y2 - y1,
            boxstyle=f"round,pad=0,rounding_size={3 * step}",
            edgecolor=style.colour,
            facecolor="none",
            linewidth=max(2.6 - 0.4 * style.rank, 1.0),
            label=style.label,
        )
        if picture is not None:
            outline.set_path_effects([withStroke(linewidth=4, foreground="white")])
        ax.add_patch(outline)
        if len(grid) <= _MAX_TAGS:
            # Windows of different levels share corners, so each level starts at another corner.
            corners = 2 * [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
            first = style.rank % 4
            distance = _TAG_DISTANCE * max(height, width)
            tags.append(_free_corner(corners[first : first + 4], tags, distance))
            _draw_tag(ax, tags[-1], style)
    thin = max(height, width) > _THIN * min(height, width)
    ax.set(xlim=(0, width), ylim=(height, 0), aspect="auto" if thin else "equal")


def _draw_bars(grid: RegionGrid, picture: npt.NDArray[Any] | None, ax: Axes) -> None:
    """Draw each region of a sequence as a bar, the first at the top."""
    bottom, width = len(grid) - 0.5, float(grid.width)
    if picture is None:
        ax.locator_params(axis="x", integer=True)
    else:
        width = float(picture.shape[1])
        ax.imshow(picture, cmap="gray", extent=(0, width, bottom, -0.5), aspect="auto")
    boxes = grid.to_image(1, width)
    for style in _styles(grid):
        x1, _, x2, _ = boxes[style.region]
        bar = ax.barh(style.region, x2 - x1, 0.72, x1, color=style.colour, label=style.label)
        bar[0].set_edgecolor("white")
    if len(grid) <= _MAX_TAGS:
        ax.set_yticks(range(len(grid)))
    ax.set(xlim=(0, width), ylim=(bottom, -0.5), ylabel="region")
    ax.set_xlabel("position" if picture is None else "x (pixels)")


class _Style(NamedTuple):
    region: int
    rank: int  # the place of its level among the levels of the grid
    odd: bool  # whether it is drawn in the lighter shade
    colour: tuple[float, ...]
    label: str  # the label of its level for the first window, else empty


def _styles(grid: RegionGrid) -> Iterator[_Style]:
    """Yield how each region is drawn: neighbours of one level in two shades of one colour."""
    from matplotlib.colors import to_rgb

    for rank, level in enumerate(np.unique(grid.level)):
        regions = np.flatnonzero(grid.level == level)
        _, column = np.unique(grid.boxes[regions, 0], return_inverse=True)
        _, row = np.unique(grid.boxes[regions, 1], return_inverse=True)
        dark = np.array(to_rgb(_colour_of(level)))
        label = _label(grid, level)
        for region, odd in zip(regions.tolist(), (column + row) % 2 == 1, strict=True):
            colour = dark + _LIGHTER * (1 - dark) if odd else dark
            yield _Style(region, rank, bool(odd), tuple(colour), label)
            label = ""


def _colour_of(level: int) -> str:
    """Return the colour of a level; they repeat if there are more levels than colours."""
    whole_map, *others = _COLOURS
    return others[(level - 1) % len(others)] if level else whole_map


def _label(grid: RegionGrid, level: int) -> str:
    if level == 0:
        return "whole map" if grid.overlap is not None else "whole sequence"
    windows = grid.boxes[grid.level == level]
    x1, y1, x2, y2 = windows[0]
    size = x2 - x1 + 1 if grid.overlap is None else f"{y2 - y1 + 1}×{x2 - x1 + 1}"
    return f"level {level}: {len(windows)} window{'s' * (len(windows) > 1)} of {size}"


def _backdrop(grid: RegionGrid, picture: npt.NDArray[Any] | None, ax: Axes) -> tuple[float, float]:
    """Draw the image, or the cells of the map; return the height and width of the drawing."""
    if picture is not None:
        height, width = map(float, picture.shape[:2])
        ax.imshow(picture, cmap="gray", extent=(0, width, height, 0))
        ax.set(xlabel="x (pixels)", ylabel="y (pixels)")
        return height, width
    ax.set_xticks(np.arange(grid.width + 1), minor=True)
    ax.set_yticks(np.arange(grid.height + 1), minor=True)
    ax.grid(which="minor", color="0.93", linewidth=0.6)
    ax.tick_params(which="minor", length=0)
    ax.set_axisbelow(True)
    ax.locator_params(integer=True)
    ax.spines[:].set_visible(False)
    ax.set(xlabel="x (cells)", ylabel="y (cells)")
    return float(grid.height), float(grid.width)


def _inset_step(grid: RegionGrid, boxes: npt.NDArray[np.float64], shorter: float) -> float:
    """Return the distance between the outlines of windows that share an edge."""
    smallest = float((boxes[:, 2:] - boxes[:, :2]).min())
    outlines = 2 * len(np.unique(grid.level))
    return min(_INSET * shorter, _MAX_INSET * smallest / outlines)


def _free_corner(corners: list[_Point], taken: list[_Point], distance: float) -> _Point:
    """Return the first corner this far from all taken points, or the one furthest from them."""
    return max(corners, key=lambda corner: min([distance, *(dist(corner, t) for t in taken)]))


def _draw_tag(ax: Axes, corner: _Point, style: _Style) -> None:
    ax.plot(
        *corner,
        marker="o",
        markersize=14,
        markerfacecolor=style.colour,
        markeredgecolor="white",
        clip_on=False,
    )
    ax.text(
        *corner,
        str(style.region),
        color="black" if style.odd else "white",
        fontsize=8,
        fontweight="bold",
        ha="center",
        va="center_baseline",
    )
