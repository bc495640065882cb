"""Files that are written whole or not at all."""

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
    """Open a file that appears under `path`, which is none of `sources`, once it is complete."""
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
    """Return the real path of a file that may be written, or raise."""
    target = os.path.realpath(path)
    if not path or not os.path.isdir(os.path.dirname(target)):
        raise FileNotFoundError(f"{path!r}: cannot be written: no such folder")
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(target).st_mode):
            raise FileExistsError(f"{path}: expected a file to write, got something else")
    for source in map(os.path.realpath, sources):
        if os.path.commonpath([source, target]) == source:  # or it lies in the folder
            raise FileExistsError(f"{path}: the output would replace the input {source}")
    return target
