"""NumPy arrays, as `rmac._backend.Backend` asks about them. Twin of `rmac.cuda.arrays`."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rmac._checks import require_unmasked
from rmac._maps import item_name, require_axes, view_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from rmac._maps import Batch

Array = npt.NDArray[Any]

DEVICE = "cpu"
ARRAY = "numpy.ndarray"
DLPACK_DEVICES: tuple[int, ...] = (1, 3)  # host memory, and host memory pinned by CUDA

_HERE: AbstractContextManager[Any] = nullcontext()


def owns(kind: type) -> bool:
    """Return whether this is the type of arrays on the host."""
    return issubclass(kind, np.ndarray)


def namespace() -> Any:
    """Return NumPy."""
    return np


def from_dlpack(x: Any) -> Array:
    """Return an array on the memory of an array of another library, or raise if it has none."""
    array = np.from_dlpack(x)
    if array.size and array.flags.owndata:  # NumPy allocates some where there is none
        raise ValueError("it has no memory")
    return array


def device_index(x: Array) -> int:  # noqa: ARG001
    """Return the number of the device: there is one host."""
    return 0


def device_context(x: Array) -> AbstractContextManager[Any]:  # noqa: ARG001
    """Return a context in which new arrays are made on the device of `x`."""
    return _HERE


def plain(x: Array, name: str) -> Array:
    """Return a numpy.ndarray on the memory of `x`, or raise.

    It is a new object: what is checked of it, nobody else can change. The attributes of a subclass,
    such as numpy.memmap, are not asked.
    """
    if type(x) is not np.ndarray:
        require_unmasked(name, x)
    return np.ndarray.view(x, np.ndarray)


def batches(arrays: Sequence[Array], layout: str, argument: str) -> list[Batch]:
    """Return arrays of a layout as batches, or raise. They are views, new as `plain` makes them."""
    found = []
    for i, x in enumerate(arrays):
        x = x.view() if type(x) is np.ndarray else plain(x, item_name(argument, layout, i))
        if not x.flags.aligned:
            name = item_name(argument, layout, i)
            raise TypeError(f"{name}: expected an aligned array, got misaligned {x.dtype.name}")
        if x.ndim != len(layout):
            require_axes(x, layout, item_name(argument, layout, i))
        if layout != "NCHW":
            x = view_of(x, layout)
        found.append((x, x.shape, x.strides))
    return found


def view(batch: Batch, layout: str) -> Array:  # noqa: ARG001
    """Return a batch as an array (N, C, H, W): it has one."""
    array: Array = batch[0]
    return array


def require_finite(x: Array, name: str) -> None:
    """Raise unless all elements are finite."""
    finite = np.isfinite(x)
    if not finite.all():
        raise ValueError(f"{name}: expected finite numbers, got {x[~finite][0]}")


def require_writeable(out: Array, name: str) -> None:
    """Raise if the array is read-only."""
    if not out.flags.writeable:
        raise ValueError(f"{name}: expected a writeable array, got a read-only one")


def can_compute_into(out: Array, inputs: Sequence[Array]) -> bool:
    """Return whether kernels can write to `out` while they read the inputs."""
    return (
        out.flags.c_contiguous
        and out.flags.aligned
        and not any(np.may_share_memory(out, x) for x in inputs)
    )


def read_only(x: Array) -> Array:
    """Return a view that cannot be written."""
    view = x.view()
    view.flags.writeable = False
    return view


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike, like: Array) -> Array:  # noqa: ARG001
    """Return an uninitialised array; `like` names the device, here always the host."""
    return np.empty(shape, dtype)


def to_device(x: Array, index: int | None) -> Array:  # noqa: ARG001
    """Return the array itself: it is on the host already."""
    return x


def to_host(x: Array) -> Array:
    """Return the array itself: it is on the host already."""
    return x
