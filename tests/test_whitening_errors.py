"""Whitening that cannot be: what each call refuses, and that it changes nothing then."""

import pickle

import numpy as np
import pytest
from helpers import VECTORS, raises_line, to_host

from rmac import Whitening
from rmac.whitening import moments

NOT_FITTED = r"^whitening: expected a fitted one; call fit or partial_fit first$"


@pytest.mark.parametrize(
    "use",
    [
        lambda w: w.apply(VECTORS),
        lambda w: w.projection,
        lambda w: w.mean,
        lambda w: w.variances,
        lambda w: w.save("never.npz"),
    ],
)
def test_before_anything_is_learned(use, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=NOT_FITTED):
        use(Whitening(3))
    assert list(tmp_path.iterdir()) == []


TOO_FEW = r"^vectors: expected at least 2 vectors to learn from, got [01]$"


@pytest.mark.parametrize("few", [VECTORS[:1], VECTORS[0], VECTORS[:0]], ids=["1", "1-d", "0"])
def test_too_few_vectors(few):
    with pytest.raises(ValueError, match=TOO_FEW):
        Whitening(3).fit(few)
    part = Whitening(3).partial_fit(few)
    for use in (lambda: part.apply(VECTORS), lambda: part.projection):
        with pytest.raises(ValueError, match=TOO_FEW):
            use()


FITTED = Whitening().fit(VECTORS)


ERRORS = [
    (lambda: Whitening(0), ValueError, "dim: expected an integer of at least 1, got 0"),
    (lambda: Whitening(2.0), TypeError, "dim: expected an integer, got float"),
    (lambda: Whitening(eps=-1), ValueError, "eps: expected a number with 0 <= eps, finite, got -1"),
    (lambda: Whitening(7).fit(VECTORS), ValueError, "dim: expected at most the 6 channels, got 7"),
    (lambda: Whitening(7).merge(FITTED), ValueError, "dim: expected at most the 6 channels, got 7"),
    (lambda: FITTED.fit([[1.0]]), TypeError, "vectors: expected a numpy.ndarray or cupy.ndarray"),
    (lambda: FITTED.fit(VECTORS * 1j), TypeError, "vectors: expected float16, bfloat16, float32"),
    (lambda: FITTED.fit(np.ones(())), ValueError, "vectors: expected shape (..., C), got ()"),
    (
        lambda: FITTED.fit(np.ones((3, 0))),
        ValueError,
        "vectors: expected at least one channel, got 0",
    ),
    (lambda: FITTED.fit(VECTORS * np.nan), ValueError, "vectors: expected finite numbers, got nan"),
    (lambda: FITTED.apply(VECTORS[:, 1:]), ValueError, "vectors: expected 6 channels, got 5"),
    (lambda: FITTED.apply(None), TypeError, "vectors: expected a numpy.ndarray or cupy.ndarray"),
    (lambda: FITTED.partial_fit(VECTORS.T), ValueError, "vectors: expected 6 channels, got 150"),
    (
        lambda: FITTED.merge(Whitening().fit(VECTORS[:, 1:])),
        ValueError,
        "other: expected 6 channels, got 5",
    ),
    (lambda: FITTED.merge(VECTORS), TypeError, "other: expected a Whitening, got numpy.ndarray"),
    (
        lambda: Whitening.from_projection(VECTORS[0], VECTORS[0]),
        ValueError,
        "projection: expected shape (D, C), got (6,)",
    ),
    (
        lambda: Whitening.from_projection(VECTORS[:2], VECTORS),
        ValueError,
        "mean: expected shape (6,) or (6, 1), got (2, 6)",
    ),
    (
        lambda: Whitening.from_projection(VECTORS[0] / 0.0, VECTORS),
        ValueError,
        "mean: expected finite numbers, got inf",
    ),
    (
        lambda: Whitening.from_projection(VECTORS[0], VECTORS > 0),
        TypeError,
        "projection: expected real numbers, got bool",
    ),
    (lambda: Whitening.from_projection(None, VECTORS), TypeError, "mean: expected a numpy.ndarray"),
    (lambda: Whitening.load(3), TypeError, "expected str"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), ERRORS, ids=[e[2][:40] for e in ERRORS])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_errors(wrong, error, message):
    with raises_line(error, message):
        wrong()


def test_a_chunk_with_an_error_changes_nothing(monkeypatch):
    monkeypatch.setattr(moments, "_BLOCK", 8 * 6 * 8)
    bad = VECTORS.copy()
    bad[-1, 2] = np.inf
    w = Whitening(3).fit(VECTORS)
    before = pickle.dumps(w)
    for wrong in (
        lambda: w.partial_fit(bad),
        lambda: w.fit(bad, dim=2, eps=1),
        lambda: w.fit(VECTORS, dim=7),
        lambda: w.partial_fit(VECTORS[:, :5]),
    ):
        with pytest.raises(ValueError, match="expected"):
            wrong()
        assert pickle.dumps(w) == before


def test_vectors_that_are_not_finite_on_a_gpu(xp):
    if xp is np:
        pytest.skip("the host sees them at once")
    with pytest.raises(ValueError, match="vectors: expected finite numbers"):
        Whitening().fit(xp.asarray(np.where(VECTORS > 5, np.nan, VECTORS)))


@pytest.mark.parametrize("number", [5, 40])
@pytest.mark.parametrize("size", [1e170, 1e308])
def test_vectors_whose_squares_overflow_are_refused_at_once(xp, number, size):
    huge = xp.asarray(VECTORS[:number] / 10 * size)
    w = Whitening().fit(xp.asarray(VECTORS))
    before = pickle.dumps(w._state.moments.mean)
    for call in (lambda: w.partial_fit(huge), lambda: Whitening().fit(huge), lambda: w.fit(huge)):
        with pytest.raises(ValueError, match="vectors: expected finite numbers whose squares fit"):
            call()
    assert pickle.dumps(w._state.moments.mean) == before


@pytest.mark.parametrize("scale", [1e-60, 1e60])
def test_a_projection_beyond_float32_is_refused(xp, scale):
    projection = xp.asarray(np.eye(2, 6) * scale)
    w = Whitening.from_projection(xp.zeros(6), projection)
    vectors = xp.asarray(VECTORS[:, :6])
    np.testing.assert_allclose(
        to_host(w.apply(vectors.astype(np.float64))), VECTORS[:, :2] * scale, rtol=1e-6
    )
    with pytest.raises(ValueError, match=r"whitening: expected one whose .* fit float32"):
        w.apply(vectors.astype(np.float32))
