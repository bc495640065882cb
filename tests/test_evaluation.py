"""Average precision and the protocol of Revisited Oxford and Paris."""

from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import reference
from helpers import Tensor, raises_line
from hypothesis import given

import rmac

DATA = np.load(Path(__file__).parent / "data" / "retrieval.npz")


def lists_of(name, case):
    """The lists of a recorded case, without the -1 that fill them."""
    return [row[row >= 0].tolist() for row in DATA[f"map_{name}{case}"]]


@pytest.fixture(params=range(int(DATA["map_cases"])))
def case(request):
    return request.param


def test_revisitop(case):
    ranks = DATA[f"map_ranks{case}"]
    labels = zip(*(lists_of(name, case) for name in ("easy", "hard", "junk")), strict=True)
    ground_truth = [dict(zip(("easy", "hard", "junk"), one, strict=True)) for one in labels]
    result = rmac.evaluate(ranks, ground_truth)
    for protocol, scores in zip(result._fields, result, strict=True):
        ap = DATA[f"map_{protocol}_ap{case}"]
        precision = DATA[f"map_{protocol}_precision{case}"]
        np.testing.assert_allclose(scores.ap, ap, rtol=1e-12)
        np.testing.assert_allclose(scores.precision, precision, rtol=1e-12)
        if np.isnan(ap).all():
            assert np.isnan(scores.map)
            assert np.isnan(scores.mean_precision).all()
        else:
            np.testing.assert_allclose(scores.map, np.nanmean(ap), rtol=1e-12)
            means = np.nan_to_num(precision[~np.isnan(ap)]).mean(axis=0)
            np.testing.assert_allclose(scores.mean_precision, means, rtol=1e-12)


def test_the_code_of_the_paper(case):
    """It has 0 where there are no positives."""
    easy, hard, junk = (lists_of(name, case) for name in ("easy", "hard", "junk"))
    positives = [a + b for a, b in zip(easy, hard, strict=True)]
    ap = rmac.average_precision(DATA[f"map_ranks{case}"], positives, junk)
    np.testing.assert_array_equal(np.isnan(ap), [not some for some in positives])
    np.testing.assert_allclose(np.nan_to_num(ap), DATA[f"map_matlab_ap{case}"], rtol=1e-12)


@st.composite
def rankings(draw):
    """Rows of some images of 30, and their labels."""
    count = draw(st.integers(0, 4))
    length = draw(st.integers(0, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    ranks = np.full((count, length), -1)
    labels = []
    for row in ranks:
        held = rng.integers(0, length, endpoint=True)
        row[:held] = rng.permutation(30)[:held]
        cuts = np.sort(rng.integers(0, 16, 3))
        parts = np.split(rng.permutation(30)[:16], cuts)[:3]
        labels.append(dict(zip(("easy", "hard", "junk"), parts, strict=True)))
    return ranks, labels


@given(drawn=rankings())
def test_equals_the_oracle(drawn):
    ranks, labels = drawn
    at = [1, 3, 100]
    result = rmac.evaluate(ranks, labels, at=at)
    for protocol, right in (("easy", ["easy"]), ("medium", ["easy", "hard"]), ("hard", ["hard"])):
        scores = getattr(result, protocol)
        for i, (row, images) in enumerate(zip(ranks, labels, strict=True)):
            positives = {int(n) for label in right for n in images[label]}
            junk = {int(n) for label, some in images.items() if label not in right for n in some}
            ap, precisions = reference.evaluate(row, positives, junk, at)
            np.testing.assert_allclose(scores.ap[i], ap, rtol=1e-12)
            np.testing.assert_allclose(scores.precision[i], precisions, rtol=1e-12)


def test_the_dictionary_of_revisitop_and_any_lists():
    ranks = np.array([[3, 0, 1, 2]], np.uint16)
    plain = {"easy": [3], "hard": [2], "junk": []}
    expected = rmac.evaluate(ranks.tolist(), [plain])
    whole = {"imlist": ["a", "b", "c", "d"], "gnd": [plain | {"bbx": [0.5, 1, 2, 3]}]}
    arrays = ({"easy": np.array([3], "u1"), "hard": (2,), "junk": range(0)},)
    for ground_truth in (whole, arrays):
        result = rmac.evaluate(ranks, ground_truth)
        for scores, others in zip(result, expected, strict=True):
            np.testing.assert_array_equal(scores.ap, others.ap)
            np.testing.assert_array_equal(scores.precision, others.precision)


def test_a_truncated_row_ends_early():
    """What it lacks is not found, and what ends it is no image."""
    whole = rmac.average_precision([[5, 2, 9]], [[5, 1]])
    np.testing.assert_array_equal(rmac.average_precision([[5, 2, 9, -1, -1]], [[5, 1]]), whole)
    np.testing.assert_array_equal(whole, [0.5])
    np.testing.assert_array_equal(rmac.average_precision([[-1, -1]], [[5]]), [0])
    assert rmac.average_precision(np.empty((0, 5), int), []).shape == (0,)
    result = rmac.evaluate(np.empty((0, 5), int), [])
    assert np.isnan(result.easy.map)
    assert result.easy.precision.shape == (0, 3)


def test_a_query_that_finds_nothing_counts_in_means():
    ground_truth = [{"easy": [n], "hard": [], "junk": []} for n in (3, 8)]
    easy = rmac.evaluate([[3, 0], [1, 2]], ground_truth).easy
    np.testing.assert_array_equal(easy.ap, [1, 0])
    np.testing.assert_array_equal(easy.precision, [[1] * 3, [np.nan] * 3])
    np.testing.assert_array_equal(easy.mean_precision, [0.5] * 3)


def test_precision_ends_at_the_last_positive():
    ground_truth = [{"easy": [0, 1], "hard": [], "junk": [7]}]
    result = rmac.evaluate([[7, 4, 0, 1, 5, 6]], ground_truth, at=[1, 2, 3, 4, 100])
    np.testing.assert_allclose(result.easy.precision, [[0, 1 / 2, 2 / 3, 2 / 3, 2 / 3]])


@pytest.mark.usefixtures("elsewhere")
def test_ranks_of_other_libraries():
    ranks = np.array([[3, 0, 1, 2]])
    np.testing.assert_array_equal(rmac.average_precision(Tensor(ranks), [Tensor(ranks[0, :1])]), 1)


GOOD = {"easy": [1], "hard": [2], "junk": [0]}
RANKS = [
    ([1, 2], ValueError, "ranks: expected shape (Q, M), got (2,)"),
    ([[1, 2], [3]], ValueError, "ranks: expected shape (Q, M), got"),
    ([[1.0, 2.0]], TypeError, "ranks: expected integers, got float64"),
    ([[True, False]], TypeError, "ranks: expected integers, got bool"),
    ([["a", "b"]], TypeError, "ranks: expected integers, got str"),
    (None, ValueError, "ranks: expected shape (Q, M), got ()"),
    ([[1, -1, 2]], ValueError, "ranks[0]: expected -1 at its end alone, got it in column 1"),
    ([[1, -2, 0]], ValueError, "ranks[0]: expected images from 0 to 2**63 - 1, got -2"),
    (np.array([[2**63]], "u8"), ValueError, "expected images from 0 to 2**63 - 1, got 92"),
    ([[4, 1, 4]], ValueError, "ranks[0]: expected each image once, got 4 twice"),
    (np.ma.ones((1, 1), int), TypeError, "ranks: expected an array without a mask, got a Mas"),
]


@pytest.mark.parametrize(("ranks", "error", "message"), RANKS)
@pytest.mark.parametrize(
    "function",
    [lambda ranks: rmac.evaluate(ranks, [GOOD]), lambda r: rmac.average_precision(r, [[1]])],
)
def test_wrong_ranks(function, ranks, error, message):
    with raises_line(error, message):
        function(ranks)


class FakeArray:
    __module__ = "cupy"


def test_ranks_on_a_device():
    with pytest.raises(TypeError, match="ranks: expected integers on the host"):
        rmac.average_precision(FakeArray(), [[1]])


@pytest.mark.parametrize(
    ("positives", "junk", "error", "message"),
    [
        (3, None, TypeError, "positives: expected a list of lists of integers, got int"),
        ([[1], [2]], None, ValueError, "positives: expected 1, one for each row of ranks, got 2"),
        ([1], None, ValueError, "positives[0]: expected shape (K,), got ()"),
        ([[-1]], None, ValueError, "positives[0]: expected images from 0 to 2**63 - 1, got -1"),
        ([[1, 2, 1]], None, ValueError, "positives[0]: expected each image once, got 1 twice"),
        ([[1.5]], None, TypeError, "positives[0]: expected integers, got float64"),
        ([{1}], None, ValueError, "positives[0]: expected shape (K,), got ()"),
        ([[1]], [], ValueError, "junk: expected 1, one for each row of ranks, got 0"),
        ([[1]], [["a"]], TypeError, "junk[0]: expected integers, got str"),
        ([[1]], [[0, 1]], ValueError, "positives[0]: expected no image in both positives and junk"),
    ],
)
def test_wrong_positives_and_junk(positives, junk, error, message):
    with raises_line(error, message):
        rmac.average_precision([[2, 1, 0]], positives, junk)


@pytest.mark.parametrize(
    ("ground_truth", "error", "message"),
    [
        (None, TypeError, "ground_truth: expected a list of dictionaries, got NoneType"),
        ([None], TypeError, "ground_truth[0]: expected a dictionary, got NoneType"),
        ([GOOD, GOOD], ValueError, "ground_truth: expected 1, one for each row of ranks, got 2"),
        ({"easy": []}, ValueError, "dictionary with the key 'gnd', got 'easy'"),
        ([{"ok": [1]}], ValueError, "ground_truth[0]: expected a dictionary with the key 'easy'"),
        ([{}], ValueError, "with the key 'easy', got none"),
        ([GOOD | {"hard": 3}], ValueError, "ground_truth[0]['hard']: expected shape (K,), got ()"),
        ([GOOD | {"hard": [1]}], ValueError, "ground_truth[0]: expected no image in both easy and"),
        ([GOOD | {"easy": [0]}], ValueError, "no image in both easy and junk, got 0"),
        ([GOOD | {"junk": [2]}], ValueError, "no image in both hard and junk, got 2"),
    ],
)
def test_wrong_ground_truth(ground_truth, error, message):
    with raises_line(error, message):
        rmac.evaluate([[2, 1, 0]], ground_truth)


@pytest.mark.parametrize(
    ("at", "error", "message"),
    [
        (5, TypeError, "at: expected a sequence of integers, got int"),
        ([0], ValueError, "at[0]: expected an integer of at least 1, got 0"),
        ([1, 2.5], TypeError, "at[1]: expected an integer, got float"),
    ],
)
def test_wrong_places(at, error, message):
    with raises_line(error, message):
        rmac.evaluate([[2, 1, 0]], [GOOD], at=at)
