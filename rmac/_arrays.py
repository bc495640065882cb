"""What arrays may be: feature maps, vectors, boxes and outputs; every error message about them."""

from __future__ import annotations

import sys
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rmac import _hints
from rmac._backend import (
    ARRAY_NAMES,
    HOST,
    Array,
    Backend,
    backend_of,
    backend_of_type,
    require_same_device,
)
from rmac._caches import cached
from rmac._checks import ask, is_list, is_sequence, reason, shorten, shown, type_name
from rmac._dlpack import from_foreign, snapshot
from rmac._dtypes import ZERO_POINT_NAMES, DtypeInfo, dtype_info
from rmac._floats import default_floats
from rmac._maps import item_name
from rmac._windows import cached_windows
from rmac.regions import RegionGrid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rmac._maps import Batch
    from rmac._options import GridOptions, Layout

BOX_BYTES = 4 * np.dtype(np.int64).itemsize
_MOST_ITEMS = 1 << 28  # of a sequence that is no list and no array


def feature_maps(
    backend: Backend, x: Array | Sequence[Array], layout: Layout, argument: str = "x"
) -> tuple[list[Batch], DtypeInfo]:
    """Return checked feature maps as batches, and what is known of their dtype; or raise.

    A list of maps, without the axis N, gives a batch of one image for each.
    """
    axes = axes_of(x, layout)
    arrays = _on_one_device(backend, x, argument) if is_list(x) else [x]
    batches = backend.batches(arrays, axes, argument)
    dtype = batches[0][0].dtype
    info = dtype_info(dtype, item_name(argument, axes, 0))
    _, channels, _, width_of_first = batches[0][1]
    for i, (array, shape, _) in enumerate(batches):
        if array.dtype is not dtype:
            _require_dtype(array.dtype, info, argument, i)
        if not (shape[2] and shape[3]):
            name = item_name(argument, axes, i)
            raise ValueError(f"{name}: expected at least one cell, got {shape[2]}x{shape[3]}")
        if shape[1] != channels:
            hint = _hints.for_channels(shape, width_of_first)
            expected = f"{channels} channels as {argument}[0] has"
            raise ValueError(f"{argument}[{i}]: expected {expected}, got {shape[1]}{hint}")
    return batches, info


def feature_views(
    backend: Backend, x: Array | Sequence[Array], layout: Layout, argument: str = "x"
) -> tuple[list[Array], DtypeInfo]:
    """Return what `feature_maps` returns, with views (N, C, H, W) as batches."""
    batches, info = feature_maps(backend, x, layout, argument)
    return [backend.view(batch, axes_of(x, layout)) for batch in batches], info


def axes_of(x: Array | Sequence[Array], layout: Layout) -> str:
    """Return the layout of each array: a list has arrays without the axis N."""
    return layout[1:] if is_list(x) else layout


def _on_one_device(backend: Backend, x: Sequence[Array], argument: str) -> Sequence[Array]:
    """Return arrays, or raise."""
    devices = [backend.device_index(one) for one in x]
    if len(set(devices)) > 1:
        for i, one in enumerate(x):
            require_same_device(one, f"{argument}[{i}]", x[0], f"{argument}[0]")
    return x


def _require_dtype(dtype: np.dtype[Any], first: DtypeInfo, argument: str, i: int) -> None:
    """Raise unless the dtype of an item of a list is that of the first."""
    info = dtype_info(dtype, f"{argument}[{i}]")
    if info is not first:
        expected = f"dtype {first.name} as {argument}[0] has"
        raise TypeError(f"{argument}[{i}]: expected {expected}, got {info.name}")


def feature_map(
    backend: Backend, x: Array, layout: str, name: str = "x"
) -> tuple[Array, DtypeInfo]:
    """Return a batch as a view (N, C, H, W), and what is known of its dtype; or raise."""
    require_one(x, name)
    (batch,) = backend.batches([x], layout, name)
    return backend.view(batch, layout), dtype_info(batch[0].dtype, name)


def require_zero_point(zero_point: int, info: DtypeInfo) -> None:
    """Raise unless a value of maps of this dtype can stand for 0."""
    low, high = info.zero_points
    if low <= zero_point <= high:
        return
    if low == high:
        raise ValueError(
            f"zero_point: expected 0 with {info.name} maps, got {shown(zero_point)}; other values "
            f"are for {ZERO_POINT_NAMES}"
        )
    raise ValueError(
        f"zero_point: expected {low} to {high} with {info.name} maps, got {shown(zero_point)}"
    )


def require_one(x: Array, name: str = "x") -> None:
    """Raise if `x` is a list of arrays."""
    if is_list(x):
        raise TypeError(f"{name}: expected one array, got a {type_name(x)} of them")


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
    with default_floats():
        copy = x.astype(np.float64, order="C")
    backend.require_finite(copy, name)
    return copy


def _require_real(x: Array, name: str) -> None:
    if x.dtype.kind not in "iuf" and x.dtype.name != "bfloat16":
        raise TypeError(f"{name}: expected real numbers, got {x.dtype.name}")


def boxes_of_batches(
    batches: Sequence[Batch], regions: Any, grid: GridOptions, *, sequence: bool
) -> list[bytes]:
    """Return the bytes of the boxes (R, 4) of each batch, or raise."""
    if regions is not None:
        read = _regions_read_once(regions, sequence=sequence)
        return [_boxes_on(read, shape[2], shape[3]) for _, shape, _ in batches]
    levels, overlap, preset = grid
    share = None if sequence else overlap
    boxes = []
    for _, shape, _ in batches:  # a comprehension takes 0.4 us more for a single batch
        boxes.append(cached_windows(shape[2], shape[3], levels, share, preset).memory)
    return boxes


class _Regions(NamedTuple):
    """The regions of a call, which nobody else can change."""

    size: tuple[int, int] | None  # of the map of a grid
    numbers: bytes
    dtype: str
    columns: int  # 4 for boxes, 2 for intervals


def _regions_read_once(regions: Any, *, sequence: bool) -> _Regions:
    """Return regions, or raise. On a sequence they may be intervals (R, 2)."""
    if issubclass(type(regions), RegionGrid):
        size, boxes = ask("regions", regions, _size_and_boxes, "a RegionGrid")
        return _Regions(size, boxes, "<i8" if sys.byteorder == "little" else ">i8", 4)
    numbers = box_numbers(regions, sequence=sequence)
    return _Regions(None, numbers.tobytes(), numbers.dtype.str, numbers.shape[1])


def _boxes_on(regions: _Regions, height: int, width: int) -> bytes:
    """Return the bytes of regions on a map as boxes (R, 4) of int64, or raise."""
    size, numbers, dtype, columns = regions
    if size is not None:
        require_grid_size(size, (height, width))
    return _boxes_inside(numbers, dtype, columns, height, width)


def _size_and_boxes(grid: RegionGrid) -> tuple[tuple[int, int], bytes]:
    """Return the size of a grid's map and the bytes of its boxes, read once; or raise."""
    boxes = grid.boxes
    if boxes.dtype != np.int64 or boxes.size % 4:
        raise TypeError
    return (grid.height, grid.width), np.ndarray.tobytes(boxes)


@cached(len)
def _boxes_inside(numbers: bytes, dtype: str, columns: int, height: int, width: int) -> bytes:
    """Return the bytes of boxes (R, 4) of int64, or raise if one is not on the map.

    Those of a grid may be others than it was made with: its subclass may have its own, and
    `object.__setattr__` changes what is immutable.
    """
    boxes = np.frombuffer(numbers, dtype).reshape(-1, columns)
    _require_inside("regions", boxes, (width, height)[: columns // 2])
    if columns == 2:
        boxes = np.insert(boxes, [1, 2], 0, axis=1)
    return boxes.astype(np.int64).tobytes()


def require_grid_size(size: tuple[int, int], cells: tuple[int, int]) -> None:
    """Raise unless a grid is of the size of a map, (height, width)."""
    if size != cells:
        (height, width), hint = cells, _hints.for_grid(size, *cells)
        raise ValueError(
            f"regions: expected a grid for the map's {height}x{width} cells, "
            f"got one for {'x'.join(map(shown, size))}{hint}"
        )


def box_numbers(regions: Any, *, sequence: bool) -> npt.NDArray[Any]:
    """Return a copy of boxes (R, 4), or intervals (R, 2) of a sequence, as integers; or raise."""
    boxes = host_copy("regions", regions, "(R, 4)")
    columns = (2, 4) if sequence else (4,)
    if boxes.ndim != 2 or boxes.shape[1] not in columns:
        shapes = " or ".join(f"(R, {count})" for count in columns)
        hint = _hints.for_boxes_shape(boxes.shape)
        raise ValueError(f"regions: expected shape {shapes}, got {boxes.shape}{hint}")
    require_integers("regions", boxes, _hints.for_boxes_dtype(boxes))
    return boxes


def box_in_each(boxes: Any, maps: Sequence[Array]) -> npt.NDArray[np.int64]:
    """Return a box (N, 4) in each of N maps (C, H, W) on the host, or raise.

    Boxes may be on the device of the maps.
    """
    backend = backend_of_type(type(boxes))
    if maps and backend not in (None, HOST):
        require_same_device(boxes, "boxes", maps[0], "maps")
        boxes = backend_of(boxes).to_host(boxes)
    copy = host_copy("boxes", boxes, "(N, 4)")
    if copy.shape != (len(maps), 4) and (maps or copy.size):
        raise ValueError(f"boxes: expected shape {(len(maps), 4)}, got {copy.shape}")
    if maps:
        require_integers("boxes", copy, _hints.for_boxes_dtype(copy))
        _require_inside("boxes", copy, np.array([one.shape[:0:-1] for one in maps]))
    return copy.astype(np.int64).reshape(-1, 4)


def _require_inside(name: str, boxes: npt.NDArray[Any], sides: npt.ArrayLike) -> None:
    """Raise unless boxes (R, 4), or intervals (R, 2), lie on a map of these sides (width, height).

    Sides are one pair, or one for each box.
    """
    low, high = np.hsplit(boxes, 2)
    inside = (low >= 0) & (low <= high) & (high < sides)
    outside = np.flatnonzero(~inside.all(axis=1))
    if len(outside):
        row = outside[0]
        width, height = [*np.broadcast_to(sides, low.shape)[row].tolist(), 1][:2]
        expected = f"0 <= x1 <= x2 < {width} and 0 <= y1 <= y2 < {height}"
        if boxes.shape[1] == 2:
            expected = f"0 <= first <= last < {width}"
        hint = _hints.for_boxes(boxes, height, width) if name == "regions" else ""
        got = f"{boxes[row].tolist()} in row {row}"
        raise ValueError(f"{name}: expected {expected}, got {got}{hint}")


def host_copy(name: str, value: Any, shape: str) -> npt.NDArray[Any]:
    """Return a copy of integers, which no other thread can change after the checks; or raise.

    `shape` tells in an error what was expected.
    """
    if backend_of_type(type(value)) not in (None, HOST):
        raise TypeError(f"{name}: expected integers on the host, got {type_name(value)}")
    arrays: list[npt.NDArray[Any]] = []
    try:
        copy = np.array(_read_once(value, arrays))
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"{name}: expected shape {shape}, got {reason(error)}") from error
    for array in arrays:  # NumPy drops their masks in silence
        HOST.plain(array, name)
    return copy


def _read_once(value: Any, arrays: list[npt.NDArray[Any]]) -> Any:
    """Return an array_like as arrays in new lists; add the arrays to `arrays`."""
    if is_list(value):
        items = list(value)
        return items if {*map(type, items)} == {int} else [_read_once(x, arrays) for x in items]
    if is_sequence(value) and backend_of_type(type(value)) is None and len(value) > _MOST_ITEMS:
        raise ValueError(f"{len(value)} items")  # such as a range: NumPy makes a list of them
    arrays.append(np.asanyarray(value))
    return arrays[-1]


def require_integers(name: str, values: npt.NDArray[Any], hint: str = "") -> None:
    """Raise unless an array holds integers."""
    if values.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {values.dtype.name}{hint}")


def region_rois(rois: Array | Sequence[Array], x: Array) -> Array:
    """Return RoIs (K, 5) for the maps `x`, or raise. They may be a list of boxes for each image."""
    if is_list(rois):
        return _joined_boxes(from_foreign(snapshot(rois, "rois"), "rois"), x)
    return _numbers(rois, "rois", x, ("K", 5))


def _joined_boxes(boxes: list[Array], x: Array) -> Array:
    """Return RoIs (K, 5) from boxes (L, 4) of each image, or raise."""
    if any(is_list(one) for one in boxes):
        raise TypeError(
            f"rois: expected a {ARRAY_NAMES} (K, 5), or a list of one (L, 4) for "
            "each image, got a list of lists; np.array(rois) makes an array of numbers"
        )
    if len(boxes) != len(x):
        raise ValueError(
            f"rois: expected {len(x)} arrays of boxes, one for each image of x, got {len(boxes)}"
        )
    arrays = [_numbers(one, f"rois[{i}]", x, ("L", 4)) for i, one in enumerate(boxes)]
    backend, ends = backend_of(x), [0, *accumulate(map(len, arrays))]
    rois = backend.empty((ends[-1], 5), np.float64, x)
    with backend.device_context(x):
        for image, array in enumerate(arrays):
            rows = rois[ends[image] : ends[image + 1]]
            rows[:, 0], rows[:, 1:] = image, array
    return rois


def _numbers(x: Array, name: str, maps: Array, shape: tuple[str, int]) -> Array:
    """Return an array of real numbers in rows, on the device of the maps; or raise."""
    require_same_device(x, name, maps)
    x = backend_of(x, name).plain(x, name)
    rows, columns = shape
    if x.ndim != 2 or x.shape[1] != columns:
        hint = _hints.for_rois_shape(x.shape) if columns == 5 else ""
        raise ValueError(f"{name}: expected shape ({rows}, {columns}), got {x.shape}{hint}")
    _require_real(x, name)
    return x


def _require_apart(out: Array) -> None:
    """Raise if elements of an array share memory, as those of an expanded tensor do."""
    if out.size and _share_memory(out.shape, out.strides, out.itemsize):
        raise ValueError(
            f"out: expected an array whose elements do not share memory, got strides {out.strides}"
        )


def _share_memory(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """Return whether any two elements share a byte."""
    axes = sorted((abs(step), size) for step, size in zip(strides, shape, strict=True) if size > 1)
    extent = itemsize
    for step, size in axes:
        if step < extent:
            break
        extent += step * (size - 1)
    else:
        return False  # each step leaves all elements of the smaller ones behind
    if not all(step for step, _ in axes):
        return True
    offsets = np.zeros(1, np.int64)
    for step, size in axes:
        offsets = np.add.outer(offsets, step * np.arange(size)).reshape(-1)
    return bool((np.diff(np.sort(offsets)) < itemsize).any())


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
            _require_apart(memory)
            self.array = backend.empty(shape, dtype, inputs[0])

    def finish(self) -> Array:
        """Return the result, after a copy if `out` could not be computed into."""
        if self._given is None:
            return self.array
        if self.array is not self._memory:
            self._memory[...] = self.array
        return self._given
