"""Re-ranking of what a search found, and query expansion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from rmac._arrays import box_in_each, feature_views, require_integers
from rmac._backend import HOST, Array, backend_of, backend_of_input, require_same_device
from rmac._checks import choice, flag, is_list, naming_memory, real
from rmac._dlpack import from_foreign, snapshot, to_foreign
from rmac._dtypes import dtype_info
from rmac._floats import default_floats
from rmac._options import MAP_LAYOUTS, MapLayout, PresetName
from rmac.descriptors import frozen_whitening, rmac
from rmac.scales import in_range, normalized

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rmac._typing import ArrayT, NumPyArray
    from rmac.whitening import Whitening

__all__ = ["Reranked", "expand", "rerank"]

_BLOCK = 1 << 20  # elements of the queries that are expanded at a time, in float64


class Reranked(NamedTuple):
    """The result of `rerank`, for N maps."""

    order: Any  # (N,) int64: the maps, the best first
    scores: Any  # (N,): of each map, in the order of the maps
    vectors: Any  # (N, D): of each map, in the order of the maps


@naming_memory("maps")
def rerank(
    query: Array,
    maps: Array | Sequence[Array],
    boxes: Any,
    /,
    *,
    whitening: Whitening | None = None,
    levels: int = 3,
    preset: PresetName = "matlab",
    layout: MapLayout = "NCHW",
    workers: int | None = None,
) -> Reranked:
    """Order feature maps by how similar what is inside their boxes is to a query.

    Each map is described inside its box by R-MAC, as if the box were a map of its own. The score is
    the inner product of this descriptor with `query`. The maps are those that a search found, and
    the boxes say where `localize` saw the query in them.

    Parameters
    ----------
    query : array, shape (D,)
        The descriptor of the query, made by `rmac` with the same options.
    maps : array, shape (N, C, H, W), or list of N arrays, shape (C, H, W)
        Feature maps, as in `rmac`.
    boxes : array_like of int, shape (N, 4)
        ``x1, y1, x2, y2`` of the box in each map, in cells, inclusive on both ends. They are on the
        host, or where `maps` are; the call then waits for the device.
    whitening : Whitening, optional
        A whitening of the regional vectors, as in `rmac`.
    levels, preset : int, str
        The grid inside each box, see `region_grid`. The default is that of the paper's code.
    layout : {"NCHW", "NHWC"}, default "NCHW"
        The order of the axes of `maps`.
    workers : int, optional
        Threads to use on the CPU, as in `region_pool`.

    Returns
    -------
    Reranked
        A named tuple of `order` (N,), the numbers of the maps with the highest score first;
        `scores` (N,) and `vectors` (N, D), both in the order of `maps`. Maps of equal scores keep
        their order. Maps whose score is NaN come last.

    Raises
    ------
    TypeError
        If an array or option is of the wrong type, or arrays are on different devices.
    ValueError
        If a shape or value is wrong, or a box is not inside its map.

    See Also
    --------
    localize : It finds the boxes.
    expand : It makes a better query of the `vectors` that were ranked first.

    References
    ----------
    .. [1] G. Tolias, R. Sicre and H. Jégou, "Particular object retrieval with integral
       max-pooling of CNN activations", ICLR 2016, arXiv:1511.05879, section 5.

    Examples
    --------
    >>> maps = np.random.default_rng(0).random((10, 64, 24, 32), dtype=np.float32)
    >>> crop = maps[3:4, :, 4:16, 8:20]
    >>> query = rmac.rmac(crop, preset="matlab")[0]
    >>> result = rmac.rerank(query, maps, [[8, 4, 19, 15]] * 10)
    >>> int(result.order[0])
    3
    """
    layout = choice("layout", layout, MAP_LAYOUTS)
    maps = snapshot(maps, "maps")
    arrays = from_foreign(maps, "maps")
    backend = backend_of_input(arrays, "maps")
    batches, info = feature_views(backend, arrays, layout, "maps")
    views = [one[0] for one in batches] if is_list(arrays) else list(batches[0])
    places = box_in_each(from_foreign(boxes, "boxes"), views)
    if whitening is not None:
        whitening = frozen_whitening(whitening, batches[0], "maps")
    dim = batches[0].shape[1] if whitening is None else len(whitening.projection)
    vector = _query_vector(from_foreign(query, "query"), batches[0], dim)
    crops = [
        view[:, y1 : y2 + 1, x1 : x2 + 1]
        for view, (x1, y1, x2, y2) in zip(views, places.tolist(), strict=True)
    ]
    x = crops or backend.empty((0, batches[0].shape[1], 1, 1), batches[0].dtype, batches[0])
    vectors = rmac(x, whitening=whitening, levels=levels, preset=preset, workers=workers)
    with backend.device_context(vectors), default_floats():
        products = (vectors.astype(np.float64) * vector.astype(np.float64)).sum(axis=1)
        scores = products.astype(info.descriptor)
        order = backend.namespace().argsort(-scores, kind="stable")
    result: Reranked = to_foreign(Reranked(order, scores, vectors), maps)
    return result


def _query_vector(query: Array, maps: Array, dim: int) -> Array:
    """Return the descriptor of a query (D,) as an array where the maps are, or raise."""
    require_same_device(query, "query", maps, "maps")
    query = backend_of(query, "query").plain(query, "query")
    dtype_info(query.dtype, "query")
    if query.shape != (dim,):
        raise ValueError(f"query: expected shape ({dim},), got {query.shape}")
    return query


@overload
def expand(
    queries: NumPyArray,
    descriptors: NumPyArray,
    neighbours: NumPyArray,
    /,
    *,
    alpha: float = 0.0,
    normalize: bool = True,
) -> NumPyArray: ...
@overload
def expand(
    queries: ArrayT,
    descriptors: ArrayT,
    neighbours: ArrayT,
    /,
    *,
    alpha: float = 0.0,
    normalize: bool = True,
) -> ArrayT: ...
@naming_memory("queries")
def expand(
    queries: Array,
    descriptors: Array,
    neighbours: Array,
    /,
    *,
    alpha: float = 0.0,
    normalize: bool = True,
) -> Array:
    r"""Add to each query the descriptors that a search found for it.

    With q a query and :math:`d_k` its neighbours, the expanded query is

    .. math:: L2\left(q + \sum_k \max(\langle q, d_k \rangle, 0)^{\alpha} \, d_k\right)

    With `alpha` 0 it is the direction of the average, as in the paper. With `alpha` 3 it is
    alpha-weighted query expansion [2]_. With the database as queries, it is database augmentation.

    Parameters
    ----------
    queries : array, shape (Q, D)
        The queries, of any dtype that `rmac` takes.
    descriptors : array, shape (N, D)
        The database, or the `vectors` of `rerank`, of any dtype that `rmac` takes.
    neighbours : array of int, shape (Q, K)
        The rows of `descriptors` to add to each query. -1 adds nothing: FAISS has it where it found
        fewer than K.
    alpha : float, default 0.0
        The power of the similarity that weights a neighbour, at least 0.
    normalize : bool, default True
        Whether to L2-normalise the result. Without it, and with `alpha` 0, the result is the sum.

    Returns
    -------
    array, shape (Q, D)
        The expanded queries, float64 for float64 queries, else float32.

    Raises
    ------
    TypeError
        If an argument is of the wrong type or dtype, or arrays are on different devices.
    ValueError
        If a shape or value is wrong, or a neighbour is neither -1 nor a row of `descriptors`.

    See Also
    --------
    rerank : Its `vectors` are those of the found objects alone, without their surroundings.

    Notes
    -----
    Neighbours that show something else make the query worse. Take fewer of them than a query has
    correct answers. All is computed in float64. On a GPU, a neighbour that is not a row adds
    nothing: to raise an error, the call would have to wait for the device.

    References
    ----------
    .. [1] G. Tolias, R. Sicre and H. Jégou, "Particular object retrieval with integral
       max-pooling of CNN activations", ICLR 2016, arXiv:1511.05879, section 5.
    .. [2] F. Radenović, G. Tolias and O. Chum, "Fine-tuning CNN image retrieval with no human
       annotation", TPAMI 2019, arXiv:1711.02512, section 5.

    Examples
    --------
    >>> descriptors = rmac.rmac(np.random.default_rng(0).random((100, 64, 12, 16)))
    >>> queries = descriptors[:4]
    >>> ranks = np.argsort(-(queries @ descriptors.T), axis=1, kind="stable")
    >>> rmac.expand(queries, descriptors, ranks[:, :5]).shape
    (4, 64)
    """
    alpha, normalize = real("alpha", alpha, low=0), flag("normalize", normalize)
    found = _checked_vectors(
        from_foreign(queries, "queries"),
        from_foreign(descriptors, "descriptors"),
        from_foreign(neighbours, "neighbours"),
    )
    backend = backend_of(found[0])
    xp = backend.namespace()
    count, dim = found[0].shape
    rows = max(1, _BLOCK // max(1, dim))
    with backend.device_context(found[0]), default_floats():
        expanded = xp.empty((count, dim), dtype_info(found[0].dtype).descriptor)
        for first in range(0, count if dim else 0, rows):
            part = slice(first, first + rows)
            block = _expanded(found[0][part], found[1], found[2][part], alpha, xp)
            expanded[part] = normalized(in_range([block], xp)[0], xp) if normalize else block
    return to_foreign(expanded, queries)


def _checked_vectors(
    queries: Array, descriptors: Array, neighbours: Array
) -> tuple[Array, Array, Array]:
    """Return the arrays that `expand` gets, or raise."""
    arrays = {"queries": queries, "descriptors": descriptors, "neighbours": neighbours}
    for name, array in arrays.items():
        backend = backend_of(array, name)
        arrays[name] = plain = backend.plain(array, name)
        require_same_device(plain, name, arrays["queries"], "queries")
        if plain.ndim != 2:
            shape = {"queries": "(Q, D)", "descriptors": "(N, D)", "neighbours": "(Q, K)"}[name]
            raise ValueError(f"{name}: expected shape {shape}, got {plain.shape}")
    queries, descriptors, neighbours = arrays.values()
    dtype_info(queries.dtype, "queries")
    dtype_info(descriptors.dtype, "descriptors")
    require_integers("neighbours", neighbours)
    if descriptors.shape[1] != queries.shape[1]:
        expected = f"{queries.shape[1]} columns as queries has"
        raise ValueError(f"descriptors: expected {expected}, got {descriptors.shape[1]}")
    if len(neighbours) != len(queries):
        expected = f"{len(queries)} rows as queries has"
        raise ValueError(f"neighbours: expected {expected}, got {len(neighbours)}")
    if backend is HOST:
        neighbours = _known_rows(neighbours, len(descriptors))
    return queries, descriptors, neighbours


def _known_rows(neighbours: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    """Return a copy of neighbours that are all -1 or a row of `count`, or raise."""
    neighbours = neighbours.copy()
    wrong = np.argwhere((neighbours < -1) | (neighbours >= count))
    if len(wrong):
        row, column = wrong[0]
        expected = f"-1 or a row of descriptors, 0 to {count - 1}"
        if not count:
            expected = "-1 alone, since descriptors is empty"
        got = f"{neighbours[row, column]} in row {row}"
        raise ValueError(f"neighbours: expected {expected}, got {got}")
    return neighbours


def _expanded(
    queries: Array, descriptors: Array, neighbours: Array, alpha: float, xp: Any
) -> Array:
    """Return the sums of some queries and their neighbours, in float64."""
    queries = queries.astype(np.float64, order="C")
    total = queries
    for k in range(neighbours.shape[1] if len(descriptors) else 0):
        row = neighbours[:, k]
        known = (row >= 0) & (row < len(descriptors))
        found = xp.take(descriptors, xp.where(known, row, 0), axis=0).astype(np.float64)
        if alpha:
            similarity = (queries * found).sum(axis=1, keepdims=True)
            found = found * xp.maximum(similarity, 0) ** alpha
        total = total + xp.where(known[:, None], found, 0.0)
    return total
