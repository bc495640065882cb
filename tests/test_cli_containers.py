"""Several inputs of a command, folders, and files of maps that differ in size and have names."""

import h5py
import numpy as np
import pytest
import safetensors.numpy
import zarr
from containers import CONTAINERS, assert_described, named, to_folder
from helpers import error_of

import rmac
from rmac.cli import files

pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("workers", ["1", "3"])
def test_maps_of_different_sizes(run, tmp_path, maps, name, workers):
    CONTAINERS[name](tmp_path / name, maps)
    assert run("describe", tmp_path / name, "--workers", workers) == 0
    assert_described(maps)
    assert run("describe", tmp_path / name, "--levels", "2", output="o.npy") == 0
    expected = rmac.rmac(list(maps.values()), levels=2)
    np.testing.assert_array_equal(np.load("o.npy"), expected)


@pytest.mark.parametrize("layout", ["NHWC", "NCT", "NTC"])
def test_layouts_of_maps(run, rng, layout):
    shape = {"NHWC": (5, 6, 8), "NCT": (8, 12), "NTC": (12, 8)}[layout]
    maps = {f"{i}": rng.random((shape[0], shape[1] + i % 2, *shape[2:])) for i in range(5)}
    if layout == "NCT":
        maps = {f"{i}": rng.random((8, 12 + i % 2)) for i in range(5)}
    if layout == "NTC":
        maps = {f"{i}": rng.random((12 + i % 2, 8)) for i in range(5)}
    np.savez("x.npz", **maps)
    assert run("describe", "x.npz", "--layout", layout) == 0
    assert_described(maps, layout=layout)


WHOLE = {
    "x.npz": lambda x: np.savez("x.npz", features=x),
    "deflated.npz": lambda x: np.savez_compressed("deflated.npz", features=x),
    "Fortran.npz": lambda x: np.savez("Fortran.npz", np.asfortranarray(x)),
    "names.npz": lambda x: np.savez("names.npz", features=x, names=[f"{i}" for i in range(len(x))]),
    "x.h5": lambda x: h5_of("x.h5", "features", x),
    "x.hdf5/a/b": lambda x: h5_of("x.hdf5", "a/b", x),
    "g.zarr/resnet/layer4": lambda x: zarr.create_group("g.zarr").create_array(
        "resnet/layer4", data=x
    ),
    "g2.zarr/resnet/layer4": lambda x: zarr.create_group("g2.zarr", zarr_format=2).create_array(
        "resnet/layer4", data=x.astype(">f8")
    ),
    "z.zarr.zip": lambda x: zip_of("z.zarr.zip", None, x),
    "z.zip/a/b": lambda x: zip_of("z.zip", "a/b", x),
}


def h5_of(path, name, x):
    with h5py.File(path, "w") as file:
        file[name] = x
        file.create_group("a" if "a" not in file else "c")


def zip_of(path, name, x):
    with zarr.storage.ZipStore(path, mode="w") as store:
        if name is None:
            zarr.create_array(store, data=x, chunks=(3, *x.shape[1:]))
        else:
            zarr.create_group(store).create_array(name, data=x)


@pytest.mark.parametrize("path", WHOLE)
@pytest.mark.parametrize("workers", ["1", "3"])
def test_one_array_in_files_of_every_kind(run, rng, path, workers):
    x = rng.random((23, 4, 5, 6))
    WHOLE[path](x)
    assert run("describe", path, "--workers", workers) == 0
    with np.load("o.npz") as file:
        np.testing.assert_array_equal(file["descriptors"], rmac.rmac(x))
        own = path == "names.npz"
        assert file["names"][[0, 22]].tolist() == (
            ["0", "22"] if own else [f"{shown(path)}[{i}]" for i in (0, 22)]
        )


def shown(path):
    """What an array is called in messages."""
    names = {"x.npz": "[features]", "deflated.npz": "[features]", "Fortran.npz": "[arr_0]"}
    if path in ("x.hdf5/a/b", "z.zip/a/b"):
        return f"{path[:-4]}[a/b]"
    return path + names.get(path, "[features]" if path == "x.h5" else "")


@pytest.mark.parametrize("batch", [4000, 40_000])  # several batches of a shard, and one
def test_shards_in_order(run, rng, monkeypatch, batch):
    """Of each kind; their maps may differ in size."""
    monkeypatch.setattr(files, "_BATCH", batch)
    x = [rng.random((n, 8, 6 + n % 2, 7), dtype="float32") for n in (5, 4, 7, 2)]
    np.save("b.npy", x[0])
    np.save("a.npy", x[1])
    safetensors.numpy.save_file({"x": x[2]}, "c.safetensors")
    zarr.create_array("d.zarr", data=x[3])
    assert run("describe", "b.npy", "a.npy", "c.safetensors", "d.zarr", output="o.npy") == 0
    expected = np.concatenate([rmac.rmac(one) for one in x])
    np.testing.assert_array_equal(np.load("o.npy"), expected)
    assert run("describe", "b.npy", "a.npy", "c.safetensors", "d.zarr") == 0
    names = list(named())
    assert names[4:6] + names[-1:] == ["b.npy[4]", "a.npy[0]", "d.zarr[1]"]


def test_a_folder_is_read_in_the_order_of_names(run, tmp_path, rng, capsys):
    x = rng.random((4, 2, 8, 6, 7), dtype="float32")
    (tmp_path / "in").mkdir()
    for name, one in zip("cabd", x, strict=True):
        np.save(tmp_path / "in" / f"{name}.npy", one)
    for name in (".hidden", "labels.json", "notes.txt"):
        (tmp_path / "in" / name).touch()
    assert run("describe", "in", output="o.npy") == 0
    expected = rmac.rmac(np.concatenate(x[[1, 2, 0, 3]]))
    np.testing.assert_array_equal(np.load("o.npy"), expected)
    warning = capsys.readouterr().err
    assert "warning: in: 2 not read (labels.json, notes.txt); rmac reads .npy, .npz," in warning
    assert warning.count("\n") == 1
    assert run("describe", "in", "--strict") == 2
    assert "in: 2 not read" in error_of(capsys, "describe")


def test_more_files_than_can_be_open(run, tmp_path, rng):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    maps = {f"{i:03d}": rng.random((4, 3, 3 + i % 3), dtype="float32") for i in range(400)}
    to_folder(tmp_path / "in", maps)
    shards = []
    for i in range(400):
        np.savez(tmp_path / f"{i:03d}.npz", maps[f"{i:03d}"][None])
        shards.append(f"{i:03d}.npz")
    resource.setrlimit(resource.RLIMIT_NOFILE, (320, before[1]))
    try:
        assert run("describe", "in") == 0
        assert run("describe", *shards, output="o.npy") == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert_described(maps)
    np.testing.assert_array_equal(np.load("o.npy"), rmac.rmac(list(maps.values())))


@pytest.mark.parametrize("regional", [True, False])
def test_whiten_vectors_of_several_files(run, rng, regional):
    x = rng.standard_normal((3, 20, 4, 8))
    expected = rmac.Whitening(kind="regions" if regional else "descriptors")
    expected.fit(x.reshape(-1, 4, 8) if regional else x.reshape(-1, 8))
    for i, one in enumerate(x):
        np.save(f"{i}.npy", one if regional else one.reshape(-1, 8))
    assert run("whiten", "0.npy", "1.npy", "2.npy", output="w.npz") == 0
    result = rmac.Whitening.load("w.npz")
    assert result.kind == expected.kind
    np.testing.assert_allclose(result.projection, expected.projection, atol=1e-6)


def test_whiten_regional_vectors_of_images(run, rng):
    """They differ in number, as the regions of maps of different sizes do."""
    vectors = {f"{i}": rng.standard_normal((5 + i % 3, 8)) for i in range(20)}
    np.savez("x.npz", **vectors)
    assert run("whiten", "x.npz", output="w.npz") == 0
    result = rmac.Whitening.load("w.npz")
    assert result.kind == "regions"
    expected = rmac.Whitening().fit(np.concatenate([*vectors.values()]))
    np.testing.assert_allclose(result.projection, expected.projection, atol=1e-6)


def test_names_go_from_command_to_command(run, maps):
    np.savez("maps.npz", **maps)
    assert run("describe", "maps.npz", output="d.npz") == 0
    assert run("whiten", "d.npz", output="w.npz") == 0
    assert run("apply", "w.npz", "d.npz") == 0
    result = named()
    assert list(result) == list(maps)
    expected = rmac.Whitening.load("w.npz").apply(np.load("d.npz")["descriptors"])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(np.stack([*result.values()]), expected, rtol=1e-5, atol=1e-7)


def test_apply_to_a_vector_an_array(run, rng):
    vectors = {f"v{i}": rng.standard_normal(8).astype("float32") for i in range(9)}
    safetensors.numpy.save_file(vectors, "v.safetensors")
    rmac.Whitening(dim=4).fit(rng.standard_normal((40, 8))).save("w.npz")
    assert run("apply", "w.npz", "v.safetensors") == 0
    result = named()
    assert list(result) == list(vectors)
    expected = rmac.Whitening.load("w.npz").apply(np.stack([*vectors.values()]))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(np.stack([*result.values()]), expected, rtol=1e-5)


def test_a_key_chooses_an_array_or_a_group(run, maps, rng):
    x = rng.random((3, 8, 5, 6))
    with h5py.File("x.h5", "w") as file:
        file["whole"] = x
        for name, one in maps.items():
            file[f"maps/{name}"] = one
    for inputs in (["x.h5", "--key", "maps"], ["x.h5/maps"]):
        assert run("describe", *inputs) == 0
        assert_described(maps)
    assert run("describe", "x.h5/whole", output="o.npy") == 0
    np.testing.assert_array_equal(np.load("o.npy"), rmac.rmac(x))
