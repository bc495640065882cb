"""Localisation: the box of a feature map whose maxima are most similar to a query's."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rmac._arrays import feature_maps
from rmac._backend import HOST, Array, Backend, backend_of
from rmac._checks import choice, integer, naming_memory, optional_workers, positive_int, real, shown
from rmac._dtypes import dtype_info
from rmac._options import MAP_LAYOUTS, SEARCHES, MapLayout, Pool, PoolingOptions, SearchName
from rmac.operators import public_operator

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Localization", "localize", "quantize"]

_BLOCK = 1 << 22  # elements of the maxima of boxes that are compared at a time
_NEVER = -1e11  # the score of the whole map in the paper's search, which never scores it
_LEVELS = 8
_ROOTS = np.array([(2 * k + 1) ** 10 for k in range(39)], np.int64)

Boxes = npt.NDArray[np.int64]
Score = Callable[[Boxes], npt.NDArray[np.float64]]


class Localization(NamedTuple):
    """The result of `localize`, for N maps and Q queries."""

    boxes: Any  # (Q, N, 4) int64, or (N, 4)
    scores: Any  # (Q, N), or (N,)


class _Search(NamedTuple):
    """How boxes are searched."""

    name: SearchName
    tolerance: float
    step: int
    refine: int
    sweeps: int


@public_operator("Localize")
def localize(
    backend: Backend,
    x: Array | Sequence[Array],
    /,
    queries: Array,
    *,
    search: SearchName = "best",
    aspect: Any = None,
    tolerance: float = 1.1,
    step: int = 3,
    refine: int = 3,
    sweeps: int = 5,
    layout: MapLayout = "NCHW",
    workers: int | None = None,
) -> Localization:
    """Find the box of each feature map that is most similar to a query.

    Parameters
    ----------
    x : array, shape (N, C, H, W), or list of arrays, shape (C, H, W)
        Feature maps, as in `rmac`, on the host.
    queries : array, shape (C,) or (Q, C)
        The maxima of each channel of the query.
    search : {"best", "grid", "aml"}, default "best"
        All boxes of the aspect; the paper's candidates and refinement; or the paper's code exactly,
        on the levels of `quantize`.
    aspect : float or array_like of float, shape (Q,), optional
        Height / width of the boxes. None takes boxes of any aspect.
    tolerance : float, default 1.1
        The factor by which the aspect of a box may differ, at least 1.
    step, refine, sweeps : int
        Of "grid" and "aml": cells between candidates, the largest step of the refinement, and the
        most rounds at each step.
    layout : {"NCHW", "NHWC"}, default "NCHW"
        The order of the axes of `x`.
    workers : int, optional
        Threads to use, as in `region_pool`.

    Returns
    -------
    Localization
        A named tuple of `boxes` (N, 4), or (Q, N, 4) for (Q, C), and of their `scores`.

    Raises
    ------
    TypeError
        If an array or option is of the wrong type.
    ValueError
        If a shape or value is wrong.
    """
    options = _Search(
        choice("search", search, SEARCHES),
        real("tolerance", tolerance, low=1),
        positive_int("step", step),
        _rounds("refine", refine),
        _rounds("sweeps", sweeps),
    )
    layout, workers = choice("layout", layout, MAP_LAYOUTS), optional_workers(workers)
    batches, info = feature_maps(backend, x, layout)
    if options.name == "aml" and info.name != "uint8":
        raise TypeError(f'x: expected uint8 levels for search="aml", got {info.name}; see quantize')
    vectors, single = _checked_queries(queries, batches[0].shape[1])
    aspects = _checked_aspects(aspect, len(vectors))
    maps = [one for batch in batches for one in batch]
    boxes = np.zeros((len(vectors), len(maps), 4), np.int64)
    scores = np.zeros((len(vectors), len(maps)), info.descriptor)
    for i, (query, wanted) in enumerate(zip(vectors, aspects, strict=True)):
        for n, one in enumerate(maps):
            score = (_paper_score if options.name == "aml" else _exact_score)(
                backend, one, query, workers
            )
            boxes[i, n], scores[i, n] = _find(score, one.shape[1:], wanted, options)
    return Localization(boxes[0], scores[0]) if single else Localization(boxes, scores)


@naming_memory("x")
def quantize(x: Array, /) -> Array:
    """Return the levels of the paper's code, for ``localize(search="aml")``.

    They are ``floor((15 + min(x, 128)) / 16)`` in float32. NaN and negative values give 0. This is
    for activations as of VGG, up to about 128; others must be scaled to that before.

    Parameters
    ----------
    x : array
        Activations, of any shape.

    Returns
    -------
    array of uint8
        Levels 0 to 8, of the shape of `x`.
    """
    backend = backend_of(x)
    x = backend.plain(x, "x")
    dtype_info(x.dtype)
    with np.errstate(invalid="ignore"):
        values = np.fmin(np.fmax(x.astype(np.float32), np.float32(0)), np.float32(128))
    levels: Array = np.floor((np.float32(15) + values) / np.float32(16)).astype(np.uint8)
    return levels


def _rounds(name: str, value: int) -> int:
    number = integer(name, value)
    if not 0 <= number < 1 << 31:
        raise ValueError(f"{name}: expected an integer of at least 0, got {shown(number)}")
    return number


def _checked_queries(queries: Array, channels: int) -> tuple[Array, bool]:
    if backend_of(queries, "queries") is not HOST:
        raise TypeError("queries: expected an array on the host")
    queries = HOST.plain(queries, "queries")
    dtype_info(queries.dtype, "queries")
    if queries.ndim not in (1, 2) or queries.shape[-1] != channels:
        expected = f"({channels},) or (Q, {channels})"
        raise ValueError(f"queries: expected shape {expected}, got {queries.shape}")
    vectors = queries.astype(np.float64)
    return (vectors[None], True) if queries.ndim == 1 else (vectors, False)


def _checked_aspects(aspect: Any, count: int) -> list[float | None]:
    if aspect is None:
        return [None] * count
    if not issubclass(type(aspect), (np.ndarray, list, tuple)) or np.ndim(aspect) == 0:
        return [real("aspect", aspect, low=0, strict=True)] * count
    if len(aspect) != count:
        raise ValueError(f"aspect: expected {count} numbers, got {len(aspect)}")
    return [real("aspect", one, low=0, strict=True) for one in aspect]


def _exact_score(backend: Backend, x: Array, query: Array, workers: int | None) -> Score:
    """Return the score of boxes by their exact maxima."""
    dtype = dtype_info(x.dtype).descriptor
    norm = math.sqrt(float(query @ query))
    pooling = PoolingOptions(Pool.MAX, 0.0, 0)

    def score(boxes: Boxes) -> npt.NDArray[np.float64]:
        result = np.empty(len(boxes))
        step = max(1, _BLOCK // max(1, len(x)))
        for first in range(0, len(boxes), step):
            part = np.ascontiguousarray(boxes[first : first + step])
            maxima = backend.empty((1, len(part), len(x)), x.dtype, x)
            if maxima.size:
                backend.region_pool(x[None], part, maxima, pooling, workers=workers)
            m = maxima[0].astype(np.float64)
            lengths = np.sqrt((m * m).sum(axis=1)) * norm
            dots = (m * query).sum(axis=1)
            result[first : first + step] = np.where(
                lengths == 0, 0.0, dots / np.where(lengths == 0, 1.0, lengths)
            ).astype(dtype)
        return result

    return score


def _paper_score(_backend: Backend, x: Array, query: Array, _workers: int | None) -> Score:
    """Return the score of boxes as aml.c does: by sums of level^10, in the order of channels."""
    channels, height, width = x.shape
    sums = np.zeros((channels, height + 1, width + 1), np.int64)
    powers = np.arange(256, dtype=np.int64) ** np.where(np.arange(256) <= _LEVELS, 10, 0)
    sums[:, 1:, 1:] = powers[x].cumsum(axis=1).cumsum(axis=2)
    norm = math.sqrt(sum(v * v for v in query.tolist()))

    def score(boxes: Boxes) -> npt.NDArray[np.float64]:
        x1, y1, x2, y2 = boxes.T
        inside = (
            sums[:, y2 + 1, x2 + 1] - sums[:, y1, x2 + 1] - sums[:, y2 + 1, x1] + sums[:, y1, x1]
        )
        roots = 2.0 * np.searchsorted(_ROOTS, inside)
        # cumsum adds in the order of channels, as the C code does; sum may not.
        dots = (query[:, None] * roots).cumsum(axis=0)[-1:].sum(axis=0)
        squares = (roots * roots).cumsum(axis=0)[-1:].sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            result: npt.NDArray[np.float64] = dots / np.sqrt(squares) / norm
        return result

    return score


def _find(
    score: Score, size: tuple[int, int], aspect: float | None, options: _Search
) -> tuple[Boxes, float]:
    height, width = size
    whole = np.array([0, 0, width - 1, height - 1])
    if options.name == "best":
        boxes = _allowed(height, width, None, aspect, options.tolerance)
        scores = score(boxes)
        if np.isnan(scores).all():
            return whole, float(score(whole[None])[0]) if not len(boxes) else np.nan
        x1, y1, x2, y2 = boxes.T
        area = (x2 - x1 + 1) * (y2 - y1 + 1)
        worse = np.where(np.isnan(scores), np.inf, -scores)
        best = np.lexsort([x2, x1, y2, y1, area, worse])[0]
        return boxes[best], float(scores[best])
    starts = _allowed(height, width, options.step, aspect, options.tolerance)
    box, best = whole, _NEVER if options.name == "aml" else float(score(whole[None])[0])
    found = np.where(np.isnan(scores := score(starts)), -np.inf, scores)
    if len(found) and found.max() > -np.inf:
        box, best = starts[found.argmax()], float(found.max())
    return _refined(score, size, box, best, options)


def _all_boxes(height: int, width: int) -> Boxes:
    y1, y2, x1, x2 = np.indices((height, height, width, width)).reshape(4, -1)
    keep = (y1 <= y2) & (x1 <= x2)
    return np.stack([x1, y1, x2, y2], axis=1)[keep]


def _candidates(height: int, width: int, step: int) -> Boxes:
    return np.array(
        [
            (x1, y1, x2, y2)
            for y1 in range(0, height, step)
            for y2 in range(y1 + 1, height, step)
            for x1 in range(0, width, step)
            for x2 in range(x1 + 1, width, step)
        ],
        np.int64,
    ).reshape(-1, 4)


@lru_cache(maxsize=64)
def _allowed(
    height: int, width: int, step: int | None, aspect: float | None, tolerance: float
) -> Boxes:
    """Return the boxes of an aspect: all of them, or the candidates of a step."""
    boxes = _all_boxes(height, width) if step is None else _candidates(height, width, step)
    if aspect is None:
        return boxes
    heights, widths = boxes[:, 3] - boxes[:, 1] + 1, boxes[:, 2] - boxes[:, 0] + 1
    return boxes[abs(np.log(aspect * widths / heights)) <= math.log(tolerance)]


def _refined(
    score: Score, size: tuple[int, int], box: Boxes, best: float, options: _Search
) -> tuple[Boxes, float]:
    """Move the edges of a box as long as that makes it better."""
    for step in range(options.refine, 0, -1):
        for _ in range(options.sweeps):
            before = best
            for edge, sign in ((1, -1), (1, 1), (3, -1), (3, 1), (0, -1), (0, 1), (2, -1), (2, 1)):
                moved = box.copy()
                moved[edge] += sign * step
                if _can_move(moved, edge, size) and (value := float(score(moved[None])[0])) > best:
                    box, best = moved, value
            if best == before:
                break
    return box, best


def _can_move(box: Boxes, edge: int, size: tuple[int, int]) -> bool:
    """Return whether a box with a moved edge is inside the map and spans two cells there."""
    side = edge % 2
    low, high = int(box[side]), int(box[side + 2])
    return low >= 0 and high < (size[1], size[0])[side] and high > low
