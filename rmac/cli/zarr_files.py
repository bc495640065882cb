"""Arrays in Zarr folders, and which of their rows were never written."""

from __future__ import annotations

import os
from functools import partial
from itertools import product
from math import ceil, prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rmac._io import require_regular
from rmac.cli.array_file import ArrayFile, checked_shape, chosen_key, readable, require_no_key
from rmac.cli.zarr_chunks import Unpacking, codecs_of, rows_at_once

if TYPE_CHECKING:
    from collections.abc import Iterator

    import zarr

_METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
_METADATA_BYTES = 10_000_000
_MOST_MEMBERS = 10_000  # groups and arrays; links can make a folder endless
# A chunk's file may have 64 times the bytes of its numbers, and a MiB more. No encoding needs as
# much, and Zarr would read a larger file as a whole.
_OVERHEAD = (64, 1 << 20)
_CHECKSUM = 4  # bytes behind the index of a shard
_NO_CHUNK = np.uint64(2**64 - 1)  # in the index of a shard
_KIND = "Zarr folder"


def open_zarr(path: str, key: str | None) -> ArrayFile:
    """Open an array of a Zarr folder."""
    try:
        import zarr
    except ImportError:
        raise ImportError(f"{path}: needs zarr: pip install 'zarr>=3'") from None
    with readable(path, _KIND):
        _require_bounded_metadata(path)
        node = zarr.open(zarr.storage.LocalStore(path, read_only=True), mode="r")
        arrays = {} if isinstance(node, zarr.Array) else _arrays_of(path, node)
    if isinstance(node, zarr.Array):
        require_no_key(path, key)
        return _zarr_array(path, path, node)
    key = chosen_key(path, key, arrays)
    return _zarr_array(f"{path}[{key}]", os.path.join(path, key), arrays[key])


def _arrays_of(path: str, group: zarr.Group) -> dict[str, zarr.Array[Any]]:
    """Return all arrays below a group by their paths; raise if there is no end of them."""
    import zarr

    arrays, groups, count = {}, [("", group)], 0
    while groups:
        prefix, group = groups.pop()
        folder = os.path.join(path, prefix)
        for name in os.listdir(folder):
            _require_bounded_metadata(os.path.join(folder, name))
        for name, member in group.members():
            count += 1
            if count > _MOST_MEMBERS:
                raise ValueError(f"it has more than {_MOST_MEMBERS} groups and arrays")
            if isinstance(member, zarr.Array):
                arrays[prefix + name] = member
            else:
                groups.append((f"{prefix}{name}/", member))
    return arrays


def _require_bounded_metadata(folder: str) -> None:
    """Raise if a metadata file, which Zarr reads as a whole, is too large or has no end."""
    for name in _METADATA:
        _bounded_size(os.path.join(folder, name), _METADATA_BYTES)


def _bounded_size(path: str, most: int) -> int | None:
    """Return the bytes of a file, None if there is none; raise if it may have more than `most`."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    require_regular(path, status)
    if status.st_size > most:
        raise ValueError(f"{path} has {status.st_size} bytes, and at most {most} are expected")
    return status.st_size


def _zarr_array(name: str, folder: str, array: zarr.Array[Any]) -> ArrayFile:
    dtype = np.dtype(array.dtype)
    if dtype.hasobject:
        raise TypeError(f"{name}: expected numbers, got Python objects")
    with readable(name, _KIND):
        shape = checked_shape(array.shape, dtype.itemsize)
        chunks = _Chunks(folder, array) if shape else None
    if chunks is None:
        return ArrayFile(name, shape, dtype, lambda _first, _last: np.empty((), dtype))
    native = dtype.newbyteorder("=")

    def read(first: int, last: int) -> npt.NDArray[Any]:
        with readable(name, _KIND):
            chunks.require_bounded(first, last)
            step = chunks.rows_at_once
            if last - first <= step:
                return np.asarray(array[first:last], native)
            rows = np.empty((last - first, *shape[1:]), native)
            for start in range(first, last, step):
                stop = min(start + step, last)
                rows[start - first : stop - first] = array[start:stop]
        return rows

    def unwritten(first: int, last: int) -> npt.NDArray[np.intp]:
        with readable(name, _KIND):
            return chunks.unwritten(first, last)

    size = prod(array.chunks) * dtype.itemsize
    return ArrayFile(name, shape, native, read, array.chunks[0], size, unwritten)


class _Chunks:
    """The files of an array's chunks, or of its shards of chunks."""

    def __init__(self, folder: str, array: zarr.Array[Any]) -> None:
        self._folder, self._array = folder, array
        self._chunk = array.chunks
        self._file = array.shards or array.chunks  # the shape of what a file holds
        if 0 in self._chunk:
            raise ValueError(f"its chunks have shape {self._chunk}")
        itemsize = np.dtype(array.dtype).itemsize
        self.rows_at_once = rows_at_once(array.shape, self._chunk, itemsize)
        times, more = _OVERHEAD
        self._most = times * prod(self._file) * itemsize + more
        codecs = codecs_of(array)
        self._index_place: str | None = None
        if array.shards:
            (sharding,) = codecs
            codecs, self._index_place = sharding.codecs, _index_place(sharding)
        self._unpacking = Unpacking(codecs, prod(self._chunk) * itemsize)
        if array.shards and not (self._index_place or self._unpacking.is_bounded):
            raise ValueError("the index of its shards is in another form than Zarr writes")

    def unwritten(self, first: int, last: int) -> npt.NDArray[np.intp]:
        """Return which of the rows first:last have chunks that are not there, or raise."""
        missing = np.zeros(last - first, bool)

        def mark(start: int, count: int) -> None:
            missing[max(0, start - first) : max(0, start + count - first)] = True

        for at, path, size in self._files_of(first, last):
            start = at[0] * self._file[0]
            if size is None:
                mark(start, self._file[0])
            elif self._index_place:
                for chunk in np.flatnonzero(self._missing_in_shard(path, size, at)):
                    mark(start + int(chunk) * self._chunk[0], self._chunk[0])
        return first + np.flatnonzero(missing)

    def require_bounded(self, first: int, last: int) -> None:
        """Raise if Zarr must not read a chunk of the rows first:last."""
        for at, path, size in self._files_of(first, last):
            if size is None or self._unpacking.is_bounded:
                continue
            places = [(0, size)]
            if self._index_place:
                start = at[0] * self._file[0]
                rows = slice(
                    max(0, first - start) // self._chunk[0],
                    ceil((last - start) / self._chunk[0]),
                )
                index = self._index(path, size)[rows].reshape(-1, 2)
                places = index[index[:, 0] != _NO_CHUNK].tolist()
            for begin, count in places:
                read = partial(_read, path, begin)
                self._unpacking.require_bounded(read, max(0, min(count, size - begin)))

    def _files_of(self, first: int, last: int) -> Iterator[tuple[tuple[int, ...], str, int | None]]:
        """Yield the files of the rows first:last: place in the grid, path and bytes if it is there.

        Raise if one is too large.
        """
        rows = self._file[0]
        grid = [range(ceil(n / m)) for n, m in zip(self._array.shape, self._file, strict=True)]
        grid[0] = range(first // rows, ceil(last / rows) if first < last else 0)
        for at in product(*grid):
            path = os.path.join(self._folder, self._array.metadata.encode_chunk_key(at))
            yield at, path, _bounded_size(path, self._most)

    def _index(self, path: str, size: int) -> npt.NDArray[np.uint64]:
        """Return where the chunks of a shard begin, and their bytes (..., 2)."""
        counts = [n // m for n, m in zip(self._file, self._chunk, strict=True)]
        length = 16 * prod(counts)
        if length + _CHECKSUM > size:
            raise ValueError(f"{path} has {size} bytes, and its index {length + _CHECKSUM}")
        start = size - length - _CHECKSUM if self._index_place == "end" else 0
        return np.frombuffer(_read(path, start, 0, length), "<u8").reshape(*counts, 2)

    def _missing_in_shard(self, path: str, size: int, at: tuple[int, ...]) -> npt.NDArray[np.bool_]:
        """Return, for each row of chunks in a shard, whether one of them is not there."""
        inside = tuple(  # chunks beyond the end of the array are never there
            slice(ceil((n - i * m) / k))
            for i, n, m, k in zip(at, self._array.shape, self._file, self._chunk, strict=True)
        )
        missing: npt.NDArray[np.bool_] = (self._index(path, size)[..., 0] == _NO_CHUNK)[inside]
        return missing.any(axis=tuple(range(1, missing.ndim)), keepdims=True).reshape(-1)


def _read(path: str, begin: int, start: int, count: int) -> bytes:
    """Read bytes of a part of a file that begins at `begin`."""
    with open(path, "rb") as file:
        file.seek(begin + start)
        return file.read(count)


def _index_place(sharding: Any) -> str | None:
    """Return where the index of a shard is, "start" or "end"; None if it is not stored plainly."""
    names = [type(codec).__name__ for codec in sharding.index_codecs]
    # zarr 3.4 has words; before, they were members of an Enum.
    endian, place = (
        getattr(word, "value", word)
        for word in (getattr(sharding.index_codecs[0], "endian", None), sharding.index_location)
    )
    return place if (names, endian) == (["BytesCodec", "Crc32cCodec"], "little") else None
