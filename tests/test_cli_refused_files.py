"""Files of maps that a command refuses, and the names by which it tells of bad rows."""

import os

import h5py
import numpy as np
import pytest
from containers import CONTAINERS, to_folder
from helpers import error_of

import rmac

pytestmark = pytest.mark.filterwarnings("default")


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


def test_bad_rows_of_several_files_are_told_by_file(run, rng, capsys):
    x = rng.random((2, 3, 8, 5, 5), dtype="float32")
    x[0, 2], x[1, 0] = np.nan, np.inf
    np.save("a.npy", x[0])
    np.save("b.npy", x[1])
    assert run("describe", "a.npy", "b.npy") == 0
    assert "2 not finite (2 a.npy[2], 3 b.npy[0]);" in capsys.readouterr().err


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


MAP, WHOLE_MAP = np.ones((8, 5, 5), "f4"), np.ones((2, 8, 5, 5), "f4")


def save(path, **arrays):
    np.savez(path, **arrays)


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
