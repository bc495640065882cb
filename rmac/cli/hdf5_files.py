"""The datasets of HDF5 files."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rmac._io import InputFile
from rmac.cli.array_file import ArrayFile, Container, Kind, checked_shape, kinds_of, readable

if TYPE_CHECKING:
    import h5py

_KIND = "HDF5 file"
_MOST_OBJECTS = 1_000_000
_MOST_CHUNK = 1 << 30  # bytes; HDF5 reads chunks as a whole


def open_hdf5(path: str) -> Container:
    """Open the datasets of an HDF5 file, sorted by name; links to other files are not followed."""
    try:
        import h5py
    except ImportError:
        raise ImportError(f"{path}: needs h5py: pip install 'h5py>=3'") from None
    held = InputFile(path)  # what is no regular file, h5py would wait for
    with readable(path, _KIND):
        file = h5py.File(path, "r")
        found = _datasets_of(file)
        names = sorted(found)
        datasets = [found[name] for name in names]
        kinds, kind_of = kinds_of(map(_kind_of, datasets))

    def open_one(i: int) -> ArrayFile:
        return _open_dataset(f"{path}[{names[i]}]", datasets[i], kinds[kind_of[i]], held)

    return Container(path, names, kinds, kind_of, open_one, chunk_bytes=1)


def _kind_of(dataset: h5py.Dataset) -> Kind:
    shape = checked_shape(dataset.shape or (), dataset.dtype.itemsize)
    return Kind(shape, _native(dataset))


def _datasets_of(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Return all datasets by their paths. Of links only hard ones are followed, and each once."""
    import h5py

    found: dict[str, h5py.Dataset] = {}
    groups: list[tuple[str, h5py.Group]] = [("", file)]
    seen = {h5py.h5o.get_info(file.id).addr}
    while groups:
        prefix, group = groups.pop()
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                continue
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if isinstance(item, h5py.Dataset):
                found[prefix + name] = item
            elif isinstance(item, h5py.Group) and address not in seen:
                groups.append((f"{prefix}{name}/", item))
            seen.add(address)
            if len(seen) > _MOST_OBJECTS:
                raise ValueError(f"it has more than {_MOST_OBJECTS} datasets and groups")
    return found


def _native(dataset: h5py.Dataset) -> np.dtype[Any] | None:
    """Return the dtype of what is read of a dataset; strings are objects."""
    import h5py

    if h5py.check_string_dtype(dataset.dtype):
        return np.dtype(str)
    dtype: np.dtype[Any] = dataset.dtype
    return None if dtype.hasobject or dtype.kind not in "iufbc" else dtype.newbyteorder("=")


def _open_dataset(
    name: str,
    dataset: h5py.Dataset,
    kind: Kind,
    held: InputFile,
) -> ArrayFile:
    shape, dtype = kind
    if dtype is None:
        raise TypeError(f"{name}: expected numbers, got {dataset.dtype}")
    if dataset.external or dataset.is_virtual:
        raise ValueError(
            f"{name}: expected data in this file, got a dataset of others, which may be missing: "
            "name these instead"
        )
    chunk = dataset.chunks or (1, *shape[1:])
    size = prod(chunk) * dataset.dtype.itemsize
    if dataset.chunks and size > _MOST_CHUNK:
        raise ValueError(f"{name}: expected chunks of at most {_MOST_CHUNK} bytes, got {size}")
    strings = dtype.kind == "U"

    def read(first: int, last: int) -> npt.NDArray[Any]:
        with readable(name, _KIND):
            part = (dataset.asstr("utf-8", "replace") if strings else dataset)[first:last]
        held.require_unchanged()
        return np.asarray(part, dtype)

    def unwritten(first: int, last: int) -> npt.NDArray[np.intp]:
        with readable(name, _KIND):
            return _unwritten(dataset, first, last)

    return ArrayFile(name, shape, dtype, read, chunk[0] if shape else 1, size, unwritten)


def _unwritten(dataset: h5py.Dataset, first: int, last: int) -> npt.NDArray[np.intp]:
    """Return which of the rows first:last were never written."""
    missing = np.zeros(last - first, bool)
    if dataset.chunks is None:
        if dataset.id.get_offset() is None and dataset.id.get_storage_size() == 0:
            missing[:] = True
    else:
        rows = dataset.chunks[0]
        grid = [range(0, n, m) for n, m in zip(dataset.shape, dataset.chunks, strict=True)]
        for start in range(first // rows * rows, last, rows):
            for at in product([start], *grid[1:]):
                if dataset.id.get_chunk_info_by_coord(at).byte_offset is None:
                    missing[max(0, start - first) : max(0, start + rows - first)] = True
                    break
    return first + np.flatnonzero(missing)
