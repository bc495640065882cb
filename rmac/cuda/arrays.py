"""CuPy arrays, as `rmac._backend.Backend` asks about them. Twin of `rmac.cpu.arrays`."""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from rmac._forks import Lock
from rmac._maps import arranged, axes_error, item_name, view_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from rmac._maps import Batch, Shape

Array = Any  # cupy.ndarray

DEVICE = "cuda"
ARRAY = "cupy.ndarray"
DLPACK_DEVICES: tuple[int, ...] = (2, 13)  # CUDA memory, and CUDA managed memory

# The most bytes that the temporary arrays of all captured graphs may take; not measured. Each
# launch of a graph uses its arrays again, and CUDA does not tell when a graph is destroyed. So none
# of them is freed.
_MOST_FOR_GRAPHS = 1 << 32
ALLOCATION = 512  # bytes: CuPy allocates multiples of them, at multiples of them
_kept_for_graphs: list[Any] = []
_bytes_for_graphs = 0
_keeping = Lock()
_HERE = nullcontext()  # 0.6 us less than entering the current device again

# A Python function that does the same takes twice as long.
device_index: Callable[[Array], int] = attrgetter("data.device_id")  # the number of the device
# The shape is read again after the strides: another thread may set it.
_read: Callable[[Array], tuple[Shape, Shape, Shape, int]] = attrgetter(
    "shape", "strides", "shape", "data.ptr"
)


@cache
def namespace() -> Any:
    """Return CuPy, imported when a GPU array or kernel first needs it."""
    try:
        import cupy
    except ImportError as error:
        raise ImportError(
            "arrays on the GPU need CuPy: pip install cupy-cuda13x, or cupy-cuda12x for CUDA 12"
        ) from error
    return cupy


def owns(kind: type) -> bool:
    """Return whether this is the type of arrays on a GPU."""
    return str(kind.__module__).partition(".")[0] == "cupy"


def from_dlpack(x: Any) -> Array:
    """Return an array on the memory of an array of another library, or raise if it has none."""
    array = namespace().from_dlpack(x)
    if array.size and not array.data.ptr:
        raise ValueError("it has no memory")
    return array


def device_context(x: Array) -> AbstractContextManager[Any]:
    """Return a context in which new arrays are made on the device of `x`."""
    if x.data.device_id == namespace().cuda.runtime.getDevice():
        return _HERE
    device: AbstractContextManager[Any] = x.device
    return device


def plain(x: Array, name: str) -> Array:
    """Return the array as it is, or raise if it is misaligned.

    If a kernel reads or writes a misaligned element, CUDA destroys the context: the process can no
    longer use the device.
    """
    if math.gcd(x.data.ptr, *x.strides) % x.itemsize and not _is_aligned(x):
        raise TypeError(f"{name}: expected an aligned array, got misaligned {x.dtype.name}")
    return x


def batches(arrays: Sequence[Array], layout: str, argument: str) -> list[Batch]:
    """Return arrays of a layout as batches, or raise. The arrays are as they were."""
    found: list[Batch] = []
    alignments = 0  # of all, by bits: a power of 2 divides this if it divides each
    for x, (shape, strides, again, address) in zip(arrays, map(_read, arrays), strict=True):
        if shape != again:
            name = item_name(argument, layout, len(found))
            raise ValueError(f"{name}: was reshaped by another thread; wait until the call is done")
        if len(shape) != len(layout):
            raise axes_error(shape, layout, item_name(argument, layout, len(found)))
        shape, strides, alignment = arranged(shape, strides, layout)
        alignments |= address | alignment
        found.append((x, shape, strides))
    if alignments % arrays[0].itemsize:
        for i, x in enumerate(arrays):
            plain(x, item_name(argument, layout, i))
    return found


def view(batch: Batch, layout: str) -> Array:
    """Return a batch of a layout as an array (N, C, H, W)."""
    return view_of(batch[0], layout)


def _is_aligned(x: Array) -> bool:
    """Return whether all elements are aligned. Strides of axes with one element do not matter."""
    strides = [stride for size, stride in zip(x.shape, x.strides, strict=True) if size > 1]
    return not x.size or not math.gcd(x.data.ptr, *strides) % x.itemsize


def require_finite(x: Array, name: str) -> None:
    """Do nothing: the host would have to wait for the device."""


def require_writeable(out: Array, name: str) -> None:
    """Do nothing: CuPy arrays can be written."""


def can_compute_into(out: Array, inputs: Sequence[Array]) -> bool:
    """Return whether kernels can write to `out` while they read the inputs."""
    return bool(out.flags.c_contiguous) and not any(_overlap(out, x) for x in inputs)


def _overlap(a: Array, b: Array) -> bool:
    """Return whether two arrays span common bytes of memory.

    CuPy's `may_share_memory` returns False for arrays from two allocations or imports, even if
    these overlap, as with DLPack.
    """
    if not a.size or not b.size:
        return False
    (a_start, a_stop), (b_start, b_stop) = map(_span, (a, b))
    return bool(a_start < b_stop and b_start < a_stop)


def _span(x: Array) -> tuple[int, int]:
    """Return the first address of an array that has elements, and the one after its last."""
    start: int = x.data.ptr
    if x.flags.c_contiguous:  # 2 us less than `byte_bounds`
        return start, start + x.nbytes
    first, end = namespace().byte_bounds(x)
    return first, end


def read_only(x: Array) -> Array:
    """Return a view; CuPy has no read-only arrays."""
    return x.view()


def empty(shape: tuple[int, ...], dtype: Any, like: Array) -> Array:
    """Return an uninitialised array on the device of `like`."""
    with device_context(like):
        return keep_for_graph(namespace().ndarray(shape, dtype))  # 0.5 us less than `cupy.empty`


def to_device(x: Array, index: int | None) -> Array:
    """Return `x`, of the host or any device, on the device of that index or the current one."""
    cupy = namespace()
    with cupy.cuda.Device(index):
        return cupy.asarray(x)


def to_host(x: Array) -> Array:
    """Return a copy of `x` on the host."""
    return namespace().asnumpy(x)


def temporary_memory(size: int) -> Any:
    """Return `size` bytes of memory for one call, which takes 2.5 us less than an array."""
    cuda = namespace().cuda
    memory = cuda.alloc(size)
    if cuda.get_current_stream().is_capturing():
        _keep(memory, size)
    return memory


def keep_for_graph(array: Array) -> Array:
    """Return a temporary array of the current call, kept alive if a graph captures the call."""
    if namespace().cuda.get_current_stream().is_capturing():
        _keep(array, array.nbytes)
    return array


def _keep(memory: Any, size: int) -> None:
    """Keep memory until the process ends, or raise if graphs keep too much."""
    global _bytes_for_graphs
    with _keeping:
        size = _bytes_for_graphs + max(size, ALLOCATION)
        if size > _MOST_FOR_GRAPHS:
            raise MemoryError(
                f"captured graphs keep {_bytes_for_graphs} bytes of temporary arrays, and at most "
                f"{_MOST_FOR_GRAPHS} are kept; launch these graphs again instead of capturing more"
            )
        _kept_for_graphs.append(memory)
        _bytes_for_graphs = size
