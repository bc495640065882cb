"""Arrays in files, read a batch at a time, however large the file."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from math import prod
from typing import TYPE_CHECKING, Any, TypeVar

from rmac._terminal import is_on_terminal
from rmac.cli.flat_files import open_npy, open_safetensors
from rmac.cli.zarr_files import open_zarr

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping

    import numpy.typing as npt

    from rmac.cli.array_file import ArrayFile

Result = TypeVar("Result")

_BATCH = 1 << 26  # bytes of a batch
_TILE = 1 << 22  # bytes of a batch in one of several threads: it is still in the cache when used


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
    """Replace the name of an argument, in errors about it, by that of a file or a flag.

    Of ``argument[3]`` only the name before the bracket is replaced.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        argument, colon, message = str(error).partition(":")
        argument, bracket, item = argument.partition("[")
        if not colon or argument not in names:
            raise
        raise type(error)(f"{names[argument]}{bracket}{item}:{message}") from None


def batches(
    array: ArrayFile,
    unit: str,
    row_bytes: int = 0,
    function: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None = None,
    threads: int = 1,
) -> Generator[npt.NDArray[Any], None, None]:
    """Yield all rows of an array, a batch at a time, with a progress bar on a terminal.

    A batch may be overwritten by the next. `row_bytes` are the bytes of the caller's result of a
    row: they count as bytes of the batch. With a `function`, its results are yielded, in the same
    order; with more `threads`, they are computed in these, from smaller batches.
    """
    starts = batch_starts(array, row_bytes, threads)

    def work(first: int) -> npt.NDArray[Any]:
        part = array.read(first, min(first + starts.step, array.shape[0]))
        return part if function is None else function(part)

    with (
        progress(array.shape[0], unit) as advance,
        closing(_in_order(work, starts, threads)) as results,
    ):
        for result in results:
            yield result
            advance(len(result))


def batch_starts(array: ArrayFile, row_bytes: int = 0, threads: int = 1) -> range:
    """Return the first row of each batch; the step is the rows of a batch."""
    input_bytes = prod(array.shape[1:]) * array.dtype.itemsize
    whole_chunks = array.chunk_rows * input_bytes <= max(_BATCH, array.chunk_bytes)
    step = array.chunk_rows if whole_chunks else 1
    size = _BATCH if threads == 1 else min(_BATCH, _TILE)
    rows = max(1, size // max(1, input_bytes + row_bytes) // step) * step
    return range(0, array.shape[0], rows)


def _in_order(
    work: Callable[[int], Result], items: Iterable[int], threads: int
) -> Generator[Result, None, None]:
    """Yield the results of `work`, computed in threads; few of them wait to be taken."""
    if threads == 1:
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # an interrupted command ends at once


@contextmanager
def progress(total: int, unit: str) -> Iterator[Callable[[int], Any]]:
    """Show a progress bar on a terminal if tqdm is installed; yield the function to advance it."""
    try:
        if not is_on_terminal():
            raise ImportError
        from tqdm import tqdm
    except ImportError:
        yield lambda _count: None
        return
    with tqdm(total=total, unit=unit) as bar:
        yield bar.update


def require_suffix(argument: str, path: str, suffix: str) -> None:
    """Raise unless the name of an output file ends in `suffix`."""
    if not path.lower().endswith(suffix):
        raise ValueError(f"{argument}: expected a name that ends in {suffix}, got {path!r}")
