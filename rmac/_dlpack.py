"""Arrays of other libraries: taken in and given back through DLPack, without a copy."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

_HOST, _CUDA, _CUDA_HOST, _CUDA_MANAGED = 1, 2, 3, 13  # device types of DLPack


def is_foreign(x: Any) -> bool:
    """Return whether `x` is an array of a library other than NumPy and CuPy."""
    if type(x) is np.ndarray or isinstance(x, np.ndarray) or not hasattr(x, "__dlpack__"):
        return False
    # One that requires grad is refused by `rmac._arrays.device_of`, which says what to do.
    return _library(x) != "cupy" and not getattr(x, "requires_grad", False)


def taken_in(x: Any) -> Any:
    """Return an array, or a list with arrays, as arrays of NumPy or CuPy on the same memory."""
    if isinstance(x, list | tuple):
        return [taken_in(one) for one in x]
    if not is_foreign(x):
        return x
    bits = _bfloat16_bits(x)
    device = x.__dlpack_device__()[0]
    if device in (_HOST, _CUDA_HOST):
        array = np.from_dlpack(x if bits is None else bits)
    elif device in (_CUDA, _CUDA_MANAGED):
        from rmac.cuda import cupy_module

        array = cupy_module().from_dlpack(x if bits is None else bits)
    else:
        raise TypeError(f"x: expected an array on the host or a CUDA device, got {x.device}")
    return array if bits is None else array.view(bfloat16())


def given_back(result: Any, like: Any) -> Any:
    """Return an array, or a list of them, as arrays of the library that the first of `like` is of.

    `like` is what was taken in.
    """
    if isinstance(like, list | tuple) and like:
        return given_back(result, like[0])
    if not is_foreign(like):
        return result
    if isinstance(result, list):
        return [given_back(one, like) for one in result]
    library = sys.modules[_library(like)]
    if result.dtype.name == "bfloat16":
        return library.from_dlpack(result.view(np.int16)).view(library.bfloat16)
    return library.from_dlpack(result)


def _library(x: Any) -> str:
    return type(x).__module__.partition(".")[0]


def _bfloat16_bits(x: Any) -> Any:
    """Return a PyTorch tensor of bfloat16 as int16, since DLPack of NumPy has no such type."""
    if str(getattr(x, "dtype", "")) != "torch.bfloat16":
        return None
    return x.view(sys.modules["torch"].int16)


def bfloat16() -> np.dtype[Any]:
    """Return the dtype that ml_dtypes gives NumPy."""
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError("bfloat16 arrays need ml_dtypes: pip install ml_dtypes") from error
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype
