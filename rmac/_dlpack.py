"""Arrays of other libraries: they come in and go out through DLPack, without a copy."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from rmac._backend import BACKENDS, backend_of_type, type_name
from rmac._dtypes import bfloat16

if TYPE_CHECKING:
    from collections.abc import Callable


def is_foreign(x: Any) -> bool:
    """Return whether `x` is an array of a library that no backend is for."""
    if backend_of_type(type(x)) is not None or not hasattr(x, "__dlpack__"):
        return False
    # `rmac._backend.backend_of` refuses one that requires grad, and says what to do.
    return not getattr(x, "requires_grad", False)


def from_foreign(x: Any, name: str = "x") -> Any:
    """Return an array, or a list with arrays, as arrays of backends on the same memory."""
    if backend_of_type(type(x)) is not None:
        return x
    if isinstance(x, (list, tuple)):
        if None not in {backend_of_type(kind) for kind in {*map(type, x)}}:
            return list(x)
        return [from_foreign(one, f"{name}[{i}]") for i, one in enumerate(x)]
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
    """Return the `from_dlpack` for a type of device, in DLPack's numbers, or raise."""
    for backend in BACKENDS.values():
        if device in backend.DLPACK_DEVICES:
            from_dlpack: Callable[[Any], Any] = backend.namespace().from_dlpack
            return from_dlpack
    raise ValueError(f"it is on a device of type {device}, which no backend reads")


def to_foreign(result: Any, like: Any) -> Any:
    """Return an array, or a list of them, as arrays of the library of `like`.

    `like` is what `from_foreign` was given: of a list, its first array counts.
    """
    if isinstance(like, (list, tuple)) and like:
        return to_foreign(result, like[0])
    if not is_foreign(like):
        return result
    if isinstance(result, (list, tuple)):
        return type(result)(to_foreign(one, like) for one in result)
    if is_foreign(result) or not hasattr(result, "__dlpack__"):
        return result
    library = _namespace(like)
    if _is_bfloat16(result):
        return library.from_dlpack(result.view(np.int16)).view(library.bfloat16)
    return library.from_dlpack(result)


def _namespace(x: Any) -> Any:
    """Return the functions of an array's library: by the array API standard, or by its name."""
    if hasattr(x, "__array_namespace__"):
        return x.__array_namespace__()
    return sys.modules.get(type(x).__module__.partition(".")[0])


def _is_bfloat16(x: Any) -> bool:
    """Return whether `x` is of the dtype that NumPy's DLPack lacks; its bits travel as int16."""
    return str(x.dtype).endswith("bfloat16") if hasattr(x, "dtype") else False
