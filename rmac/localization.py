"""Localisation: the box of a feature map whose maxima are most similar to a query's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rmac._arrays import feature_views
from rmac._backend import Array, Backend, backend_of, require_same_device
from rmac._checks import (
    ask,
    choice,
    integer,
    is_sequence,
    items_of,
    naming_memory,
    optional_workers,
    positive_int,
    real,
    shown,
)
from rmac._dlpack import from_foreign, to_foreign
from rmac._dtypes import dtype_info
from rmac._floats import default_floats
from rmac._options import MAP_LAYOUTS, SEARCHES, MapLayout, SearchName, SearchOptions
from rmac.operators import public_operator

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Localization", "localize", "quantize"]


class Localization(NamedTuple):
    """The result of `localize`, for N maps and Q queries."""

    boxes: Any  # (Q, N, 4) int64, or (N, 4)
    scores: Any  # (Q, N), or (N,)


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

    The score of a box is the cosine of the query and the maxima of the box. Of equal scores "best"
    takes the box of fewer cells, then the first by y1, y2, x1 and x2; "grid" and "aml" take the
    first. If no box has the aspect, "best" returns the whole map. A box with a NaN or an infinite
    maximum has no score; if there is no other, the result is the whole map with score NaN.

    Parameters
    ----------
    x : array, shape (N, C, H, W), or list of arrays, shape (C, H, W)
        Feature maps, as in `rmac`; on the host for "aml".
    queries : array, shape (C,) or (Q, C)
        The maxima of each channel of the query, where `x` is.
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
        Threads to use on the CPU, as in `region_pool`.

    Returns
    -------
    Localization
        A named tuple of `boxes` (N, 4), or (Q, N, 4) for (Q, C), and of their `scores`.

    Raises
    ------
    TypeError
        If an array or option is of the wrong type, or arrays are on different devices.
    ValueError
        If a shape or value is wrong.
    """
    options = SearchOptions(
        choice("search", search, SEARCHES),
        real("tolerance", tolerance, low=1),
        positive_int("step", step),
        _rounds("refine", refine),
        _rounds("sweeps", sweeps),
    )
    layout, workers = choice("layout", layout, MAP_LAYOUTS), optional_workers(workers)
    batches, info = feature_views(backend, x, layout)
    if options.name == "aml" and info.name != "uint8":
        raise TypeError(f'x: expected uint8 levels for search="aml", got {info.name}; see quantize')
    with default_floats():
        vectors, single = _checked_queries(backend, queries, batches[0], batches[0].shape[1])
        aspects = _checked_aspects(aspect, len(vectors))
        boxes, scores = backend.localize(batches, vectors, aspects, options, workers=workers)
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
    array = from_foreign(x)
    backend = backend_of(array)
    array = backend.plain(array, "x")
    dtype_info(array.dtype)
    with default_floats():
        values = np.fmin(np.fmax(array.astype(np.float32), np.float32(0)), np.float32(128))
        levels = backend.empty(array.shape, np.uint8, array)
        levels[...] = np.floor((np.float32(15) + values) / np.float32(16))
    quantized: Array = to_foreign(levels, x)
    return quantized


def _rounds(name: str, value: int) -> int:
    number = integer(name, value)
    if not 0 <= number < 1 << 31:
        raise ValueError(f"{name}: expected an integer of at least 0, got {shown(number)}")
    return number


def _checked_queries(
    backend: Backend, queries: Array, maps: Array, channels: int
) -> tuple[Array, bool]:
    """Return queries (Q, C) in float64, and whether there is one alone, or raise."""
    require_same_device(queries, "queries", maps, "x")
    queries = backend.plain(queries, "queries")
    dtype_info(queries.dtype, "queries")
    if queries.ndim not in (1, 2) or queries.shape[-1] != channels:
        expected = f"({channels},) or (Q, {channels})"
        raise ValueError(f"queries: expected shape {expected}, got {queries.shape}")
    with backend.device_context(queries):
        vectors = queries.astype(np.float64, order="C")
    return (vectors[None], True) if queries.ndim == 1 else (vectors, False)


def _checked_aspects(aspect: Any, count: int) -> list[float | None]:
    if aspect is None:
        return [None] * count
    if not is_sequence(aspect):
        return [real("aspect", aspect, low=0, strict=True)] * count
    expected = f"{count} numbers"
    found = ask("aspect", aspect, len, expected)
    if found != count:
        raise ValueError(f"aspect: expected {expected}, got {found}")
    return [
        real("aspect", one, low=0, strict=True)
        for one in items_of("aspect", aspect, count, expected)
    ]
