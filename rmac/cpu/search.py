"""How boxes are searched: what the kernels get of the queries, and how often they run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rmac._candidates import Candidates, candidates, sort_aspects
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
    from rmac.cpu.tables import KernelSpec

Array = npt.NDArray[Any]

_MOST_OF_DIGITS = 127 * (1 + 256 + 65536)  # the largest number of three signed bytes
_LEVELS = 8
_WORK = 8  # bytes of maps that take as long to pool as one byte to search


class Options(NamedTuple):
    """What `rmac.cpu.boxes.search` needs to know."""

    rounded: bool  # whether scores are rounded to float32
    small_first: bool  # whether fewer cells are better at equal scores
    grid: bool  # whether the best box is refined
    refine: int
    sweeps: int
    lanes: int = 0  # channels of a tile
    digits: bool = False  # whether queries are digits of bytes
    wide: bool = False  # whether a tile has all channels, and each box is scaled by itself


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
    order, counts = sort_aspects(aspects)
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
        asked = counts, options.tolerance, step, options.name == "aml"
        tables = [candidates(x.shape[2], x.shape[3], *asked) for x in batches]
        search = _search_levels if options.name == "aml" else _search
        search(batches, tables, queries[order], settings, threads, boxes, scores)
    by_query, of_query = boxes.transpose(1, 0, 2), scores.T.astype(info.descriptor, copy=False)
    if len(counts) > 1:
        places = np.argsort(order)
        by_query, of_query = by_query[places], of_query[places]
    return np.ascontiguousarray(by_query), np.ascontiguousarray(of_query)


def _search(
    batches: Sequence[Array],
    tables: list[Candidates],
    queries: npt.NDArray[np.float64],
    options: Options,
    threads: int,
    boxes: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float64],
) -> None:
    """Write the best boxes (N, Q, 4) and scores.

    Sums are in float32 first, if that may be enough; then in float64; then each box is scaled.
    """
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
    again = overflows.nonzero()[0]
    if len(again):
        lanes = _lanes(
            queries.shape[1], kernels.LINES_OF_NUMBERS * LINE_BYTES // 8, LINE_BYTES // 8
        )
        options = options._replace(lanes=lanes, digits=False)
        vectors = tiles(units, lanes, np.float64)
        again = _search_again(
            again, batches, tables, spec, vectors, options, boxes, scores, threads
        )
    if len(again):
        lanes = _lanes(queries.shape[1], queries.shape[1] + LINE_BYTES, LINE_BYTES // 8)
        options = options._replace(lanes=lanes, wide=True)
        vectors = tiles(units, lanes, np.float64)
        _search_again(again, batches, tables, spec, vectors, options, boxes, scores, threads)


def _search_again(
    images: npt.NDArray[np.intp],
    batches: Sequence[Array],
    tables: list[Candidates],
    spec: KernelSpec,
    vectors: Array,
    options: Options,
    boxes: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float64],
    threads: int,
) -> npt.NDArray[np.intp]:
    """Search some images with other sums; return those whose squares may overflow in them."""
    maps = [
        (x[i : i + 1], table) for x, table in zip(batches, tables, strict=True)
        for i in range(len(x))
    ]  # fmt: skip
    some, of_some = np.empty_like(boxes[images]), np.empty_like(scores[images])
    overflows = np.zeros(len(images), np.int8)
    kernels.search(
        [maps[i][0] for i in images], [maps[i][1] for i in images], spec, vectors, options,
        some, of_some, overflows, threads,
    )  # fmt: skip
    boxes[images], scores[images] = some, of_some
    return np.asarray(images[overflows != 0])


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
    """Return queries of length 1; one of zeros stays. None depends on another."""
    squares = (queries * queries).sum(axis=1, keepdims=True)
    in_range = (squares > 1e-200) & (squares < 1e200)
    if in_range.all():
        return np.asarray(queries / np.sqrt(squares))
    largest = abs(queries).max(axis=1, keepdims=True, initial=0)
    scaled = queries / np.where(in_range | (largest == 0), 1, largest)
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
    scaled = np.where(known[:, None], units, 0) * 2.0 ** power[:, None]
    # This adds 128 to each signed byte, so that no byte is negative; XOR takes it away again.
    biased = tiles(np.rint(scaled), lanes, np.int32) + np.int32(0x808080)
    parts = biased.view(np.uint8).reshape(*biased.shape, 4)[..., 2::-1] ^ np.uint8(128)
    out = np.zeros((*biased.shape[:2], 3 * lanes + LINE_BYTES), np.uint8)
    out[:, :, : 3 * lanes] = parts.swapaxes(2, 3).reshape(*biased.shape[:2], 3 * lanes)
    scales = np.where(known | (largest == 0), 2.0**-power, np.nan).astype(np.float32)
    out[:, :, 3 * lanes : 3 * lanes + 4] = scales[:, None].view(np.uint8)
    return out.view(np.float32)
