"""Drawing a region grid; the one part of rmac that needs matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rmac.regions import RegionGrid

_INSET = 0.012  # of the map's shorter side, per level: edges that coincide stay apart
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def plot_grid(grid: RegionGrid, image: npt.ArrayLike | None, ax: Axes | None) -> Axes:
    """Draw `grid` over an image or over its own cells; see `RegionGrid.plot`."""
    try:
        import matplotlib.pyplot as plt
        from matplotlib.colors import to_rgb
        from matplotlib.patches import Rectangle
    except ImportError as error:
        raise ImportError("RegionGrid.plot needs matplotlib: pip install 'rmac[plot]'") from error

    if ax is None:
        ax = plt.figure(layout="constrained").add_subplot()
    if image is None:
        height, width = float(grid.height), float(grid.width)
        ax.set_xticks(np.arange(grid.width + 1), minor=True)
        ax.set_yticks(np.arange(grid.height + 1), minor=True)
        ax.grid(which="minor", color="0.92", linewidth=0.6)
        ax.tick_params(which="minor", length=0)
        ax.set_axisbelow(True)
        ax.set(xlabel="x (cells)", ylabel="y (cells)")
    else:
        picture = np.asarray(image)
        height, width = map(float, picture.shape[:2])
        ax.imshow(picture, cmap="gray", extent=(0, width, height, 0))
        ax.set(xlabel="x (pixels)", ylabel="y (pixels)")

    boxes = grid.to_image(height, width)
    step = _INSET * min(height, width)
    for level in np.unique(grid.level):
        colour = _COLOURS[level % len(_COLOURS)]
        members = boxes[grid.level == level] + step * level * np.array([1, 1, -1, -1])
        cells = np.diff(grid.boxes[grid.level == level][0, ::2])[0] + 1
        label = f"level {level}: {len(members)} of {cells}×{cells}" if level else "whole map"
        for x1, y1, x2, y2 in members:
            ax.add_patch(
                Rectangle(
                    (x1, y1),
                    x2 - x1,
                    y2 - y1,
                    edgecolor=colour,
                    facecolor=(*to_rgb(colour), 0.05),
                    linewidth=2,
                    label=label,
                )
            )
            label = ""  # one entry a level in the legend
    ax.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, frameon=False)
    ax.set_title(f"{len(grid)} regions on {grid.height}×{grid.width} cells, {grid.preset}")
    return ax
