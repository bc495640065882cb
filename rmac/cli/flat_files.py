"""Arrays that have the same bytes in a file as in memory: .npy and .safetensors."""

from __future__ import annotations

import json
from io import BytesIO
from math import prod
from threading import local
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from rmac._dtypes import DTYPES, bfloat16
from rmac._io import InputFile
from rmac.cli.array_file import ArrayFile, checked_shape, chosen_key, readable, require_no_key

_NPY_HEADER = 1 << 16  # bytes; the most in version 1.0 of the format, and far more than any needs
_SAFETENSORS_HEADER = 10_000_000  # bytes; some 100,000 tensors
_SAFETENSORS = {info.safetensors: info.name for info in DTYPES.values()}

# In Fortran order each column is contiguous: the same element of all rows. Columns up to this size
# are read whole, and then cut, since a further read costs as much as 16 kB (1.5 µs at 10 GB/s).
_SHORT_COLUMN = 1 << 14  # bytes
_COLUMNS = 1 << 20  # bytes of columns to read at a time


def open_npy(path: str, key: str | None) -> ArrayFile:
    """Open the array of a .npy file."""
    file = InputFile(path)
    head = BytesIO(_start_of(file, 12 + _NPY_HEADER))
    with readable(path, ".npy file"):
        shape, fortran_order, dtype = _npy_header(head)
    require_no_key(path, key)
    if dtype.hasobject:
        raise TypeError(f"{path}: expected numbers, got Python objects")
    if dtype.str == "|V2":
        raise TypeError(f"{path}: expected numbers, got {dtype} (bfloat16, perhaps: save float32)")
    extra = _require_bytes(path, prod(shape) * dtype.itemsize, file.size - head.tell())
    if extra:
        raise ValueError(
            f"{path}: expected one array, got {extra} bytes after it; if these are more arrays, "
            "read one after the other with np.load(file) of the open file, and save them as one"
        )
    return _flat_array(file, path, shape, dtype, head.tell(), fortran=fortran_order)


def _npy_header(file: BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    if not file.getvalue().startswith(npy.MAGIC_PREFIX):
        raise ValueError("it has other contents; rmac reads .npy, .safetensors and Zarr")
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its format has version {version}")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran_order, dtype = read(file)
    return checked_shape(shape, dtype.itemsize), fortran_order, dtype


def open_safetensors(path: str, key: str | None) -> ArrayFile:
    """Open an array of a .safetensors file, without the safetensors library: it would map it."""
    file = InputFile(path)
    with readable(path, ".safetensors file"):
        tensors, start = _safetensors_header(file)
        places = {name: _place(name, entry) for name, entry in tensors.items()}
    _require_tiling(path, places, file.size - start)
    key = chosen_key(path, key, tensors)
    name = f"{path}[{key}]"
    with readable(name, ".safetensors file"):
        code = str(tensors[key]["dtype"])
        shape = checked_shape(tensors[key]["shape"], itemsize=8)
    if code not in _SAFETENSORS:
        raise TypeError(f"{name}: expected one of {', '.join(_SAFETENSORS)}, got {code}")
    dtype = bfloat16() if code == "BF16" else np.dtype(_SAFETENSORS[code]).newbyteorder("<")
    first, last = places[key]
    if last - first != prod(shape) * dtype.itemsize:
        raise ValueError(f"{name}: expected the bytes of {code} {shape}, got {last - first} bytes")
    return _flat_array(file, name, shape, dtype, start + first)


def _safetensors_header(file: InputFile) -> tuple[dict[str, dict[str, Any]], int]:
    """Return the entries of the header, and where the data start."""
    size = int.from_bytes(_start_of(file, 8), "little")
    if size > min(_SAFETENSORS_HEADER, file.size - 8):
        raise ValueError(f"its header has {size} bytes")
    header = json.loads(_start_of(file, 8 + size)[8:], object_pairs_hook=_unique)
    return {key: entry for key, entry in header.items() if key != "__metadata__"}, 8 + size


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a dict of the pairs of a JSON object; raise if a name is twice there."""
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a name is twice in its header")
    return result


def _place(name: str, entry: Any) -> tuple[int, int]:
    """Return where the data of a tensor begin and end, or raise."""
    first, last = entry["data_offsets"]
    if not (type(first) is type(last) is int and 0 <= first <= last):
        raise ValueError(f"the data_offsets of {name} are {first} and {last}")
    return first, last


def _require_tiling(path: str, places: dict[str, tuple[int, int]], size: int) -> None:
    """Raise unless each byte of the data is in one tensor."""
    at = 0
    for name, (first, last) in sorted(places.items(), key=lambda item: item[1]):
        if first != at:
            fault = "are in no tensor" if first > at else "are in two tensors"
            raise ValueError(
                f"{path}: {abs(first - at)} bytes before {name} {fault}: it is damaged"
            )
        at = last
    if extra := _require_bytes(path, at, size):
        raise ValueError(f"{path}: {extra} bytes at its end are in no tensor: it is damaged")


def _require_bytes(name: str, expected: int, there: int) -> int:
    """Return how many bytes there are more than expected; raise if there are fewer."""
    if there < expected:
        raise ValueError(f"{name}: truncated: {expected} bytes of data expected, {there} there")
    return there - expected


def _start_of(file: InputFile, size: int) -> bytes:
    """Return the first bytes of a file: fewer if the file is shorter."""
    start = bytearray(min(size, file.size))
    file.read_into(memoryview(start), 0)
    return bytes(start)


def _flat_array(
    file: InputFile,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    offset: int,
    *,
    fortran: bool = False,
) -> ArrayFile:
    """Return an array whose rows are read into one buffer a thread, which is used again."""
    native = dtype.newbyteorder("=")
    row = prod(shape[1:]) * dtype.itemsize
    kept = local()

    def read(first: int, last: int) -> npt.NDArray[Any]:
        size = (last - first) * row
        buffer = getattr(kept, "buffer", None)
        if buffer is None or len(buffer) < size:
            buffer = kept.buffer = np.empty(size, np.uint8)
        values = buffer[:size].view(dtype)
        if fortran and size:
            _read_columns(file, values.reshape(last - first, -1), offset, shape[0], first)
        else:
            file.read_into(buffer[:size].data, offset + first * row)
        file.require_unchanged()
        if dtype != native:
            values = values.byteswap(inplace=True).view(native)
        if fortran:
            return np.moveaxis(values.reshape(last - first, *shape[:0:-1]).T, -1, 0)
        return values.reshape(last - first, *shape[1:])

    return ArrayFile(name, shape, native, read)


def _read_columns(
    file: InputFile, rows: npt.NDArray[Any], offset: int, height: int, first: int
) -> None:
    """Read the rows from `first` on of columns of a height, which lie one after the other."""
    size, count = rows.dtype.itemsize, len(rows)
    whole = height * size <= _SHORT_COLUMN
    start, length = (0, height) if whole else (first, count)
    block = np.empty((max(1, _COLUMNS // (length * size)), length), rows.dtype)
    for i in range(0, rows.shape[1], len(block)):
        some = block[: rows.shape[1] - i]
        for j, part in enumerate([some.reshape(-1)] if whole else some):
            file.read_into(part.view(np.uint8).data, offset + ((i + j) * height + start) * size)
        rows[:, i : i + len(some)] = some[:, first - start : first - start + count].T
