"""How the GPU kernels reach every region in one pass over the map.

Region edges cut the map into cells; the kernels reduce each to its maximum, and regions are maxima
of cells. `Table` says which, in the words that regions.cu explains. What is too large for one
launch is cut into several, each for some of the regions.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rmac.regions import elementary_segments

WORDS = 800  # room for tables in a launch
_EDGES = 256  # bands or segments that a byte tells apart


class Table(NamedTuple):
    """The regions that one launch pools from maps of one size."""

    words: npt.NDArray[np.int32]
    cells: int


@lru_cache(maxsize=1024)
def region_tables(boxes: bytes, most_cells: int) -> tuple[Table, ...]:
    """Return tables for the regions of (R, 4) int64 `boxes`, each of at most so many cells."""
    regions = np.frombuffer(boxes, np.int64).reshape(-1, 4)
    return tuple(_tables(regions, np.arange(len(regions)), most_cells))


def _tables(
    boxes: npt.NDArray[np.int64], numbers: npt.NDArray[np.intp], most_cells: int
) -> list[Table]:
    if not len(numbers):
        return []
    x1, y1, x2, y2 = boxes[numbers].T
    bands = elementary_segments(np.stack([y1, y2 + 1], axis=1))
    segments = elementary_segments(np.stack([x1, x2 + 1], axis=1))
    cells = len(bands) * len(segments)
    size = 3 + 2 * (len(bands) + len(segments) + len(numbers))
    if size > WORDS or cells > most_cells or max(len(bands), len(segments)) > _EDGES:
        half = len(numbers) // 2
        return [
            *_tables(boxes, numbers[:half], most_cells),
            *_tables(boxes, numbers[half:], most_cells),
        ]
    edges = (
        np.searchsorted(bands[:, 0], y1)
        | np.searchsorted(bands[:, 1], y2 + 1) << 8
        | np.searchsorted(segments[:, 0], x1) << 16
        | np.searchsorted(segments[:, 1], x2 + 1) << 24
    )
    regions = np.stack([edges, numbers], axis=1)
    head = [len(bands), len(segments), len(numbers)]
    words = np.concatenate([head, bands.ravel(), segments.ravel(), regions.ravel()])
    return [Table(words.astype(np.uint32).view(np.int32), cells)]
