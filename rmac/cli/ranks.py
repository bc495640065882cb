"""Rankings in files, or made of descriptors in files."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rmac._dtypes import dtype_info
from rmac.cli.files import batches, naming, open_array
from rmac.cli.queries import read_whole, require_small
from rmac.cli.rows import BadRows
from rmac.evaluation import checked_ranks

if TYPE_CHECKING:
    from rmac.cli.array_file import ArrayFile

    Ranks = list[npt.NDArray[np.int64]]


def open_ranks(path: str, key: str | None = None) -> ArrayFile:
    """Open ranks (Q, M), which are integers, or descriptors (N, D), which are not."""
    file = open_array(path, key)
    if file.ndim != 2:
        expected = "ranks (Q, M) of integers, or descriptors (N, D)"
        raise ValueError(f"{file.name}: expected {expected}, got shape {file.shape}")
    if not holds_ranks(file):
        dtype_info(file.dtype, file.name)
    return file


def holds_ranks(file: ArrayFile) -> bool:
    """Return whether a file holds ranks, not descriptors."""
    return file.dtype.kind in "iu"


def read_ranks(file: ArrayFile, images: int | None = None) -> Ranks:
    """Read ranks, each less than the number of images if that is known."""
    with naming({"ranks": file.name}):
        rows = checked_ranks(read_whole(file))
    for i, row in enumerate(rows):
        if images is not None and len(row) and row.max() >= images:
            expected = f"ranks of the {images} maps, 0 to {images - 1}"
            raise ValueError(f"{file.name}[{i}]: expected {expected}, got {row.max()}")
    return rows


def rank(file: ArrayFile, queries: npt.NDArray[Any], *, strict: bool) -> Ranks:
    """Rank the descriptors of a file by their inner product with each query."""
    if file.shape[1] != queries.shape[1]:
        expected = f"{queries.shape[1]} columns, as the descriptors of queries have"
        raise ValueError(f"{file.name}: expected {expected}, got {file.shape[1]}")
    ranks = len(queries), file.shape[0]
    require_small(file, ranks, np.dtype(np.int64).itemsize, "the rank of each image")
    queries = queries.astype(dtype_info(queries.dtype).descriptor)
    similarity = np.empty((len(queries), file.shape[0]), queries.dtype)
    bad, done = BadRows(file, strict=strict), 0
    with closing(batches(file, "descriptor", similarity.itemsize * len(queries))) as parts:
        for part in parts:
            bad.add(part)
            similarity[:, done : done + len(part)] = queries @ part.astype(queries.dtype).T
            done += len(part)
    bad.tell()
    return [np.argsort(-row, kind="stable") for row in similarity]
