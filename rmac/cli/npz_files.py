"""The arrays of .npz files, as `numpy.savez` and `numpy.savez_compressed` write them."""

from __future__ import annotations

import zlib
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rmac._forks import Lock
from rmac._io import InputFile
from rmac.cli.array_file import ArrayFile, Container, readable
from rmac.cli.flat_files import FlatArrays, flat_array, npy_header, require_numbers
from rmac.cli.zip_files import (
    DEFLATED,
    Inflated,
    Member,
    checksum,
    combined_checksum,
    data_starts,
    members_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_KIND = ".npz file"
_START = 256  # bytes of a member that are read with its header; few headers have more
_LONGEST_START = 1 << 17
# A file of a few kB can claim a row of any size that is all zeros, and a row is read as a whole.
_MOST_INFLATED = 1 << 30  # bytes of a row


def open_npz(path: str) -> Container:
    """Open the arrays of an .npz file, in its order."""
    file = InputFile(path)
    with readable(path, _KIND):
        found = [
            _Entry(path, file, member, start, head)
            for member, start, head in data_starts(file, members_of(file), _START)
            if not member.name.endswith("/")
        ]

    def checked(i: int, data: memoryview) -> None:
        entry = found[i]
        if checksum(data, entry.header.crc) != entry.member.crc:
            raise ValueError(f"{entry.name}: its checksum is wrong: it is damaged")

    native = all(entry.is_native for entry in found)
    flat = FlatArrays(
        file,
        [entry.data for entry in found],
        None if native else lambda i: not found[i].is_native,
        checked,
    )
    simple = all(entry.flat and not entry.header.fortran for entry in found)
    return Container(
        path,
        [entry.member.name.removesuffix(".npy") for entry in found],
        [entry.header.shape for entry in found],
        [_native(entry.header.dtype) for entry in found],
        lambda i: found[i].open(),
        flat.fill if simple else None,
        0 if simple else 1,
    )


def _native(dtype: np.dtype[Any]) -> np.dtype[Any] | None:
    return None if dtype.hasobject or dtype.str == "|V2" else dtype.newbyteorder("=")


class _Entry:
    """An array of an .npz file."""

    __slots__ = ("data", "file", "flat", "header", "member", "path", "start")

    def __init__(self, path: str, file: InputFile, member: Member, start: int, head: bytes) -> None:
        if not member.name.endswith(".npy"):
            raise ValueError(f"{member.name} in it is no .npy file")
        self.path, self.file, self.member, self.start = path, file, member, start
        self.flat = member.method != DEFLATED
        try:
            self.header = npy_header(head if self.flat else _inflated(head))
        except ValueError:  # a long header, or a wrong one
            self.header = npy_header(_longer(file, member, start))
        self.data = start + self.header.size
        expected = self.header.size + self.header.data
        if member.size != expected and not self.header.dtype.hasobject:
            raise ValueError(
                f"{member.name} has {member.size} bytes, and {expected} are expected for shape "
                f"{self.header.shape}"
            )

    @property
    def name(self) -> str:
        """What error messages call the array."""
        return f"{self.path}[{self.member.name.removesuffix('.npy')}]"

    @property
    def is_native(self) -> bool:
        """Whether its numbers have the byte order of the machine."""
        return self.header.dtype.isnative

    def open(self) -> ArrayFile:
        """Open the array, or raise if it cannot be read."""
        shape, fortran, dtype = self.header[:3]
        require_numbers(self.name, dtype)
        if self.flat:
            if fortran:
                self._require_checksum()
            sums = None if fortran else _Sums(self).add
            return flat_array(
                self.file, self.name, shape, dtype, self.data, fortran=fortran, checked=sums
            )
        return ArrayFile(self.name, shape, dtype.newbyteorder("="), self._inflating(), 1, 1)

    def _inflating(self) -> Callable[[int, int], npt.NDArray[Any]]:
        """Return the function that reads rows of a deflated array."""
        shape, fortran, dtype, before = self.header[:4]
        stream = Inflated(self.name, self.file, self.member, self.start)
        row = prod(shape[1:]) * dtype.itemsize
        if max(row, row * shape[0] if fortran and shape else 0) > _MOST_INFLATED:
            more = " in Fortran order" if fortran else ""
            raise ValueError(
                f"{self.name}: expected at most {_MOST_INFLATED} bytes that are read together from "
                f"compressed data, got shape {shape}{more}; use np.savez"
            )

        def read(first: int, last: int) -> npt.NDArray[Any]:
            place = (0, shape[0]) if fortran else (first, last)
            values = np.empty((place[1] - place[0]) * row // dtype.itemsize, dtype)
            stream.read_into(values.view(np.uint8).data, before + place[0] * row)
            self.file.require_unchanged()
            values = values.astype(dtype.newbyteorder("="), copy=False)
            if fortran:
                return values.reshape(shape, order="F")[first:last]
            return values.reshape(last - first, *shape[1:])

        return read

    def _require_checksum(self) -> None:
        """Raise unless all bytes of the member are those that were saved."""
        crc, at = 0, self.start
        while at < self.start + self.member.size:
            block = bytearray(min(1 << 20, self.start + self.member.size - at))
            self.file.read_into(memoryview(block), at)
            crc = checksum(block, crc)
            at += len(block)
        if crc != self.member.crc:
            raise ValueError(f"{self.name}: its checksum is wrong: it is damaged")


def _inflated(head: bytes) -> bytes:
    return zlib.decompressobj(-15).decompress(head, _LONGEST_START)


def _longer(file: InputFile, member: Member, start: int) -> bytes:
    """Return the first bytes of a member: those of the longest header."""
    head = bytearray(min(_LONGEST_START, member.stored))
    file.read_into(memoryview(head), start)
    return bytes(head) if member.method != DEFLATED else _inflated(bytes(head))


class _Sums:
    """The checksums of what was read of a member, in any order and by several threads."""

    def __init__(self, entry: _Entry) -> None:
        self._entry = entry
        self._left = entry.header.data
        self._parts: dict[int, tuple[int, int, int]] = {}  # first row: last row, bytes, checksum
        self._lock = Lock()

    def add(self, first: int, last: int, data: npt.NDArray[np.uint8]) -> None:
        """Add the checksum of rows; when there are those of all rows, raise if they are wrong."""
        part = last, len(data), checksum(data.data)
        with self._lock:
            if first not in self._parts:
                self._parts[first] = part
                self._left -= len(data)
                if self._left == 0:
                    self._require_right()

    def _require_right(self) -> None:
        entry, at = self._entry, 0
        crc = entry.header.crc
        while at in self._parts and at < entry.header.shape[0]:
            at, size, part = self._parts[at]
            crc = combined_checksum(crc, part, size)
        if at == entry.header.shape[0] and crc != entry.member.crc:
            raise ValueError(f"{entry.name}: its checksum is wrong: it is damaged")
