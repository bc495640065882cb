"""What every kind of file offers to the commands: arrays, read some rows at a time."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

READ = ".npy, .npz, .safetensors, .h5 and Zarr"  # the kinds of files, for messages

Shape = tuple[int, ...]

_MOST_AXES = 32  # of any NumPy
_MOST_BYTES = 1 << 62
_MOST_EMPTY = 1 << 31  # numbers, of an array that would have no bytes in the file


def _all_written(_first: int, _last: int) -> npt.NDArray[np.intp]:
    return np.empty(0, np.intp)


@dataclass(frozen=True)
class ArrayFile:
    """An array in a file. Slices of its first axis can be read."""

    name: str  # in error messages
    shape: Shape
    dtype: np.dtype[Any]
    read: Callable[[int, int], npt.NDArray[Any]]  # rows first:last; the next read replaces them
    chunk_rows: int = 1  # rows that lie together in the file
    chunk_bytes: int = 0  # bytes that are read together, whatever is asked for
    unwritten: Callable[[int, int], npt.NDArray[np.intp]] = _all_written  # which of rows first:last

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)


class Kind(NamedTuple):
    """What many arrays of a file have in common."""

    shape: Shape
    dtype: np.dtype[Any] | None  # in native byte order; None if it cannot be read


def kinds_of(kinds: Iterable[Kind]) -> tuple[list[Kind], npt.NDArray[np.intp]]:
    """Return the kinds that differ, and which of them each is."""
    known: dict[Kind, int] = {}
    which = [known.setdefault(kind, len(known)) for kind in kinds]
    return list(known), np.array(which, np.intp)


@dataclass(frozen=True)
class Container:
    """The arrays of a file or folder that may hold several. A kind of file is a function to it."""

    path: str
    names: Sequence[str]  # of the arrays, in the order of rows
    kinds: Sequence[Kind]  # of arrays; few, even if there are very many arrays
    kind_of: npt.NDArray[np.intp]  # each array
    open: Callable[[int], ArrayFile]  # raises if its dtype is None, and tells why
    # Read several arrays of one shape into a contiguous block of them. Without it they are opened
    # one by one.
    fill: Callable[[npt.NDArray[np.intp], npt.NDArray[Any]], None] | None = None
    chunk_bytes: int = 0  # not 0 if reading has threads of its own, or cannot be shared by threads
    labels: Sequence[str] | None = None  # what error messages call the arrays, if not by the path

    def shape(self, i: int) -> Shape:
        """Return the shape of an array."""
        shape: Shape = self.kinds[self.kind_of[i]].shape
        return shape

    def label(self, i: int) -> str:
        """Return what error messages call an array."""
        return f"{self.path}[{self.names[i]}]" if self.labels is None else self.labels[i]


@contextmanager
def readable(path: str, kind: str) -> Iterator[None]:
    """Turn every error into a ValueError that names the file."""
    try:
        yield
    except Exception as error:  # broken headers and compressed data raise many types of errors
        text = str(error) or type(error).__name__
        raise ValueError(f"{path}: not a {kind} that can be read: {text}") from None


def chosen_key(path: str, key: str | None, keys: Collection[str]) -> str:
    """Return the key of an array in a file: `key` if it is given, else the only one."""
    if not keys:
        raise ValueError(f"{path}: expected an array, got none")
    if key is None and len(keys) == 1:
        return next(iter(keys))
    known = f"{', '.join(sorted(keys))} in {path}"
    if key is None:
        raise ValueError(f"--key: expected one of {known}, got none")
    if key not in keys:
        raise ValueError(f"--key: expected one of {known}, got {key!r}")
    return key


def require_no_key(path: str, key: str | None) -> None:
    """Raise if a key is given for a file that is one array."""
    if key is not None:
        raise ValueError(f"--key: expected none, since {path} is one array, got {key!r}")


def checked_shape(sizes: Iterable[int], itemsize: int) -> Shape:
    """Return the shape of an array of this many bytes a number, or raise if none can have it."""
    shape = tuple(sizes)
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"its shape is {shape}")
    # NumPy counts the bytes of an array without elements as if its empty axes had one.
    size = prod(filter(None, shape)) * itemsize
    if len(shape) > _MOST_AXES or size >= (_MOST_EMPTY if 0 in shape else _MOST_BYTES):
        raise ValueError(f"its shape is {shape}")
    return shape
