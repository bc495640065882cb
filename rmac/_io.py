"""Output files: complete, or not there at all."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager, suppress
from secrets import token_hex
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@contextmanager
def atomic_write(path: str, *sources: str) -> Iterator[IO[bytes]]:
    """Open a file for writing that appears under `path` when it is complete.

    `path` must not be one of the input files `sources`, nor lie in one that is a folder.
    """
    target = _writable(path, sources)
    partial = os.path.join(os.path.dirname(target), f".rmac-{token_hex(8)}.part")
    try:
        with open(partial, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            os.chmod(partial, stat.S_IMODE(os.stat(target).st_mode))
        os.replace(partial, target)
    except BaseException as error:
        with suppress(FileNotFoundError):
            os.unlink(partial)
        if isinstance(error, OSError) and error.errno and error.filename in (None, partial):
            raise OSError(f"{path}: cannot be written: {error.strerror}") from None
        raise


def _writable(path: str, sources: Sequence[str]) -> str:
    """Return the path of the output file with links resolved, or raise."""
    target = os.path.realpath(path)
    if not path or not os.path.isdir(os.path.dirname(target)):
        raise FileNotFoundError(f"{path!r}: cannot be written: no such folder")
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(target).st_mode):
            raise FileExistsError(f"{path}: expected a file to write, got something else")
    for source in map(os.path.realpath, sources):
        if os.path.commonpath([source, target]) == source:  # it is the input, or lies inside
            raise FileExistsError(f"{path}: the output would replace the input {source}")
    return target
