"""PCA-whitening: what is learned, in whatever pieces, and what is made of it."""

import contextlib
import os
import pickle
import warnings
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from helpers import (
    DTYPES,
    VECTORS,
    assert_same_whitening,
    check_array,
    examples,
    mixed,
    moved,
    peak_memory,
    random_map,
    to_host,
)
from hypothesis import given, settings

import rmac
from rmac import Whitening
from rmac.whitening import conversions, moments

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def recorded():
    return dict(np.load(DATA / "descriptors.npz").items())


def naive(vectors, dim=None):
    """Mean, principal components without their signs, and variances."""
    variances, rows = np.linalg.eigh(np.cov(vectors.T, bias=True))
    return vectors.mean(axis=0), rows.T[::-1][:dim], variances[::-1][:dim]


def test_matlab_learns_the_same(recorded, xp):
    w = Whitening().fit(xp.asarray(recorded["train"]))
    rows = recorded["matlab_eigvec"].T / np.sqrt(recorded["matlab_eigval"])[:, None]
    projection = check_array(w.projection, xp, (24, 24), "float64")
    projection = projection * np.sign((projection * rows).sum(axis=1))[:, None]
    error = np.abs(projection - rows).max(axis=1) / np.abs(rows).max(axis=1)
    assert error.max() <= 1e-6
    mean = check_array(w.mean, xp, (24,), "float64")
    np.testing.assert_allclose(mean, recorded["matlab_mean"], rtol=1e-6)
    variances = check_array(w.variances, xp, (24,), "float64")
    np.testing.assert_allclose(variances, recorded["matlab_eigval"], rtol=1e-6)


@pytest.mark.parametrize("case", range(8))
@pytest.mark.parametrize("learned", [True, False], ids=["fit", "matlab's projection"])
def test_whitened_descriptors(recorded, xp, case, learned):
    """MATLAB's and VISSL's; without the recorded signs, signs do not matter."""
    eigvec, eigval = recorded["matlab_eigvec"], recorded["matlab_eigval"]
    if learned:
        w = Whitening().fit(xp.asarray(recorded["train"]))
        sign = np.sign((to_host(w.projection).T * eigvec).sum(axis=0))
    else:
        mean, rows = recorded["matlab_mean"], eigvec.T / np.sqrt(eigval)[:, None]
        w, sign = Whitening.from_projection(xp.asarray(mean), xp.asarray(rows)), 1
    x = xp.asarray(recorded[f"x{case}"][None])
    levels = int(recorded[f"levels{case}"])
    result = rmac.rmac(x, levels=levels, preset="matlab", whitening=w)
    descriptor = check_array(result, xp, (1, 24), "float32")[0] * sign
    for name in ("matlab", "vissl"):
        assert np.abs(descriptor - recorded[f"{name}_whitened{case}"]).max() <= 1e-5


@given(cuts=st.lists(st.integers(0, len(VECTORS)), max_size=12))
@settings(max_examples=examples(60))
def test_chunks_of_any_size(xp, cuts):
    chunks = np.split(VECTORS, sorted(cuts))
    w = Whitening(4)
    for chunk in chunks:
        assert w.partial_fit(xp.asarray(chunk)) is w
    assert_same_whitening(w, Whitening(4).fit(VECTORS))


@given(order=st.permutations(range(7)), cuts=st.sets(st.integers(1, 149), min_size=6, max_size=6))
@settings(max_examples=examples(60))
def test_merged_from_parts_in_any_order(xp, order, cuts):
    split = np.split(VECTORS, sorted(cuts))
    parts = [Whitening().partial_fit(xp.asarray(part)) for part in split]
    before = [pickle.dumps(part) for part in parts]
    merged = Whitening(4)
    for i in order:
        merged = merged.merge(parts[i])
    assert_same_whitening(merged, Whitening(4).fit(VECTORS))
    assert [pickle.dumps(part) for part in parts] == before


def test_merging_keeps_the_options_of_the_first():
    a, b = Whitening(3, eps=0.5).fit(VECTORS[:70]), Whitening(2).fit(VECTORS[70:])
    merged = a.merge(b)
    assert (merged.dim, merged.eps, merged.count) == (3, 0.5, 150)
    assert (a.count, b.count) == (70, 80)
    nothing = Whitening(2).merge(Whitening())
    assert (nothing.dim, nothing.channels, nothing.count) == (2, None, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(40, 5), (4, 10, 5), (2, 1, 20, 5)])
def test_learning_from_any_array(xp, rng, monkeypatch, dtype, shape):
    """In blocks, which may begin and end anywhere."""
    values = random_map(rng, shape, DTYPES[dtype])
    expected = Whitening().fit(values.astype(np.float64).reshape(-1, 5))
    monkeypatch.setattr(moments, "_BLOCK", 7 * 5 * 8)
    strided = xp.asarray(np.repeat(values, 2, axis=-2))[..., ::2, :]
    for vectors in (xp.asarray(values), strided):
        assert_same_whitening(Whitening().fit(vectors), expected, 1e-12)
        assert to_host(vectors).tobytes() == values.tobytes()


def test_memory_is_bounded(rng, monkeypatch):
    """Whatever the strides: a block and the scatter, not a copy of the vectors."""
    vectors = random_map(rng, (400, 50, 24), DTYPES["float32"])
    monkeypatch.setattr(moments, "_BLOCK", 1 << 16)
    w = Whitening().fit(vectors)
    w.apply(vectors[0])
    result = vectors.nbytes
    for some in (vectors, vectors.transpose(1, 0, 2), vectors[:, ::-1]):
        assert peak_memory(lambda some=some: Whitening().fit(some)) < 1 << 18
        assert peak_memory(lambda some=some: w.apply(some)) < result + (1 << 18)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (70,), (3, 0), (5, 4), (2, 3, 2)])
def test_apply(xp, rng, monkeypatch, dtype, shape):
    w = Whitening(4).fit(VECTORS)
    values = random_map(rng, (*shape, 6), DTYPES[dtype])
    monkeypatch.setattr(moments, "_BLOCK", 7 * 6 * 8)
    vectors = xp.asarray(values)
    result_dtype = np.dtype("float64" if dtype == "float64" else "float32")
    result = check_array(moved(w, xp).apply(vectors), xp, (*shape, 4), result_dtype)
    assert to_host(vectors).tobytes() == values.tobytes()
    centred = values.astype(np.float64) - w.mean
    bound = (np.abs(centred) + np.abs(w.mean)) @ np.abs(w.projection.T)
    error = np.abs(result - centred @ w.projection.T)
    assert (error <= 8 * np.finfo(result_dtype).eps * bound).all()


def test_vectors_are_centred_before_they_are_projected(xp):
    """Far from 0, where a product of them would have lost the digits that matter."""
    noise = np.random.default_rng(3).integers(-3, 4, (500, 8)).astype(np.float32)
    vectors = np.concatenate([4096 + noise, 4096 - noise])  # their mean is exact
    w = Whitening().fit(xp.asarray(vectors))
    expected = np.concatenate([noise, -noise]) @ to_host(w.projection).T
    np.testing.assert_allclose(to_host(w.apply(xp.asarray(vectors))), expected, atol=3e-6)


def test_a_mean_that_dwarfs_the_variances(xp):
    """As a sum of squares would not survive it."""
    noise = 1e-3 * mixed(np.random.default_rng(3), 1000, 6)
    vectors = 1e4 + noise
    noise = vectors - 1e4  # exact, of what rounding has left
    w = Whitening()
    for chunk in np.split(vectors, 8):
        w.partial_fit(xp.asarray(chunk))
    mean, rows, variances = naive(noise)
    np.testing.assert_allclose(to_host(w.mean) - 1e4, mean, rtol=0, atol=1e-11)
    np.testing.assert_allclose(to_host(w.variances), variances, rtol=1e-5)
    projection = to_host(w.projection) * np.sqrt(variances)[:, None]
    np.testing.assert_allclose(np.abs(projection), np.abs(rows), rtol=0, atol=1e-5)
    whitened = to_host(w.apply(xp.asarray(vectors)))
    np.testing.assert_allclose(np.cov(whitened.T, bias=True), np.eye(6), atol=1e-6)


def test_whitened_vectors_have_unit_covariance_and_the_dimensions_asked_for(xp):
    for dim in (1, 3, 6, None):
        w = Whitening(dim).fit(xp.asarray(VECTORS))
        kept = dim or 6
        assert (w.dim, w.channels, w.count) == (kept, 6, 150)
        whitened = check_array(w.apply(xp.asarray(VECTORS)), xp, (150, kept), "float64")
        covariance = np.atleast_2d(np.cov(whitened.T, bias=True))
        np.testing.assert_allclose(covariance, np.eye(kept), atol=1e-9)
        _, rows, variances = naive(VECTORS, dim)
        np.testing.assert_allclose(to_host(w.variances), variances, rtol=1e-9)
        projection = np.abs(to_host(w.projection)) * np.sqrt(variances)[:, None]
        np.testing.assert_allclose(projection, np.abs(rows), rtol=1e-7)


def test_eps_is_the_least_variance(xp):
    variances = Whitening().fit(VECTORS).variances
    eps = float(np.sqrt(variances[2] * variances[3]))
    w = Whitening(eps=eps).fit(xp.asarray(VECTORS))
    np.testing.assert_allclose(to_host(w.variances), variances)
    whitened = to_host(w.apply(xp.asarray(VECTORS))).var(axis=0)
    np.testing.assert_allclose(whitened, np.minimum(variances / eps, 1))


def test_signs(xp, rng):
    for _ in range(5):
        w = Whitening().fit(xp.asarray(mixed(rng, 100, 9)))
        projection = to_host(w.projection)
        strongest = np.abs(projection).argmax(axis=1)
        assert (projection[np.arange(9), strongest] > 0).all()
        assert (projection < 0).any()


def test_the_first_of_equal_magnitudes_is_positive(xp, rng):
    """Although rounding leaves them unequal, one way or the other."""
    for _ in range(10):
        half = rng.standard_normal((20, 2))
        vectors = xp.asarray(np.concatenate([half, half[:, ::-1]]))
        assert (to_host(Whitening().fit(vectors).projection)[:, 0] > 0).all()


def test_variances_that_are_only_rounding(xp, rng):
    vectors = xp.asarray(mixed(rng, 50, 4) @ rng.standard_normal((4, 7)))
    w = Whitening().fit(vectors)
    with pytest.warns(UserWarning, match=r"3 of 7 variances .* reduce dim or raise eps") as warned:
        result = to_host(w.apply(vectors))
    assert warned[0].filename == __file__
    assert (w.dim, w.projection.shape, w.variances.shape) == (4, (4, 7), (4,))
    np.testing.assert_allclose(result.std(axis=0), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        w.apply(vectors)  # it has warned
        assert Whitening(4).fit(vectors).projection.shape == (4, 7)
        assert Whitening(eps=1e-9).fit(vectors).projection.shape == (7, 7)


@pytest.mark.parametrize(
    "use",
    [
        lambda w: w.projection,
        lambda w: w.mean,
        lambda w: w.save(os.devnull),
        lambda w: rmac.rmac(VECTORS.reshape(-1, 6, 5, 5), whitening=w),
    ],
)
def test_the_warning_names_the_line_that_asked(use, monkeypatch):
    monkeypatch.setattr(conversions, "atomic_write", contextlib.nullcontext)
    monkeypatch.setattr(np, "savez", lambda *_args, **_arrays: None)
    w = Whitening().fit(VECTORS[:4])
    with pytest.warns(UserWarning, match="3 of 6 variances") as warned:
        use(w)
    assert warned[0].filename == __file__


def test_warnings_of_numpy_are_as_they_were():
    before = np.geterr()
    Whitening().fit(VECTORS).partial_fit(VECTORS)
    assert np.geterr() == before


def test_vectors_that_do_not_vary(xp):
    vectors = xp.asarray(np.full((5, 3), 0.1))
    w = Whitening().fit(vectors)
    with pytest.warns(UserWarning, match="3 of 3 variances"):
        assert (w.dim, w.projection.shape) == (0, (0, 3))
    for use in (w.apply, lambda x: rmac.rmac(x.reshape(1, 3, 5, 1), whitening=w)):
        with pytest.raises(ValueError, match=r"whitening: expected .* from vectors which differ"):
            use(vectors)
    w = Whitening(eps=1e-9).fit(vectors)
    np.testing.assert_allclose(to_host(w.apply(vectors)), np.zeros((5, 3)), atol=1e-9)


def test_fit_forgets_and_partial_fit_does_not(xp):
    first, second = xp.asarray(VECTORS[:50] + 9), xp.asarray(VECTORS[50:])
    w = Whitening(3).fit(first)
    w.apply(first)
    assert w.fit(second) is w
    assert_same_whitening(w, Whitening(3).fit(second), 0)
    np.testing.assert_array_equal(
        to_host(w.apply(second.astype("float32"))),
        to_host(Whitening(3).fit(second).apply(second.astype("float32"))),
    )
    w.partial_fit(first)
    both = np.concatenate([to_host(second), to_host(first)])
    assert_same_whitening(w, Whitening(3).fit(both))
    np.testing.assert_allclose(
        to_host(w.apply(first.astype("float32"))), to_host(w.apply(first)), atol=1e-5
    )
    w.fit(first, dim=2, eps=0.25)
    assert (w.dim, w.eps) == (2, 0.25)
    assert (w.fit(second).dim, w.eps) == (2, 0.25)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_apply_to_memory_of_the_caller(xp, dtype):
    w = Whitening(4).fit(xp.asarray(VECTORS))
    vectors = xp.asarray(VECTORS.astype(dtype))
    out = xp.zeros((150, 4), dtype)
    expected = to_host(w.apply(vectors))
    w._state.apply_to(vectors, out)
    np.testing.assert_array_equal(to_host(out), expected)


def test_repeated_calls_take_no_memory(rng):
    w = Whitening().fit(rng.standard_normal((600, 256)))
    vectors = rng.standard_normal((500, 256)).astype(np.float32)
    out = np.empty_like(vectors)
    w._state.apply_to(vectors, out)
    assert peak_memory(lambda: w._state.apply_to(vectors, out)) < w.projection.nbytes // 4


def test_new_options_replace_what_was_computed_with_the_old():
    w = Whitening(4).fit(VECTORS)
    vectors = VECTORS.astype(np.float32)
    assert w.apply(vectors).shape == (150, 4)
    expected = Whitening(2, eps=0.5).fit(VECTORS)
    assert_same_whitening(w.set_params(dim=2, eps=0.5), expected)
    np.testing.assert_array_equal(w.apply(vectors), expected.apply(vectors))


def test_arrays_are_read_only():
    w = Whitening().fit(VECTORS)
    for array in (w.mean, w.projection, w.variances):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_repr_learns_nothing():
    w = Whitening(3, eps=1e-5)
    assert repr(w) == "<Whitening: dim=3, eps=1e-05, not fitted>"
    w.partial_fit(VECTORS)
    assert repr(w) == "<Whitening: 6 to 3 channels, eps=1e-05, of 150 vectors>"
    assert w._state.learned.known() is None
    w = Whitening.from_projection(w.mean, w.projection)
    assert repr(w) == "<Whitening: 6 to 3 channels, eps=0, from a projection>"
