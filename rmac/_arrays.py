"""What arrays may be: feature maps, vectors, boxes and outputs; every error message about them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rmac._backend import (
    HOST,
    Array,
    Backend,
    backend_of,
    backend_of_type,
    require_same_device,
)
from rmac._checks import ask, is_list, reason, shorten, shown, type_name
from rmac._dtypes import DtypeInfo, dtype_info
from rmac.regions import RegionGrid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rmac._options import Layout

# Where the axes (N, C, H, W) of a map, or (N, C, T) of a sequence, are in each layout.
_AXES: dict[str, tuple[int, ...]] = {
    "NCHW": (0, 1, 2, 3),
    "NHWC": (0, 3, 1, 2),
    "NCT": (0, 1, 2),
    "NTC": (0, 2, 1),
}


def feature_maps(
    backend: Backend, x: Array | Sequence[Array], layout: Layout
) -> tuple[list[Array], DtypeInfo]:
    """Return views (N, C, H, W) of feature maps, and their dtype; raise if a map has no cells.

    A batch gives one view. A list of maps, without the axis N, gives one view for each, with N = 1.
    """
    if not is_list(x):
        maps, dtype = feature_map(backend, x, layout)
        _require_cells(maps, "x")
        return [maps], dtype
    batches: list[Array] = []
    device = backend.device_index(x[0])
    for i, one in enumerate(x):
        name = f"x[{i}]"
        if backend.device_index(one) != device:
            require_same_device(one, name, x[0], "x[0]")
        maps, info = feature_map(backend, one, layout[1:], name)
        _require_cells(maps, name)
        if i == 0:
            first, channels = info, maps.shape[1]
        if info is not first:
            raise TypeError(f"{name}: expected dtype {first.name} as x[0] has, got {info.name}")
        if maps.shape[1] != channels:
            raise ValueError(
                f"{name}: expected {channels} channels as x[0] has, got {maps.shape[1]}"
            )
        batches.append(maps)
    return batches, first


def feature_map(
    backend: Backend, x: Array, layout: str, name: str = "x"
) -> tuple[Array, DtypeInfo]:
    """Return `x` as a view (N, C, H, W), and its dtype; or raise. Without N in `layout`, N is 1."""
    require_one(x, name)
    x = backend.readable(x, name)
    require_axes(x, layout, name)
    info = dtype_info(x.dtype, name)
    if layout[0] != "N":
        x, layout = x[None], f"N{layout}"
    if layout == "NCHW":
        return x, info
    maps = x.transpose(_AXES[layout])
    if maps.ndim == 3:
        # Not maps[:, :, None]: its rows are 0 bytes apart, which hides that maps are contiguous.
        maps = maps.reshape(*maps.shape[:2], 1, maps.shape[2])
    return maps, info


def require_zero_point(zero_point: int, info: DtypeInfo) -> None:
    """Raise unless a value of maps of this dtype can stand for 0."""
    low, high = info.zero_points
    if low <= zero_point <= high:
        return
    if low == high:
        raise ValueError(
            f"zero_point: expected 0 with {info.name} maps, got {shown(zero_point)}; other values "
            "are for int8 and uint8"
        )
    raise ValueError(
        f"zero_point: expected {low} to {high} with {info.name} maps, got {shown(zero_point)}"
    )


def require_one(x: Array, name: str = "x") -> None:
    """Raise if `x` is a list of arrays."""
    if is_list(x):
        raise TypeError(f"{name}: expected one array, got a {type_name(x)} of them")


def require_axes(x: Array, layout: str, name: str = "x") -> None:
    """Raise unless `x` has as many axes as `layout` names."""
    if x.ndim != len(layout):
        axes = f"{len(layout)} axes ({', '.join(layout)})"
        raise ValueError(f"{name}: expected {axes}, got shape {x.shape}")


def _require_cells(maps: Array, name: str) -> None:
    if not maps.size and 0 in maps.shape[2:]:
        height, width = maps.shape[2:]
        raise ValueError(f"{name}: expected at least one cell, got {height}x{width}")


def feature_vectors(x: Array, name: str = "vectors") -> tuple[Array, DtypeInfo]:
    """Return the vectors (..., C), and what is known of their dtype; or raise."""
    x = backend_of(x, name).plain(x, name)
    info = dtype_info(x.dtype, name)
    if not x.ndim:
        raise ValueError(f"{name}: expected shape (..., C), got ()")
    if not x.shape[-1]:
        raise ValueError(f"{name}: expected at least one channel, got 0")
    return x, info


def real_numbers(x: Array, name: str, shapes: Sequence[tuple[int, ...]] = ()) -> Array:
    """Return a C-ordered copy as float64 of an array that has one of these shapes, or raise."""
    backend = backend_of(x, name)
    x = backend.plain(x, name)
    _require_real(x, name)
    if shapes and x.shape not in shapes:
        raise ValueError(f"{name}: expected shape {' or '.join(map(str, shapes))}, got {x.shape}")
    copy = x.astype(np.float64, order="C")
    backend.require_finite(copy, name)
    return copy


def _require_real(x: Array, name: str) -> None:
    if x.dtype.kind not in "iuf" and x.dtype.name != "bfloat16":
        raise TypeError(f"{name}: expected real numbers, got {x.dtype.name}")


def region_boxes(regions: Any, height: int, width: int, *, sequence: bool) -> npt.NDArray[np.int64]:
    """Return regions on a map as C-ordered boxes (R, 4), or raise.

    On a sequence they may be intervals (R, 2).
    """
    if issubclass(type(regions), RegionGrid):
        size, boxes = ask("regions", regions, _size_and_boxes, "a RegionGrid")
        if size != (height, width):
            raise ValueError(
                f"regions: expected a grid for the map's {height}x{width} cells, "
                f"got one for {'x'.join(map(shown, size))}"
            )
        if type(regions) is RegionGrid:
            return boxes
        regions = boxes  # a subclass may have others than were made for this map
    boxes = _host_copy("regions", regions)
    columns = (2, 4) if sequence else (4,)
    if boxes.ndim != 2 or boxes.shape[1] not in columns:
        shapes = " or ".join(f"(R, {count})" for count in columns)
        raise ValueError(f"regions: expected shape {shapes}, got {boxes.shape}")
    if boxes.dtype.kind not in "iu":
        raise TypeError(f"regions: expected integers, got {boxes.dtype.name}")
    _require_inside(boxes, height, width)
    if boxes.shape[1] == 2:
        boxes = np.insert(boxes, [1, 2], 0, axis=1)
    return np.ascontiguousarray(boxes, dtype=np.int64)


def _size_and_boxes(grid: RegionGrid) -> tuple[tuple[int, int], npt.NDArray[np.int64]]:
    return (grid.height, grid.width), grid.boxes


def _require_inside(boxes: npt.NDArray[Any], height: int, width: int) -> None:
    """Raise unless boxes (R, 4), or intervals (R, 2), lie on a map."""
    low, high = np.hsplit(boxes, 2)
    inside = (low >= 0) & (low <= high) & (high < (width, height)[: low.shape[1]])
    outside = np.flatnonzero(~inside.all(axis=1))
    if len(outside):
        expected = f"0 <= x1 <= x2 < {width} and 0 <= y1 <= y2 < {height}"
        if boxes.shape[1] == 2:
            expected = f"0 <= first <= last < {width}"
        row = outside[0]
        raise ValueError(f"regions: expected {expected}, got {boxes[row].tolist()} in row {row}")


def _host_copy(name: str, value: Any) -> npt.NDArray[Any]:
    """Return a copy of the boxes, which no other thread can change after the checks; or raise."""
    if backend_of_type(type(value)) not in (None, HOST):
        raise TypeError(f"{name}: expected integers on the host, got {type_name(value)}")
    try:
        parts = list(value) if is_list(value) else [np.asanyarray(value)]
        copy = np.array(parts if is_list(value) else parts[0])
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"{name}: expected shape (R, 4), got {reason(error)}") from error
    for part in parts:  # NumPy drops their masks in silence
        if issubclass(type(part), np.ndarray):
            HOST.plain(part, name)
    return copy


def region_rois(rois: Array, x: Array) -> Array:
    """Return RoIs (K, 5) for the maps `x`, or raise."""
    require_same_device(rois, "rois", x)
    rois = backend_of(rois, "rois").plain(rois, "rois")
    if rois.ndim != 2 or rois.shape[1] != 5:
        raise ValueError(f"rois: expected shape (K, 5), got {rois.shape}")
    _require_real(rois, "rois")
    return rois


class Output:
    """Where a call computes its result, and what it returns.

    Kernels compute into `array`: the memory of `out` if they can write there, else a new array.
    `finish` returns the result, in `out` if that was given.
    """

    __slots__ = ("_given", "_memory", "array")

    def __init__(
        self,
        backend: Backend,
        out: Array | None,
        inputs: Sequence[Array],
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> None:
        self._given = out
        if out is None:
            self.array = backend.empty(shape, dtype, inputs[0])
            return
        require_same_device(out, "out", inputs[0])
        self._memory = memory = backend.plain(out, "out")
        if memory.dtype != dtype:
            raise TypeError(f"out: expected dtype {dtype}, got {shorten(str(memory.dtype))}")
        if memory.shape != shape:
            raise ValueError(f"out: expected shape {shape}, got {memory.shape}")
        backend.require_writeable(memory, "out")
        if backend.can_compute_into(memory, inputs):
            self.array = memory
        else:
            self.array = backend.empty(shape, dtype, inputs[0])

    def finish(self) -> Array:
        """Return the result, after a copy if `out` could not be computed into."""
        if self._given is None:
            return self.array
        if self.array is not self._memory:
            self._memory[...] = self.array
        return self._given
