"""Arrays that have the same bytes in a file as in memory: those of .npy, .npz and .safetensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from math import prod
from threading import local
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from rmac._config import crc32
from rmac._io import InputFile
from rmac.cli.array_file import READ, ArrayFile, checked_shape, readable

if TYPE_CHECKING:
    from collections.abc import Callable

    Checked = Callable[[int, int, npt.NDArray[np.uint8]], None]

_NPY_HEADER = 1 << 16  # bytes; the most in version 1.0 of the format, and far more than any needs

# In Fortran order each column is contiguous: the same element of all rows. Columns up to this size
# are read whole, and then cut, since a further read costs as much as 16 kB (1.5 µs at 10 GB/s).
_SHORT_COLUMN = 1 << 14  # bytes
_COLUMNS = 1 << 20  # bytes of columns to read at a time

_USUAL = b"\x93NUMPY\1\0"
_kept = local()  # the buffer of each thread


class NpyHeader(NamedTuple):
    """What stands before the data of an .npy file."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    size: int  # bytes of the header
    data: int  # bytes of the data
    crc: int  # CRC-32 of the header


def open_npy(path: str) -> ArrayFile:
    """Open the array of a .npy file."""
    file = InputFile(path)
    with readable(path, ".npy file"):
        header = npy_header(start_of(file, 12 + _NPY_HEADER))
    require_numbers(path, header.dtype)
    extra = require_bytes(path, header.data, file.size - header.size)
    if extra:
        raise ValueError(
            f"{path}: expected one array, got {extra} bytes after it; if these are more arrays, "
            "read one after the other with np.load(file) of the open file, and save them as one"
        )
    return flat_array(file, path, header.shape, header.dtype, header.size, fortran=header.fortran)


def require_numbers(name: str, dtype: np.dtype[Any]) -> None:
    """Raise unless an array of a dtype can be read without unpickling it."""
    if dtype.hasobject:
        raise TypeError(
            f"{name}: expected numbers, got Python objects, which are never unpickled; save a list "
            "of maps with their names: np.savez('maps.npz', **maps)"
        )
    if dtype.str == "|V2":
        raise TypeError(f"{name}: expected numbers, got {dtype} (bfloat16, perhaps: save float32)")


def npy_header(start: bytes) -> NpyHeader:
    """Return the header with which .npy data start, or raise."""
    if start.startswith(_USUAL) and len(start) >= (size := start[8] + 256 * start[9] + 10):
        return _parsed(start[:size])
    if not start.startswith(npy.MAGIC_PREFIX):
        raise ValueError(f"it has other contents; rmac reads {READ}")
    version = (*start[6:8],)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its format has version {version}")
    count = 2 * version[0]
    size = 8 + count + int.from_bytes(start[8 : 8 + count], "little")
    if len(start) < size:
        raise ValueError(f"its header has {size} bytes")
    return _parsed(start[:size])


@lru_cache(maxsize=4096)  # parsing takes 40 µs, and maps of one shape have the same header
def _parsed(header: bytes) -> NpyHeader:
    file = BytesIO(header)
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    shape = checked_shape(shape, dtype.itemsize)
    data = prod(shape) * dtype.itemsize
    return NpyHeader(shape, fortran, dtype, len(header), data, crc32(header))


def require_bytes(name: str, expected: int, there: int) -> int:
    """Return how many bytes there are more than expected; raise if there are fewer."""
    if there < expected:
        raise ValueError(f"{name}: truncated: {expected} bytes of data expected, {there} there")
    return there - expected


def start_of(file: InputFile, size: int) -> bytes:
    """Return the first bytes of a file: fewer if the file is shorter."""
    start = bytearray(min(size, file.size))
    file.read_into(memoryview(start), 0)
    return bytes(start)


def flat_array(
    file: InputFile,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    offset: int,
    *,
    fortran: bool = False,
    checked: Checked | None = None,
) -> ArrayFile:
    """Return an array whose rows are read into the thread's one buffer for such arrays.

    `checked` gets the bytes of rows first:last of an array in C order, and may raise.
    """
    native = dtype.newbyteorder("=")
    row = prod(shape[1:]) * dtype.itemsize

    def read(first: int, last: int) -> npt.NDArray[Any]:
        size = (last - first) * row
        buffer = getattr(_kept, "buffer", None)
        if buffer is None or len(buffer) < size:
            buffer = _kept.buffer = np.empty(size, np.uint8)
        values = buffer[:size].view(dtype)
        if fortran and size:
            _read_columns(file, values.reshape(last - first, -1), offset, shape[0], first)
        else:
            file.read_into(buffer[:size].data, offset + first * row)
        file.require_unchanged()
        if checked is not None:
            checked(first, last, buffer[:size])
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


class Sums(NamedTuple):
    """The CRC-32 of the arrays of a file."""

    before: npt.NDArray[np.uint32]  # of what stands before the data
    after: npt.NDArray[np.uint32]  # with the data
    damaged: Callable[[int], ValueError]  # the error for an array that has another


@dataclass(frozen=True)
class FlatArrays:
    """Where the arrays of a container lie in its file, in C order."""

    file: InputFile
    offsets: npt.NDArray[np.int64]
    swapped: npt.NDArray[np.bool_]  # whether an array has the other byte order
    sums: Sums | None = None

    def fill(self, members: npt.NDArray[np.intp], block: npt.NDArray[Any]) -> None:
        """Read arrays of one shape into a contiguous block of them."""
        rows = block.reshape(len(block), -1).view(np.uint8)
        crcs = None if self.sums is None else self.sums.before[members]
        self.file.read_each(rows, self.offsets[members], crcs)
        self.file.require_unchanged()
        if self.sums is not None and crcs is not None:
            wrong = crcs != self.sums.after[members]
            if wrong.any():
                raise self.sums.damaged(int(members[wrong.argmax()]))
        for k in np.flatnonzero(self.swapped[members]):
            block[k].byteswap(inplace=True)
