"""Arrays in Zarr folders, and which of their rows were never written."""

from __future__ import annotations

import os
from itertools import product
from math import ceil, prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rmac._io import require_regular
from rmac.cli.array_file import ArrayFile, checked_shape, chosen_key, readable, require_no_key

if TYPE_CHECKING:
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
        _require_bounded(os.path.join(folder, name), _METADATA_BYTES)


def _require_bounded(path: str, most: int) -> bool:
    """Tell whether there is a file; raise if it is not a regular one of at most so many bytes."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    require_regular(path, status)
    if status.st_size > most:
        raise ValueError(f"{path} has {status.st_size} bytes, and at most {most} are expected")
    return True


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
            chunks.unwritten(first, last)  # raises for chunks that Zarr must not read
            return np.asarray(array[first:last], native)

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
        times, more = _OVERHEAD
        self._most = times * prod(self._file) * np.dtype(array.dtype).itemsize + more
        self._index_place = _index_place(array) if array.shards else None

    def unwritten(self, first: int, last: int) -> npt.NDArray[np.intp]:
        """Return which of the rows first:last have chunks that are not there, or raise."""
        missing = np.zeros(last - first, bool)

        def mark(start: int, count: int) -> None:
            missing[max(0, start - first) : max(0, start + count - first)] = True

        rows = self._file[0]
        grid = [range(ceil(n / m)) for n, m in zip(self._array.shape, self._file, strict=True)]
        grid[0] = range(first // rows, ceil(last / rows) if first < last else 0)
        for at in product(*grid):
            path = os.path.join(self._folder, self._array.metadata.encode_chunk_key(at))
            if not _require_bounded(path, self._most):
                mark(at[0] * rows, rows)
            elif self._index_place:
                for chunk in np.flatnonzero(self._missing_in_shard(path, at)):
                    mark(at[0] * rows + int(chunk) * self._chunk[0], self._chunk[0])
        return first + np.flatnonzero(missing)

    def _missing_in_shard(self, path: str, at: tuple[int, ...]) -> npt.NDArray[np.bool_]:
        """Return, for each row of chunks in a shard, whether one of them is not there."""
        counts = [n // m for n, m in zip(self._file, self._chunk, strict=True)]
        size = 16 * prod(counts)
        with open(path, "rb") as file:
            if self._index_place == "end":
                file.seek(-size - _CHECKSUM, os.SEEK_END)
            places = np.frombuffer(file.read(size), "<u8").reshape(*counts, 2)
        inside = tuple(  # chunks beyond the end of the array are never there
            slice(ceil((n - i * m) / k))
            for i, n, m, k in zip(at, self._array.shape, self._file, self._chunk, strict=True)
        )
        missing: npt.NDArray[np.bool_] = (places[..., 0] == _NO_CHUNK)[inside]
        return missing.any(axis=tuple(range(1, missing.ndim)), keepdims=True).reshape(-1)


def _index_place(array: zarr.Array[Any]) -> str | None:
    """Return where the index of a shard is, "start" or "end"; None if it is not stored plainly."""
    (sharding,) = vars(array.metadata)["codecs"]
    names = [type(codec).__name__ for codec in sharding.index_codecs]
    # zarr 3.4 has the word itself; before, it was a member of an Enum.
    place = getattr(sharding.index_location, "value", sharding.index_location)
    return place if names == ["BytesCodec", "Crc32cCodec"] else None
