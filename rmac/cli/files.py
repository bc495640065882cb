"""Arrays in files, read a batch at a time, however large the file."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from rmac._dtypes import DTYPES, bfloat16

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterator

    import zarr

_BATCH = 1 << 26  # bytes of a batch
_HEADER_LIMIT = 100_000_000  # bytes; the limit of the safetensors library
_SAFETENSORS = {info.safetensors: info.name for info in DTYPES.values()}


@dataclass(frozen=True)
class ArrayFile:
    """An array in a file. Slices of its first axis can be read."""

    name: str  # in error messages
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[int, int], npt.NDArray[Any]]  # rows first:last
    step: int = 1  # rows that lie together in the file, and are read together

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)


def open_array(path: str, key: str | None = None) -> ArrayFile:
    """Open the array in a .npy, .zarr or .safetensors file; `key` is its name among several."""
    kind = os.path.splitext(path.rstrip(os.sep))[1].lower()
    opener = {".zarr": _open_zarr, ".safetensors": _open_safetensors}.get(kind, _open_npy)
    array = opener(path, key)
    if not array.shape:
        raise ValueError(f"{array.name}: expected an array, got a single number")
    return array


@contextmanager
def naming(array: ArrayFile, argument: str) -> Iterator[None]:
    """Replace the name of an argument, in errors about it, by the name of the file it came from."""
    try:
        yield
    except (TypeError, ValueError) as error:
        message = str(error).removeprefix(f"{argument}:")
        if message == str(error):
            raise
        raise type(error)(f"{array.name}:{message}") from None


def batches(
    array: ArrayFile, unit: str, row_bytes: int = 0
) -> Generator[npt.NDArray[Any], None, None]:
    """Yield all rows of an array, a batch at a time, with a progress bar on a terminal.

    `row_bytes` are the bytes of the caller's result of a row: they count as bytes of the batch.
    """
    row_bytes += prod(array.shape[1:]) * array.dtype.itemsize
    rows = max(1, _BATCH // max(1, row_bytes) // array.step) * array.step
    with _progress(array.shape[0], unit) as advance:
        for first in range(0, array.shape[0], rows):
            batch = array.read(first, min(first + rows, array.shape[0]))
            yield batch
            advance(len(batch))


@contextmanager
def _progress(total: int, unit: str) -> Iterator[Callable[[int], Any]]:
    """Show a progress bar on a terminal if tqdm is installed; yield the function to advance it."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda _count: None
        return
    with tqdm(total=total, unit=unit, disable=None) as bar:
        yield bar.update


@contextmanager
def _readable(path: str, kind: str) -> Iterator[None]:
    """Turn every error into a ValueError that names the file."""
    try:
        yield
    except Exception as error:  # broken headers and compressed data raise many types of errors
        raise ValueError(f"{path}: not a {kind} that can be read: {error}") from None


def _chosen(path: str, key: str | None, keys: Collection[str]) -> str:
    """Return the key of an array in a file: `key` if it is given, else the only one."""
    if not keys:
        raise ValueError(f"{path}: expected an array, got none")
    if key is None and len(keys) == 1:
        return next(iter(keys))
    known = f"{', '.join(sorted(keys))} in {path}"
    if key is None:
        raise ValueError(f"--key: expected one of {known}, got none")
    if key not in keys:
        raise ValueError(f"--key: expected one of {known}, got {key!r}")
    return key


def _require_no_key(path: str, key: str | None) -> None:
    if key is not None:
        raise ValueError(f"--key: expected none, since {path} is one array, got {key!r}")


def _open_npy(path: str, key: str | None) -> ArrayFile:
    _require_no_key(path, key)
    with open(path, "rb") as file:
        with _readable(path, ".npy file"):
            shape, fortran_order, dtype = _npy_header(file)
        offset = file.tell()
    if dtype.hasobject:
        raise TypeError(f"{path}: expected numbers, got Python objects")
    if dtype.str == "|V2":
        raise TypeError(f"{path}: expected numbers, got {dtype} (bfloat16, perhaps: save float32)")
    return _mapped(path, path, shape, dtype, offset, order="F" if fortran_order else "C")


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its format has version {version}")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran_order, dtype = read(file)
    return _checked_shape(shape), fortran_order, dtype


def _open_safetensors(path: str, key: str | None) -> ArrayFile:
    # Mapped like .npy files. The safetensors library would copy every slice.
    with open(path, "rb") as file:
        with _readable(path, ".safetensors file"):
            tensors = _safetensors_header(file)
        start = file.tell()
    key = _chosen(path, key, tensors)
    name = f"{path}[{key}]"
    with _readable(name, ".safetensors file"):
        code = str(tensors[key]["dtype"])
        shape = _checked_shape(tuple(tensors[key]["shape"]))
        first, last = _checked_shape(tuple(tensors[key]["data_offsets"]))
    if code not in _SAFETENSORS:
        raise TypeError(f"{name}: expected one of {', '.join(_SAFETENSORS)}, got {code}")
    dtype = bfloat16() if code == "BF16" else np.dtype(_SAFETENSORS[code]).newbyteorder("<")
    if last - first != prod(shape) * dtype.itemsize:
        raise ValueError(f"{name}: expected the bytes of {code} {shape}, got {last - first} bytes")
    return _mapped(path, name, shape, dtype, start + first)


def _safetensors_header(file: IO[bytes]) -> dict[str, dict[str, Any]]:
    size = int.from_bytes(file.read(8), "little")
    if size > _HEADER_LIMIT:
        raise ValueError(f"its header has {size} bytes")
    header = json.loads(file.read(size))
    return {key: entry for key, entry in header.items() if key != "__metadata__"}


def _checked_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    if not all(type(size) is int and 0 <= size < 1 << 62 for size in shape):
        raise ValueError(f"its shape is {shape}")
    return shape


def _mapped(
    path: str,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    offset: int,
    order: Any = "C",
) -> ArrayFile:
    """Map an array that has the same bytes in the file as in memory.

    Rows are copied when they are read, if they are misaligned or of the other byte order.
    """
    size = prod(shape) * dtype.itemsize
    there = os.stat(path).st_size - offset
    if there < size:
        raise ValueError(f"{name}: truncated: {size} bytes of data expected, {there} there")
    if size == 0:
        rows = np.empty(shape, dtype, order)
    else:
        rows = np.asarray(np.memmap(path, dtype, "r", offset, shape, order))

    native = dtype.newbyteorder("=")

    def read(first: int, last: int) -> npt.NDArray[Any]:
        return np.require(rows[first:last], native, ["ALIGNED"])

    return ArrayFile(name, shape, native, read)


def _open_zarr(path: str, key: str | None) -> ArrayFile:
    try:
        import zarr
    except ImportError:
        raise ImportError(f"{path}: needs zarr: pip install 'rmac[files]'") from None
    os.stat(path)  # raises FileNotFoundError
    with _readable(path, ".zarr folder"):
        node = zarr.open(zarr.storage.LocalStore(path, read_only=True), mode="r")
        members = () if isinstance(node, zarr.Array) else node.members(max_depth=None)
        arrays = {name: member for name, member in members if isinstance(member, zarr.Array)}
    if isinstance(node, zarr.Array):
        _require_no_key(path, key)
        name, array = path, node
    else:
        key = _chosen(path, key, arrays)
        name, array = f"{path}[{key}]", arrays[key]

    def read(first: int, last: int) -> npt.NDArray[Any]:
        with _readable(name, ".zarr folder"):
            return np.asarray(array[first:last])

    return ArrayFile(name, array.shape, array.dtype, read, _zarr_step(array))


def _zarr_step(array: zarr.Array[Any]) -> int:
    """Return the rows of a chunk; 1 if that many rows of all chunks side by side are too large."""
    if not array.shape:
        return 1
    rows: int = array.chunks[0]
    size = rows * prod(array.shape[1:]) * array.dtype.itemsize
    return rows if size <= max(_BATCH, prod(array.chunks) * array.dtype.itemsize) else 1


def require_suffix(argument: str, path: str, suffix: str) -> None:
    """Raise unless the name of an output file ends in `suffix`."""
    if not path.lower().endswith(suffix):
        raise ValueError(f"{argument}: expected a name that ends in {suffix}, got {path!r}")
