"""Feature maps as backends get them, after their check."""

from __future__ import annotations

from functools import lru_cache
from math import gcd
from typing import Any

from rmac import _hints

Array = Any  # of the library of some backend
Shape = tuple[int, ...]

# Where the axes (N, C, H, W) of a map, or (N, C, T) of a sequence, are in each layout.
MAP_AXES: dict[str, tuple[int, ...]] = {
    "NCHW": (0, 1, 2, 3),
    "NHWC": (0, 3, 1, 2),
    "NCT": (0, 1, 2),
    "NTC": (0, 2, 1),
}

# A batch of maps: an array, and its shape and strides in the order (N, C, H, W). On a GPU the array
# itself keeps the axes of its layout, as to make a view takes CuPy 3.3 us. It is a plain tuple,
# since a list may have thousands: a named one takes Python 0.4 us more.
Batch = tuple[Array, Shape, Shape]


def item_name(argument: str, layout: str, i: int) -> str:
    """Return how an error message calls an array: a list has arrays without the axis N."""
    return argument if layout[0] == "N" else f"{argument}[{i}]"


def require_axes(x: Array, layout: str, name: str = "x") -> None:
    """Raise unless `x` has as many axes as `layout` names."""
    if x.ndim != len(layout):
        raise axes_error(x.shape, layout, name)


def axes_error(shape: Shape, layout: str, name: str) -> ValueError:
    """Return the error for an array with other axes than `layout` names."""
    axes = f"{len(layout)} axes ({', '.join(layout)})"
    hint = _hints.for_axes(shape, layout, name)
    return ValueError(f"{name}: expected {axes}, got shape {shape}{hint}")


def view_of(x: Array, layout: str) -> Array:
    """Return an array of this layout as a view (N, C, H, W). Without N in `layout`, N is 1."""
    if layout[0] != "N":
        x, layout = x[None], f"N{layout}"
    if layout == "NCHW":
        return x
    maps = x.transpose(MAP_AXES[layout])
    if maps.ndim == 3:
        # Not maps[:, :, None]: its rows are 0 bytes apart, which hides that maps are contiguous.
        maps = maps.reshape(*maps.shape[:2], 1, maps.shape[2])
    return maps


@lru_cache(maxsize=4096)
def arranged(shape: Shape, strides: Shape, layout: str) -> tuple[Shape, Shape, int]:
    """Return the shape and the strides that `view_of` would give an array, and their alignment.

    That is the greatest common divisor of the strides, 0 for one element. The strides of axes of
    length 1 lead nowhere: they do not count, and may differ from those of the view.
    """
    alignment = gcd(*[stride for size, stride in zip(shape, strides, strict=True) if size > 1])
    if layout[0] != "N":
        shape, strides, layout = (1, *shape), (0, *strides), f"N{layout}"
    axes = MAP_AXES[layout]
    shape, strides = tuple(shape[i] for i in axes), tuple(strides[i] for i in axes)
    if len(shape) == 3:
        length, step = shape[2], strides[2]
        shape, strides = (*shape[:2], 1, length), (*strides[:2], length * step, step)
    return shape, strides, alignment
