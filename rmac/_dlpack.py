"""Arrays of other libraries: they come in and go out through DLPack, without a copy."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from rmac._backend import BACKENDS, HOST, attribute, backend_of_type
from rmac._checks import ask, is_list, reason, type_name
from rmac._dtypes import bfloat16
from rmac._tracing import require_values

if TYPE_CHECKING:
    from rmac._backend import Backend


def snapshot(x: Any, name: str = "x") -> Any:
    """Return a new list of the items of a list or tuple, which no other thread changes.

    All else is returned as it is.
    """
    return ask(name, x, list, "a list of arrays") if is_list(x) else x


def is_foreign(x: Any) -> bool:
    """Return whether `x` is an array of a library that no backend is for."""
    if backend_of_type(type(x)) is not None or attribute(x, "__dlpack__") is None:
        return False
    # `rmac._backend.backend_of` refuses one that requires grad, and says what to do.
    return attribute(x, "requires_grad") is not True


def from_foreign(x: Any, name: str = "x") -> Any:
    """Return an array, or a `snapshot` of arrays, as arrays of backends on the same memory."""
    if type(x) is not list:
        return _imported(x, name)
    if None not in {backend_of_type(kind) for kind in {*map(type, x)}}:
        return x
    return [_imported(one, f"{name}[{i}]") for i, one in enumerate(x)]


def _imported(x: Any, name: str) -> Any:
    """Return an array as one of a backend; all else as it is."""
    if backend_of_type(type(x)) is not None or not is_foreign(x):
        return x
    require_values(x, name)
    return import_array(x, name)


def import_array(x: Any, name: str) -> Any:
    """Return an array of another library as one of a backend, or raise."""
    try:
        _require_memory_of_values(x)
        library = _namespace(x)
        bits = x.view(library.int16) if hasattr(library, "int16") and _is_bfloat16(x) else x
        array = _backend_for(x).from_dlpack(bits)
    except MemoryError:
        raise
    except Exception as error:
        message = f"expected an array that DLPack can pass, got {type_name(x)}"
        raise TypeError(f"{name}: {message}: {reason(error)}") from error
    return array if bits is x else array.view(bfloat16())


def _require_memory_of_values(x: Any) -> None:
    """Raise if the memory of a tensor of PyTorch is not that of its values; DLPack does not tell.

    It holds their negatives in views such as ``z.conj().imag``. It is too short if the storage was
    made smaller since.
    """
    if attribute(x, "is_neg") is None or attribute(x, "untyped_storage") is None:
        return
    if x.is_neg():
        raise ValueError("its memory holds the negatives of its values; pass its resolve_neg()")
    steps = zip(x.shape, x.stride(), strict=True)
    last = x.storage_offset() + sum((size - 1) * stride for size, stride in steps)
    if x.numel() and (last + 1) * x.element_size() > x.untyped_storage().nbytes():
        raise ValueError("it has no memory for all of its values")


def _backend_for(x: Any) -> Backend:
    """Return the backend that reads the device of `x`, or raise."""
    if attribute(x, "__dlpack_device__") is None:
        return HOST  # which looks at the device that __dlpack__ tells
    device = x.__dlpack_device__()[0]
    for backend in BACKENDS.values():
        if device in backend.DLPACK_DEVICES:
            return backend
    raise ValueError(f"it is on a device of type {device}, which no backend reads")


def to_foreign(result: Any, like: Any) -> Any:
    """Return an array, or a list of them, as arrays of the library of `like`.

    `like` is an array, or a `snapshot` of arrays: then its first array counts. If its library has
    no `from_dlpack`, the result stays as it is.
    """
    if type(like) is list and like:
        like = like[0]
    if not is_foreign(like):
        return result
    if isinstance(result, (list, tuple)):
        parts = [to_foreign(one, like) for one in result]
        return result._make(parts) if hasattr(result, "_make") else type(result)(parts)
    if is_foreign(result) or not hasattr(result, "__dlpack__"):
        return result
    return ask(
        "x",
        like,
        lambda array: _exported(result, array),
        "an array of a library that takes results",
    )


def hand_over(result: Any, out: Any) -> None:
    """Tell the library of `out` that its memory holds a result now.

    On a device, the library's stream then waits for the kernels. The host has no streams.
    """
    if not HOST.owns(type(result)):
        to_foreign(result, out)


def _exported(result: Any, like: Any) -> Any:
    """Return an array as one of the library of `like`."""
    library = _namespace(like)
    if library is None:
        return result
    if _is_bfloat16(result):
        return library.from_dlpack(result.view(np.int16)).view(library.bfloat16)
    return library.from_dlpack(result)


def _namespace(x: Any) -> Any:
    """Return the functions of an array's library, None if there is no `from_dlpack` among them.

    The array API standard tells them. Else they are those of the package of the array's class, or
    of a class that it is a subclass of.
    """
    if hasattr(x, "__array_namespace__"):
        return x.__array_namespace__()
    packages = (str(base.__module__).partition(".")[0] for base in type(x).__mro__)
    libraries = map(sys.modules.get, packages)
    return next((library for library in libraries if hasattr(library, "from_dlpack")), None)


def _is_bfloat16(x: Any) -> bool:
    """Return whether `x` is of the dtype that NumPy's DLPack lacks; its bits travel as int16."""
    return str(x.dtype).endswith("bfloat16") if hasattr(x, "dtype") else False
