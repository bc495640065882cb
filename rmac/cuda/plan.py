"""How the GPU kernels reach every region in one pass over the map.

Region edges cut the rows of a map into bands, its columns into segments, and so the map into tiles.
The kernels reduce each tile to one value, then combine the tiles of each region. Regions that need
more tiles or words than one launch holds are split into several plans.
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


class Plan(NamedTuple):
    """How one launch reaches some regions of maps of one size."""

    words: npt.NDArray[np.int32]  # tiles.cu tells their layout
    tiles: int  # that shared memory must have room for


@cached(lambda plans: sum(plan.words.nbytes for plan in plans))
def region_plans(boxes: bytes, most_tiles: int, spare: int) -> tuple[Plan, ...]:
    """Return plans for the regions of (R, 4) int64 `boxes`, each of at most `most_tiles` tiles.

    A band takes one tile for each segment, and `spare` tiles more.
    """
    regions = np.frombuffer(boxes, np.int64).reshape(-1, 4)
    return tuple(_plans(regions, np.arange(len(regions)), most_tiles, spare))


def _plans(
    boxes: npt.NDArray[np.int64], numbers: npt.NDArray[np.intp], most_tiles: int, spare: int
) -> list[Plan]:
    """Return plans for the regions with these numbers."""
    if not len(numbers):
        return []
    x1, y1, x2, y2 = boxes[numbers].T
    bands = elementary_segments(np.stack([y1, y2 + 1], axis=1))
    segments = elementary_segments(np.stack([x1, x2 + 1], axis=1))
    tiles = len(bands) * (len(segments) + spare)
    size = 3 + 2 * (len(bands) + len(segments) + len(numbers))
    too_many = len(bands) > _MOST_BANDS or len(segments) > _MOST_SEGMENTS
    if too_many or tiles > most_tiles or size > PLAN_WORDS:
        half = len(numbers) // 2
        return [
            *_plans(boxes, numbers[:half], most_tiles, spare),
            *_plans(boxes, numbers[half:], most_tiles, spare),
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
