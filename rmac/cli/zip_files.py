"""The members of zip files: where they lie, and their bytes. All bytes of a file are in one.

There may be very many members: their numbers are arrays, and Python does little for each.
"""

from __future__ import annotations

import struct
import zlib
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rmac._config import are_equal, crc32, record_ends
from rmac._forks import Lock
from rmac.cli.pool import in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rmac._io import InputFile

STORED, DEFLATED = 0, 8
_MOST_MEMBERS = 1_000_000
_MOST_DIRECTORY = 1 << 27  # bytes
_MOST_RATIO = 1032  # of the bytes in memory to those in the file; no deflated data have more
_BLOCK = 1 << 18  # bytes that are inflated at a time
_HEADERS = 1 << 20  # bytes of headers that are read at a time

_END = struct.Struct("<4s4H2LH")  # members [4], bytes of the directory [5], where it starts [6]
_END64 = struct.Struct("<4sQ2H2L4Q4sLQL")  # before _END in large files: the same [7], [8] and [9]
_ENTRY = np.dtype(
    [
        ("mark", "<u4"),
        ("versions", "V4"),
        ("flags", "<u2"),
        ("method", "<u2"),
        ("time", "V4"),
        ("crc", "<u4"),
        ("stored", "<u4"),
        ("size", "<u4"),
        ("name_size", "<u2"),
        ("extra_size", "<u2"),
        ("comment_size", "<u2"),
        ("attributes", "V8"),
        ("offset", "<u4"),
    ]
)
_SIZES_AT = 28  # bytes into the entry: the sizes of name, extra field and comment, which follow it
_ENTRY_MARK, _LOCAL_MARK = 0x0201_4B50, 0x0403_4B50
_LOCAL = np.dtype(
    [
        ("mark", "<u4"),
        ("version", "V2"),
        ("flags", "<u2"),
        ("method", "<u2"),
        ("time", "V4"),
        ("sums", "V12"),
        ("name_size", "<u2"),
        ("extra_size", "<u2"),
    ]
)
# Threads that read headers while others are compared: 20,000 members are opened in 72 ms with 2,
# and in 85 ms with none.
_READERS = 2
_IN_64_BITS = 0xFFFF_FFFF  # the size or place of a member is in its extra field
_POLYNOMIAL = 0xEDB8_8320  # of CRC-32
_ENCRYPTED, _SIZES_BEHIND, _UTF8 = 1, 8, 1 << 11  # bits of the flags
_BEHIND = (12, 16, 20, 24)  # bytes of the sizes behind a member


@dataclass(frozen=True)
class Members:
    """The members of a zip file. Each list and array has one element for each member."""

    names: list[str]
    directory: bytearray
    name_starts: npt.NDArray[np.int64]  # in the directory
    name_sizes: npt.NDArray[np.int64]  # in bytes
    flags: npt.NDArray[np.uint16]
    methods: npt.NDArray[np.uint16]  # of compression
    crcs: npt.NDArray[np.uint32]
    stored: npt.NDArray[np.int64]  # bytes in the file
    sizes: npt.NDArray[np.int64]  # bytes in memory
    offsets: npt.NDArray[np.int64]  # where its own header starts


class Starts(NamedTuple):
    """Where the data of some members of a zip file start, and their first bytes."""

    members: npt.NDArray[np.intp]
    data: npt.NDArray[np.int64]  # where they start in the file
    read: bytes  # some bytes of the file
    places: npt.NDArray[np.int64]  # of the data in `read`; 0 if they are not there


def members_of(file: InputFile) -> Members:
    """Return the members of a zip file in the order of its directory, or raise."""
    count, size, start = _directory_place(file)
    directory = bytearray(size)
    file.read_into(memoryview(directory), start)
    entries, starts = _entries(directory, count)
    sizes = entries["name_size"].astype(np.int64)
    names = _names(directory, starts, sizes, entries["flags"] & _UTF8 > 0)
    if len(set(names)) < count:
        raise ValueError("a name is twice in its directory")
    wide = {key: entries[key].astype(np.int64) for key in ("size", "stored", "offset")}
    for i in np.flatnonzero(np.any([one == _IN_64_BITS for one in wide.values()], axis=0)):
        at = int(starts[i] + sizes[i])
        extra = directory[at : at + int(entries["extra_size"][i])]
        numbers = _in_64_bits(extra, [int(one[i]) for one in wide.values()])
        for one, number in zip(wide.values(), numbers, strict=True):
            one[i] = number
    members = Members(
        names,
        directory,
        starts,
        sizes,
        entries["flags"],
        entries["method"],
        entries["crc"],
        wide["stored"],
        wide["size"],
        wide["offset"],
    )
    _require_possible(members, file.size)
    return members


def _entries(directory: bytearray, count: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Return the fields of the entries of a directory, and where the name of each starts."""
    ends = np.zeros(count + 1, np.int64)
    if not record_ends(directory, _ENTRY.itemsize, _SIZES_AT, ends[1:]):
        raise ValueError(f"its directory has not {count} members, or is damaged")
    if not count:
        return np.empty(0, _ENTRY), ends[1:]
    every = np.lib.stride_tricks.sliding_window_view(
        np.frombuffer(directory, np.uint8), _ENTRY.itemsize
    )
    entries = np.ascontiguousarray(every[ends[:-1]]).view(_ENTRY).reshape(-1)
    if (entries["mark"] != _ENTRY_MARK).any():
        raise ValueError("its directory is damaged")
    return entries, ends[:-1] + _ENTRY.itemsize


def _names(
    directory: bytearray,
    starts: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    utf8: npt.NDArray[np.bool_],
) -> list[str]:
    """Return the names of members. Few are not ASCII, and those are decoded one by one."""
    text, ends = directory.decode("latin-1"), (starts + sizes).tolist()
    names = [text[at:end] for at, end in zip(starts.tolist(), ends, strict=True)]
    for i, name in enumerate(names):
        if not name.isascii():
            names[i] = name.encode("latin-1").decode("utf-8" if utf8[i] else "cp437")
    return names


def _require_possible(members: Members, most: int) -> None:
    """Raise unless all members of a file of so many bytes can be read."""
    names, methods = members.names, members.methods
    stored, sizes = members.stored, members.sizes
    _require(members.flags & _ENCRYPTED == 0, lambda i: f"{names[i]} is encrypted")
    _require(
        np.isin(methods, (STORED, DEFLATED)),
        lambda i: f"{names[i]} is compressed by method {methods[i]}: use np.savez_compressed",
    )
    _require(
        (stored <= most) & (members.offsets <= most),
        lambda i: f"{names[i]} has {stored[i]} bytes, and ends behind the end of the file",
    )
    _require(
        np.where(methods == STORED, sizes == stored, sizes <= _MOST_RATIO * stored),
        lambda i: f"{names[i]} has {stored[i]} bytes, which cannot hold {sizes[i]}",
    )


def _require(right: npt.NDArray[np.bool_], message: Callable[[int], str]) -> None:
    """Raise with the message of the first member that is not right."""
    if not right.all():
        raise ValueError(message(int(right.argmin())))


def _directory_place(file: InputFile) -> tuple[int, int, int]:
    """Return how many members a directory has, its bytes, and where it starts."""
    tail = bytearray(min(file.size, _END.size + _END64.size))
    file.read_into(memoryview(tail), file.size - len(tail))
    if len(tail) < _END.size or not tail[-_END.size :].startswith(b"PK\5\6"):
        raise ValueError("it is no zip file, or is truncated, or has bytes after its end")
    end, at = _END.unpack(tail[-_END.size :]), file.size - _END.size
    count, size, start = end[4:7]
    if len(tail) > _END.size and tail[-_END.size - 20 :].startswith(b"PK\6\7"):
        end64, at = _END64.unpack(tail[: _END64.size]), at - _END64.size
        if len(tail) < _END.size + _END64.size or end64[0] != b"PK\6\6":
            raise ValueError("its directory is damaged")
        count, size, start = end64[7:10]
    if start + size != at:
        raise ValueError("its directory is not at its end")
    if count > _MOST_MEMBERS or size > _MOST_DIRECTORY:
        raise ValueError(f"its directory has {count} members and {size} bytes")
    return count, size, start


def _in_64_bits(extra: bytearray, numbers: list[int]) -> list[int]:
    """Return numbers with those from the extra field that are there."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        at += 4
        if kind == 1 and at + size <= len(extra):
            wide = list(struct.unpack_from(f"<{size // 8}Q", extra, at))
            if len(wide) >= numbers.count(_IN_64_BITS) and max(wide, default=0) < 1 << 63:
                return [wide.pop(0) if one == _IN_64_BITS else one for one in numbers]
        at += size
    raise ValueError("a size is missing in its directory, or too large")


def data_starts(file: InputFile, members: Members, more: int) -> Iterator[Starts]:
    """Yield where the data of all members start, in the order of the file, and `more` bytes there.

    After a long header these bytes may be missing. Raise if members overlap, or bytes are in none.
    """
    end, behind = 0, False  # of the last member; whether its sizes may follow
    most = _LOCAL.itemsize + int(members.name_sizes.max(initial=0)) + 64 + more
    order = np.argsort(members.offsets, kind="stable")
    step = max(1, _HEADERS // most)
    parts = [order[first : first + step] for first in range(0, len(order), step)]
    threads = min(_READERS, max(1, len(parts)))
    read_ahead = in_order(lambda some: file.starts(members.offsets[some], most), parts, threads)
    with closing(read_ahead) as reads:
        for some, rows in zip(parts, reads, strict=True):
            offsets = members.offsets[some]
            read = rows.tobytes()
            sizes = _local_sizes(members, some, rows)
            ends = np.append(end, offsets + sizes + members.stored[some])
            behinds = np.append(behind, members.flags[some] & _SIZES_BEHIND > 0)
            gaps = offsets - ends[:-1]
            right = (gaps == 0) | behinds[:-1] & np.isin(gaps, _BEHIND)
            if not right.all():
                name = members.names[some[right.argmin()]]
                raise ValueError(f"{name} does not start where the member before it ends")
            end, behind = int(ends[-1]), bool(behinds[-1])
            places = np.where(sizes + more <= most, np.arange(0, len(read), most) + sizes, 0)
            yield Starts(some, offsets + sizes, read, places)
    left = _directory_place(file)[2] - end
    if left and not (behind and left in _BEHIND):
        raise ValueError(f"{left} bytes are in no member")


def _local_sizes(
    members: Members, some: npt.NDArray[np.intp], rows: npt.NDArray[np.uint8]
) -> npt.NDArray[np.int64]:
    """Return the bytes of the headers in front of members, or raise if the directory differs.

    `rows` are the bytes from where each starts.
    """
    size = _LOCAL.itemsize
    local = rows[:, :size].copy().view(_LOCAL).reshape(-1)
    lengths = members.name_sizes[some]
    _require(
        (local["mark"] == _LOCAL_MARK)
        & (local["flags"] & _ENCRYPTED == 0)
        & (local["method"] == members.methods[some])
        & (local["name_size"] == lengths),
        lambda i: f"{members.names[some[i]]} has another header than in the directory",
    )
    places = size + np.arange(len(rows), dtype=np.int64) * rows.shape[1]
    same = np.empty(len(rows), bool)
    names = members.name_starts[some]
    are_equal(members.directory, names, rows.reshape(-1), places, lengths, same)
    _require(same, lambda i: f"{members.names[some[i]]} has another name in its own header")
    result: npt.NDArray[np.int64] = size + lengths + local["extra_size"]
    return result


@dataclass
class Inflated:
    """The bytes of a deflated member. They are read forwards; going back starts anew."""

    name: str
    file: InputFile
    start: int  # where its data start in the file
    stored: int  # bytes in the file
    size: int  # bytes in memory
    crc: int
    _lock: Any = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self._rewind()

    def _rewind(self) -> None:
        self._at = self._read = self._sum = 0
        self._inflate = zlib.decompressobj(-15)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer with the bytes from `offset` on, or raise."""
        with self._lock:
            if offset < self._at:
                self._rewind()
            while self._at < offset:
                self._next(offset - self._at)
            done = 0
            while done < len(buffer):
                part = self._next(len(buffer) - done)
                buffer[done : done + len(part)] = part
                done += len(part)
            if self._at == self.size:
                self._require_end()

    def _next(self, most: int) -> bytes:
        """Return some of the next bytes."""
        data: bytes | bytearray = self._inflate.unconsumed_tail
        if not data:
            data = bytearray(min(_BLOCK, self.stored - self._read))
            self.file.read_into(memoryview(data), self.start + self._read)
            self._read += len(data)
        part = self._inflate.decompress(data, min(most, _BLOCK))
        if not part and (self._inflate.eof or not data):
            raise ValueError(f"{self.name}: truncated: {self._at} of {self.size} bytes")
        self._at += len(part)
        self._sum = crc32(part, self._sum)
        return part

    def _require_end(self) -> None:
        """Raise unless the data end here, and are those that were saved."""
        tail: bytes | bytearray = self._inflate.unconsumed_tail
        if not tail and not self._inflate.eof:  # the mark of the end may be in the next bytes
            tail = bytearray(min(_BLOCK, self.stored - self._read))
            self.file.read_into(memoryview(tail), self.start + self._read)
            self._read += len(tail)
        more = b"" if self._inflate.eof else self._inflate.decompress(tail, 1)
        left = self._read < self.stored or self._inflate.unused_data
        if more or left or not self._inflate.eof or self._sum != self.crc:
            raise ValueError(f"{self.name}: its checksum is wrong: it is damaged")


def combined_crc32(first: int, second: int, size: int) -> int:
    """Return the CRC-32 of data from those of its two parts. The second part has `size` bytes."""
    return _product(_power(8 * size), first) ^ second


@lru_cache(maxsize=64)
def _power(exponent: int) -> int:
    """Return x to a power, modulo the polynomial of CRC-32."""
    result, square = 1 << 31, 1 << 30
    while exponent:
        if exponent & 1:
            result = _product(square, result)
        square, exponent = _product(square, square), exponent >> 1
    return result


def _product(a: int, b: int) -> int:
    """Return the product of polynomials over GF(2). Their highest bit is that of x**0."""
    result = 0
    for shift in range(31, -1, -1):
        if a >> shift & 1:
            result ^= b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return result
