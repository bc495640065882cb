"""The scores of `localize` where squares overflow or vanish."""

import boxes_reference as reference
import numpy as np
import pytest
from helpers import localize


@pytest.mark.parametrize("name", ["best", "grid"])
@pytest.mark.parametrize("scale", [1e-36, 1e-25, 1e18, 1e35])
def test_squares_neither_overflow_nor_vanish(xp, rng, name, scale):
    """Even if other values of the map are 1."""
    x = rng.random((2, 20, 9, 8), dtype="f4")
    x[0] *= np.float32(scale)
    x[1, :, :5] *= np.float32(scale)
    query = rng.random(20)
    found = localize(xp, x, query, search=name, aspect=1)
    for one, score in zip(x, found.scores, strict=True):
        assert abs(reference.localize(one, query, name, aspect=1)[1] - score) < 1e-6


def scaled_score(x, query, box):
    """The cosine of a box of float64; a power of 2 brings its maxima near 1."""
    x1, y1, x2, y2 = box
    maxima = x[:, y1 : y2 + 1, x1 : x2 + 1].max(axis=(1, 2))
    maxima = np.ldexp(maxima, -np.frexp(abs(maxima).max())[1])
    return float(maxima @ query / np.sqrt(maxima @ maxima) / np.sqrt(query @ query))


EXTREMES = [5e-324, 1e-300, 1e-200, 1e-140, 1e140, 1e200, 1e300]


@pytest.mark.parametrize("name", ["best", "grid"])
@pytest.mark.parametrize("scale", EXTREMES)
@pytest.mark.parametrize("count", [1, 3])
def test_squares_of_float64_neither_overflow_nor_vanish(xp, rng, monkeypatch, name, scale, count):
    """If one cell, some rows, all cells, or cells of a box alone are that small or large."""
    monkeypatch.setattr(reference, "exact_score", lambda x, q: lambda box: scaled_score(x, q, box))
    x, queries = rng.random((6, 20, 7, 6)), rng.random((count, 20))
    x[1, 2, 3, 3] = scale
    x[2, :, :5] *= scale
    x[2, 0] = 0
    x[3] = rng.integers(1, 9, x[3].shape) * scale / (1 if scale < 1 else 8)
    x[4] *= -1
    x[4, :, 2:4, 1:3] *= scale
    x[5, ::2] *= scale
    expected = localize(xp, x[:1], queries, search=name)
    together = localize(xp, x, queries, search=name)
    assert together.scores[:, :1].tobytes() == expected.scores.tobytes()
    for workers in (1, 3) if xp is np else ():
        found = localize(xp, list(x), queries, search=name, workers=workers)
        for one, other in zip(found, together, strict=True):
            assert one.tobytes() == other.tobytes()
    for n, one in enumerate(x):
        for query, score, box in zip(
            queries, together.scores[:, n], together.boxes[:, n], strict=True
        ):
            # The grid's refinement may take another way where scores are equal but for rounding.
            assert abs(scaled_score(one, query, box) - score) < 1e-9
            assert abs(reference.localize(one, query, name)[1] - score) < 1e-9
        alone = localize(xp, one[None], queries[0], search=name)
        assert alone.scores.tobytes() == together.scores[0, n].tobytes()
        assert alone.boxes.tolist() == together.boxes[0, n : n + 1].tolist()


@pytest.mark.parametrize("name", ["best", "grid"])
@pytest.mark.parametrize("scale", EXTREMES)
def test_boxes_of_small_or_large_cells_alone(xp, rng, name, scale):
    """The query is that of a box whose cells are all out of range; a NaN or inf has no score."""
    x, query = rng.random((2, 70, 9, 8)), rng.random(70)
    x[:, :, 3:7, 3:6] = np.rint(query * 7)[:, None, None] * (scale if scale < 1 else scale / 8)
    x[:, :, :, 0] = np.nan
    x[1, :, :, 7] = np.inf
    x[:, :, 0] = np.where(np.isfinite(x[:, :, 0]), 0, x[:, :, 0])
    found = localize(xp, x, query, search=name, aspect=2 / 3, step=1, tolerance=1.01)
    for one, box, score in zip(x, found.boxes, found.scores, strict=True):
        expected = scaled_score(one, query, (3, 3, 5, 4))
        assert expected > 0.98
        assert score >= expected - 1e-12
        assert abs(scaled_score(one, query, box) - score) < 1e-9
        if name == "best" and scale < 1:
            assert box.tolist() == [3, 3, 5, 4]
