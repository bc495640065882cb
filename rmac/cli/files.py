"""Arrays in files, read a batch at a time, however large the file."""

from __future__ import annotations

from contextlib import closing, contextmanager
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from rmac._terminal import is_on_terminal
from rmac.cli.array_file import ArrayFile, Container, chosen_key, require_no_key
from rmac.cli.formats import open_file, split_path
from rmac.cli.parts import array_spans
from rmac.cli.pool import in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping

    import numpy.typing as npt

    from rmac.cli.inputs import Inputs
    from rmac.cli.parts import Rows, Tile

_BATCH = 1 << 26  # bytes of a batch
_TILE = 1 << 22  # bytes of a batch in one of several threads: it is still in the cache when used


def open_array(path: str, key: str | None = None) -> ArrayFile:
    """Open the array of a file of any kind; `key`, or what follows the file's path, is its name."""
    path, inside = split_path(path)
    key = "/".join(filter(None, (inside, key))) or None
    opened = open_file(path)
    if isinstance(opened, Container):
        places = {name: i for i, name in enumerate(opened.names)}
        array = opened.open(places[chosen_key(path, key, places)])
    else:
        require_no_key(path, key)
        array = opened
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
    source: ArrayFile | Inputs, unit: str, row_bytes: int = 0
) -> Generator[Any, None, None]:
    """Yield all rows of an array, or batches of inputs, with a progress bar on a terminal.

    A batch may be overwritten by the next. `row_bytes` are the bytes of the caller's result of a
    row: they count as bytes of the batch.
    """
    with progress(source.shape[0], unit) as advance:
        for span in batch_spans(source, row_bytes):
            part = (
                source.read(*span) if isinstance(source, ArrayFile) else source.read(*span, _BATCH)
            )
            yield part
            advance(len(part))


def results(
    source: Inputs,
    unit: str,
    like: npt.NDArray[Any],
    function: Callable[[Tile], Iterable[tuple[Rows, npt.NDArray[Any]]]],
    threads: int = 1,
) -> Generator[npt.NDArray[Any], None, None]:
    """Yield the results of all rows of inputs in order, some rows at a time; they are like `like`.

    The function returns those of the rows of a tile, in any order. It runs in threads.
    """
    row_bytes = prod(like.shape[1:]) * like.itemsize

    def tiles() -> Iterator[tuple[npt.NDArray[Any], Callable[[], Tile], bool]]:
        for span in batch_spans(source, row_bytes, threads):
            batch = source.read(*span, _batch_size(threads))
            result = np.empty((len(batch), *like.shape[1:]), like.dtype)
            *others, last = batch.tiles
            yield from ((result, tile, False) for tile in others)
            yield result, last, True

    def work(item: tuple[npt.NDArray[Any], Callable[[], Tile], bool]) -> npt.NDArray[Any] | None:
        result, tile, is_last = item
        for rows, values in function(tile()):
            result[rows] = values
        return result if is_last else None  # when it is taken, all tiles before are done

    with (
        progress(source.shape[0], unit) as advance,
        closing(in_order(work, tiles(), threads)) as done,
    ):
        for result in done:
            if result is not None:
                yield result
                advance(len(result))


def _batch_size(threads: int) -> int:
    return _BATCH if threads == 1 else min(_BATCH, _TILE)


def batch_spans(
    source: ArrayFile | Inputs, row_bytes: int = 0, threads: int = 1
) -> Iterator[tuple[int, int]]:
    """Yield the first row of each batch and the row after its last."""
    size = _batch_size(threads)
    if isinstance(source, ArrayFile):
        return array_spans(source, size, row_bytes, _BATCH)
    return source.spans(size, row_bytes, _BATCH)


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


def require_suffix(argument: str, path: str, *suffixes: str) -> None:
    """Raise unless the name of an output file ends in one of the suffixes."""
    if not path.lower().endswith(suffixes):
        expected = " or ".join(suffixes)
        raise ValueError(f"{argument}: expected a name that ends in {expected}, got {path!r}")
