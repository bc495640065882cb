"""Arrays in files, read a batch at a time, however large the file."""

from __future__ import annotations

import os
from contextlib import contextmanager
from math import prod
from typing import TYPE_CHECKING, Any

from rmac.cli.flat_files import open_npy, open_safetensors
from rmac.cli.zarr_files import open_zarr

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    import numpy.typing as npt

    from rmac.cli.array_file import ArrayFile

_BATCH = 1 << 26  # bytes of a batch


def open_array(path: str, key: str | None = None) -> ArrayFile:
    """Open the array in a .npy or .safetensors file or a Zarr folder; `key` is its name there."""
    if os.path.isdir(path):
        array = open_zarr(path, key)
    elif path.lower().endswith(".safetensors"):
        array = open_safetensors(path, key)
    else:
        array = open_npy(path, key)
    if not array.shape:
        raise ValueError(f"{array.name}: expected an array, got a single number")
    return array


@contextmanager
def naming(names: Mapping[str, str]) -> Iterator[None]:
    """Replace the name of an argument, in errors about it, by that of a file or a flag."""
    try:
        yield
    except (TypeError, ValueError) as error:
        argument, colon, message = str(error).partition(":")
        if not colon or argument not in names:
            raise
        raise type(error)(f"{names[argument]}:{message}") from None


def batches(
    array: ArrayFile, unit: str, row_bytes: int = 0
) -> Generator[npt.NDArray[Any], None, None]:
    """Yield all rows of an array, a batch at a time, with a progress bar on a terminal.

    A batch may be overwritten by the next. `row_bytes` are the bytes of the caller's result of a
    row: they count as bytes of the batch.
    """
    input_bytes = prod(array.shape[1:]) * array.dtype.itemsize
    whole_chunks = array.chunk_rows * input_bytes <= max(_BATCH, array.chunk_bytes)
    step = array.chunk_rows if whole_chunks else 1
    rows = max(1, _BATCH // max(1, input_bytes + row_bytes) // step) * step
    with _progress(array.shape[0], unit) as advance:
        for first in range(0, array.shape[0], rows):
            batch = array.read(first, min(first + rows, array.shape[0]))
            yield batch
            advance(len(batch))


@contextmanager
def _progress(total: int, unit: str) -> Iterator[Callable[[int], Any]]:
    """Show a progress bar on a terminal if tqdm is installed; yield the function to advance it."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda _count: None
        return
    with tqdm(total=total, unit=unit, disable=None) as bar:
        yield bar.update


def require_suffix(argument: str, path: str, suffix: str) -> None:
    """Raise unless the name of an output file ends in `suffix`."""
    if not path.lower().endswith(suffix):
        raise ValueError(f"{argument}: expected a name that ends in {suffix}, got {path!r}")
