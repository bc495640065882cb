"""The one table of dtypes: what kernels, descriptors and files need to know of each."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

from rmac import _hints


class Kind(IntEnum):
    """The number by which the kernels of every backend know a dtype."""

    UINT8 = 1
    INT8 = 2
    FLOAT16 = 3
    BFLOAT16 = 4
    FLOAT32 = 5
    FLOAT64 = 6


class DtypeInfo(NamedTuple):
    """What is known of a dtype that feature maps may have."""

    name: str
    kind: Kind
    itemsize: int
    # Subtracted from the ordered bits, wrapping, to make a key. Of floats it makes -inf the least
    # key, so that all NaNs are above +inf. Of uint8 it moves 0 to the least int8.
    key_shift: int
    descriptor: np.dtype[Any]  # of descriptors and means of such maps
    safetensors: str  # its code in .safetensors files
    unit: float  # the largest relative rounding error of its values; 0 if they are exact
    zero_points: tuple[int, int] = (0, 0)  # the least and the greatest value that may stand for 0


_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)

DTYPES = {
    info.name: info
    for info in (
        DtypeInfo("float16", Kind.FLOAT16, 2, 0x3FF, _FLOAT32, "F16", 2.0**-11),
        DtypeInfo("bfloat16", Kind.BFLOAT16, 2, 0x7F, _FLOAT32, "BF16", 2.0**-8),
        DtypeInfo("float32", Kind.FLOAT32, 4, 0x7F_FFFF, _FLOAT32, "F32", 2.0**-24),
        DtypeInfo("float64", Kind.FLOAT64, 8, 0xF_FFFF_FFFF_FFFF, _FLOAT64, "F64", 2.0**-53),
        DtypeInfo("uint8", Kind.UINT8, 1, -0x80, _FLOAT32, "U8", 0.0, (0, 255)),
        DtypeInfo("int8", Kind.INT8, 1, 0, _FLOAT32, "I8", 0.0, (-128, 127)),
    )
}
# For messages: all of them, and those that may be quantised.
DTYPE_NAMES = " or ".join(", ".join(DTYPES).rsplit(", ", 1))
ZERO_POINT_NAMES = " or ".join(name for name, info in DTYPES.items() if any(info.zero_points))

_info_of: dict[np.dtype[Any], DtypeInfo] = {
    np.dtype(name): info for name, info in DTYPES.items() if name != "bfloat16"
}


def dtype_info(dtype: np.dtype[Any], name: str = "x") -> DtypeInfo:
    """Return what is known of the dtype of the argument `name`, or raise if maps cannot have it."""
    try:
        return _info_of[dtype]
    except KeyError:
        pass
    if dtype.name == "bfloat16" and dtype.isnative:
        # The first such array brings the dtype: rmac does not import ml_dtypes to look for it.
        return _info_of.setdefault(dtype, DTYPES["bfloat16"])
    if not dtype.isnative and dtype.newbyteorder("=") in _info_of:
        raise TypeError(f"{name}: expected native byte order, got byte-swapped {dtype.name}")
    hint = _hints.for_dtype(dtype.kind, name)
    raise TypeError(f"{name}: expected {DTYPE_NAMES}, got {dtype.name}{hint}")


def bfloat16() -> np.dtype[Any]:
    """Return the dtype that ml_dtypes adds to NumPy, or raise if it is not installed."""
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError("bfloat16 arrays need ml_dtypes: pip install ml_dtypes") from error
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype
