"""The members of zip files: where they lie, and their bytes. All bytes of a file are in one."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from rmac._config import add_to_crc32
from rmac._forks import Lock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rmac._io import InputFile

STORED, DEFLATED = 0, 8
_MOST_MEMBERS = 1_000_000
_MOST_DIRECTORY = 1 << 27  # bytes
_MOST_RATIO = 1032  # of the bytes in memory to those in the file; no deflated data have more
_BLOCK = 1 << 18  # bytes that are inflated at a time

_END = struct.Struct("<4s4H2LH")  # members [4], bytes of the directory [5], where it starts [6]
_END64 = struct.Struct("<4sQ2H2L4Q4sLQL")  # before _END in large files: the same [7], [8] and [9]
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_IN_64_BITS = 0xFFFF_FFFF  # the size or place of a member is in its extra field
_POLYNOMIAL = 0xEDB8_8320  # of CRC-32
_ENCRYPTED, _SIZES_BEHIND, _UTF8 = 1, 8, 1 << 11
_BEHIND = (12, 16, 20, 24)  # bytes of the sizes behind a member


class Member(NamedTuple):
    """A member of a zip file."""

    name: str
    encoded: bytes  # the name
    method: int
    crc: int
    stored: int  # bytes in the file
    size: int  # bytes in memory
    offset: int  # where its own header starts
    flags: int


def members_of(file: InputFile) -> list[Member]:
    """Return the members of a zip file in the order of its directory, or raise."""
    count, size, start = _directory_place(file)
    directory = bytearray(size)
    file.read_into(memoryview(directory), start)
    members = list(_entries(directory))
    if len(members) != count:
        raise ValueError(f"its directory has {len(members)} members, and not {count}")
    if len({member.name for member in members}) < count:
        raise ValueError("a name is twice in its directory")
    return members


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


def _entries(directory: bytearray) -> Iterator[Member]:
    at = 0
    while at < len(directory):
        fields = _ENTRY.unpack_from(directory, at)
        mark, _, _, flags, method, _, _, crc, stored, size, name_size, extra_size = fields[:12]
        comment_size, offset = fields[12], fields[16]
        if mark != b"PK\1\2":
            raise ValueError("its directory is damaged")
        at += _ENTRY.size
        encoded = bytes(directory[at : at + name_size])
        plain = encoded.isascii()  # the other codec is slow
        name = encoded.decode("utf-8" if plain or flags & _UTF8 else "cp437")
        at += name_size
        if _IN_64_BITS in (stored, size, offset):
            extra = directory[at : at + extra_size]
            size, stored, offset = _in_64_bits(extra, (size, stored, offset))
        at += extra_size + comment_size
        if flags & _ENCRYPTED:
            raise ValueError(f"{name} is encrypted")
        if method not in (STORED, DEFLATED):
            raise ValueError(f"{name} is compressed by method {method}: use np.savez_compressed")
        if (stored != size) if method == STORED else size > _MOST_RATIO * stored:
            raise ValueError(f"{name} has {stored} bytes, which cannot hold {size}")
        yield Member(name, encoded, method, crc, stored, size, offset, flags)


def _in_64_bits(extra: bytearray, numbers: tuple[int, int, int]) -> tuple[int, ...]:
    """Return numbers with those from the extra field that are there."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{size // 8}Q", extra, at + 4))
            return tuple(next(wide) if one == _IN_64_BITS else one for one in numbers)
        at += 4 + size
    raise ValueError("a size is missing in its directory")


def data_starts(
    file: InputFile, members: list[Member], more: int
) -> Iterator[tuple[Member, int, bytes]]:
    """Yield, in the order of the file, each member, where its data start, and up to `more` of them.

    Raise if members overlap, or bytes are in none.
    """
    directory = _directory_place(file)[2]
    position = 0
    behind: tuple[int, ...] = ()
    members = sorted(members, key=lambda member: member.offset)
    most = _LOCAL.size + max((len(member.encoded) for member in members), default=0) + 64 + more
    starts = file.starts((member.offset for member in members), most)
    for member, start in zip(members, starts, strict=True):
        if member.offset - position not in behind and member.offset != position:
            raise ValueError(f"{member.name} does not start where the member before it ends")
        at = _local_size(member, start)
        if at > len(start):  # a long extra field
            start = memoryview(bytearray(min(at + more, directory - member.offset)))
            file.read_into(start, member.offset)
        if start[_LOCAL.size : _LOCAL.size + len(member.encoded)] != member.encoded:
            raise ValueError(f"{member.name} has another name in its own header")
        begin = member.offset + at
        position = begin + member.stored
        behind = _BEHIND if member.flags & _SIZES_BEHIND else ()
        yield member, begin, bytes(start[at : min(at + more, at + member.stored)])
    if directory - position not in (0, *behind):
        raise ValueError(f"{directory - position} bytes are in no member")


def _local_size(member: Member, start: memoryview) -> int:
    """Return the bytes of a member's own header, or raise if it is not that of the directory."""
    if len(start) < _LOCAL.size:
        raise ValueError(f"{member.name} has no header of its own")
    mark, _, flags, method, _, _, _, _, _, name_size, extra_size = _LOCAL.unpack_from(start)
    same = mark == b"PK\3\4" and method == member.method and name_size == len(member.encoded)
    if not same or flags & _ENCRYPTED:
        raise ValueError(f"{member.name} has another header than in the directory")
    return _LOCAL.size + int(name_size) + int(extra_size)


@dataclass
class Inflated:
    """The bytes of a deflated member. They are read forwards; going back starts anew."""

    name: str
    file: InputFile
    member: Member
    start: int  # where its data start in the file
    _lock: Any = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self._rewind()

    def _rewind(self) -> None:
        self._at = self._read = self._crc = 0
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
            if self._at == self.member.size:
                self._require_end()

    def _next(self, most: int) -> bytes:
        """Return some of the next bytes."""
        data: bytes | bytearray = self._inflate.unconsumed_tail
        if not data:
            data = bytearray(min(_BLOCK, self.member.stored - self._read))
            self.file.read_into(memoryview(data), self.start + self._read)
            self._read += len(data)
        part = self._inflate.decompress(data, min(most, _BLOCK))
        if not part and (self._inflate.eof or not data):
            raise ValueError(f"{self.name}: truncated: {self._at} of {self.member.size} bytes")
        self._at += len(part)
        self._crc = checksum(part, self._crc)
        return part

    def _require_end(self) -> None:
        """Raise unless the data end here, and are those that were saved."""
        tail: bytes | bytearray = self._inflate.unconsumed_tail
        if not tail and not self._inflate.eof:  # the mark of the end may be in the next bytes
            tail = bytearray(min(_BLOCK, self.member.stored - self._read))
            self.file.read_into(memoryview(tail), self.start + self._read)
            self._read += len(tail)
        more = b"" if self._inflate.eof else self._inflate.decompress(tail, 1)
        left = self._read < self.member.stored or self._inflate.unused_data
        if more or left or not self._inflate.eof or self._crc != self.member.crc:
            raise ValueError(f"{self.name}: its checksum is wrong: it is damaged")


def checksum(data: bytes | bytearray | memoryview, crc: int = 0) -> int:
    """Return the CRC-32 of data that follow those of another."""
    crc, done = add_to_crc32(data, crc)
    return zlib.crc32(memoryview(data)[done:], crc) if done < len(data) else crc


def combined_checksum(first: int, second: int, size: int) -> int:
    """Return the CRC-32 of data from those of two parts, the second of which has `size` bytes."""
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
    """Return the product of polynomials over GF(2), the highest bit of which is that of x**0."""
    result = 0
    for shift in range(31, -1, -1):
        if a >> shift & 1:
            result ^= b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return result
