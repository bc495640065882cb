"""How boxes are searched: which boxes are candidates, and what the kernels get of the queries."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rmac._caches import cached
from rmac._dtypes import DTYPES, Kind
from rmac._options import MAX_POOLING
from rmac.cpu import levels
from rmac.cpu.isa import boxes as kernels
from rmac.cpu.isa import kernels as teams
from rmac.cpu.route import kernel_spec, threads_for
from rmac.cpu.tables import LINE_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rmac._options import SearchOptions

Array = npt.NDArray[Any]
Index = npt.NDArray[np.intp]

_MOST_OF_DIGITS = 127 * (1 + 256 + 65536)  # the largest number of three signed bytes
_LEVELS = 8
_MOST_PAIRS = 1 << 27  # of a height and a width, for all aspects
_WORK = 8  # bytes of maps that take as long to pool as one byte to search


class Candidates(NamedTuple):
    """Boxes of maps of one size, by height, first row and width."""

    # (K, 8): a height; the least width of this height or a larger one; the first rows of boxes,
    # which are the strips; the strips and the sums before them; sums of a strip; its runs
    heights: Index
    runs: Index  # (R, 4): a width, boxes of it in a strip, the first query and how many there are
    strips: int
    sums: int  # of all boxes: one of squares, and one of products for each query
    step: int  # cells between boxes


class Options(NamedTuple):
    """What `rmac.cpu.boxes.search` needs to know."""

    rounded: bool  # whether scores are rounded to float32
    small_first: bool  # whether fewer cells are better at equal scores
    grid: bool  # whether the best box is refined
    refine: int
    sweeps: int
    lanes: int = 0  # channels of a tile
    digits: bool = False  # whether queries are digits of bytes


def search_boxes(
    batches: Sequence[Array],
    queries: npt.NDArray[np.float64],
    aspects: Sequence[float | None],
    options: SearchOptions,
    workers: int | None,
) -> tuple[npt.NDArray[np.int64], Array]:
    """Return the best boxes (Q, N, 4) of all maps, and their scores (Q, N)."""
    info = DTYPES[batches[0].dtype.name]
    images = sum([len(x) for x in batches])
    boxes = np.empty((images, len(queries), 4), np.int64)
    scores = np.empty((images, len(queries)))
    order = sorted(range(len(aspects)), key=lambda i: aspects[i] or 0.0)
    if boxes.size:
        size = sum([x.nbytes for x in batches])
        threads = teams.team(threads_for(workers, _WORK * size))
        settings = Options(
            info.descriptor == np.float32,
            options.name == "best",
            options.name == "grid",
            options.refine,
            options.sweeps,
        )
        step = 0 if options.name == "best" else options.step
        counts = Counter([aspects[i] or 0.0 for i in order])
        asked = tuple(counts.items()), options.tolerance, step, options.name == "aml"
        tables = [candidates(x.shape[2], x.shape[3], *asked) for x in batches]
        search = _search_levels if options.name == "aml" else _search
        search(batches, tables, queries[order], settings, threads, boxes, scores)
    by_query = np.empty((len(queries), images, 4), np.int64)
    of_query = np.empty((len(queries), images), info.descriptor)
    by_query[order], of_query[order] = boxes.transpose(1, 0, 2), scores.T
    return by_query, of_query


def _search(
    batches: Sequence[Array],
    tables: list[Candidates],
    queries: npt.NDArray[np.float64],
    options: Options,
    threads: int,
    boxes: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float64],
) -> None:
    """Write the best boxes (N, Q, 4) and scores; sum in float32 first, if that may be enough."""
    spec = kernel_spec(batches[0].dtype, MAX_POOLING)
    overflows = np.ones(len(boxes), np.int8)
    units = _unit_vectors(queries)
    if spec.kind != Kind.FLOAT64:
        overflows[:] = 0
        if spec.kind == Kind.UINT8 and not options.grid and kernels.has_byte_products():
            lanes = _lanes(queries.shape[1], kernels.LINES_OF_DIGITS * LINE_BYTES, LINE_BYTES)
            options = options._replace(lanes=lanes, digits=True)
            vectors = digits(units, lanes)
        else:
            lanes = _lanes(
                queries.shape[1],
                kernels.LINES_OF_NUMBERS * LINE_BYTES // 4,
                LINE_BYTES // spec.itemsize,
            )
            options = options._replace(lanes=lanes)
            vectors = tiles(units, lanes, np.float32)
        kernels.search(
            list(batches), tables, spec, vectors, options, boxes, scores, overflows, threads
        )
    again = np.flatnonzero(overflows)
    if len(again):
        maps = [
            (x[i : i + 1], table) for x, table in zip(batches, tables, strict=True)
            for i in range(len(x))
        ]  # fmt: skip
        some, of_some = np.empty_like(boxes[again]), np.empty_like(scores[again])
        lanes = _lanes(
            queries.shape[1], kernels.LINES_OF_NUMBERS * LINE_BYTES // 8, LINE_BYTES // 8
        )
        kernels.search(
            [maps[i][0] for i in again], [maps[i][1] for i in again], spec,
            tiles(units, lanes, np.float64), options._replace(lanes=lanes, digits=False),
            some, of_some, np.empty(len(again), np.int8), threads,
        )  # fmt: skip
        boxes[again], scores[again] = some, of_some


def _search_levels(
    batches: Sequence[Array],
    tables: list[Candidates],
    queries: npt.NDArray[np.float64],
    options: Options,
    threads: int,
    boxes: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float64],
) -> None:
    """Write the best boxes (N, Q, 4) and scores of levels, as aml.c does."""
    spec = kernel_spec(batches[0].dtype, MAX_POOLING)
    norms = np.array([math.sqrt(sum(v * v for v in query)) for query in queries.tolist()])
    levels.search(
        list(batches), tables, spec, POWERS, ROOTS, np.ascontiguousarray(queries), norms, options,
        boxes, scores, threads,
    )  # fmt: skip


def _roots() -> Array:
    """Return the roots of aml.c for the sums from each quarter of a power of 2 to the next.

    A root is twice the number of thresholds 1^10, 3^10, 5^10 ... below the sum. No quarter has two.
    """
    thresholds = [(2 * k + 1) ** 10 for k in range(39)]
    table = np.zeros(64 * 4, [("root", np.float64), ("threshold", np.int64)])
    for i in range(len(table)):
        start = (4 + i % 4) << (i // 4)  # of 4 times the sums
        below = sum(4 * threshold < start for threshold in thresholds)
        table[i] = 2 * below, thresholds[below] if below < len(thresholds) else 2**63 - 1
    return table.view(np.int8)


# Values above 8 are no levels; aml.c does not say what they are.
POWERS = np.arange(256, dtype=np.int64) ** np.where(np.arange(256) <= _LEVELS, 10, 0)
ROOTS = _roots()


def _unit_vectors(queries: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return queries of length 1; one of zeros stays."""
    with np.errstate(over="ignore"):
        squares = (queries * queries).sum(axis=1, keepdims=True)
    if ((squares > 1e-200) & (squares < 1e200)).all():
        return np.asarray(queries / np.sqrt(squares))
    with np.errstate(invalid="ignore"):
        largest = abs(queries).max(axis=1, keepdims=True, initial=0)
        scaled = queries / np.where(largest == 0, 1, largest)
        norms = np.sqrt((scaled * scaled).sum(axis=1, keepdims=True))
        return np.asarray(scaled / np.where(norms == 0, 1, norms))


def _lanes(channels: int, most: int, line: int) -> int:
    """Return the channels of a tile: whole lines."""
    return min(most, -(-max(channels, 1) // line) * line)


def tiles(units: npt.NDArray[np.float64], lanes: int, dtype: Any) -> Array:
    """Return queries as (tile, query, lane); channels that the last tile lacks are 0."""
    count, channels = units.shape
    out = np.zeros((count, -(-channels // lanes) * lanes), dtype)
    out[:, :channels] = units
    return np.ascontiguousarray(out.reshape(count, -1, lanes).transpose(1, 0, 2))


def digits(units: npt.NDArray[np.float64], lanes: int) -> Array:
    """Return queries as three signed bytes for each lane, and by what products are multiplied.

    This is the memory that scores.h describes: (tile, query, byte), as float32. Elements are
    multiplied by a power of 2 and rounded.
    """
    largest = abs(units).max(axis=1, initial=0)
    known = np.isfinite(largest) & (largest > 0)
    power = np.floor(np.log2(_MOST_OF_DIGITS / np.where(known, largest, 1)))
    whole = tiles(np.rint(np.where(known, units.T, 0).T * 2.0 ** power[:, None]), lanes, np.int64)
    parts = np.empty((*whole.shape[:2], 3, lanes), np.int8)
    for i in (2, 1, 0):
        parts[:, :, i] = (whole + 128 & 255) - 128
        whole = whole - parts[:, :, i] >> 8
    out = np.zeros((*whole.shape[:2], 3 * lanes + LINE_BYTES), np.int8)
    out[:, :, : 3 * lanes] = parts.reshape(*whole.shape[:2], -1)
    scales = np.where(known | (largest == 0), 2.0**-power, np.nan).astype(np.float32)
    out[:, :, 3 * lanes : 3 * lanes + 4] = scales[:, None].view(np.int8)
    return out.view(np.float32)


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
