"""Queries in files, for the commands that look for them in feature maps."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

import rmac
from rmac._arrays import box_in_each, feature_views
from rmac._backend import HOST
from rmac._dtypes import dtype_info
from rmac.cli.files import batch_spans, naming, open_array
from rmac.cli.rows import BadRows

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    from rmac.cli.array_file import ArrayFile

    Describe = Callable[[list[npt.NDArray[Any]]], npt.NDArray[Any]]

# The options of `rmac.localize` without the aspect, which the query itself may give.
SEARCH_OPTIONS = ("search", "tolerance", "step", "refine", "sweeps", "layout", "workers")


# Compressed data of some MB can claim to hold these.
_MOST_BYTES = 1 << 30  # that are in memory at once
_MOST_QUERIES = 1 << 20


class Queries(NamedTuple):
    """Q queries, as `rmac.localize` takes them, and what else the caller wants of them."""

    maxima: npt.NDArray[Any]  # (Q, C)
    aspects: npt.NDArray[np.float64] | None  # (Q,): height / width
    descriptors: npt.NDArray[Any]  # (Q, D)


def search_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `rmac.localize` that were given, without the aspect."""
    given = vars(options)
    return {name: given[name] for name in SEARCH_OPTIONS if name in given}


def open_queries(path: str) -> ArrayFile:
    """Open the array of queries, or of their boxes; there is no --key for it."""
    with naming({"--key": path}):
        file = open_array(path)
    if not file.shape[0]:
        raise ValueError(f"{file.name}: expected at least one query, got none")
    if file.shape[0] > _MOST_QUERIES:
        raise ValueError(
            f"{file.name}: expected at most {_MOST_QUERIES} queries, got {file.shape[0]}"
        )
    return file


def read_vectors(file: ArrayFile, options: argparse.Namespace) -> Queries:
    """Read queries that are vectors of maxima (Q, C)."""
    if options.boxes is not None:
        raise ValueError(f"--boxes: expected none, since {file.name} is vectors (Q, C)")
    vectors = read_whole(file)
    _tell_bad(file, vectors, strict=options.strict)
    return Queries(vectors, _given_aspects(options, len(vectors)), vectors[:, :0])


def read_maps(
    file: ArrayFile, options: argparse.Namespace, describe: Describe | None = None
) -> Queries:
    """Read queries that are feature maps, or boxes on them; also describe them if asked."""
    boxes = _read_boxes(options.boxes, file)
    layout = getattr(options, "layout", "NCHW")
    maxima, aspects, descriptors = [], [], []
    for span in batch_spans(file):
        place = slice(*span)
        with naming({"x": file.name, "boxes": str(options.boxes)}):
            part = file.read(*span)
            crops = list(_crops(part, None if boxes is None else boxes[place], layout))
            maxima += [_maxima(crop) for crop in crops]
            descriptors += [] if describe is None else [describe(crops)]
        aspects += [crop.shape[1] / crop.shape[2] for crop in crops]
    vectors = np.stack(maxima)
    _tell_bad(file, vectors, strict=options.strict)
    given = _given_aspects(options, len(vectors))
    return Queries(
        vectors,
        np.array(aspects) if given is None else given,
        np.concatenate(descriptors or [vectors[:, :0]]),
    )


def _given_aspects(options: argparse.Namespace, count: int) -> npt.NDArray[np.float64] | None:
    return np.full(count, options.aspect) if options.aspect is not None else None


def _read_boxes(path: str | None, file: ArrayFile) -> npt.NDArray[Any] | None:
    """Return the box of each query in a file, or None if no boxes are given."""
    if path is None:
        return None
    boxes = open_queries(path)
    if boxes.shape != (file.shape[0], 4):
        raise ValueError(
            f"{path}: expected shape {(file.shape[0], 4)}, a box for each map of {file.name}, "
            f"got {boxes.shape}"
        )
    return read_whole(boxes)


def _crops(
    part: npt.NDArray[Any], boxes: npt.NDArray[Any] | None, layout: Any
) -> Iterator[npt.NDArray[Any]]:
    """Yield what is inside the box of each map, or the whole maps, as views (C, h, w)."""
    (maps,), _ = feature_views(HOST, part, layout)
    if boxes is None:
        yield from maps
        return
    for view, (x1, y1, x2, y2) in zip(maps, box_in_each(boxes, list(maps)), strict=True):
        yield view[:, y1 : y2 + 1, x1 : x2 + 1]


def _maxima(crop: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the maximum of each channel as the dtype of descriptors."""
    height, width = crop.shape[1:]
    pooled = rmac.region_pool(crop[None], [[0, 0, width - 1, height - 1]])[0, 0]
    result: npt.NDArray[Any] = pooled.astype(dtype_info(pooled.dtype).descriptor)
    return result


def read_whole(file: ArrayFile) -> npt.NDArray[Any]:
    """Read all rows of a file, or raise if they are too many."""
    require_small(file, file.shape, file.dtype.itemsize, "the array")
    return np.array(file.read(0, file.shape[0]))


def require_small(file: ArrayFile, shape: Sequence[int], itemsize: int, what: str) -> None:
    """Raise if an array of this shape, which is made of a file, would take too much memory."""
    if prod(shape) * itemsize > _MOST_BYTES:
        raise ValueError(
            f"{file.name}: expected at most {_MOST_BYTES} bytes, since {what} is in memory at "
            f"once, got shape {tuple(shape)} of {itemsize} bytes each"
        )


def _tell_bad(file: ArrayFile, vectors: npt.NDArray[Any], *, strict: bool) -> None:
    bad = BadRows(file, strict=strict)
    bad.add(vectors)
    bad.tell()
