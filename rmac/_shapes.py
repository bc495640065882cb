"""The shapes of results, known without values: for frameworks that trace a program.

Arrays are asked for nothing but their shape, whose sizes may be symbols of the framework.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np

from rmac._arrays import box_numbers
from rmac._checks import choice
from rmac._maps import MAP_AXES, require_axes
from rmac._options import LAYOUTS, MAP_LAYOUTS, grid_options
from rmac.regions import RegionGrid, grid_windows

if TYPE_CHECKING:
    from collections.abc import Callable


def options_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the options of a public function, and their defaults: those that are plain values."""
    parameters = inspect.signature(function).parameters.values()
    return {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.default is not parameter.empty and parameter.name not in ("out", "whitening")
    }


def flat_boxes(regions: Any, *, sequence: bool) -> list[int]:
    """Return regions as 4 integers for each, one after the other; or raise."""
    grid = type(regions) is RegionGrid
    boxes = regions.boxes if grid else box_numbers(regions, sequence=sequence)
    if boxes.shape[1] == 2:
        boxes = np.insert(boxes, [1, 2], 0, axis=1)
    numbers: list[int] = boxes.reshape(-1).tolist()
    return numbers


def map_axes(x: Any, layout: str) -> list[Any]:
    """Return the sizes (N, C, H, W) of feature maps, or (N, C, T) of sequences; or raise."""
    require_axes(x, choice("layout", layout, LAYOUTS))
    return [x.shape[axis] for axis in MAP_AXES[layout]]


def shape_of_rmac(x: Any, dim: int | None, options: dict[str, Any]) -> tuple[Any, ...]:
    """Return the shape of descriptors; `dim` is the number of components of a whitening."""
    images, channels = map_axes(x, options["layout"])[:2]
    dim = channels if dim is None else dim
    match options["aggregate"]:
        case "none":
            return images, _count_regions(x, options), dim
        case "concat":
            return images, _count_regions(x, options) * dim
        case _:
            return images, dim


def shape_of_region_pool(x: Any, options: dict[str, Any]) -> tuple[Any, ...]:
    """Return the shape of regional maxima or means."""
    images, channels = map_axes(x, options["layout"])[:2]
    return images, _count_regions(x, options), channels


def shape_of_roi_pool(x: Any, rois: Any, options: dict[str, Any]) -> tuple[Any, ...]:
    """Return the shape of the maxima of RoIs."""
    size = options["output_size"]
    bins = (size, size) if isinstance(size, int) else size
    return rois.shape[0], map_axes(x, options["layout"])[1], *bins


def shape_of_rmac_regions(x: Any, options: dict[str, Any]) -> tuple[int, int]:
    """Return the shape of the grid as RoIs."""
    images, channels, height, width = map(int, map_axes(x, "NCHW"))
    if not images * channels * height * width:
        return 0, 5
    grid = grid_options(options["scales"], options["overlap"], "caffe2")
    return images * len(grid_windows(height, width, grid, sequence=False).level), 5


def _count_regions(x: Any, options: dict[str, Any]) -> int:
    """Return the number of regions; `regions` are 4 integers for each if they are given."""
    if options["regions"] is not None:
        return len(options["regions"]) // 4
    height, width = map(int, [1, *map_axes(x, options["layout"])[2:]][-2:])
    grid = grid_options(options["levels"], options["overlap"], options["preset"])
    sequence = options["layout"] not in MAP_LAYOUTS
    return len(grid_windows(height, width, grid, sequence=sequence).level)
