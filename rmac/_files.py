"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from contextlib import contextmanager
from secrets import token_hex
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def whole_file(path: str) -> Iterator[IO[bytes]]:
    """Open a file that appears under `path` only once it is complete."""
    partial = os.path.join(os.path.dirname(path), f".rmac-{token_hex(8)}.part")
    try:
        file = open(partial, "xb")  # noqa: SIM115
    except OSError as error:
        raise OSError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        with file:
            yield file
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
