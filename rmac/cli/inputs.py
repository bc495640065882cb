"""The inputs of a command: files and folders, whose rows follow one another."""

from __future__ import annotations

import os
from bisect import bisect_right
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

import numpy as np

from rmac._checks import warn
from rmac.cli.array_file import (
    READ,
    ArrayFile,
    Container,
    Kind,
    chosen_key,
    kinds_of,
    require_no_key,
)
from rmac.cli.flat_files import open_npy
from rmac.cli.formats import is_read, open_file, split_path, suffix_of
from rmac.cli.parts import ArrayRows, ArraysAsRows, Batch, Part
from rmac.cli.zarr_files import is_zarr

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    import numpy.typing as npt

    from rmac.cli.array_file import Shape

_NAMES = "names"  # the array of a file that names the rows of the others
_MOST_NAMES = 1 << 28  # bytes


class Inputs:
    """All rows of the inputs of a command, in order; at least one part."""

    def __init__(self, parts: list[Part], paths: list[str]) -> None:
        self.parts, self.paths = parts, paths
        self._ends = list(accumulate(map(len, parts)))
        self._require_one_dtype()

    def _require_one_dtype(self) -> None:
        for part in self.parts:
            if part.dtype != self.dtype:
                raise TypeError(
                    f"{part.name}: expected {self.dtype}, as {self.parts[0].name} has, got "
                    f"{part.dtype}; save them alike"
                )

    @property
    def name(self) -> str:
        """What error messages call the inputs."""
        more = len(self.parts) - 1
        return self.parts[0].name + (f" and {more} more" if more else "")

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of all rows."""
        return self.parts[0].dtype

    @property
    def shape(self) -> Shape:
        """The number of rows and the shape of the first; others may differ in size."""
        return (self._ends[-1], *next(iter(self.parts[0].shapes)))

    @property
    def ndim(self) -> int:
        """The number of axes, with that of the rows."""
        return len(self.shape)

    @property
    def chunk_bytes(self) -> int:
        """Not 0 if reading cannot be shared by threads."""
        return max(part.chunk_bytes for part in self.parts)

    def require_alike(self, axis: int, what: str) -> None:
        """Raise unless all rows have as many axes, and the same length along one of a row's."""
        first, like = next(iter(self.parts[0].shapes.items()))
        for shape, name in chain.from_iterable(part.shapes.items() for part in self.parts):
            if len(shape) != len(first):
                expected = f"{len(first)} axes of a row, as {like} has"
                raise ValueError(f"{name}: expected {expected}, got shape {shape}")
            if shape[axis] != first[axis]:
                expected = f"{first[axis]} {what}, as {like} has"
                raise ValueError(f"{name}: expected {expected}, got {shape[axis]}")

    def distinct(self) -> dict[Shape, str]:
        """Return the shapes of rows, with what error messages call a row of each."""
        found: dict[Shape, str] = {}
        for shape, name in chain.from_iterable(part.shapes.items() for part in self.parts):
            found.setdefault(shape, name)
        return found

    @property
    def named(self) -> bool:
        """Whether rows have names of their own."""
        return any(part.names is not None for part in self.parts)

    def row_name(self, row: int) -> str | None:
        """Return the name of a row, of its own or by its file; None if its number says it all."""
        at = bisect_right(self._ends, row)
        part = self.parts[at]
        local = row - (self._ends[at - 1] if at else 0)
        if part.names is not None:
            return part.names[local]
        return part.label(local) if len(self.parts) > 1 else None

    def row_names(self) -> Iterator[str]:
        """Yield a name for each row: its own, or that of its file with its number there."""
        for part in self.parts:
            for row in range(len(part)):
                yield part.label(row) if part.names is None else part.names[row]

    def _pieces(self, first: int, last: int) -> Iterator[tuple[Part, int, int, int]]:
        """Yield the parts that have rows first:last, which of theirs, and the first row of all."""
        at = bisect_right(self._ends, first)
        while first < last:
            start = self._ends[at - 1] if at else 0
            end = min(last, self._ends[at])
            if first < end:
                yield self.parts[at], first - start, end - start, start
            first, at = end, at + 1

    def spans(self, size: int, row_bytes: int, most: int) -> Iterator[tuple[int, int]]:
        """Yield the rows of batches of about a size; each is of one part."""
        start = 0
        for part, end in zip(self.parts, self._ends, strict=True):
            for first, last in part.spans(size, row_bytes, most):
                yield start + first, start + last
            start = end

    def read(self, first: int, last: int, size: int) -> Batch:
        """Read the rows of a batch, in tiles of about a size."""
        ((part, first, last, _),) = self._pieces(first, last)
        return part.read(first, last, size)

    def unwritten(self, first: int, last: int) -> npt.NDArray[np.intp]:
        """Return which of the rows first:last were never written."""
        pieces = self._pieces(first, last)
        found = [start + part.unwritten(one, other) for part, one, other, start in pieces]
        return np.concatenate(found) if found else np.empty(0, np.intp)


def open_inputs(
    paths: Sequence[str], key: str | None, axes: Collection[int], *, strict: bool = False
) -> Inputs:
    """Open files and folders, in order. An array has this many axes, a row has one fewer."""
    split = [split_path(path) for path in paths]
    files = [file for path, inside in split for file in _files_of(path, inside, strict=strict)]
    one = len(paths) == len(files) == 1 and not _is_folder(*split[0])
    parts: list[Part] = []
    loose: list[str] = []  # .npy files one after the other
    for path, inside in files:
        if not one and suffix_of(path) == ".npy" and not inside:
            require_no_key(path, key)
            loose.append(path)
            continue
        parts += _parts_of_arrays(loose, axes)
        loose = []
        parts += _parts_of(path, "/".join(filter(None, (inside, key))), axes, one=one)
    parts += _parts_of_arrays(loose, axes)
    return Inputs(parts, [path for path, _ in split])


def _is_folder(path: str, inside: str) -> bool:
    return os.path.isdir(path) and not inside and not is_zarr(path)


def _files_of(path: str, inside: str, *, strict: bool) -> list[tuple[str, str]]:
    """Return a file, or those of a folder that are read, sorted by name; tell of the others."""
    if not _is_folder(path, inside):
        return [(path, inside)]
    names = sorted(name for name in os.listdir(path) if not name.startswith("."))
    files = {name: os.path.join(path, name) for name in names}
    read = [file for file in files.values() if is_read(file)]
    if not read:
        raise ValueError(f"{path}: not a Zarr folder that can be read, nor one of files: {READ}")
    others = [name for name, file in files.items() if not is_read(file)]
    if others:
        more = ", ..." if len(others) > 5 else ""
        message = f"{path}: {len(others)} not read ({', '.join(others[:5])}{more})"
        if strict:
            raise ValueError(f"{message}; without --strict this is a warning")
        warn(f"{message}; rmac reads {READ}; --strict makes this an error")
    return [(file, "") for file in read]


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path.rstrip("/")))[0]


def _parts_of(path: str, key: str, axes: Collection[int], *, one: bool) -> list[Part]:
    """Return the rows of a file."""
    opened = open_file(path)
    if isinstance(opened, Container):
        return [_chosen(opened, key or None, axes)]
    require_no_key(path, key or None)
    if one:
        return [_whole(opened)]
    alone = Container(
        path,
        [_stem(path)],
        [Kind(opened.shape, opened.dtype)],
        np.zeros(1, np.intp),
        lambda _i: opened,
        chunk_bytes=opened.chunk_bytes,
        labels=[path],
    )
    return _parts_of_files(alone, axes)


def _whole(array: ArrayFile, names: Sequence[str] | None = None) -> Part:
    if not array.shape:
        raise ValueError(f"{array.name}: expected an array, got a single number")
    return ArrayRows(array, names)


def _parts_of_arrays(paths: list[str], axes: Collection[int]) -> list[Part]:
    """Return the rows of several .npy files."""
    if not paths:
        return []
    marks, kinds = [], []
    for path in paths:
        array = open_npy(path)
        marks.append(_mark(path))
        kinds.append(Kind(array.shape, array.dtype))

    def open_one(i: int) -> ArrayFile:
        array = open_npy(paths[i])
        if (array.shape, array.dtype) != kinds[i] or _mark(paths[i]) != marks[i]:
            raise OSError(f"{paths[i]}: was changed while it was read; run again once it is whole")
        return array

    names = [_stem(path) for path in paths]
    files = Container(paths[0], names, *kinds_of(kinds), open_one, labels=paths)
    return _parts_of_files(files, axes)


def _mark(path: str) -> tuple[int, ...]:
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns


def _parts_of_files(files: Container, axes: Collection[int]) -> list[Part]:
    """Return the rows of files that are an array each: all of it, or a row if it has fewer axes."""
    parts: list[Part] = []
    rows: list[int] = []
    for i in range(len(files.names)):
        dim = len(files.shape(i))
        if dim not in axes and dim + 1 in axes:
            rows.append(i)
            continue
        parts += _as_rows(files, rows)
        rows = []
        parts.append(_whole(files.open(i)))
    return parts + _as_rows(files, rows)


def _as_rows(files: Container, rows: list[int]) -> list[Part]:
    names = [files.names[i] for i in rows]
    members = np.array(rows, np.intp)
    return [ArraysAsRows(files, members, names, leading=False)] if rows else []


def _chosen(container: Container, key: str | None, axes: Collection[int]) -> Part:
    """Return the rows of a file that may hold several arrays: of one of them, or of all."""
    prefix = ""
    if key is not None and key not in container.names:
        prefix = key.rstrip("/") + "/"
    found = {name: i for i, name in enumerate(container.names)}
    if prefix:
        found = {
            name.removeprefix(prefix): i for name, i in found.items() if name.startswith(prefix)
        }
    names_at = found.get(_NAMES)
    if names_at is not None and (key == _NAMES or not _is_text(container, names_at)):
        names_at = None
    if names_at is not None:
        del found[_NAMES]
    if key is not None and (not prefix or not found):
        found = {key: container.names.index(chosen_key(container.path, key, container.names))}
    members = np.fromiter(found.values(), np.intp, len(found))
    present = np.flatnonzero(np.bincount(container.kind_of[members]))  # np.unique takes 10 ms
    shapes = {container.kinds[kind].shape for kind in present.tolist()}
    dims = set(map(len, shapes))
    if len(dims) == 1:
        (dim,) = dims
        leading = dim in axes and len(found) > 1 and all(shape[0] == 1 for shape in shapes)
        separate = dim + 1 in axes and (len(found) > 1 or dim not in axes)
        if leading or separate:
            return ArraysAsRows(container, members, list(found), leading=not separate)
    elif (odd := _odd(container, found, axes)) is not None:
        raise ValueError(odd)
    array = container.open(found[chosen_key(container.path, None, found)])
    return _whole(array, _names_of(container, names_at, array))


def _odd(container: Container, found: dict[str, int], axes: Collection[int]) -> str | None:
    """Return what is wrong if most arrays are rows, and some are not."""
    others = [i for i in found.values() if len(container.shape(i)) + 1 not in axes]
    if not 0 < 2 * len(others) < len(found):
        return None
    other, shape = others[0], container.shape(others[0])
    expected = f"{' or '.join(str(n - 1) for n in sorted(axes))} axes, as most arrays there have"
    return (
        f"{container.label(other)}: expected {expected}, got shape {shape}; save what is no row "
        "in another file, or choose an array or group with --key"
    )


def _is_text(container: Container, i: int) -> bool:
    shape, dtype = container.kinds[container.kind_of[i]]
    return dtype is not None and dtype.kind in "US" and len(shape) == 1


def _names_of(container: Container, names_at: int | None, array: ArrayFile) -> list[str] | None:
    """Return the names of the rows of an array, if the container has them."""
    if names_at is None or container.shape(names_at)[0] != array.shape[0]:
        return None
    names = container.open(names_at)
    if names.shape[0] * names.dtype.itemsize > _MOST_NAMES:
        raise ValueError(f"{names.name}: expected names of at most {_MOST_NAMES} bytes in all")
    texts = names.read(0, names.shape[0]).tolist()
    return [one.decode("utf-8", "replace") if isinstance(one, bytes) else one for one in texts]
