"""How the GPU kernels reach every region in one pass over the map.

Region edges cut the rows of a map into bands, its columns into segments, and so the map into tiles.
The kernels reduce each tile to one value, then combine the tiles of each region. Regions that need
more tiles or words than one launch holds are split into several plans.

Sums need an order of additions that does not change, so each tile is summed by one thread. A
thread takes chunks: some neighbouring columns. Segments are also cut where chunks end, so that no
tile lies in two chunks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rmac._caches import cached
from rmac._cuts import elementary_segments
from rmac.cuda.structs import PLAN_WORDS

# Of a plan. The span of a region has one byte each for the numbers of its bands and segments.
_MOST_BANDS = _MOST_SEGMENTS = 256

# The columns of a chunk: at least 4, and so many that a map has at most 64 chunks; not measured.
# With more columns, fewer threads have work; with fewer, a region has more tiles to add. The number
# is a power of 2, like the elements of a load: a load is part of one chunk, or it is whole chunks.
_LEAST_CHUNK, _MOST_CHUNKS = 4, 64
# Maps with at most so many columns have chunks of one column, if whole chunks do not fill a row.
# Their loads take one element each, and neighbouring threads load neighbours. Not measured.
_NARROW = 32


class Plan(NamedTuple):
    """How one launch reaches some regions of maps of one size."""

    words: npt.NDArray[np.int32]  # tiles.cu tells their layout
    tiles: int  # that shared memory must have room for


def chunk_width(width: int) -> int:
    """Return the columns of a chunk. Sums depend on it, so it depends on the width alone."""
    columns = 1 if width <= _NARROW and width % _LEAST_CHUNK else _LEAST_CHUNK
    while columns * _MOST_CHUNKS < width:
        columns *= 2
    return columns


@cached(lambda plans: sum(plan.words.nbytes for plan in plans))
def region_plans(
    boxes: bytes, most_tiles: int, spare: int, width: int | None = None
) -> tuple[Plan, ...]:
    """Return plans for the regions of (R, 4) int64 `boxes`, each of at most `most_tiles` tiles.

    A band has one tile for each segment, and `spare` more. If the `width` of the maps is given,
    segments are also cut where chunks end. Then all columns are in segments, and all rows from the
    first of a region to the last are in bands.
    """
    regions = np.frombuffer(boxes, np.int64).reshape(-1, 4)
    chunks = np.empty((0, 2), np.int64)
    if width is not None:
        starts = np.arange(0, width, chunk_width(width))
        chunks = np.stack([starts, np.append(starts[1:], width)], axis=1)
    return tuple(_plans(regions, np.arange(len(regions)), most_tiles, spare, chunks))


def _plans(
    boxes: npt.NDArray[np.int64],
    numbers: npt.NDArray[np.intp],
    most_tiles: int,
    spare: int,
    chunks: npt.NDArray[np.int64],
) -> list[Plan]:
    """Return plans for the regions with these numbers."""
    if not len(numbers):
        return []
    x1, y1, x2, y2 = boxes[numbers].T
    rows, columns = np.stack([y1, y2 + 1], axis=1), np.stack([x1, x2 + 1], axis=1)
    if len(chunks):
        rows = np.append(rows, [[rows.min(), rows.max()]], axis=0)
        columns = np.append(columns, chunks, axis=0)
    bands, segments = elementary_segments(rows), elementary_segments(columns)
    tiles = len(bands) * (len(segments) + spare)
    size = 3 + 2 * (len(bands) + len(segments) + len(numbers))
    too_many = len(bands) > _MOST_BANDS or len(segments) > _MOST_SEGMENTS
    if too_many or tiles > most_tiles or size > PLAN_WORDS:
        half = len(numbers) // 2
        return [
            *_plans(boxes, numbers[:half], most_tiles, spare, chunks),
            *_plans(boxes, numbers[half:], most_tiles, spare, chunks),
        ]
    spans = (
        np.searchsorted(bands[:, 0], y1)
        | np.searchsorted(bands[:, 1], y2 + 1) << 8
        | np.searchsorted(segments[:, 0], x1) << 16
        | np.searchsorted(segments[:, 1], x2 + 1) << 24
    )
    regions = np.stack([spans, numbers], axis=1)
    head = [len(bands), len(segments), len(numbers)]
    words = np.concatenate([head, bands.ravel(), segments.ravel(), regions.ravel()])
    return [Plan(words.astype(np.uint32).view(np.int32), tiles)]
