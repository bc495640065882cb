"""Arrays of other libraries: taken in and given back through DLPack, without a copy."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from rmac._arrays import all_numpy, type_name
from rmac.cuda import cupy_module

if TYPE_CHECKING:
    from collections.abc import Callable

_HOST, _CUDA, _CUDA_HOST, _CUDA_MANAGED = 1, 2, 3, 13  # device types of DLPack


def is_foreign(x: Any) -> bool:
    """Return whether `x` is an array of a library other than NumPy and CuPy."""
    if type(x) is np.ndarray or isinstance(x, np.ndarray) or not hasattr(x, "__dlpack__"):
        return False
    # One that requires grad is refused by `rmac._arrays.device_of`, which says what to do.
    return _library(x) != "cupy" and not getattr(x, "requires_grad", False)


def taken_in(x: Any, name: str = "x") -> Any:
    """Return an array, or a list with arrays, as arrays of NumPy or CuPy on the same memory."""
    if isinstance(x, (list, tuple)):
        if all_numpy(x):
            return list(x)
        return [taken_in(one, f"{name}[{i}]") for i, one in enumerate(x)]
    if not is_foreign(x):
        return x
    if not hasattr(_namespace(x), "from_dlpack"):
        raise TypeError(
            f"{name}: expected an array of a library with from_dlpack, got {type_name(x)}"
        )
    try:
        device = x.__dlpack_device__()[0]
        bits = x.view(_namespace(x).int16) if _is_bfloat16(x) else x
        array = _importer(device)(bits)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        message = f"expected an array that DLPack can pass, got {type_name(x)}"
        raise TypeError(f"{name}: {message}: {error}") from error
    return array if bits is x else array.view(bfloat16())


def _importer(device: int) -> Callable[[Any], Any]:
    if device in (_HOST, _CUDA_HOST):
        return np.from_dlpack
    if device not in (_CUDA, _CUDA_MANAGED):
        raise ValueError(f"it is on a device of type {device}, neither the host nor a CUDA device")
    from_dlpack: Callable[[Any], Any] = cupy_module().from_dlpack
    return from_dlpack


def given_back(result: Any, like: Any) -> Any:
    """Return an array, or a list of them, as arrays of the library that the first of `like` is of.

    `like` is what was taken in.
    """
    if isinstance(like, (list, tuple)) and like:
        return given_back(result, like[0])
    if not is_foreign(like):
        return result
    if isinstance(result, (list, tuple)):
        return type(result)(given_back(one, like) for one in result)
    if is_foreign(result) or not hasattr(result, "__dlpack__"):
        return result
    library = _namespace(like)
    if _is_bfloat16(result):
        return library.from_dlpack(result.view(np.int16)).view(library.bfloat16)
    return library.from_dlpack(result)


def _library(x: Any) -> str:
    return type(x).__module__.partition(".")[0]


def _namespace(x: Any) -> Any:
    """Return where an array's library has its functions, by the array API standard or by name."""
    if hasattr(x, "__array_namespace__"):
        return x.__array_namespace__()
    return sys.modules.get(_library(x))


def _is_bfloat16(x: Any) -> bool:
    """Return whether that is the dtype, which NumPy's DLPack lacks; its bits go as int16."""
    return str(x.dtype).endswith("bfloat16") if hasattr(x, "dtype") else False


def bfloat16() -> np.dtype[Any]:
    """Return the dtype that ml_dtypes gives NumPy."""
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError("bfloat16 arrays need ml_dtypes: pip install ml_dtypes") from error
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype
