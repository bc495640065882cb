"""Which directions are kept, fewer vectors than channels, and problems too large for eigh."""

import tracemalloc
import warnings

import numpy as np
import pytest
from helpers import DTYPES, VECTORS, assert_same_whitening, mixed, optional_module, to_host

from rmac import Whitening
from rmac.whitening import Moments, components, eigen

pytestmark = pytest.mark.filterwarnings("ignore:.* variances are zero to rounding")

COUNT, CHANNELS, DEAD = 3000, 40, 10


def spread(rng, count=COUNT):
    return rng.standard_normal((count, CHANNELS))


def without_variance(rng, value):
    vectors = spread(rng)
    vectors[:, -DEAD:] = value
    return vectors


def low_rank(rng, count=COUNT, channels=CHANNELS):
    rank = CHANNELS - DEAD
    return rng.standard_normal((count, rank)) @ rng.standard_normal((rank, channels))


DEFICIENT = {
    "dead channels": lambda rng: without_variance(rng, 0),
    "constant channels": lambda rng: without_variance(rng, 0.1),
    "large constants": lambda rng: without_variance(rng, 1e4 / 3),
    "copies": lambda rng: np.tile(spread(rng)[:, DEAD:], 2)[:, :CHANNELS],
    "copies far from 0": lambda rng: 100 + np.tile(spread(rng)[:, DEAD:], 2)[:, :CHANNELS],
    "combinations": low_rank,
    "combinations far from 0": lambda rng: low_rank(rng) + 3,
    "few vectors": lambda rng: spread(rng, 31),
    "few combinations": lambda rng: low_rank(rng, 35),
    "many channels": lambda rng: low_rank(rng, 300, 900),
}


def rank_of(vectors, chunks=1, **options):
    """How many rows the projection has."""
    w = Whitening(**options)
    for chunk in np.array_split(vectors, chunks):
        w.partial_fit(chunk)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return w.dim


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("case", DEFICIENT)
@pytest.mark.parametrize("chunks", [1, 7])
def test_directions_that_are_rounding_are_cut(rng, dtype, case, chunks):
    vectors = DEFICIENT[case](rng).astype(DTYPES[dtype])
    assert rank_of(vectors, chunks) == CHANNELS - DEAD
    w = Whitening().fit(vectors)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whitened = w.apply(vectors.astype("float64"))
    np.testing.assert_allclose(whitened.var(axis=0), 1, rtol=1e-2)


@pytest.mark.parametrize("size", [1e9, 1e15])
@pytest.mark.parametrize("chunks", [1, 60, COUNT])
def test_constants_that_dwarf_the_spread(rng, size, chunks):
    assert rank_of(without_variance(rng, size * np.pi), chunks) == CHANNELS - DEAD


KEPT = {
    "independent": spread,
    "small channels": lambda rng: spread(rng) * np.geomspace(1, 1e-5, CHANNELS),
    "far from 0": lambda rng: spread(rng) + 9,
    "of length 1": lambda rng: (v := abs(spread(rng))) / np.linalg.norm(v, axis=1, keepdims=True),
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("case", KEPT)
def test_directions_that_are_not_rounding_are_kept(rng, dtype, case):
    vectors = KEPT[case](rng).astype(DTYPES[dtype])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        projection = Whitening().fit(vectors).projection
    variances, rows = np.linalg.eigh(np.cov(vectors.T.astype("float64"), bias=True))
    expected = rows.T[::-1] / np.sqrt(variances[::-1])[:, None]
    lengths = np.linalg.norm(projection, axis=1)
    np.testing.assert_allclose(lengths, np.linalg.norm(expected, axis=1), rtol=1e-5)


def test_a_spark_in_a_dead_channel_is_not_blown_up(rng):
    train = rng.random((5000, 64), dtype=np.float32)
    train[:, 40:] = 0
    train /= np.linalg.norm(train, axis=1, keepdims=True)
    w = Whitening().fit(train)
    with pytest.warns(UserWarning, match=r"^24 of 64 variances are zero to rounding, .* 40 rows"):
        one, other = w.apply(np.concatenate([train[:1], train[:1] + 1e-4 * np.eye(64)[[50]]]))
    np.testing.assert_allclose(one, other, atol=1e-3)


def test_dim_counts_directions_above_the_noise(rng):
    """A constant channel whose computed variance is large takes no place from the others."""
    vectors = spread(rng) * np.geomspace(1, 1e-9, CHANNELS)
    vectors[:, 0] = rng.choice([1e16, np.nextafter(1e16, 2e16)], COUNT)  # only its rounding varies
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        w = Whitening(3).fit(vectors)
        assert w.dim == 3
    assert (abs(w.projection).argmax(axis=1) == [1, 2, 3]).all()
    moments = w._state.moments._replace(unit=0.0)  # as of a file of the first version
    np.testing.assert_array_equal(components.learn(moments, 3, 0.0).projection, w.projection)
    assert rank_of(vectors, dim=CHANNELS) < CHANNELS


@pytest.mark.parametrize("dim", [None, 31, 35])
def test_eps_above_the_noise_cuts_nothing(rng, dim):
    for vectors in (without_variance(rng, 0), spread(rng, 31), low_rank(rng, 35)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            w = Whitening(dim, eps=1e-6).fit(vectors)
            assert w.dim == (dim or CHANNELS)
        _, rows = np.linalg.qr(w.projection.T)
        lengths = np.linalg.norm(w.projection, axis=1)
        np.testing.assert_allclose(abs(np.diag(rows)), lengths, rtol=1e-6)  # they are orthogonal
        np.testing.assert_allclose(lengths[30:], 1e3, rtol=1e-6)
        assert rank_of(vectors, dim=dim, eps=1e-30) == 30


def test_the_coarsest_dtype_counts(rng, tmp_path):
    vectors = low_rank(rng)
    fine, coarse = vectors[:1500].astype("float32"), vectors[1500:].astype("float16")
    for w in (
        Whitening().fit(fine).partial_fit(coarse),
        Whitening().fit(fine).merge(Whitening().fit(coarse)),
        Whitening().fit(coarse).partial_fit(fine.astype("float64")),
    ):
        w.save(tmp_path / "w.npz")
        for same in (w, Whitening.load(tmp_path / "w.npz").partial_fit(fine)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert same.dim == CHANNELS - DEAD


@pytest.mark.parametrize("count", [2, 12, 29, 30, 31, 75])
@pytest.mark.parametrize("dim", [1, 4])
def test_few_vectors_give_what_eigh_gives(xp, rng, count, dim):
    vectors = mixed(rng, count, 30)
    w = Whitening(dim).fit(xp.asarray(vectors))
    whole = Moments.of(xp.asarray(vectors), whole=True)
    expected = components.learn(whole, dim, 0.0)
    for actual, one in zip(w._ready(), expected, strict=True):
        np.testing.assert_allclose(to_host(actual), to_host(one), rtol=1e-7, atol=1e-7)
    assert (w._state.moments.rows is None) == (count >= 30)


@pytest.mark.parametrize(
    "sizes", [(1,) * 20, (1, 19), (7, 3, 0, 10), (25, 15), (15, 15, 15), (40, 1)]
)
def test_few_vectors_in_chunks_merged_and_from_files(xp, rng, tmp_path, sizes):
    """From the rows alone to the scatter, in any order of the two."""
    vectors = mixed(rng, sum(sizes), 30)
    chunks = [xp.asarray(chunk) for chunk in np.split(vectors, np.cumsum(sizes)[:-1])]
    expected = Whitening(5).fit(vectors)
    grown, merged, reverse = Whitening(5), Whitening(5), Whitening(5)
    for chunk in chunks:
        grown.partial_fit(chunk)
        part = Whitening().partial_fit(chunk)
        part.save(tmp_path / "part.npz")
        part = Whitening.load(tmp_path / "part.npz")
        merged, reverse = merged.merge(part), Whitening(5).merge(part).merge(reverse)
    for w in (grown, merged, reverse):
        assert_same_whitening(w, expected, 1e-7)
        rows = w._state.moments.rows
        assert rows is None or len(rows) < 30


def test_memory_of_few_vectors(rng):
    """Rows of the vectors' number, and nothing of C by C: that would be 200 MB."""
    vectors = rng.standard_normal((40, 5000)).astype(np.float32)
    tracemalloc.start()
    w = Whitening(8).fit(vectors)
    assert w.projection.shape == (8, 5000)
    assert tracemalloc.get_traced_memory()[1] < 8e6
    tracemalloc.stop()


def spectrum(rng, values, count=None):
    """A matrix with these eigenvalues."""
    size = count or len(values)
    basis = np.linalg.qr(rng.standard_normal((size, size)))[0][:, : len(values)]
    return (basis * values) @ basis.T


SIZE = 600
SPECTRA = {
    "1/i": 1 / np.arange(1.0, SIZE + 1),
    "fast": 0.8 ** np.arange(SIZE),
    "few": np.r_[np.arange(20.0, 5, -1), np.zeros(SIZE - 15)],
    "equal": np.ones(SIZE),
    "many equal": np.r_[np.full(200, 1.0), np.full(400, 0.1)],
    "equal to the limit": np.r_[2.0, np.full(12, 1.0), np.full(587, 0.9)],
    "nothing": np.zeros(SIZE),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("count", [1, 10, 20])
def test_block_krylov_finds_what_eigh_finds(xp, rng, monkeypatch, name, count):
    monkeypatch.setattr(eigen, "_SMALL", 100)
    monkeypatch.setattr(eigen, "_FEWEST_BLOCKS", 1)
    matrix = spectrum(rng, SPECTRA[name])
    found = eigen._krylov(xp.asarray(matrix), count)
    if found is None:
        assert name not in ("fast", "equal", "many equal", "few", "nothing")
        return
    values, vectors = map(to_host, found)
    largest = SPECTRA[name][0] or 1.0
    assert np.abs(values - SPECTRA[name][:count]).max() <= 1e-13 * largest
    assert np.abs(vectors.T @ vectors - np.eye(count)).max() < 1e-12
    assert np.abs(matrix @ vectors - vectors * values).max() <= 1e-13 * largest


def test_krylov_is_used_and_falls_back(rng, monkeypatch):
    """For 1/i it converges; where all eigenvalues are close, it gives up early."""
    results = []
    krylov = eigen._krylov
    monkeypatch.setattr(
        eigen, "_krylov", lambda *args: results.append(krylov(*args)) or results[-1]
    )
    monkeypatch.setattr(eigen, "_SMALL", 100)
    for values, converges in ((SPECTRA["1/i"], True), (np.linspace(1, 0.5, SIZE), False)):
        matrix = spectrum(rng, values)
        found, vectors = eigen.largest_eigenpairs(matrix, 4)
        assert (results.pop() is not None) == converges
        np.testing.assert_allclose(found, values[:4], rtol=1e-12)
        assert np.abs(matrix @ vectors - vectors * found).max() <= 1e-13
    eigen.largest_eigenpairs(matrix, 300)
    assert not results


def test_a_whitening_by_krylov(xp, rng, monkeypatch):
    """Of many vectors and of few, the same in every run."""
    scale = np.arange(1.0, SIZE + 1) ** -1.5
    for count in (300, 900):
        vectors = xp.asarray(rng.standard_normal((count, SIZE)) * scale + 1)
        exact = Whitening(4).fit(vectors)
        exact.apply(vectors)
        with monkeypatch.context() as small:
            small.setattr(eigen, "_SMALL", 100)
            small.setattr(np.linalg, "eigh", only_small(np.linalg.eigh))
            w, again = Whitening(4).fit(vectors), Whitening(4).fit(vectors)
            assert_same_whitening(w, exact, 1e-9)
            assert_same_whitening(w, again, 0)


def only_small(eigh):
    def call(matrix):
        assert len(matrix) <= 200
        return eigh(matrix)

    return call


def test_scikit_learn_of_few_vectors():
    decomposition = optional_module("sklearn.decomposition")
    vectors = mixed(np.random.default_rng(5), 40, 90)
    pca = decomposition.PCA(20, whiten=True, svd_solver="full").fit(vectors)
    whitened = Whitening(20).fit(vectors).apply(vectors) * np.sqrt(39 / 40)
    np.testing.assert_allclose(abs(whitened), abs(pca.transform(vectors)), atol=1e-9)


def test_parts_without_variance_are_kept_for_a_merge(tmp_path):
    """A worker whose vectors were all the same loses none of them."""
    part = Whitening(3).partial_fit(np.repeat(VECTORS[:1], 7, axis=0))
    part.save(tmp_path / "part.npz")
    merged = Whitening.load(tmp_path / "part.npz").merge(Whitening().fit(VECTORS))
    everything = np.concatenate([np.repeat(VECTORS[:1], 7, axis=0), VECTORS])
    assert_same_whitening(merged, Whitening(3).fit(everything))
