"""Drawing a region grid; the one part of rmac that needs matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rmac.regions import RegionGrid

_INSET = 0.012  # of the map's shorter side, a region: edges that coincide stay apart


def plot_grid(grid: RegionGrid, image: npt.ArrayLike | None, ax: Axes | None) -> Axes:
    """Draw `grid` over an image or over its own cells; see `RegionGrid.plot`."""
    try:
        import matplotlib.pyplot as plt
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
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.85, int(grid.level.max(initial=0)) + 1))
    for level in np.unique(grid.level):
        members = boxes[grid.level == level]
        for order, (x1, y1, x2, y2) in enumerate(members):
            inset = step * (0.5 + order % 4)
            side = members[0, 2] - members[0, 0]
            label = f"level {level}: {len(members)} of {side:.0f}" if level else "whole map"
            ax.add_patch(
                Rectangle(
                    (x1 + inset, y1 + inset),
                    x2 - x1 - 2 * inset,
                    y2 - y1 - 2 * inset,
                    edgecolor=colours[level],
                    facecolor="none",
                    linewidth=1.8,
                    label=None if order else label,
                )
            )
    ax.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, frameon=False)
    ax.set_title(f"{len(grid)} regions on {grid.height}×{grid.width} cells, {grid.preset}")
    return ax
