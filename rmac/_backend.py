"""The interface between the public functions and the backends, one for each kind of device.

A backend is a package with the functions of `Backend`, which is imported here, and an entry of
`BACKENDS`. It knows its arrays and its kernels. All other code uses them only through this file.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from rmac import _hints, cpu, cuda
from rmac._checks import is_list, type_name
from rmac._tracing import require_values

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from rmac._maps import Batch
    from rmac._options import AggregationOptions, PoolingOptions, SearchOptions

Array = Any  # of the library of some backend


class Backend(Protocol):
    """The functions that `rmac.cpu` and `rmac.cuda` both have.

    Those that compute get arguments which are checked already, and a C-ordered `out` that shares no
    memory with them. Feature maps are batches, or views (N, C, H, W); boxes are the bytes of
    (R, 4) int64. What each must do in detail is in the docstrings of `rmac.cpu` and
    `rmac.cpu.arrays`.
    """

    DEVICE: str  # the name of the kind of device
    ARRAY: str  # the name of the type of its arrays
    DLPACK_DEVICES: tuple[int, ...]  # the types of devices, in DLPack's numbers

    def config(self) -> dict[str, Any]: ...

    # Arrays
    def owns(self, kind: type, /) -> bool: ...
    def namespace(self) -> Any: ...
    def from_dlpack(self, x: Any, /) -> Array: ...
    def device_index(self, x: Array, /) -> int: ...
    def device_context(self, x: Array, /) -> AbstractContextManager[Any]: ...
    # An array on the memory of x, of the library's own type, that is aligned; or raise. On the host
    # it is a new object, which nobody else can change.
    def plain(self, x: Array, name: str, /) -> Array: ...
    # Arrays of a layout as batches on the memory of each, if kernels can read it; or raise.
    def batches(self, arrays: Sequence[Array], layout: str, argument: str, /) -> list[Batch]: ...
    # A batch of a layout as an array (N, C, H, W).
    def view(self, batch: Batch, layout: str, /) -> Array: ...
    def require_finite(self, x: Array, name: str, /) -> None: ...
    def require_writeable(self, out: Array, name: str, /) -> None: ...
    # Whether kernels can write to `out` while they read the inputs.
    def can_compute_into(self, out: Array, inputs: Sequence[Array], /) -> bool: ...
    def read_only(self, x: Array, /) -> Array: ...
    def empty(self, shape: tuple[int, ...], dtype: Any, like: Array, /) -> Array: ...
    def to_device(self, x: Array, index: int | None, /) -> Array: ...
    def to_host(self, x: Array, /) -> Array: ...

    # Operators
    def rmac_regions(self, boxes: Any, images: int, like: Array, /) -> Array: ...
    def region_pool(
        self,
        batch: Batch,
        boxes: bytes,
        out: Array,
        pooling: PoolingOptions,
        /,
        *,
        workers: int | None,
    ) -> None: ...
    def roi_pool(
        self,
        x: Array,
        rois: Array,
        out: Array,
        /,
        *,
        output_size: tuple[int, int],
        spatial_scale: float,
        workers: int | None,
    ) -> None: ...
    def rmac(
        self,
        batches: Sequence[Batch],
        boxes: Sequence[bytes],
        out: Array,
        pooling: PoolingOptions,
        aggregation: AggregationOptions,
        /,
        *,
        workers: int | None,
    ) -> None: ...
    def describe(self, vectors: Array, out: Array, aggregation: AggregationOptions, /) -> None: ...
    # The boxes (Q, N, 4) of the maps of all batches that are most similar to queries (Q, C), and
    # their scores (Q, N). An aspect is None or a number.
    def localize(
        self,
        batches: Sequence[Array],
        queries: Any,
        aspects: Sequence[float | None],
        search: SearchOptions,
        /,
        *,
        workers: int | None,
    ) -> tuple[Array, Array]: ...
    # The `workers` to pool so many bytes of maps with, before a matrix product of the result.
    def workers_before_product(self, workers: int | None, size: int, /) -> int | None: ...


BACKENDS: dict[str, Backend] = {cpu.DEVICE: cpu, cuda.DEVICE: cuda}
HOST = BACKENDS["cpu"]
ARRAY_NAMES = " or ".join(backend.ARRAY for backend in BACKENDS.values())  # for messages


def _find_backend(kind: type) -> Backend | None:
    """Return the backend that has arrays of this type, None if there is none."""
    return next((backend for backend in BACKENDS.values() if backend.owns(kind)), None)


backend_of_type: Callable[[type], Backend | None] = lru_cache(maxsize=256)(_find_backend)


def attribute(x: object, name: str) -> Any:
    """Return an attribute of an object of any library; None if it has none or cannot tell it."""
    try:
        return getattr(x, name, None)
    except Exception:
        return None


def backend_of(x: Array, name: str = "x") -> Backend:
    """Return the backend that has the array `x`, the argument `name`, or raise."""
    backend = backend_of_type(type(x))
    if backend is not None:
        return backend
    if attribute(x, "requires_grad") is True:
        raise TypeError(
            f"{name}: got a {type_name(x)} that requires grad, and no gradient is defined here; "
            f"pass its data with {name}.detach()"
        )
    require_values(x, name)
    hint = _hints.for_type(x, name)
    raise TypeError(f"{name}: expected a {ARRAY_NAMES}, got {type_name(x)}{hint}")


def backend_of_input(x: Array | Sequence[Array], name: str = "x") -> Backend:
    """Return the backend of an operator's input, an array or a list of them, or raise."""
    if not is_list(x):
        return backend_of(x, name)
    if not x:
        raise ValueError(f"{name}: expected at least one array, got none")
    if len({*map(type, x)}) == 1:
        return backend_of(x[0], f"{name}[0]")
    found = {(one := backend_of(array, f"{name}[{i}]")).DEVICE: one for i, array in enumerate(x)}
    if len(found) > 1:
        devices = " and ".join(sorted(found))
        raise TypeError(f"{name}: expected arrays on one device, got {devices}")
    return found.popitem()[1]


def namespace_of(x: Array) -> Any:
    """Return the functions for arrays such as `x`: NumPy, or CuPy."""
    return backend_of(x).namespace()


def device_context(x: Array) -> AbstractContextManager[Any]:
    """Return a context in which new arrays are made on the device of `x`."""
    return backend_of(x).device_context(x)


def require_same_device(
    x: Array, name: str, like: Array, like_name: str = "x", advice: str = ""
) -> None:
    """Raise unless the array `x` is on the device of the array `like`."""
    backend = backend_of(x, name)
    if backend is not backend_of(like, like_name):
        kind = type_name(x)
        raise TypeError(f"{name}: expected an array where {like_name} is, got {kind}{advice}")
    here, there = backend.device_index(x), backend.device_index(like)
    if here != there:
        raise ValueError(
            f"{name}: expected an array on device {there}, where {like_name} is, "
            f"got one on device {here}"
        )


def move(x: Array, device: str, index: int | None = None) -> Array:
    """Return `x` on a kind of device: the one of that index, or the current one."""
    source, target = backend_of(x), BACKENDS[device]
    if source is not target:
        x = source.to_host(x)
    return target.to_device(x, index)
