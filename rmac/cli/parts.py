"""Rows of one input: those of an array, or arrays that are one row each, which may differ in size.

A row is what a command makes one result of: a feature map, or the vectors of an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from threading import local
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rmac.cli.array_file import ArrayFile, Container, Shape

_kept = local()  # the buffer of each thread


class Batch(NamedTuple):
    """Some rows, in blocks of equal shape. The next batch of the thread may overwrite them."""

    count: int
    blocks: list[
        tuple[slice | list[int], npt.NDArray[Any]]
    ]  # which of the rows, and these (n, ...)

    def __len__(self) -> int:
        return self.count

    def map(self, function: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """Return the results of a function for all rows, in their order."""
        if len(self.blocks) == 1:
            return function(self.blocks[0][1])
        result = None
        for rows, block in self.blocks:
            part = function(block)
            if result is None:
                result = np.empty((self.count, *part.shape[1:]), part.dtype)
            result[rows] = part
        assert result is not None
        return result


class Part(Protocol):
    """Rows of an input."""

    name: str  # in error messages
    names: Sequence[str] | None  # of the rows, if they have names

    @property
    def shapes(self) -> Sequence[Shape]:
        """The shapes of all rows; only one if they are equal."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of all rows."""

    @property
    def chunk_bytes(self) -> int:
        """Not 0 if the part cannot be shared by threads."""

    def __len__(self) -> int: ...

    def label(self, row: int) -> str:
        """Return what error messages call a row."""

    def spans(self, size: int, row_bytes: int, most: int) -> Iterator[tuple[int, int]]:
        """Yield the rows of batches of about a size; row_bytes more are counted for each row.

        Chunks of at most `most` bytes are not cut.
        """

    def read(self, first: int, last: int) -> Batch:
        """Read rows."""

    def unwritten(self, first: int, last: int) -> npt.NDArray[np.intp]:
        """Return which of the rows first:last were never written."""


@dataclass
class ArrayRows:
    """The rows of an array."""

    array: ArrayFile
    names: Sequence[str] | None = None

    @property
    def name(self) -> str:
        return self.array.name

    @property
    def shapes(self) -> Sequence[Shape]:
        return [self.array.shape[1:]]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    @property
    def chunk_bytes(self) -> int:
        return self.array.chunk_bytes

    def __len__(self) -> int:
        return self.array.shape[0]

    def label(self, row: int) -> str:
        return f"{self.name}[{row}]"

    def spans(self, size: int, row_bytes: int, most: int) -> Iterator[tuple[int, int]]:
        return array_spans(self.array, size, row_bytes, most)

    def read(self, first: int, last: int) -> Batch:
        return Batch(last - first, [(slice(None), self.array.read(first, last))])

    def unwritten(self, first: int, last: int) -> npt.NDArray[np.intp]:
        return self.array.unwritten(first, last)


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


@dataclass
class ArraysAsRows:
    """Arrays of a container, each of which is a row, and which may differ in size."""

    container: Container
    members: Sequence[int]
    names: Sequence[str]
    leading: bool  # whether they have a first axis of length 1, the row's

    @property
    def name(self) -> str:
        return self.container.path

    @cached_property
    def shapes(self) -> Sequence[Shape]:
        shapes, start = self.container.shapes, int(self.leading)
        return [shapes[i][start:] for i in self.members]

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        dtypes = self.container.dtypes
        first = dtypes[self.members[0]]
        for i in self.members:
            dtype = dtypes[i]
            if dtype is None:
                self.container.open(i)  # raises
            elif dtype != first:
                raise TypeError(
                    f"{self.container.label(i)}: expected {first}, as "
                    f"{self.container.label(self.members[0])} has, got {dtype}"
                )
        assert first is not None
        return first

    @property
    def chunk_bytes(self) -> int:
        return self.container.chunk_bytes

    @cached_property
    def _sizes(self) -> npt.NDArray[np.int64]:
        return np.array([prod(shape) for shape in self.shapes]) * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.members)

    def label(self, row: int) -> str:
        return self.container.label(self.members[row])

    def spans(self, size: int, row_bytes: int, most: int) -> Iterator[tuple[int, int]]:
        ends = np.cumsum(self._sizes + row_bytes)
        first, done = 0, 0
        while first < len(ends):
            last = max(first + 1, int(np.searchsorted(ends, done + size, "right")))
            yield first, last
            first, done = last, int(ends[last - 1])

    def read(self, first: int, last: int) -> Batch:
        alike: dict[Shape, list[int]] = {}
        for row, shape in enumerate(self.shapes[first:last]):
            alike.setdefault(shape, []).append(row)
        buffer = self._buffer(int(self._sizes[first:last].sum()))
        places: list[Any] = [None] * (last - first)
        blocks: list[tuple[slice | list[int], npt.NDArray[Any]]] = []
        at = 0
        for shape, rows in alike.items():
            size = len(rows) * prod(shape) * self.dtype.itemsize
            block = buffer[at : at + size].view(self.dtype).reshape(len(rows), *shape)
            for row, place in zip(rows, block, strict=True):
                places[row] = place
            blocks.append((rows, block))
            at += size
        self._fill(first, places)
        return Batch(last - first, blocks)

    def _buffer(self, size: int) -> npt.NDArray[np.uint8]:
        """Return memory of the thread, which its next batch overwrites."""
        kept: npt.NDArray[np.uint8] | None = getattr(_kept, "buffer", None)
        if kept is None or len(kept) < size:
            kept = _kept.buffer = np.empty(size, np.uint8)
        return kept[:size]

    def _fill(self, first: int, places: list[npt.NDArray[Any]]) -> None:
        """Read rows from one of them on into these places."""
        members = self.members[first : first + len(places)]
        if self.container.fill is not None and members[-1] - members[0] == len(members) - 1:
            self.container.fill(members[0], places)
            return
        for i, place in zip(members, places, strict=True):
            array = self.container.open(i)
            place[...] = array.read(0, array.shape[0]).reshape(place.shape)

    def unwritten(self, first: int, last: int) -> npt.NDArray[np.intp]:
        if not self.chunk_bytes:
            return np.empty(0, np.intp)
        arrays = (self.container.open(i) for i in self.members[first:last])
        missing = [len(array.unwritten(0, array.shape[0])) > 0 for array in arrays]
        return first + np.flatnonzero(missing)
