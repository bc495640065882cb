"""What counts as an array: its device, dtype and layout; every error message about them."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rmac._checks import choice
from rmac.cuda import cupy_module
from rmac.regions import RegionGrid, make_grid

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

Array = Any  # numpy.ndarray or cupy.ndarray; the result is of the same kind

LAYOUTS_OF_MAPS = {"NCHW": (0, 1, 2, 3), "NHWC": (0, 3, 1, 2)}
LAYOUTS = LAYOUTS_OF_MAPS | {"NCT": (0, 1, 2), "NTC": (0, 2, 1)}

_FLOAT32 = np.dtype(np.float32)
_FLOAT64 = np.dtype(np.float64)
_DTYPES = "float16, bfloat16, float32, float64, uint8 or int8"
_descriptor_dtypes: dict[Any, np.dtype[Any]] = {
    np.dtype(np.float16): _FLOAT32,
    np.dtype(np.float32): _FLOAT32,
    np.dtype(np.float64): _FLOAT64,
    np.dtype(np.uint8): _FLOAT32,
    np.dtype(np.int8): _FLOAT32,
}


def device_of(x: Array, name: str = "x") -> str:
    """Return the kind of device that an array lives on, ``"cpu"`` or ``"cuda"``, or raise."""
    if type(x) is np.ndarray:
        return "cpu"
    if isinstance(x, np.ndarray):
        if isinstance(x, np.ma.MaskedArray):
            raise TypeError(f"{name}: expected an array without a mask, got a MaskedArray")
        return "cpu"
    module = type(x).__module__.partition(".")[0]
    if module == "cupy":
        return "cuda"
    if getattr(x, "requires_grad", False):
        raise TypeError(
            f"{name}: got a {type_name(x)} that requires grad, and no gradient is defined here; "
            f"pass its data with {name}.detach()"
        )
    raise TypeError(f"{name}: expected a numpy.ndarray or cupy.ndarray, got {type_name(x)}")


def all_numpy(arrays: Sequence[Array]) -> bool:
    """Return whether these are NumPy's own arrays, one and all; a quick test of many."""
    return {*map(type, arrays)} == {np.ndarray}


def device_of_input(x: Array | Sequence[Array], name: str = "x") -> str:
    """As `device_of`, of an operator's input: an array, or a list of them."""
    if not isinstance(x, (list, tuple)):
        return device_of(x, name)
    if not x:
        raise ValueError(f"{name}: expected at least one array, got none")
    if all_numpy(x):
        return "cpu"
    devices = {device_of(one, f"{name}[{i}]") for i, one in enumerate(x)}
    if len(devices) > 1:
        where = " and ".join(sorted(devices))
        raise TypeError(f"{name}: expected arrays on one device, got {where}")
    return devices.pop()


def require_same_device(
    array: Array, name: str, like: Array | Sequence[Array], other: str = "x", advice: str = ""
) -> None:
    """Raise unless `array` is on the device of `like`, or of the first of them: of `other`."""
    first: Array = like[0] if isinstance(like, (list, tuple)) else like
    here = device_of(array, name)
    if here != device_of(first, other):
        kind = type_name(array)
        raise TypeError(f"{name}: expected an array where {other} is, got {kind}{advice}")
    if here == "cuda" and array.device.id != first.device.id:
        raise ValueError(
            f"{name}: expected an array on device {first.device.id}, where {other} is, "
            f"got one on device {array.device.id}"
        )


def namespace_of(x: Array) -> Any:
    """Return the functions for arrays such as `x`: NumPy, or CuPy."""
    return np if isinstance(x, np.ndarray) else cupy_module()


def on_device_of(x: Array) -> AbstractContextManager[Any]:
    """Return a context in which new arrays are made on the device of `x`."""
    device: AbstractContextManager[Any] = nullcontext() if isinstance(x, np.ndarray) else x.device
    return device


def feature_map(x: Array, layout: str, name: str = "x", *, single: bool = False) -> Array:
    """Return `x` as a view with axes (N, C, H, W), or raise; a sequence is a map of height 1.

    A `single` one comes without the axis N.
    """
    axes = LAYOUTS[choice("layout", layout, LAYOUTS)]
    require_axes(x, layout[1:] if single else layout, name)
    descriptor_dtype(x.dtype, name)
    if isinstance(x, np.ndarray) and not x.flags.aligned:
        raise TypeError(f"{name}: expected an aligned array, got misaligned {x.dtype.name}")
    maps = x[None] if single else x
    if layout == "NCHW":
        return maps
    maps = maps.transpose(axes)
    # Not maps[:, :, None]: with rows 0 bytes apart, packed channels would not look packed.
    return maps if maps.ndim == 4 else maps.reshape(*maps.shape[:2], 1, maps.shape[2])


def require_axes(x: Array, layout: str, name: str = "x") -> None:
    """Raise unless `x` is one array with as many axes as `layout` names."""
    if isinstance(x, (list, tuple)):
        raise TypeError(f"{name}: expected one array, got a {type(x).__name__} of them")
    if x.ndim != len(layout):
        axes = f"{len(layout)} axes ({', '.join(layout)})"
        raise ValueError(f"{name}: expected {axes}, got shape {x.shape}")


def feature_batches(x: Array | Sequence[Array], layout: str) -> list[Array]:
    """Return `x` as batches (N, C, H, W) with cells, or raise.

    They are one batch, or one of a single image for each map (C, H, W) in a list.
    """
    if not isinstance(x, (list, tuple)):
        return [_with_cells(feature_map(x, layout), "x")]
    batches: list[Array] = []
    for i, one in enumerate(x):
        name = f"x[{i}]"
        if type(one) is not np.ndarray:
            require_same_device(one, name, x, "x[0]")
        batch = _with_cells(feature_map(one, layout, name, single=True), name)
        _require_alike(batch, batches[0] if batches else batch, name)
        batches.append(batch)
    return batches


def _require_alike(maps: Array, first: Array, name: str) -> None:
    """Raise unless maps can be described along with those of `x[0]`."""
    if maps.dtype != first.dtype:
        raise TypeError(
            f"{name}: expected dtype {first.dtype.name} as x[0] has, got {maps.dtype.name}"
        )
    if maps.shape[1] != first.shape[1]:
        raise ValueError(
            f"{name}: expected {first.shape[1]} channels as x[0] has, got {maps.shape[1]}"
        )


def _with_cells(maps: Array, name: str) -> Array:
    if not maps.size and 0 in maps.shape[2:]:
        height, width = maps.shape[2:]
        raise ValueError(f"{name}: expected at least one cell, got {height}x{width}")
    return maps


def feature_vectors(x: Array, name: str = "vectors") -> Array:
    """Return vectors (..., C) of a dtype that has descriptors, or raise."""
    device_of(x, name)
    descriptor_dtype(x.dtype, name)
    if not x.ndim:
        raise ValueError(f"{name}: expected shape (..., C), got ()")
    if not x.shape[-1]:
        raise ValueError(f"{name}: expected at least one channel, got 0")
    return _plain(x)


def real_numbers(x: Array, name: str, shapes: Sequence[tuple[int, ...]] = ()) -> Array:
    """Return a C-ordered copy as float64 of an array that has one of these shapes, or raise."""
    device_of(x, name)
    if x.dtype.kind not in "iuf" and x.dtype.name != "bfloat16":
        raise TypeError(f"{name}: expected real numbers, got {x.dtype.name}")
    if shapes and x.shape not in shapes:
        raise ValueError(f"{name}: expected shape {' or '.join(map(str, shapes))}, got {x.shape}")
    copy = _plain(x).astype(np.float64, order="C")
    require_finite(copy, name)
    return copy


def _plain(x: Array) -> Array:
    """Return an array of a subclass, such as numpy.memmap, as one of the class itself."""
    return np.asarray(x) if isinstance(x, np.ndarray) else x


def require_finite(x: Array, name: str) -> None:
    """Raise unless all of `x` is finite; on a GPU, where that would be waited for, never."""
    if not isinstance(x, np.ndarray):
        return
    finite = np.isfinite(x)
    if not finite.all():
        raise ValueError(f"{name}: expected finite numbers, got {x[~finite][0]}")


def descriptor_dtype(dtype: np.dtype[Any], name: str = "x") -> np.dtype[Any]:
    """Return the dtype of descriptors of maps of `dtype`, or raise if there are none."""
    try:
        return _descriptor_dtypes[dtype]
    except KeyError:
        pass
    if dtype.name == "bfloat16" and dtype.isnative:
        # Known once some array has it: ml_dtypes is not imported for its sake.
        return _descriptor_dtypes.setdefault(dtype, _FLOAT32)
    if not dtype.isnative and dtype.newbyteorder("=") in _descriptor_dtypes:
        raise TypeError(f"{name}: expected native byte order, got byte-swapped {dtype.name}")
    raise TypeError(f"{name}: expected {_DTYPES}, got {dtype.name}")


def default_grid(maps: Array, layout: str, levels: int, overlap: float, preset: str) -> RegionGrid:
    """Return the R-MAC grid of checked options for maps (N, C, H, W) that came in `layout`."""
    _, _, height, width = maps.shape
    return make_grid(height, width, levels, overlap if layout in LAYOUTS_OF_MAPS else None, preset)


def region_boxes(
    regions: RegionGrid | npt.ArrayLike, shape: Sequence[int], layout: str
) -> np.ndarray:
    """Return regions on a map (N, C, H, W) as C-ordered (R, 4) int64 boxes, or raise.

    On a map that came as a sequence they may be intervals (R, 2).
    """
    height, width = shape[2:]
    if isinstance(regions, RegionGrid):
        if (regions.height, regions.width) != (height, width):
            raise ValueError(
                f"regions: expected a grid for the map's {height}x{width} cells, "
                f"got one for {regions.height}x{regions.width}"
            )
        return regions.boxes
    boxes = _host_array("regions", regions)
    columns = (4,) if layout in LAYOUTS_OF_MAPS else (2, 4)
    if boxes.ndim != 2 or boxes.shape[1] not in columns:
        shapes = " or ".join(f"(R, {count})" for count in columns)
        raise ValueError(f"regions: expected shape {shapes}, got {boxes.shape}")
    if boxes.dtype.kind not in "iu":
        raise TypeError(f"regions: expected integers, got {boxes.dtype.name}")
    _require_inside(boxes, height, width)
    if boxes.shape[1] == 2:
        boxes = np.insert(boxes, [1, 2], 0, axis=1)
    return np.ascontiguousarray(boxes, dtype=np.int64)


def _require_inside(boxes: np.ndarray, height: int, width: int) -> None:
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


def _host_array(name: str, value: npt.ArrayLike) -> np.ndarray:
    if type(value).__module__.partition(".")[0] == "cupy":
        raise TypeError(f"{name}: expected integers on the host, got {type_name(value)}")
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected shape (R, 4), got {error}") from None


def region_rois(rois: Array, x: Array) -> Array:
    """Return RoIs for the maps `x` as (K, 5), or raise if they are not such."""
    require_same_device(rois, "rois", x)
    if rois.ndim != 2 or rois.shape[1] != 5:
        raise ValueError(f"rois: expected shape (K, 5), got {rois.shape}")
    if rois.dtype.kind not in "iuf" and rois.dtype.name != "bfloat16":
        raise TypeError(f"rois: expected real numbers, got {rois.dtype.name}")
    return rois


def output(
    out: Array | None,
    x: Array | Sequence[Array],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    empty: Any,
) -> Array:
    """Return the C-ordered array to compute into: `out` where that is possible, else a new one.

    What is computed into a new one goes through `deliver`. Raises if `out` does not fit.
    """
    if out is None:
        return empty(shape, dtype, x)
    require_same_device(out, "out", x)
    if out.dtype != dtype:
        raise TypeError(f"out: expected dtype {dtype}, got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"out: expected shape {shape}, got {out.shape}")
    if isinstance(out, np.ndarray):
        if not out.flags.writeable:
            raise ValueError("out: expected a writeable array, got a read-only one")
        if not out.flags.aligned:
            return empty(shape, dtype, x)
    apart = not any(_overlap(out, one) for one in (x if isinstance(x, (list, tuple)) else [x]))
    return out if apart and out.flags.c_contiguous else empty(shape, dtype, x)


def _overlap(a: Array, b: Array) -> bool:
    """Return whether the memory that two arrays span has bytes in common."""
    if isinstance(a, np.ndarray):
        return np.may_share_memory(a, b)
    if not a.size or not b.size:
        return False
    # CuPy's may_share_memory takes arrays that came by two pointers, as DLPack's do, for apart.
    (a_start, a_stop), (b_start, b_stop) = (cupy_module().byte_bounds(x) for x in (a, b))
    return bool(a_start < b_stop and b_start < a_stop)


def deliver(result: Array, out: Array | None) -> Array:
    """Return `out` holding `result`, or `result` where no `out` was given."""
    if out is None or result is out:
        return result
    out[...] = result
    return out


def type_name(x: object) -> str:
    """Return the name of an object's type for an error message."""
    kind = type(x)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return f"{module}{kind.__qualname__}"
