"""Rows of one input: those of an array, or arrays that are one row each, which may differ in size.

A row is what a command makes one result of: a feature map, or the vectors of an image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from math import prod
from threading import local
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rmac.cli.array_file import ArrayFile, Container, Kind, Shape

_kept = local()  # the buffer of each thread
# Bytes of a batch of the arrays of a container. It is read tile by tile, and the larger it is, the
# larger are the blocks of one shape.
_WINDOW = 1 << 29

Rows = npt.NDArray[np.intp]
Tile = list[tuple[Rows, npt.NDArray[Any]]]  # which rows of a batch, and these (n, ...)


@dataclass
class Batch:
    """Some rows, in tiles of blocks of one shape each.

    A tile is a function that reads it, into memory of the thread that the next tile overwrites.
    """

    count: int
    tiles: Iterable[Callable[[], Tile]]

    def __len__(self) -> int:
        return self.count


class Part(ABC):
    """Rows of an input."""

    name: str  # in error messages
    names: Sequence[str] | None  # of the rows, if they have names
    # Each different shape of a row, and the name in error messages of one row that has it. The
    # shape of the first row comes first.
    shapes: dict[Shape, str]
    dtype: np.dtype[Any]
    chunk_bytes: int  # not 0 if the part cannot be shared by threads

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def label(self, row: int) -> str:
        """Return what error messages call a row."""

    @abstractmethod
    def spans(self, size: int, row_bytes: int, most: int) -> Iterator[tuple[int, int]]:
        """Yield the rows of batches of about a size, or more if they are read in tiles.

        The caller makes `row_bytes` of each row. Chunks of at most `most` bytes are not cut.
        """

    @abstractmethod
    def read(self, first: int, last: int, size: int) -> Batch:
        """Read rows, in tiles of about a size if they may differ in shape."""

    @abstractmethod
    def unwritten(self, first: int, last: int) -> npt.NDArray[np.intp]:
        """Return which of the rows first:last were never written."""


class ArrayRows(Part):
    """The rows of an array."""

    def __init__(self, array: ArrayFile, names: Sequence[str] | None = None) -> None:
        self.name, self.names, self._array = array.name, names, array
        self.shapes, self.dtype = {array.shape[1:]: array.name}, array.dtype
        self.chunk_bytes = array.chunk_bytes

    def __len__(self) -> int:
        return self._array.shape[0]

    def label(self, row: int) -> str:  # noqa: D102
        return f"{self.name}[{row}]"

    def spans(self, size: int, row_bytes: int, most: int) -> Iterator[tuple[int, int]]:  # noqa: D102
        return array_spans(self._array, size, row_bytes, most)

    def read(self, first: int, last: int, size: int) -> Batch:  # noqa: ARG002, D102
        rows = np.arange(last - first)
        return Batch(len(rows), [lambda: [(rows, self._array.read(first, last))]])

    def unwritten(self, first: int, last: int) -> npt.NDArray[np.intp]:  # noqa: D102
        return self._array.unwritten(first, last)


def array_spans(
    array: ArrayFile, size: int, row_bytes: int, most: int
) -> Iterator[tuple[int, int]]:
    """Yield the rows of batches of about a size, in whole chunks if these have at most `most`."""
    input_bytes = prod(array.shape[1:]) * array.dtype.itemsize
    chunk = array.chunk_rows * input_bytes
    step = array.chunk_rows if chunk <= max(most, array.chunk_bytes) else 1
    rows = max(1, size // max(1, input_bytes + row_bytes) // step) * step
    for first in range(0, array.shape[0], rows):
        yield first, min(first + rows, array.shape[0])


class ArraysAsRows(Part):
    """Arrays of a container. Each is a row, and they may differ in size.

    A batch is read in the order of shapes. Blocks are then large, and each costs little more than
    a row: 20 µs of Python, and 5 µs for each row.
    """

    def __init__(
        self,
        container: Container,
        members: npt.NDArray[np.intp],
        names: Sequence[str],
        *,
        leading: bool,
    ) -> None:
        """Take members of a container; with a `leading` axis of length 1, the row's, or without."""
        self.name, self.names = container.path, names
        self.chunk_bytes = container.chunk_bytes
        self._container, self._members = container, members
        kinds, firsts, self._kind_of = np.unique(
            container.kind_of[members], return_index=True, return_inverse=True
        )
        self._shapes = [container.kinds[kind].shape[int(leading) :] for kind in kinds]
        self.shapes = {self._shapes[self._kind_of[row]]: self.label(row) for row in sorted(firsts)}
        self.dtype = self._common_dtype(sorted(firsts))
        sizes = [prod(shape) * self.dtype.itemsize for shape in self._shapes]
        self._sizes = np.array(sizes, np.int64)[self._kind_of]

    def _common_dtype(self, rows: Sequence[int]) -> np.dtype[Any]:
        """Return the dtype of all rows, which some of each kind have, or raise."""
        container, members = self._container, self._members[rows]
        kinds: list[Kind] = [container.kinds[kind] for kind in container.kind_of[members]]
        first = kinds[0].dtype
        for i, kind in zip(members, kinds, strict=True):
            if kind.dtype is None:
                container.open(int(i))  # raises
            elif kind.dtype != first:
                raise TypeError(
                    f"{container.label(i)}: expected {first}, as {container.label(members[0])} "
                    f"has, got {kind.dtype}"
                )
        assert first is not None
        return first

    def __len__(self) -> int:
        return len(self._members)

    def label(self, row: int) -> str:  # noqa: D102
        return self._container.label(self._members[row])

    def spans(  # noqa: D102
        self,
        size: int,
        row_bytes: int,
        most: int,
    ) -> Iterator[tuple[int, int]]:
        ends = np.cumsum(self._sizes, dtype=float)  # which does not overflow
        fitting = max(1, most // max(1, row_bytes))
        size = max(size, _WINDOW)
        first, done = 0, 0
        while first < len(ends):
            last = max(first + 1, int(np.searchsorted(ends, done + size, "right")))
            last = min(last, first + fitting)
            yield first, last
            first, done = last, int(ends[last - 1])

    def read(self, first: int, last: int, size: int) -> Batch:  # noqa: D102
        return Batch(last - first, self._tiles(first, last, size))

    def _tiles(self, first: int, last: int, size: int) -> Iterator[Callable[[], Tile]]:
        """Yield tiles of about a size, sorted by the shapes of rows."""
        kinds = self._kind_of[first:last]
        order = np.argsort(kinds, kind="stable")
        pieces: list[tuple[Shape, Rows]] = []
        room = size
        for rows in np.split(order, 1 + np.flatnonzero(np.diff(kinds[order]))):
            shape = self._shapes[kinds[rows[0]]]
            bytes_each = max(1, int(self._sizes[first + rows[0]]))
            while len(rows):
                count = room // bytes_each
                if not count and pieces:  # the tile is full
                    yield partial(self._tile, first, pieces)
                    pieces, room = [], size
                    continue
                some, rows = rows[: max(1, count)], rows[max(1, count) :]
                pieces.append((shape, some))
                room -= len(some) * bytes_each
        yield partial(self._tile, first, pieces)

    def _tile(self, first: int, pieces: list[tuple[Shape, Rows]]) -> Tile:
        """Read some rows of each of several shapes."""
        sizes = [len(rows) * prod(shape) * self.dtype.itemsize for shape, rows in pieces]
        buffer, at = self._buffer(sum(sizes)), 0
        tile: Tile = []
        for (shape, rows), size in zip(pieces, sizes, strict=True):
            block = buffer[at : at + size].view(self.dtype).reshape(len(rows), *shape)
            self._fill(self._members[first + rows], block)
            tile.append((rows, block))
            at += size
        return tile

    def _buffer(self, size: int) -> npt.NDArray[np.uint8]:
        """Return memory of the thread, which its next tile overwrites."""
        kept: npt.NDArray[np.uint8] | None = getattr(_kept, "buffer", None)
        if kept is None or len(kept) < size:
            kept = _kept.buffer = None  # freed before more is taken
            kept = _kept.buffer = np.empty(size, np.uint8)
        return kept[:size]

    def _fill(self, members: npt.NDArray[np.intp], block: npt.NDArray[Any]) -> None:
        if self._container.fill is not None:
            self._container.fill(members, block)
            return
        for i, place in zip(members.tolist(), block, strict=True):
            array = self._container.open(i)
            place[...] = array.read(0, array.shape[0]).reshape(place.shape)

    def unwritten(self, first: int, last: int) -> npt.NDArray[np.intp]:  # noqa: D102
        if not self.chunk_bytes:
            return np.empty(0, np.intp)
        arrays = (self._container.open(int(i)) for i in self._members[first:last])
        missing = [len(array.unwritten(0, array.shape[0])) > 0 for array in arrays]
        return first + np.flatnonzero(missing)
