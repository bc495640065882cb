"""A whitening kept, moved and exchanged: files, devices, copies, scikit-learn and FAISS."""

import copy
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import VECTORS, assert_same_whitening, check_array, moved, optional_module, to_host

from rmac import Whitening
from rmac._backend import backend_of
from rmac.whitening.state import new_state


def test_to_a_device_and_back(xp):
    if xp is np:
        pytest.skip("needs a second kind of array")
    host = Whitening(4).fit(VECTORS)
    assert len(host.projection) == 4  # learned before it moves, as another device rounds otherwise
    device = moved(host, xp)
    assert host.to_numpy() is host
    assert moved(device, xp) is device
    assert type(device.projection) is xp.ndarray
    assert device.projection.flags.c_contiguous
    assert_same_whitening(device, host)
    assert_same_whitening(device.to_numpy(), host, 0)
    assert_same_whitening(device.partial_fit(xp.asarray(VECTORS)), host.partial_fit(VECTORS))
    other = moved(Whitening.from_projection(host.mean, host.projection), xp)
    assert_same_whitening(moved(host, xp), host, 0)
    np.testing.assert_array_equal(to_host(other.projection), host.projection)
    assert other.variances is None
    unfitted = Whitening(3)
    assert moved(unfitted, xp) is unfitted
    there = "to_" + backend_of(xp.asarray(VECTORS)).ARRAY.partition(".")[0]
    for wrong, move in (
        (lambda: host.apply(xp.asarray(VECTORS)), there),
        (lambda: device.apply(VECTORS), "to_numpy"),
        (lambda: device.partial_fit(VECTORS), "to_numpy"),
        (lambda: host.merge(device), there),
        (lambda: Whitening.from_projection(host.mean, device.projection), "mean: expected an"),
    ):
        with pytest.raises(TypeError, match=move):
            wrong()


def test_from_projection(xp, rng):
    mean, projection = rng.standard_normal(5), rng.standard_normal((3, 5)).astype(np.float32)
    vectors = rng.standard_normal((20, 5))
    for m in (mean, mean[:, None]):
        w = Whitening.from_projection(xp.asarray(m), xp.asarray(projection))
        result = check_array(w.apply(xp.asarray(vectors)), xp, (20, 3), "float64")
        np.testing.assert_allclose(result, (vectors - mean) @ projection.T, rtol=1e-12)
    assert (w.dim, w.channels, w.count, w.variances) == (3, 5, 0, None)
    message = "expected a Whitening that was learned from vectors, got one that was made from"
    fitted = Whitening().fit(xp.asarray(vectors))
    for wrong in (lambda: w.partial_fit(vectors), lambda: w.merge(fitted), lambda: fitted.merge(w)):
        with pytest.raises(ValueError, match=message):
            wrong()
    assert w.fit(xp.asarray(vectors)).dim == 5


def test_what_it_was_made_of_may_change(rng):
    mean, projection = rng.standard_normal(5), rng.standard_normal((3, 5))
    w = Whitening.from_projection(mean, projection)
    expected = w.apply(np.ones(5))
    mean += 1
    projection += 1
    np.testing.assert_array_equal(w.apply(np.ones(5)), expected)


@pytest.mark.parametrize(
    "clone", [copy.copy, copy.deepcopy, lambda w: pickle.loads(pickle.dumps(w))]
)
def test_copies_go_their_own_way(clone):
    w = Whitening(3, eps=1e-5).fit(VECTORS[:100])
    w.apply(VECTORS.astype(np.float64))
    size = len(pickle.dumps(w))
    w.apply(VECTORS.astype(np.float32))
    assert len(pickle.dumps(w)) == size
    twin = clone(w)
    assert_same_whitening(twin, w, 0)
    assert (twin.dim, twin.eps) == (3, 1e-5)
    twin.partial_fit(VECTORS[100:])
    assert (w.count, twin.count) == (100, 150)
    assert_same_whitening(twin, Whitening(3, eps=1e-5).fit(VECTORS))


@pytest.mark.parametrize("name", ["w.npz", "w", "w.whitening"])
@pytest.mark.parametrize("as_path", [str, Path, lambda path: str(path).encode()])
def test_save_and_load(xp, tmp_path, name, as_path):
    w = Whitening(3, eps=1e-5).fit(xp.asarray(VECTORS[:100]))
    path = tmp_path / name
    w.save(as_path(path))
    assert [file.name for file in tmp_path.iterdir()] == [name]
    loaded = Whitening.load(as_path(path))
    assert type(loaded.projection) is np.ndarray
    assert_same_whitening(loaded, w, 0)
    assert (loaded.dim, loaded.eps) == (3, 1e-5)
    loaded.partial_fit(VECTORS[100:])
    assert_same_whitening(loaded, Whitening(3, eps=1e-5).fit(VECTORS))


def test_save_and_load_a_projection(tmp_path):
    w = Whitening.from_projection(VECTORS[0], VECTORS[:3])
    w.save(tmp_path / "w.npz")
    loaded = Whitening.load(tmp_path / "w.npz")
    np.testing.assert_array_equal(loaded.mean, w.mean)
    np.testing.assert_array_equal(loaded.projection, w.projection)
    assert (loaded.variances, loaded.count, loaded.dim) == (None, 0, 3)
    with pytest.raises(ValueError, match="made from a projection"):
        loaded.partial_fit(VECTORS)


def test_other_programs_can_read_the_file(tmp_path):
    w = Whitening(3).fit(VECTORS)
    w.save(tmp_path / "w.npz")
    with np.load(tmp_path / "w.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["mean"], w.mean)
        np.testing.assert_array_equal(archive["projection"], w.projection)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "w.npz"
    first = Whitening(2).fit(VECTORS)
    first.save(path)
    Whitening(3).fit(VECTORS).save(path)
    assert Whitening.load(path).dim == 3
    before = path.read_bytes()

    def fail(file, **_arrays):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="no space left"):
        first.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="cannot be written"):
        first.save(tmp_path / "no" / "w.npz")


class Trap:
    """An object that tells when a pickle of it is opened."""

    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def foreign_files(good):
    """Files that are no whitening: what is wrong with each, and its content."""
    arrays = dict(np.load(good).items())
    saved = good.read_bytes()
    changes = {
        "no mean": {"mean": None},
        "no projection and no moments": {"projection": None, "scatter": None},
        "mean of no channels": {"mean": np.zeros(0)},
        "no format": {"format": None},
        "a later format": {"format": 2},
        "mean of another length": {"mean": np.zeros(5)},
        "projection of one axis": {"projection": np.zeros(6)},
        "not finite": {"projection": np.full((3, 6), np.nan)},
        "not real": {"projection": np.zeros((3, 6), complex)},
        "objects": {"mean": np.array([Trap()] * 6)},
        "variances of another length": {"variances": np.zeros(2)},
        "scatter of another shape": {"scatter": np.zeros((5, 5))},
        "no count": {"count": None},
        "count of nothing": {"count": 0},
        "count below 0": {"count": -1, "projection": None},
        "count of a half": {"count": 150.5},
        "eps below 0": {"eps": -1.0},
        "dim above the channels": {"dim": 99},
    }
    for wrong, change in changes.items():
        changed = {name: part for name, part in (arrays | change).items() if part is not None}
        np.savez(good, **changed)
        yield wrong, good.read_bytes()
    np.save(good.with_suffix(".npy"), np.zeros((6, 6)))
    yield "one array", good.with_suffix(".npy").read_bytes()
    yield "a pickle", pickle.dumps(Trap())
    yield "empty", b""
    yield "text", b"mean,projection\n1,2\n"
    damaged = bytearray(saved)
    damaged[len(saved) // 2] ^= 1
    yield "damaged", bytes(damaged)
    for share in (0.1, 0.5, 0.9, 0.99):
        yield "truncated", saved[: int(len(saved) * share)]


def test_files_that_are_no_whitening(tmp_path):
    path = tmp_path / "w.npz"
    Whitening(3).fit(VECTORS).save(path)
    for wrong, content in list(foreign_files(path)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="expected a file that Whitening") as raised:
            pytest.fail(f"{wrong}: loaded as {Whitening.load(path)}")
        assert str(raised.value).startswith(f"{path}: "), wrong
    with pytest.raises(FileNotFoundError):
        Whitening.load(tmp_path / "none.npz")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("dim", [4, None])
def test_scikit_learn(dtype, whiten, dim):
    decomposition = optional_module("sklearn.decomposition")
    vectors = VECTORS.astype(dtype)
    for kind in (decomposition.PCA, decomposition.IncrementalPCA):
        pca = kind(dim, whiten=whiten)
        with pytest.raises(ValueError, match="pca: expected a fitted PCA"):
            Whitening.from_sklearn(pca)
        w = Whitening.from_sklearn(pca.fit(vectors))
        np.testing.assert_allclose(w.apply(vectors), pca.transform(vectors), atol=1e-5)
        np.testing.assert_allclose(w.variances, pca.explained_variance_, rtol=1e-6)
    with pytest.raises(TypeError, match=r"pca: expected a sklearn\S+PCA, got sklearn\S+Truncated"):
        Whitening.from_sklearn(decomposition.TruncatedSVD())
    with pytest.raises(TypeError, match=r"pca: expected a sklearn\S+PCA, got sklearn\S+FastICA"):
        Whitening.from_sklearn(decomposition.FastICA(2).fit(VECTORS))


def test_scikit_learn_with_a_channel_that_does_not_vary():
    decomposition = optional_module("sklearn.decomposition")
    vectors = VECTORS * [1, 1, 0, 1, 1, 1]
    pca = decomposition.PCA(whiten=True, svd_solver="full").fit(vectors)
    pca.explained_variance_[-1] = 0
    w = Whitening.from_sklearn(pca)
    np.testing.assert_allclose(w.apply(vectors), pca.transform(vectors), atol=1e-5)


def test_scikit_learn_learns_the_same():
    decomposition = optional_module("sklearn.decomposition")
    pca = decomposition.PCA(4, whiten=True, svd_solver="full").fit(VECTORS)
    whitened = Whitening(4).fit(VECTORS).apply(VECTORS) * np.sqrt(149 / 150)
    np.testing.assert_allclose(np.abs(whitened), np.abs(pca.transform(VECTORS)), atol=1e-9)


@pytest.mark.parametrize("dim", [4, 6])
@pytest.mark.parametrize("power", [0, -0.5])
@pytest.mark.parametrize("rotated", [False, True])
def test_faiss_there_and_back(tmp_path, dim, power, rotated):
    faiss = optional_module("faiss")
    vectors = VECTORS.astype(np.float32)
    pca = faiss.PCAMatrix(6, dim, power, rotated)
    with pytest.raises(ValueError, match="transform: expected a trained transform"):
        Whitening.from_faiss(pca)
    pca.train(vectors)
    path = str(tmp_path / "pca")
    faiss.write_VectorTransform(pca, path)
    index = faiss.IndexPreTransform(pca, faiss.IndexFlatL2(dim))
    for transform in (pca, faiss.read_VectorTransform(path), index.chain.at(0)):
        w = Whitening.from_faiss(transform)
        np.testing.assert_allclose(w.apply(vectors), pca.apply(vectors), atol=1e-5)
        np.testing.assert_allclose(w.mean, VECTORS.mean(axis=0), rtol=1e-5)
        back = w.to_faiss()
        np.testing.assert_allclose(back.apply(vectors), pca.apply(vectors), atol=1e-5)
        again = Whitening.from_faiss(back)  # whose mean has to be found from a bias
        np.testing.assert_allclose(again.apply(vectors), pca.apply(vectors), atol=1e-5)


def test_faiss_transforms():
    faiss = optional_module("faiss")
    vectors = VECTORS.astype(np.float32)
    rotation = faiss.RandomRotationMatrix(6, 9)
    rotation.init(5)
    w = Whitening.from_faiss(rotation)
    np.testing.assert_allclose(w.apply(vectors), rotation.apply(vectors), atol=1e-5)
    fitted = Whitening(4).fit(VECTORS)
    transform = fitted.to_faiss()
    np.testing.assert_allclose(transform.apply(vectors), fitted.apply(vectors), atol=1e-5)
    assert not transform.is_orthonormal
    again = Whitening.from_faiss(fitted.to_faiss())  # which nothing else keeps alive
    np.testing.assert_allclose(again.apply(vectors), fitted.apply(vectors), atol=1e-5)
    for wrong in (faiss.NormalizationTransform(6), VECTORS):
        with pytest.raises(TypeError, match=r"transform: expected a faiss\.LinearTransform, got"):
            Whitening.from_faiss(wrong)
    impossible = faiss.LinearTransform(2, 3, True)
    faiss.copy_array_to_vector(np.array([1, 0, 0, 1, 0, 0], "f4"), impossible.A)
    faiss.copy_array_to_vector(np.ones(3, "f4"), impossible.b)
    impossible.is_trained = True
    with pytest.raises(ValueError, match="transform: expected a bias that some mean gives"):
        Whitening.from_faiss(impossible)


def test_faiss_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    for use in (lambda: Whitening.from_faiss(None), lambda: Whitening().fit(VECTORS).to_faiss()):
        with pytest.raises(ImportError, match="pip install faiss-cpu"):
            use()


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_vectors_are_kept_for_a_merge(xp, tmp_path, count):
    part = Whitening(3, eps=1e-5).partial_fit(xp.asarray(VECTORS[:count]))
    part.save(tmp_path / "part.npz")
    loaded = Whitening.load(tmp_path / "part.npz")
    assert (loaded.count, loaded.channels, loaded.dim, loaded.eps) == (count, 6, 3, 1e-5)
    merged = loaded.merge(Whitening().fit(VECTORS[count:]))
    assert_same_whitening(merged, Whitening(3, eps=1e-5).fit(VECTORS), 1e-12)


def test_more_vectors_than_32_bits_count(tmp_path):
    w = Whitening(3).fit(VECTORS)
    w._state = new_state(3, 0.0, None, w._state.moments._replace(number=1 << 40))
    w.save(tmp_path / "w.npz")
    assert Whitening.load(tmp_path / "w.npz").merge(w).count == 1 << 41
