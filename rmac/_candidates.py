"""Which boxes of maps of one size are compared with queries."""

from __future__ import annotations

import math
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from rmac._caches import cached

if TYPE_CHECKING:
    from collections.abc import Sequence

Index = npt.NDArray[np.intp]

_MOST_PAIRS = 1 << 27  # of a height and a width, for all aspects


class Candidates(NamedTuple):
    """Boxes of maps of one size, by height, first row and width."""

    # (K, 8): a height; the least width of this height or a larger one; the first rows of boxes,
    # which are the strips; the strips and the sums before them; sums of a strip; its runs
    heights: Index
    runs: Index  # (R, 4): a width, boxes of it in a strip, the first query and how many there are
    strips: int
    sums: int  # of all boxes: one of squares, and one of products for each query
    step: int  # cells between boxes


def sort_aspects(
    aspects: Sequence[float | None],
) -> tuple[list[int], tuple[tuple[float, int], ...]]:
    """Return the order of queries by their aspects, and each aspect with its number of queries.

    None is any aspect, which is 0 here.
    """
    numbers = [aspect or 0.0 for aspect in aspects]
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    groups = groupby([numbers[i] for i in order])
    return order, tuple([(aspect, len(list(group))) for aspect, group in groups])


@cached(lambda table: table.heights.nbytes + table.runs.nbytes)
def candidates(
    height: int,
    width: int,
    aspects: tuple[tuple[float, int], ...],
    tolerance: float,
    step: int,
    as_paper: bool,
) -> Candidates:
    """Return the boxes to compare with queries of some aspects: of a grid, or all with step 0.

    Aspects, each with its number of queries, are sorted; 0 is any. If no box has the aspect, and
    there is no grid, the box is the whole map.
    """
    if height * width * len(aspects) > _MOST_PAIRS:
        raise MemoryError(f"x: maps of {height}x{width} cells have too many boxes to search")
    wanted = np.array([aspect for aspect, _ in aspects])
    stops = np.cumsum([0] + [count for _, count in aspects])
    allowed = _allowed(height, width, wanted, tolerance, as_paper)
    if step:
        ends = [(np.arange(size) - 1) % step == 0 for size in (height, width)]
        ends[0][0] = ends[1][0] = False
        allowed &= ends[0][:, None, None] & ends[1][:, None]
    else:
        allowed[-1, -1] |= ~allowed.any(axis=(0, 1))
    edges = np.diff(np.pad(allowed.astype(np.int8), [(0, 0), (0, 0), (1, 1)]))
    h, w, first = np.nonzero(edges == 1)  # where aspects begin that a box may have
    last = np.nonzero(edges == -1)[2]
    every = max(step, 1)
    columns = (width - 1 - w) // every + 1
    runs = np.stack([w + 1, columns, stops[first], stops[last] - stops[first]], axis=1)
    found, start = np.unique(h, return_index=True)
    least = np.minimum.accumulate(runs[start, 0][::-1])[::-1]
    rows = (height - 1 - found) // every + 1
    ends_of_sums = np.append(0, np.cumsum(columns * (1 + runs[:, 3])))
    stop = np.append(start, len(h))[1:]
    sums = ends_of_sums[stop] - ends_of_sums[start]
    before = [np.cumsum(rows) - rows, np.cumsum(rows * sums) - rows * sums]
    heights = np.stack([found + 1, least, rows, *before, sums, start, stop], axis=1)
    return Candidates(
        heights.astype(np.intp),
        runs.astype(np.intp),
        int(rows.sum()),
        int((rows * sums).sum()),
        every,
    )


def _allowed(
    height: int, width: int, wanted: npt.NDArray[np.float64], tolerance: float, as_paper: bool
) -> npt.NDArray[np.bool_]:
    """Return whether boxes have an aspect: (H, W, aspect), by height and width less 1.

    The logarithms of aml.c round differently from those of the definition.
    """
    heights, widths = np.arange(1, height + 1)[:, None, None], np.arange(1, width + 1)[:, None]
    with np.errstate(divide="ignore", over="ignore"):
        if as_paper:
            ratios = wanted / (heights / widths)
            off = np.reshape(
                [abs(math.log(r)) if r else math.inf for r in ratios.flat], ratios.shape
            )
        else:
            off = abs(np.log(wanted * widths / heights))
    return np.asarray((off <= math.log(tolerance)) | (wanted == 0))
