"""Arrays in Zarr folders and zip files, and which of their rows were never written."""

from __future__ import annotations

import os
import zipfile
from functools import partial
from itertools import product
from math import ceil, prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from rmac._io import InputFile, require_regular
from rmac.cli.array_file import ArrayFile, Container, Kind, checked_shape, kinds_of, readable
from rmac.cli.zarr_chunks import Unpacking, codecs_of, rows_at_once
from rmac.cli.zip_files import data_starts, members_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import zarr

_METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
_METADATA_BYTES = 10_000_000
_MOST_MEMBERS = 1_000_000  # groups and arrays
# A chunk's file may have 64 times the bytes of its numbers, and a MiB more. No encoding needs as
# much, and Zarr would read a larger file as a whole.
_OVERHEAD = (64, 1 << 20)
_CHECKSUM = 4  # bytes behind the index of a shard
_NO_CHUNK = np.uint64(2**64 - 1)  # in the index of a shard
_KIND = "Zarr folder"
_KIND_OF_ZIP = "zip file of a Zarr store"


class _Files(Protocol):
    """The files of a Zarr store, by their paths in it."""

    path: str
    kind: str

    def size(self, part: str) -> int | None:
        """Return the bytes of a file, None if it is not there; raise if it has no end."""

    def read(self, part: str, start: int, size: int) -> bytes:
        """Read so many bytes of a file."""

    def enter(self, group: str) -> None:
        """Raise if the metadata of a group and of what is in it are too large, or have no end."""

    def require_unchanged(self) -> None:
        """Raise if the store is seen to have changed."""


class _Folder:
    """The files of a Zarr store in a folder."""

    kind = _KIND

    def __init__(self, path: str) -> None:
        self.path = path
        self._entered: set[str] = set()

    def size(self, part: str) -> int | None:
        path = os.path.join(self.path, part)
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        require_regular(path, status)
        return status.st_size

    def read(self, part: str, start: int, size: int) -> bytes:
        with open(os.path.join(self.path, part), "rb") as file:
            file.seek(start)
            return file.read(size)

    def enter(self, group: str) -> None:
        folder = os.path.realpath(os.path.join(self.path, group))
        if folder in self._entered:
            raise ValueError(f"links lead to {folder} twice, perhaps without end")
        self._entered.add(folder)
        _require_bounded_metadata(self, group)
        for name in os.listdir(folder):
            _require_bounded_metadata(self, os.path.join(group, name))

    def require_unchanged(self) -> None:
        """Folders are not watched."""


class _Zip:
    """The files of a Zarr store in a zip file."""

    kind = _KIND_OF_ZIP

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = InputFile(path)
        with readable(path, self.kind):
            members = members_of(self._file)
            for _ in data_starts(self._file, members, 0):
                pass
            self._sizes = dict(zip(members.names, members.sizes.tolist(), strict=True))
            for name, size in self._sizes.items():
                if name.rpartition("/")[2] in _METADATA:
                    _require_at_most(name, size, _METADATA_BYTES)
            self._archive = zipfile.ZipFile(path)
        self.require_unchanged()

    def root(self) -> str:
        """Return the folder of the store: that of the file, or the only one in it."""
        if any(name in self._sizes for name in _METADATA):
            return ""
        folders = {name.partition("/")[0] for name in self._sizes}
        return folders.pop() if len(folders) == 1 else ""

    def size(self, part: str) -> int | None:
        return self._sizes.get(part)

    def read(self, part: str, start: int, size: int) -> bytes:
        with self._archive.open(part) as file:
            file.seek(start)
            return file.read(size)

    def enter(self, group: str) -> None:
        """All metadata were looked at when the file was opened."""

    def require_unchanged(self) -> None:
        self._file.require_unchanged()


def is_zarr(path: str) -> bool:
    """Return whether a folder is a Zarr group or array."""
    return any(os.path.lexists(os.path.join(path, name)) for name in _METADATA)


def holds_zarr(path: str) -> bool:
    """Return whether a zip file is that of a Zarr store."""
    file = InputFile(path)
    with readable(path, "zip file"):
        names = members_of(file).names
    return any(name.rpartition("/")[2] in _METADATA for name in names)


def open_zarr(path: str) -> ArrayFile | Container:
    """Open an array or a group of a Zarr folder."""
    zarr = _import_zarr(path)
    files = _Folder(path)
    with readable(path, files.kind):
        _require_bounded_metadata(files, "")
        node = zarr.open(zarr.storage.LocalStore(path, read_only=True), mode="r")
    return _opened(files, node, "")


def open_zip(path: str) -> ArrayFile | Container:
    """Open an array or a group of a zip file of a Zarr store."""
    zarr = _import_zarr(path)
    files = _Zip(path)
    root = files.root()
    with readable(path, files.kind):
        node = zarr.open(zarr.storage.ZipStore(path, mode="r"), mode="r", path=root)
    return _opened(files, node, root)


def _import_zarr(path: str) -> Any:
    try:
        import zarr
    except ImportError:
        raise ImportError(f"{path}: needs zarr: pip install 'zarr>=3'") from None
    return zarr


def _opened(files: _Files, node: Any, root: str) -> ArrayFile | Container:
    import zarr

    if isinstance(node, zarr.Array):
        return _zarr_array(files.path, files, root, node)
    with readable(files.path, files.kind):
        arrays = _arrays_of(files, node, root)
        names = sorted(arrays)
        found = (arrays[name] for name in names)
        kinds = kinds_of(
            Kind(checked_shape(one.shape, one.dtype.itemsize), _native(one.dtype)) for one in found
        )

    def open_one(i: int) -> ArrayFile:
        name = names[i]
        return _zarr_array(f"{files.path}[{name}]", files, _join(root, name), arrays[name])

    return Container(files.path, names, *kinds, open_one, chunk_bytes=1)


def _join(group: str, name: str) -> str:
    return f"{group}/{name}" if group else name


def _native(dtype: Any) -> np.dtype[Any] | None:
    """Return the dtype of what is read; strings of any kind are strings of NumPy."""
    dtype = np.dtype(dtype)
    if dtype.kind in "TU":
        return np.dtype(str)
    return None if dtype.hasobject else dtype.newbyteorder("=")


def _arrays_of(files: _Files, group: zarr.Group, root: str) -> dict[str, zarr.Array[Any]]:
    """Return all arrays below a group by their paths; raise if there is no end of them."""
    import zarr

    arrays, groups, count = {}, [("", group)], 0
    while groups:
        prefix, group = groups.pop()
        files.enter(_join(root, prefix))
        for name, member in group.members():
            count += 1
            if count > _MOST_MEMBERS:
                raise ValueError(f"it has more than {_MOST_MEMBERS} groups and arrays")
            if isinstance(member, zarr.Array):
                arrays[prefix + name] = member
            else:
                groups.append((f"{prefix}{name}/", member))
    return arrays


def _require_bounded_metadata(files: _Files, folder: str) -> None:
    """Raise if a metadata file, which Zarr reads as a whole, is too large or has no end."""
    for name in _METADATA:
        part = _join(folder.rstrip("/"), name)
        size = files.size(part)
        if size is not None:
            _require_at_most(os.path.join(files.path, part), size, _METADATA_BYTES)


def _require_at_most(path: str, size: int, most: int) -> None:
    if size > most:
        raise ValueError(f"{path} has {size} bytes, and at most {most} are expected")


def _zarr_array(name: str, files: _Files, folder: str, array: zarr.Array[Any]) -> ArrayFile:
    dtype, native = np.dtype(array.dtype), _native(array.dtype)
    if native is None:
        raise TypeError(f"{name}: expected numbers, got Python objects")
    with readable(name, files.kind):
        shape = checked_shape(array.shape, dtype.itemsize)
        chunks = _Chunks(files, folder, array) if shape else None
    if chunks is None:
        return ArrayFile(name, shape, dtype, lambda _first, _last: np.empty((), dtype))

    def read(first: int, last: int) -> npt.NDArray[Any]:
        with readable(name, files.kind):
            chunks.require_bounded(first, last)
            rows = np.empty((last - first, *shape[1:]), native)
            for start in range(first, last, chunks.rows_at_once):
                stop = min(start + chunks.rows_at_once, last)
                rows[start - first : stop - first] = array[start:stop]
        files.require_unchanged()
        return rows

    def unwritten(first: int, last: int) -> npt.NDArray[np.intp]:
        with readable(name, files.kind):
            return chunks.unwritten(first, last)

    size = prod(array.chunks) * dtype.itemsize
    return ArrayFile(name, shape, native, read, array.chunks[0], size, unwritten)


class _Chunks:
    """The files of an array's chunks, or of its shards of chunks."""

    def __init__(self, files: _Files, folder: str, array: zarr.Array[Any]) -> None:
        self._files, self._folder, self._array = files, folder, array
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

        for at, part, size in self._files_of(first, last):
            start = at[0] * self._file[0]
            if size is None:
                mark(start, self._file[0])
            elif self._index_place:
                for chunk in np.flatnonzero(self._missing_in_shard(part, size, at)):
                    mark(start + int(chunk) * self._chunk[0], self._chunk[0])
        return first + np.flatnonzero(missing)

    def require_bounded(self, first: int, last: int) -> None:
        """Raise if Zarr must not read a chunk of the rows first:last."""
        for at, part, size in self._files_of(first, last):
            if size is None or self._unpacking.is_bounded:
                continue
            places = [(0, size)]
            if self._index_place:
                start = at[0] * self._file[0]
                rows = slice(
                    max(0, first - start) // self._chunk[0],
                    ceil((last - start) / self._chunk[0]),
                )
                index = self._index(part, size)[rows].reshape(-1, 2)
                places = index[index[:, 0] != _NO_CHUNK].tolist()
            for begin, count in places:
                self._unpacking.require_bounded(
                    partial(self._read, part, begin), max(0, min(count, size - begin))
                )

    def _files_of(self, first: int, last: int) -> Iterator[tuple[tuple[int, ...], str, int | None]]:
        """Yield the files of the rows first:last: place in the grid, path and bytes if it is there.

        Raise if one is too large.
        """
        rows = self._file[0]
        grid = [range(ceil(n / m)) for n, m in zip(self._array.shape, self._file, strict=True)]
        grid[0] = range(first // rows, ceil(last / rows) if first < last else 0)
        for at in product(*grid):
            part = _join(self._folder, self._array.metadata.encode_chunk_key(at))
            size = self._files.size(part)
            if size is not None:
                _require_at_most(self._path(part), size, self._most)
            yield at, part, size

    def _path(self, part: str) -> str:
        return os.path.join(self._files.path, part)

    def _read(self, part: str, begin: int, start: int, count: int) -> bytes:
        """Read bytes of a piece of a file that begins at `begin`."""
        return self._files.read(part, begin + start, count)

    def _index(self, part: str, size: int) -> npt.NDArray[np.uint64]:
        """Return where the chunks of a shard begin, and their bytes (..., 2)."""
        counts = [n // m for n, m in zip(self._file, self._chunk, strict=True)]
        length = 16 * prod(counts)
        if length + _CHECKSUM > size:
            raise ValueError(
                f"{self._path(part)} has {size} bytes, and its index {length + _CHECKSUM}"
            )
        start = size - length - _CHECKSUM if self._index_place == "end" else 0
        return np.frombuffer(self._files.read(part, start, length), "<u8").reshape(*counts, 2)

    def _missing_in_shard(self, part: str, size: int, at: tuple[int, ...]) -> npt.NDArray[np.bool_]:
        """Return, for each row of chunks in a shard, whether one of them is not there."""
        inside = tuple(  # chunks beyond the end of the array are never there
            slice(ceil((n - i * m) / k))
            for i, n, m, k in zip(at, self._array.shape, self._file, self._chunk, strict=True)
        )
        missing: npt.NDArray[np.bool_] = (self._index(part, size)[..., 0] == _NO_CHUNK)[inside]
        return missing.any(axis=tuple(range(1, missing.ndim)), keepdims=True).reshape(-1)


def _index_place(sharding: Any) -> str | None:
    """Return where the index of a shard is, "start" or "end"; None if it is not stored plainly."""
    names = [type(codec).__name__ for codec in sharding.index_codecs]
    # zarr 3.4 has words; before, they were members of an Enum.
    endian, place = (
        getattr(word, "value", word)
        for word in (getattr(sharding.index_codecs[0], "endian", None), sharding.index_location)
    )
    return place if (names, endian) == (["BytesCodec", "Crc32cCodec"], "little") else None
