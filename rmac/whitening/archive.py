"""The file of a whitening: an ``.npz`` of its options and of all that it has learned.

A file is checked before memory is taken for it. Its members are not compressed, so what they claim
to hold cannot be more than the file, and nothing is in the file but them. Nothing is unpickled.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy

from rmac._arrays import real_numbers
from rmac._checks import choice, positive_int, real
from rmac._io import require_regular
from rmac.whitening.components import Learned, checked_learned
from rmac.whitening.moments import Moments
from rmac.whitening.state import VECTOR_KINDS, VectorKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Numbers of the file's format; older readers refuse a number that they do not know. Files with rows
# instead of a scatter have their own, since readers of format 1 would see a projection alone.
_FORMAT, _FORMAT_OF_ROWS = 1, 2

# The axes of the members, by their names for the lengths.
_AXES = {
    "format": "",
    "dim": "",
    "eps": "",
    "kind": "",
    "count": "",
    "unit": "",
    "mean": "C",
    "variances": "D",
    "projection": "DC",
    "scatter": "CC",
    "rows": "KC",
}
_SCALAR_BYTES = 64
_DIRECTORY_BYTES = 4096  # there are at most 11 members, and each takes less than 100

_END = struct.Struct("<4s4H2LH")  # of a zip file: entries [4], bytes of the directory [5]
_END64 = struct.Struct("<4sQ2H2L4Q4sLQL")  # before _END in large files: entries [7], bytes [8]
_LOCAL = struct.Struct("<4s5H3L2H")  # the start of a member
_SIZES = struct.Struct("<2H2Q")  # the extra field of a member, with its size in 64 bits


class Contents(NamedTuple):
    """The contents of a file, with arrays on the host. It has moments, a projection or both."""

    dim: int | None
    eps: float
    kind: VectorKind | None
    moments: Moments | None
    learned: Learned | None


def write_archive(file: IO[bytes], contents: Contents) -> None:
    """Write the contents to a file."""
    parts: dict[str, Any] = {"format": _FORMAT}
    parts |= {name: getattr(contents, name) for name in ("dim", "eps", "kind")}
    if contents.learned is not None:
        parts |= contents.learned._asdict()
    if contents.moments is not None:
        parts |= contents.moments._asdict()
        parts["count"] = parts.pop("number")
        if contents.moments.rows is not None:
            parts["format"] = _FORMAT_OF_ROWS
    np.savez(file, **{name: part for name, part in parts.items() if part is not None})


def read_file(path: str) -> Contents:
    """Return what `write_archive` wrote to a file, or raise an error that names the file."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            require_regular(path, os.fstat(file.fileno()))
            return read_archive(file)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # broken files raise many types of errors
        raise ValueError(f"{path}: expected a file that Whitening.save wrote: {error}") from error


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; a pipe too, without waiting for someone who writes to it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_archive(file: IO[bytes]) -> Contents:
    """Return what `write_archive` wrote. Broken files raise errors of any type."""
    _require_small_directory(file)
    with zipfile.ZipFile(file) as archive:
        _require_whole(file, archive)
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        expected = _FORMAT_OF_ROWS if "rows" in members else _FORMAT
        version = _read(archive, members, {"format"})["format"].item()
        if version != expected:
            raise ValueError(f"format: expected {expected}, got {version}")
        return _contents(_read(archive, members, members.keys()))


def _require_small_directory(file: IO[bytes]) -> None:
    """Raise unless a zip file ends with a directory of few members and without a comment."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END.size - _END64.size))
    tail = file.read()
    if len(tail) < _END.size or not tail[-_END.size :].startswith(b"PK\5\6"):
        raise ValueError("it is not an .npz file, or is truncated")
    end = _END.unpack(tail[-_END.size :])
    entries, directory = end[4], end[5]
    if len(tail) == _END.size + _END64.size:
        end64 = _END64.unpack(tail[: _END64.size])
        if end64[10] == b"PK\6\7":  # the mark of a file that has _END64
            if end64[:2] != (b"PK\6\6", _END64.size - 32):
                raise ValueError("its directory is damaged")
            entries, directory = end64[7], end64[8]
    if entries > len(_AXES) or directory > _DIRECTORY_BYTES:
        raise ValueError(f"expected at most {len(_AXES)} members, got {entries}")


def _require_whole(file: IO[bytes], archive: zipfile.ZipFile) -> None:
    """Raise unless members, none of them compressed, follow one another up to the directory."""
    names, position = set(), 0
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        name = info.filename
        if name in names or not name.endswith(".npy"):
            raise ValueError(f"{name}: got a second member of that name, or one that is no .npy")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise ValueError(f"{name}: expected an uncompressed member, got a compressed one")
        size = info.file_size
        sizes = _SIZES.pack(1, 16, size, size)
        if info.header_offset != position or _read_start(file, position) not in (
            _expected_start(info, info.extract_version, size, b""),
            _expected_start(info, info.extract_version, 0xFFFF_FFFF, sizes),
            _expected_start(info, 20, size, sizes),  # Python before 3.11.4 writes both
        ):
            raise ValueError(f"{name}: expected this member at byte {position}")
        names.add(name)
        position = file.tell() + size
    if position != archive.start_dir:
        raise ValueError(f"got {archive.start_dir - position} bytes that are in no member")


def _read_start(file: IO[bytes], position: int) -> tuple[Any, ...]:
    """Read the start of a member of a zip file, with its name and extra field."""
    file.seek(position)
    start = _LOCAL.unpack(file.read(_LOCAL.size))
    return *start, file.read(start[-2]), file.read(start[-1])


def _expected_start(
    info: zipfile.ZipInfo, version: int, size: int, extra: bytes
) -> tuple[Any, ...]:
    """Return the start that a member must have, with its size there or in the extra field."""
    year, month, day, hour, minute, second = info.date_time
    date = (year - 1980) << 9 | month << 5 | day, hour << 11 | minute << 5 | second // 2
    name = info.filename.encode()
    return (
        *(b"PK\3\4", version, info.flag_bits, zipfile.ZIP_STORED, *reversed(date)),
        *(info.CRC, size, size, len(name), len(extra), name, extra),
    )


def _read(
    archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], names: Iterable[str]
) -> dict[str, Any]:
    """Return arrays by their names. The headers of all are checked before any array is read."""
    lengths: dict[str, int] = {}
    for name in names:
        if name not in _AXES:
            raise ValueError(f"{name}: got a member of this name, which no whitening has")
        if name not in members:
            raise ValueError(f"{name}: expected a member of this name, got none")
        shape = _checked_header(archive, members[name], name)
        axes = ", ".join(_AXES[name])
        if len(shape) != len(_AXES[name]):
            raise ValueError(f"{name}: expected shape ({axes}), got {shape}")
        for axis, length in zip(_AXES[name], shape, strict=True):
            if lengths.setdefault(axis, length) != length or (axis != "K" and not length):
                raise ValueError(
                    f"{name}: expected shape ({axes}) with {axis} = {lengths[axis]} above 0, "
                    f"got {shape}"
                )
    return {name: _array(archive, members[name]) for name in names}


def _checked_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> tuple[int, ...]:
    """Return the shape of a member of numbers, or the name of a kind, or raise."""
    with archive.open(info) as stream:
        if npy.read_magic(stream) != (1, 0):
            raise ValueError(f"{name}: expected version 1.0 of the .npy format")
        shape, _, dtype = npy.read_array_header_1_0(stream)
        if dtype.kind not in ("U" if name == "kind" else "iuf"):
            raise ValueError(f"{name}: expected real numbers, got {dtype}")
        if not shape and dtype.itemsize > _SCALAR_BYTES:
            raise ValueError(f"{name}: expected at most {_SCALAR_BYTES} bytes, got {dtype}")
        size = stream.tell() + math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or info.file_size != size:
            raise ValueError(
                f"{name}: expected {size} bytes for shape {shape}, got {info.file_size}"
            )
    return shape


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Any:
    """Return the array of a member whose header is checked."""
    with archive.open(info) as stream:
        array = npy.read_array(stream, allow_pickle=False)
        if stream.read(1):  # the end of a member is where its checksum is compared
            raise ValueError(f"{info.filename}: got more bytes than its array has")
    return array


def _contents(arrays: Mapping[str, Any]) -> Contents:
    """Return the contents of arrays whose shapes agree, or raise."""
    for name in ("mean", "eps"):
        if name not in arrays:
            raise ValueError(f"{name}: expected a member of this name, got none")
    mean = real_numbers(arrays["mean"], "mean")
    moments, learned = _moments(arrays, mean), None
    if "projection" in arrays:
        learned = checked_learned(mean, arrays["projection"], arrays.get("variances"))
    elif "variances" in arrays or moments is None:
        raise ValueError("projection: expected a member of this name, got none")
    dim = kind = None
    if "dim" in arrays:
        dim = positive_int("dim", arrays["dim"].item())
        if dim > len(mean):
            raise ValueError(f"dim: expected at most the {len(mean)} channels, got {dim}")
    if moments is not None and learned is not None and len(learned.projection) > (dim or len(mean)):
        rows = len(learned.projection)
        raise ValueError(f"projection: expected at most {dim or len(mean)} rows, got {rows}")
    if "kind" in arrays:
        kind = choice("kind", arrays["kind"].item(), VECTOR_KINDS)
    return Contents(dim, real("eps", arrays["eps"].item(), low=0), kind, moments, learned)


def _moments(arrays: Mapping[str, Any], mean: Any) -> Moments | None:
    """Return the moments in a file, None if it has a projection alone; or raise."""
    found = sorted({"count", "scatter", "rows", "unit"} & arrays.keys())
    if not found:
        return None
    if len({"scatter", "rows"} & arrays.keys()) != 1 or "count" not in arrays:
        raise ValueError(f"expected count and one of scatter and rows, got {', '.join(found)}")
    count, least = arrays["count"].item(), 2 if "projection" in arrays else 0
    if type(count) is not int or count < least:
        raise ValueError(f"count: expected an integer of at least {least}, got {count}")
    scatter, rows = (
        real_numbers(arrays[name], name) if name in arrays else None for name in ("scatter", "rows")
    )
    if rows is not None and len(rows) > min(len(mean) - 1, 2 * count):
        raise ValueError(
            f"rows: expected fewer than channels and at most 2 a vector, got {len(rows)}"
        )
    unit = real("unit", arrays["unit"].item(), low=0, high=1) if "unit" in arrays else 0.0
    return Moments(count, mean, scatter, rows, unit)
