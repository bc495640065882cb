"""The C types by which the kernels know the dtypes of `rmac._dtypes`."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from rmac._dtypes import DtypeInfo

_C_NAMES = {
    "uint8": "unsigned char",
    "int8": "signed char",
    "int16": "short",
    "int32": "int",
    "int64": "long long",
    "float32": "float",
    "float64": "double",
}


class KernelTypes(NamedTuple):
    """The types in which the kernels hold the values of a dtype."""

    bits: np.dtype[Any]  # an element in memory; of a float, its bits as an integer
    key: np.dtype[Any]  # an integer in the same order as the values; GPUs compare 32 bits or 64
    real: np.dtype[Any]  # a mean, or an element of a descriptor


@cache
def kernel_types(info: DtypeInfo) -> KernelTypes:
    """Return the types in which the kernels hold the values of a dtype."""
    bits = info.name if "int" in info.name else f"int{8 * info.itemsize}"
    key = np.int64 if info.itemsize == 8 else np.int32
    return KernelTypes(np.dtype(bits), np.dtype(key), info.descriptor)


def c_name(dtype: np.dtype[Any]) -> str:
    """Return the name that a type has in the .cu files."""
    return _C_NAMES[dtype.name]
