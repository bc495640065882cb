"""The arrays of .npz files, as `numpy.savez` and `numpy.savez_compressed` write them."""

from __future__ import annotations

import zlib
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rmac._config import crc32
from rmac._forks import Lock
from rmac._io import InputFile
from rmac.cli.array_file import ArrayFile, Container, Kind, readable
from rmac.cli.flat_files import FlatArrays, NpyHeader, Sums, flat_array, npy_header, require_numbers
from rmac.cli.zip_files import (
    STORED,
    Inflated,
    combined_crc32,
    data_starts,
    members_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from rmac.cli.zip_files import Members, Starts

_KIND = ".npz file"
_START = 256  # bytes of a member that are read with its header; few .npy headers have more
_LONGEST_START = 1 << 17
# A file of a few kB can claim a row of any size that is all zeros, and a row is read as a whole.
_MOST_INFLATED = 1 << 30  # bytes of a row


def open_npz(path: str) -> Container:
    """Open the arrays of an .npz file, in its order."""
    file = InputFile(path)
    with readable(path, _KIND):
        archive = _Archive(path, file, members_of(file))
    headers, header_of = archive.headers, archive.header_of
    swapped = np.array([not one.dtype.isnative for one in headers], bool)[header_of]
    flat = FlatArrays(file, archive.data, swapped, archive.sums)
    simple = not archive.deflated.any() and not any(one.fortran for one in headers)
    return Container(
        path,
        archive.names,
        [Kind(one.shape, _native(one.dtype)) for one in headers],
        header_of,
        lambda i: archive.entry(i).open(),
        flat.fill if simple else None,
        0 if simple else 1,
    )


def _native(dtype: np.dtype[Any]) -> np.dtype[Any] | None:
    return None if dtype.hasobject or dtype.str == "|V2" else dtype.newbyteorder("=")


class _Archive:
    """The arrays of an .npz file. Very many of them have few headers that differ."""

    def __init__(self, path: str, file: InputFile, members: Members) -> None:
        self._path, self._file = path, file
        which = np.array([name.endswith(".npy") for name in members.names], bool)
        for i in np.flatnonzero(~which).tolist():
            if not members.names[i].endswith("/"):
                raise ValueError(f"{members.names[i]} in it is no .npy file")
        self.headers, header_of, starts = _headers_of(file, members, which)
        self.names = [name[:-4] for name in members.names if name.endswith(".npy")]
        self.deflated = members.methods[which] != STORED
        self.header_of = header_of[which]
        self._starts, self._stored = starts[which], members.stored[which]
        self._sizes = members.sizes[which]
        before = np.array([one.size for one in self.headers], np.int64)
        self.data = self._starts + before[self.header_of]  # where the numbers of each start
        crcs = np.array([one.crc for one in self.headers], np.uint32)[self.header_of]
        self.sums = Sums(crcs, members.crcs[which], lambda i: _damaged(self.entry(i).name))
        self._require_sizes()

    def _require_sizes(self) -> None:
        """Raise unless each array has the bytes that its header tells."""
        expected = [-1 if one.dtype.hasobject else one.size + one.data for one in self.headers]
        each = np.array(expected, np.int64)[self.header_of]
        wrong = (each >= 0) & (self._sizes != each)
        if wrong.any():
            i = int(wrong.argmax())
            raise ValueError(
                f"{self.names[i]}.npy has {self._sizes[i]} bytes, and {each[i]} are expected for "
                f"shape {self.headers[self.header_of[i]].shape}"
            )

    def entry(self, i: int) -> _Entry:
        """Return an array by its number."""
        return _Entry(
            f"{self._path}[{self.names[i]}]",
            self._file,
            self.headers[self.header_of[i]],
            bool(self.deflated[i]),
            int(self._starts[i]),
            int(self._stored[i]),
            int(self._sizes[i]),
            int(self.sums.after[i]),
        )


def _headers_of(
    file: InputFile, members: Members, which: npt.NDArray[np.bool_]
) -> tuple[list[NpyHeader], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the headers that differ, which of them each member has, and where its data start.

    Only members that are arrays, which are marked in `which`, have a header.
    """
    known: dict[bytes, int] = {}
    headers: dict[NpyHeader, int] = {}
    header_of, starts = np.full(len(which), -1), np.empty(len(which), np.int64)
    for some in data_starts(file, members, _START):
        starts[some.members] = some.data
        keys = _keys(some, members.methods[some.members] != STORED)
        found = np.array([known.get(key, -1) for key in keys])
        for k in np.flatnonzero((found < 0) & which[some.members]).tolist():
            if keys[k] not in known:
                header = _header(file, members, int(some.members[k]), int(some.data[k]), keys[k])
                number = headers.setdefault(header, len(headers))
                if len(keys[k]) < header.size:  # a long header
                    found[k] = number
                    continue
                known[keys[k]] = number
            found[k] = known[keys[k]]
        header_of[some.members] = found
    return list(headers), header_of, starts


def _keys(some: Starts, deflated: npt.NDArray[np.bool_]) -> list[bytes]:
    """Return the headers of .npy data in members, or the first bytes of long ones."""
    read, places = some.read, some.places
    numbers = np.frombuffer(read, np.uint8)
    sizes = 10 + numbers[places + 8] + 256 * numbers[places + 9].astype(np.int64)
    ends = places + np.minimum(sizes, _START)
    keys = [read[at:end] for at, end in zip(places.tolist(), ends.tolist(), strict=True)]
    for k in np.flatnonzero(deflated).tolist():
        head = _inflated(read[places[k] : places[k] + _START]) if places[k] else b""
        keys[k] = head[: 10 + int.from_bytes(head[8:10], "little")]
    return keys


def _header(file: InputFile, members: Members, i: int, start: int, key: bytes) -> NpyHeader:
    """Return the header of a member that starts with `key`, or raise."""
    try:
        return npy_header(key)
    except ValueError:  # a long header, or a wrong one
        head = bytearray(min(_LONGEST_START, int(members.stored[i])))
        file.read_into(memoryview(head), start)
        return npy_header(bytes(head) if members.methods[i] == STORED else _inflated(bytes(head)))


def _inflated(head: bytes) -> bytes:
    return zlib.decompressobj(-15).decompress(head, _LONGEST_START)


def _damaged(name: str) -> ValueError:
    return ValueError(f"{name}: its checksum is wrong: it is damaged")


class _Entry(NamedTuple):
    """An array of an .npz file."""

    name: str  # what error messages call the array
    file: InputFile
    header: NpyHeader
    deflated: bool
    start: int  # where the bytes of the member start in the file
    stored: int  # bytes in the file
    size: int  # bytes in memory
    crc: int

    def open(self) -> ArrayFile:
        """Open the array, or raise if it cannot be read."""
        shape, fortran, dtype, before = self.header[:4]
        require_numbers(self.name, dtype)
        if self.deflated:
            return ArrayFile(self.name, shape, dtype.newbyteorder("="), self._inflating(), 1, 1)
        if fortran:
            self._require_checksum()
        sums = None if fortran else _Sums(self).add
        place = self.start + before
        return flat_array(self.file, self.name, shape, dtype, place, fortran=fortran, checked=sums)

    def _inflating(self) -> Callable[[int, int], npt.NDArray[Any]]:
        """Return the function that reads rows of a deflated array."""
        shape, fortran, dtype, before = self.header[:4]
        stream = Inflated(self.name, self.file, self.start, self.stored, self.size, self.crc)
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
        while at < self.start + self.size:
            block = bytearray(min(1 << 20, self.start + self.size - at))
            self.file.read_into(memoryview(block), at)
            crc = crc32(block, crc)
            at += len(block)
        if crc != self.crc:
            raise _damaged(self.name)


class _Sums:
    """The checksums of what was read of a member, in any order and by several threads."""

    def __init__(self, entry: _Entry) -> None:
        self._entry = entry
        self._left = entry.header.data
        self._parts: dict[int, tuple[int, int, int]] = {}  # first row: last row, bytes, checksum
        self._lock = Lock()

    def add(self, first: int, last: int, data: npt.NDArray[np.uint8]) -> None:
        """Add the checksum of rows; when there are those of all rows, raise if they are wrong."""
        part = last, len(data), crc32(data.data)
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
            crc = combined_crc32(crc, part, size)
        if at == entry.header.shape[0] and crc != entry.crc:
            raise _damaged(entry.name)
