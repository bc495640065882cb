"""Several inputs of a command, folders, and files of maps that differ in size and have names."""

import os
import shutil
import struct
import zipfile
import zlib

import h5py
import numpy as np
import pytest
import safetensors.numpy
import zarr
from helpers import error_of

import rmac
from rmac.cli import files, main, zip_files
from rmac.cpu import tables

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def maps(rng):
    """Feature maps of 40 images: of several sizes, some of them rare."""
    sides = [(9, 7), (9, 8), (9, 7), (5, 12), (9, 7)] * 7 + [
        (6, 6),
        (3, 20),
        (9, 8),
        (1, 9),
        (9, 7),
    ]
    return {
        f"photo {i:02d}": rng.standard_normal((8, *side)).astype("float32")
        for i, side in enumerate(sides)
    }


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command on inputs, in small batches; return its exit status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "_TILE", 9000)
    monkeypatch.setattr(files, "_BATCH", 40_000)

    def call(command, *inputs, output="o.npz"):
        return main([command, *map(str, inputs), "-o", output])

    return call


def named():
    with np.load("o.npz") as file:
        return dict(zip(file["names"].tolist(), file["descriptors"], strict=True))


def assert_described(maps, **options):
    """The output has the descriptors of these maps, by their names and in this order."""
    expected = rmac.rmac(list(maps.values()), **options)
    result = named()
    assert list(result) == list(maps)
    np.testing.assert_array_equal(np.stack([*result.values()]), expected)


def to_zip(path, maps):
    with zarr.storage.ZipStore(path, mode="w") as store:
        fill(zarr.create_group(store), maps)


def to_group(path, maps):
    fill(zarr.create_group(path), maps)


def to_group_of_version_2(path, maps):
    group = zarr.create_group(path, zarr_format=2)
    fill(group, {name: one.astype(">f4") for name, one in maps.items()})


def fill(group, maps):
    for name, one in reversed(maps.items()):
        group.create_array(name, data=one)


def to_zipped_folder(path, maps):
    """As `zip -r` of a Zarr folder makes it: the store is in a folder in it, and compressed."""
    to_group("store", maps)
    shutil.move(shutil.make_archive("made", "zip", ".", "store"), path)
    shutil.rmtree("store")


def to_hdf5(path, maps):
    with h5py.File(path, "w") as file:
        for name, one in reversed(maps.items()):
            file.create_dataset(name, data=one, chunks=True, compression="gzip")


def to_folder(path, maps):
    path.mkdir()
    for name, one in maps.items():
        np.save(path / f"{name}.npy", one)


CONTAINERS = {
    "maps.npz": lambda path, maps: np.savez(path, **maps),
    "deflated.npz": lambda path, maps: np.savez_compressed(path, **maps),
    "Fortran.npz": lambda path, maps: np.savez(
        path, **{name: np.asfortranarray(one) for name, one in maps.items()}
    ),
    "big endian.npz": lambda path, maps: np.savez(
        path, **{name: one.astype(">f4") for name, one in maps.items()}
    ),
    "with axis N.npz": lambda path, maps: np.savez(
        path, **{name: one[None] for name, one in maps.items()}
    ),
    "maps.safetensors": lambda path, maps: safetensors.numpy.save_file(maps, path),
    "maps.zarr": to_group,
    "version2.zarr": to_group_of_version_2,
    "no suffix": to_group,
    "maps.zarr.zip": to_zip,
    "zipped.zip": to_zipped_folder,
    "maps.h5": to_hdf5,
    "folder": to_folder,
}


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


def test_shards_in_order(run, rng):
    """Of each kind; their maps may differ in size."""
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


def test_checksums_are_those_of_zlib(rng):
    for size in [*range(600), 4096, 100_003]:
        data, before = rng.bytes(size), int(rng.integers(1 << 32))
        assert zip_files.checksum(data, before) == zlib.crc32(data, before)
        first, second = data[: size // 3], data[size // 3 :]
        sums = zlib.crc32(first), zlib.crc32(second)
        assert zip_files.combined_checksum(*sums, len(second)) == zlib.crc32(data)


def npy_of(x, padding=0, version=1):
    """A .npy file, with more spaces in its header than NumPy writes."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {x.shape}, }}{' ' * padding}\n"
    length = len(header).to_bytes(2 * version, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + header.encode() + x.tobytes()


def with_wide_places(content):
    """A zip file with all sizes and places of its directory in 64 bits, as in files beyond 4 GB."""
    count, _, start = struct.unpack_from("<H2L", content, len(content) - 12)
    directory, at = b"", start
    for _ in range(count):
        entry = content[at : at + 46]
        stored, size = struct.unpack_from("<2L", entry, 20)
        (name_size,) = struct.unpack_from("<H", entry, 28)
        (offset,) = struct.unpack_from("<L", entry, 42)
        wide = struct.pack("<2H3Q", 1, 24, size, stored, offset)
        directory += entry[:20] + b"\xff" * 8 + entry[28:30] + len(wide).to_bytes(2, "little")
        directory += entry[32:42] + b"\xff" * 4 + content[at + 46 : at + 46 + name_size] + wide
        at += 46 + name_size
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(directory), start, 0)
    return content[:start] + directory + end


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_npz_files_that_numpy_does_not_write(run, maps, method):
    """Long headers, long extra fields, folders, sizes in 64 bits, and members in another order."""
    with zipfile.ZipFile("x.npz", "w", method) as archive:
        archive.writestr("folder/", b"")
        for i, (name, one) in enumerate(maps.items()):
            info = zipfile.ZipInfo(f"{name}.npy")
            info.compress_type = method
            info.extra = struct.pack("<2H", 99, 300 * (i % 3)) + bytes(300 * (i % 3))
            archive.writestr(info, npy_of(one, padding=400 * (i % 2), version=1 + i % 5 // 3))
        archive.filelist.sort(key=lambda info: -info.header_offset)
    assert run("describe", "x.npz") == 0
    assert_described(dict(reversed(maps.items())))
    np.savez("y.npz", **maps)
    with open("y.npz", "rb") as file:
        content = with_wide_places(file.read())
    with open("y.npz", "wb") as file:
        file.write(content)
    assert run("describe", "y.npz") == 0
    assert_described(maps)


@pytest.mark.parametrize("at_once", [1, 3, 1 << 20])
def test_headers_are_read_some_at_a_time(run, maps, monkeypatch, at_once, capsys):
    """They are compared across the reads."""
    monkeypatch.setattr(zip_files, "_HEADERS", 400 * at_once)
    np.savez("x.npz", **maps)
    assert run("describe", "x.npz") == 0
    assert_described(maps)
    with zipfile.ZipFile("x.npz", "a") as archive:  # a gap between two members
        del archive.filelist[20]
        archive._didModify = True
    assert run("describe", "x.npz") == 2
    assert "photo 21.npy does not start where the member before it ends" in error_of(
        capsys, "describe"
    )


@pytest.mark.parametrize("kind", ["maps.npz", "big endian.npz", "maps.safetensors"])
def test_a_system_without_reads_at_a_place(run, maps, kind, monkeypatch, capsys):
    monkeypatch.setattr("rmac._io.read_rows", lambda *_arguments: 0)
    CONTAINERS[kind](kind, maps)
    assert run("describe", kind) == 0
    assert_described(maps)
    with open(kind, "r+b") as file:
        file.seek(20_000)
        byte = file.read(1)[0]
        file.seek(20_000)
        file.write(bytes([byte ^ 1]))
    assert run("describe", kind) == (2 if "npz" in kind else 0)
    assert ("its checksum is wrong" in capsys.readouterr().err) == ("npz" in kind)


def test_rows_of_bytes_of_a_file(tmp_path, rng):
    content = rng.bytes(5000)
    (tmp_path / "x").write_bytes(content)
    offsets = np.array([0, 4000, 17, 4950, 3])
    for size in (0, 1, 63, 64, 65, 500, 1007):
        rows, crcs = np.empty((5, size), np.uint8), rng.integers(1 << 32, size=5, dtype=np.uint32)
        expected = [content[at : at + size] for at in offsets]
        sums = [zlib.crc32(one, crc) for one, crc in zip(expected, crcs.tolist(), strict=True)]
        with open(tmp_path / "x", "rb") as file:
            there = next((i for i, one in enumerate(expected) if len(one) < size), 5)
            assert tables.read_rows(file.fileno(), offsets, rows) == there
            done = tables.read_rows(file.fileno(), offsets, rows, crcs)
        assert done in (0, there)
        assert [row.tobytes() for row in rows[:there]] == expected[:there]
        assert crcs[:done].tolist() == sums[:done]
    for wrong in (offsets[:4], np.append(offsets, 0)):
        with pytest.raises(ValueError, match="as many offsets"):
            tables.read_rows(0, wrong, rows)
    with pytest.raises(ValueError, match="as many offsets"):
        tables.read_rows(0, offsets, rows, np.zeros(4, np.uint32))


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


@pytest.mark.parametrize("kind", ["maps.npz", "maps.safetensors", "maps.zarr", "maps.h5"])
def test_bad_rows_are_told_by_their_names(run, tmp_path, maps, kind, capsys):
    maps["photo 17"][3] = np.nan
    maps["photo 36"][:] = 0
    CONTAINERS[kind](tmp_path / kind, maps)
    assert run("describe", kind) == 0
    zero = "not written" if kind == "maps.zarr" else "zero"  # Zarr does not write it
    told = f"1 not finite (17 photo 17); 1 {zero} (36 photo 36)"
    assert f"bad rows among the first 40: {told}" in capsys.readouterr().err
    assert run("describe", kind, "--strict", output="p.npz") == 2
    assert "photo 17" in error_of(capsys, "describe")
    assert not os.path.exists("p.npz")


def test_whiten_names_what_it_cannot_learn_from(run, rng, capsys):
    vectors = {f"v{i}": rng.standard_normal((5 + i % 3, 8)) for i in range(20)}
    vectors["v13"][2, 2] = np.inf
    np.savez("x.npz", **vectors)
    assert run("whiten", "x.npz", output="w.npz") == 2
    assert "1 not finite (13 v13); leave out rows" in error_of(capsys, "whiten")


def test_maps_never_written(run, maps, capsys):
    with h5py.File("x.h5", "w") as file:
        for name, one in maps.items():
            file.create_dataset(name, one.shape, "f4", chunks=one.shape)
            if name != "photo 09":
                file[name][...] = one
    assert run("describe", "x.h5") == 0
    assert "1 not written (9 photo 09)" in capsys.readouterr().err


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


def save(path, **arrays):
    np.savez(path, **arrays)


MAP, WHOLE_MAP = np.ones((8, 5, 5), "f4"), np.ones((2, 8, 5, 5), "f4")
REFUSED = {
    "channels": (
        lambda: save("x.npz", a=MAP, b=MAP[:7], c=MAP),
        "x.npz[b]: expected 8 channels, as x.npz[a] has, got 7",
    ),
    "dtypes": (
        lambda: save("x.npz", a=MAP, b=MAP.astype("f8")),
        "x.npz[b]: expected float32, as x.npz[a] has, got float64",
    ),
    "no cells": (
        lambda: save("x.npz", a=MAP, b=MAP[:, :0]),
        "x.npz[b]: expected at least one cell, got 0x5",
    ),
    "something else": (
        lambda: save("x.npz", a=MAP, b=MAP, c=MAP, labels=np.arange(3)),
        "x.npz[labels]: expected 3 axes, as most arrays there have, got shape (3,); save what is",
    ),
    "several": (
        lambda: save("x.npz", a=WHOLE_MAP, b=WHOLE_MAP),
        "--key: expected one of a, b in x.npz, got none",
    ),
    "objects": (
        lambda: save("x.npz", a=np.array([MAP, None], object)),
        "x.npz[a]: expected numbers, got Python objects, which are never unpickled; save a list",
    ),
    "no array": (lambda: save("x.npz"), "x.npz: expected an array, got none"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_are_refused(run, case, capsys):
    make, message = REFUSED[case]
    make()
    assert run("describe", "x.npz") == 2
    assert error_of(capsys, "describe").startswith(message)
    assert not os.path.exists("o.npz")


def test_regions_of_maps_that_differ(run, maps, capsys):
    np.savez("x.npz", **maps)
    assert run("describe", "x.npz", "--aggregate", "none") == 2
    error = error_of(capsys, "describe")
    assert "as many regions as x.npz[photo 00], as --aggregate none needs" in error


OTHERS = ["pt", "pth", "mat", "pkl", "csv", "jpg", "PNG", "tfrecord"]


@pytest.mark.parametrize("suffix", [*OTHERS, "xyz"])
def test_other_files_are_refused_with_the_way(run, tmp_path, suffix, capsys):
    (tmp_path / f"x.{suffix}").write_bytes(b"PK\3\4 or anything")
    if suffix == "xyz":
        (tmp_path / "x.xyz").write_bytes(b"hello")
    assert run("describe", f"x.{suffix}") == 2
    error = error_of(capsys, "describe")
    assert error.startswith(f"x.{suffix}: rmac reads .npy, .npz, .safetensors, .h5 and Zarr, and ")
    assert "save" in error


def damaged(offset):
    def damage(path):
        content = bytearray(path.read_bytes())
        content[offset(content)] ^= 1
        path.write_bytes(content)

    return damage


def append(path):
    with open(path, "ab") as file:
        file.write(b"more")


def prepend(path):
    path.write_bytes(b"more" + path.read_bytes())


DAMAGE = {
    "a value": (damaged(lambda content: len(content) // 2), "its checksum is wrong"),
    "a value of the last": (
        damaged(lambda content: content.index(b"PK\1\2") - 5),
        "its checksum is wrong",
    ),
    "bytes after it": (append, "or has bytes after its end"),
    "bytes before it": (prepend, "its directory is not at its end"),
    "its end": (lambda path: path.write_bytes(path.read_bytes()[:-30]), "it is no zip file"),
    "a name": (damaged(lambda content: content.index(b"photo 02")), "has another name"),
}


@pytest.mark.parametrize("case", DAMAGE)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("whole", [True, False])
def test_a_damaged_npz(run, tmp_path, maps, rng, case, save, whole, capsys):
    arrays = {"photo 02": rng.random((200, 8, 5, 5))} if whole else maps
    save("x.npz", **arrays)
    damage, message = DAMAGE[case]
    damage(tmp_path / "x.npz")
    assert run("describe", "x.npz", "--workers", "3") == 2
    error = error_of(capsys, "describe")
    assert "x.npz" in error
    assert message in error or (save is np.savez_compressed and "value" in case)
    assert not os.path.exists("o.npz")


def test_a_zip_that_claims_more_than_it_can_hold(run, capsys):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 512, 4096, 4096), }\n"
    with (
        zipfile.ZipFile("x.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w", force_zip64=True) as member,
    ):
        member.write(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header)
        for _ in range(16):
            member.write(bytes(1 << 20))
    assert run("describe", "x.npz") == 2
    assert "x.npy has 16777300 bytes, and 34359738452 are expected" in error_of(capsys, "describe")


def test_a_row_of_zeros_that_takes_all_memory(run, monkeypatch, capsys):
    monkeypatch.setattr("rmac.cli.npz_files._MOST_INFLATED", 10_000)
    np.savez_compressed("x.npz", np.zeros((1, 8, 32, 32)))
    assert run("describe", "x.npz") == 2
    assert "expected at most 10000 bytes that are read together" in error_of(capsys, "describe")


def test_a_fifo_in_a_folder(run, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    np.save("in/a.npy", MAP)
    os.mkfifo("in/b.npy")
    assert run("describe", "in") == 2
    assert error_of(capsys, "describe") == "in/b.npy: expected a regular file, got a FIFO"


def test_a_map_that_changes_while_a_folder_is_read(run, tmp_path, maps, monkeypatch, capsys):
    to_folder(tmp_path / "in", maps)
    describe = rmac.rmac

    def change(x, **options):
        if len(x):
            os.utime("in/photo 39.npy", ns=(1, 1))
        return describe(x, **options)

    monkeypatch.setattr(rmac, "rmac", change)
    assert run("describe", "in", "--workers", "1") == 2
    error = error_of(capsys, "describe")
    assert error == "in/photo 39.npy: was changed while it was read; run again once it is whole"


@pytest.mark.parametrize("inputs", [["x.npz"], ["a.npy", "x.npz"], ["x.npz/x"]])
def test_the_output_replaces_no_input(run, inputs, capsys):
    np.savez("x.npz", x=WHOLE_MAP)
    np.save("a.npy", WHOLE_MAP)
    assert run("describe", *inputs, output="x.npz") == 2
    assert "would replace the input" in error_of(capsys, "describe")


def test_links_to_other_files_are_not_followed(run, capsys):
    with h5py.File("other.h5", "w") as file:
        file["x"] = WHOLE_MAP
    with h5py.File("x.h5", "w") as file:
        file["link"] = h5py.ExternalLink("other.h5", "x")
    assert run("describe", "x.h5") == 2
    assert error_of(capsys, "describe") == "x.h5: expected an array, got none"
    with h5py.File("v.h5", "w") as file:
        layout = h5py.VirtualLayout(WHOLE_MAP.shape, "f4")
        layout[...] = h5py.VirtualSource("other.h5", "x", WHOLE_MAP.shape)
        file.create_virtual_dataset("x", layout)
    assert run("describe", "v.h5") == 2
    assert "got a dataset of others" in error_of(capsys, "describe")
