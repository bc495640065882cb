"""How good rankings are: average precision, and the protocol of Revisited Oxford and Paris."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rmac._arrays import host_copy, require_integers
from rmac._checks import ask, is_sequence, items_of, naming_memory, positive_int, shown, type_name
from rmac._dlpack import from_foreign

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Images = Sequence[npt.ArrayLike] | npt.NDArray[Any]
    GroundTruth = Sequence[Mapping[str, Any]] | Mapping[str, Any]

__all__ = ["Evaluation", "Scores", "average_precision", "evaluate"]

_LABELS = ("easy", "hard", "junk")
# Of each protocol: the labels of its positives. All other labels are junk.
_PROTOCOLS = {"easy": ("easy",), "medium": ("easy", "hard"), "hard": ("hard",)}

_MOST_PLACES = 1 << 16

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Scores(NamedTuple):
    """How good the rankings of Q queries are in one protocol; see `evaluate`."""

    ap: Floats  # (Q,): the average precision of each query
    map: float  # its mean over the queries that have positives
    precision: Floats  # (Q, K): the precision of each query at each place of `at`
    mean_precision: Floats  # (K,): its mean over the queries that have positives


class Evaluation(NamedTuple):
    """The result of `evaluate`."""

    easy: Scores
    medium: Scores
    hard: Scores


@naming_memory("ranks")
def average_precision(
    ranks: npt.ArrayLike, positives: Images, junk: Images | None = None
) -> Floats:
    """Return the average precision of rankings: the area under their precision-recall curves.

    The area is computed by trapezoids, as in the evaluation of the Oxford and Paris buildings.

    Parameters
    ----------
    ranks : array_like of int, shape (Q, M)
        The images that were found for each query, the best first, on the host. A row that holds
        fewer than M ends in -1. A positive that is not in the row is not found.
    positives : list of Q array_like of int
        The images that are right for each query.
    junk : list of Q array_like of int, optional
        The images that count neither as right nor as wrong, as if they were not in the list. Put
        the query itself here if it is in the database.

    Returns
    -------
    ndarray of float64, shape (Q,)
        The average precision of each query, NaN if it has no positives.

    Raises
    ------
    TypeError
        If an argument is not of integers.
    ValueError
        If a shape is wrong, an image is twice in a row or twice labelled, or an image is negative.

    See Also
    --------
    evaluate : The same for easy, medium and hard positives, and precisions.

    Examples
    --------
    >>> ranks = [[3, 0, 2, 1], [1, 2, 0, -1]]
    >>> rmac.average_precision(ranks, [[3, 2], [0]], junk=[[], [1]]).round(3)
    array([0.792, 0.25 ])
    """
    rows = checked_ranks(ranks)
    right = _checked_lists("positives", positives, len(rows))
    junk = [()] * len(rows) if junk is None else junk
    wrong = _checked_lists("junk", junk, len(rows))
    result = np.empty(len(rows))
    for i, row in enumerate(rows):
        _require_apart(f"positives[{i}]", {"positives": right[i], "junk": wrong[i]})
        places = _places(_positions(row, right[i]), _positions(row, wrong[i]))
        result[i] = _average_precision(places, len(right[i]))
    return result


@naming_memory("ranks")
def evaluate(
    ranks: npt.ArrayLike, ground_truth: GroundTruth, *, at: Sequence[int] = (1, 5, 10)
) -> Evaluation:
    """Evaluate rankings by the protocol of Revisited Oxford and Paris.

    It labels the images of each query easy, hard or junk. In the easy protocol the easy ones are
    right, in the hard protocol the hard ones, and in the medium protocol both. The other labelled
    images count neither as right nor as wrong; images without a label are wrong.

    Parameters
    ----------
    ranks : array_like of int, shape (Q, M)
        The images that were found for each query, as in `average_precision`.
    ground_truth : list of Q dict
        For each query the lists of images ``"easy"``, ``"hard"`` and ``"junk"``; other keys are
        ignored. Or the dictionary of revisitop, whose ``"gnd"`` is this list.
    at : sequence of int, default (1, 5, 10)
        The places at which to compute precisions. The precision at k is that of the first k images
        without junk, or that of all up to the last positive of the list, if these are fewer.

    Returns
    -------
    Evaluation
        A named tuple of `easy`, `medium` and `hard`. Each is a named tuple of `ap` (Q,), the
        average precision of each query; `map`, their mean; `precision` (Q, K) at each place of
        `at`; and `mean_precision` (K,), their mean. Queries without positives have NaN and are left
        out of means. Where a row holds none of its positives, `precision` has NaN, since there is
        no last positive, and `mean_precision` counts it as 0.

    Raises
    ------
    TypeError
        If an argument is of the wrong type.
    ValueError
        If a shape is wrong, a list is missing, an image is twice in a row or twice labelled, or an
        image is negative.

    See Also
    --------
    average_precision : The average precision alone, with other labels.

    References
    ----------
    .. [1] F. Radenović, A. Iscen, G. Tolias, Y. Avrithis and O. Chum, "Revisiting Oxford and Paris:
       large-scale image retrieval benchmarking", CVPR 2018, arXiv:1803.11285, section 3.

    Examples
    --------
    >>> ground_truth = [{"easy": [3], "hard": [2], "junk": [0]}]
    >>> result = rmac.evaluate([[3, 0, 1, 2]], ground_truth, at=[1, 2])
    >>> result.easy.map, result.medium.ap.round(3), result.medium.mean_precision
    (1.0, array([0.792]), array([1. , 0.5]))
    """
    rows = checked_ranks(ranks)
    labels = _checked_ground_truth(ground_truth, len(rows))
    places = _checked_places(at)
    aps = {protocol: np.empty(len(rows)) for protocol in _PROTOCOLS}
    precisions = {protocol: np.empty((len(rows), len(places))) for protocol in _PROTOCOLS}
    for i, (row, images) in enumerate(zip(rows, labels, strict=True)):
        positions = {label: _positions(row, some) for label, some in images.items()}
        for protocol, right in _PROTOCOLS.items():
            found = _places(
                _merged([positions[label] for label in right]),
                _merged([positions[label] for label in _LABELS if label not in right]),
            )
            count = sum(len(images[label]) for label in right)
            aps[protocol][i] = _average_precision(found, count)
            precisions[protocol][i] = _precisions(found, places)
    return Evaluation(**{name: _scores(aps[name], precisions[name]) for name in _PROTOCOLS})


def _positions(row: Integers, images: Integers) -> Integers:
    """Return where in a row images are, in ascending order."""
    return np.flatnonzero(np.isin(row, images))


def _merged(positions: list[Integers]) -> Integers:
    return np.sort(np.concatenate(positions))


def _places(found: Integers, junk: Integers) -> Integers:
    """Return the positions of what was found, as if junk were not in the list."""
    return found - np.searchsorted(junk, found)


def _average_precision(places: Integers, count: int) -> float:
    """Return the average precision; some of the `count` positives were found, at these places."""
    if not count:
        return np.nan
    found = np.arange(len(places))
    before = np.where(places == 0, 1.0, found / np.maximum(places, 1))
    after = (found + 1) / (places + 1)
    return float((before + after).sum() / 2 / count)


def _precisions(places: Integers, at: list[int]) -> Floats:
    """Return the precision at each place of `at`; NaN if nothing was found."""
    if not len(places):
        return np.full(len(at), np.nan)
    length = np.minimum(at, places[-1] + 1)
    precisions: Floats = np.searchsorted(places, length) / length
    return precisions


def _scores(ap: Floats, precision: Floats) -> Scores:
    known = ~np.isnan(ap)
    if not known.any():
        return Scores(ap, np.nan, precision, np.full(precision.shape[1], np.nan))
    mean_precision: Floats = np.nan_to_num(precision[known]).mean(axis=0)
    return Scores(ap, float(ap[known].mean()), precision, mean_precision)


def checked_ranks(ranks: Any) -> list[Integers]:
    """Return the images of each row, without the -1 at its end; or raise."""
    rows = host_copy("ranks", from_foreign(ranks, "ranks"), "(Q, M)")
    if rows.ndim != 2:
        raise ValueError(f"ranks: expected shape (Q, M), got {rows.shape}")
    if rows.size:
        require_integers("ranks", rows)
    return [_checked_row(f"ranks[{i}]", row) for i, row in enumerate(rows)]


def _checked_row(name: str, row: npt.NDArray[Any]) -> Integers:
    ends = np.flatnonzero(row == -1)
    if len(ends) and ends[0] + len(ends) < len(row):
        raise ValueError(f"{name}: expected -1 at its end alone, got it in column {ends[0]}")
    return _checked_images(name, row[: len(row) - len(ends)])


def _checked_images(name: str, images: npt.NDArray[Any]) -> Integers:
    """Return images as int64; raise if one is negative, too large or there twice."""
    if not images.size:
        return np.empty(0, np.int64)
    require_integers(name, images)
    ordered = np.sort(images)
    if ordered[0] < 0 or ordered[-1] > np.iinfo(np.int64).max:
        wrong = ordered[0] if ordered[0] < 0 else ordered[-1]
        raise ValueError(f"{name}: expected images from 0 to 2**63 - 1, got {wrong}")
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        raise ValueError(f"{name}: expected each image once, got {twice[0]} twice")
    return images.astype(np.int64)


def _checked_list(name: str, images: Any) -> Integers:
    copy = host_copy(name, from_foreign(images, name), "(K,)")
    if copy.ndim != 1:
        raise ValueError(f"{name}: expected shape (K,), got {copy.shape}")
    return _checked_images(name, copy)


def _checked_lists(name: str, lists: Any, count: int) -> list[Integers]:
    """Return the images of each of `count` queries, or raise."""
    items = _items(name, lists, count, "a list of lists of integers")
    return [_checked_list(f"{name}[{i}]", images) for i, images in enumerate(items)]


def _items(name: str, value: Any, count: int, expected: str) -> list[Any]:
    """Return the items of a sequence, one for each row of the ranks, or raise."""
    if not is_sequence(value):
        raise TypeError(f"{name}: expected {expected}, got {type_name(value)}")
    found = ask(name, value, len, expected)
    if found != count:
        raise ValueError(
            f"{name}: expected {count}, one for each row of ranks, got {found}; ranks has one row "
            "for each query"
        )
    return items_of(name, value, count, expected)


def _checked_ground_truth(value: Any, count: int) -> list[dict[str, Integers]]:
    """Return the images of each query by their labels, or raise."""
    if issubclass(type(value), dict):
        value = _item("ground_truth", value, "gnd")
    queries = _items("ground_truth", value, count, "a list of dictionaries")
    result = []
    for i, query in enumerate(queries):
        name = f"ground_truth[{i}]"
        if not issubclass(type(query), dict):
            raise TypeError(f"{name}: expected a dictionary, got {type_name(query)}")
        lists = {label: _item(name, query, label) for label in _LABELS}
        images = {label: _checked_list(f"{name}[{label!r}]", some) for label, some in lists.items()}
        _require_apart(name, images)
        result.append(images)
    return result


def _item(name: str, value: dict[str, Any], key: str) -> Any:
    """Return an item of a dictionary, or raise if there is none."""
    if not dict.__contains__(value, key):
        keys = ", ".join(shown(known) for known in list(dict.keys(value))[:5]) or "none"
        raise ValueError(f"{name}: expected a dictionary with the key {key!r}, got {keys}")
    return dict.__getitem__(value, key)


def _require_apart(name: str, images: Mapping[str, Integers]) -> None:
    """Raise if an image has two labels."""
    labels = list(images)
    for i, label in enumerate(labels):
        for other in labels[i + 1 :]:
            both = np.intersect1d(images[label], images[other])
            if len(both):
                expected = f"no image in both {label} and {other}"
                raise ValueError(f"{name}: expected {expected}, got {both[0]}")


def _checked_places(at: Any) -> list[int]:
    expected = "a sequence of integers"
    if not is_sequence(at):
        raise TypeError(f"at: expected {expected}, got {type_name(at)}")
    count = ask("at", at, len, expected)
    if count > _MOST_PLACES:
        raise ValueError(f"at: expected at most {_MOST_PLACES} integers, got {count}")
    items = items_of("at", at, count, expected)
    return [positive_int(f"at[{i}]", place) for i, place in enumerate(items)]
