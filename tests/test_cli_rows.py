"""Bad rows are told by their numbers, and results that a dtype cannot hold are errors."""

import os
import shutil

import numpy as np
import pytest
import zarr
from helpers import error_of

import rmac
from rmac.cli import files, main

pytestmark = pytest.mark.filterwarnings("default")


def warning_of(capsys, command):
    start, line = f"rmac {command}: warning: ", capsys.readouterr().err
    assert line.startswith(start)
    assert line.count("\n") == 1
    return line.removeprefix(start).removesuffix("\n")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command on an array, in batches of two rows; return its exit status."""
    monkeypatch.chdir(tmp_path)

    def call(command, x, *arguments, name="x.npy"):
        if x is not None:
            np.save(name, x)
            monkeypatch.setattr(files, "_BATCH", 2 * x[0].nbytes + 500)
        output = "o.npz" if command == "whiten" else "o.npy"
        return main([command, name, "-o", output, *arguments])

    return call


@pytest.fixture
def maps(rng):
    return rng.random((20, 4, 9, 12), dtype="float32")


def with_bad_rows(x):
    x[[3, 17], 1] = np.nan
    x[8, 2] = -np.inf
    x[8, 1] = np.inf
    x[[0, 2, 4, 6, 10, 12, 14]] = 0
    return x


BAD = "3 not finite (3, 8, 17); 7 zero (0, 2, 4, 6, 10, ...)"


@pytest.mark.parametrize("aggregate", ["sum", "none", "concat"])
def test_describe_tells_bad_rows_in_one_line(run, maps, capsys, aggregate):
    assert run("describe", with_bad_rows(maps), "--aggregate", aggregate) == 0
    expected = f"x.npy: bad rows among the first 20: {BAD}; --strict makes this an error"
    assert warning_of(capsys, "describe") == expected
    result = np.load("o.npy").reshape(20, -1)
    np.testing.assert_array_equal(np.flatnonzero(~np.isfinite(result).all(axis=1)), [3, 8, 17])


def test_describe_that_is_strict_stops_at_the_first_batch_with_bad_rows(run, maps, capsys):
    with_bad_rows(maps)[0] = 1
    assert run("describe", maps, "--strict") == 2
    assert error_of(capsys, "describe").startswith(
        "x.npy: bad rows among the first 4: 1 not finite (3); 1 zero (2); without --strict"
    )
    assert os.listdir() == ["x.npy"]


@pytest.mark.parametrize("command", ["describe", "whiten"])
def test_good_rows_are_not_told(run, maps, capsys, command):
    assert run(command, maps if command == "describe" else maps[..., 0], "--strict") == 0
    assert capsys.readouterr().err == ""


def test_whiten_names_rows_that_it_cannot_learn_from(run, rng, capsys):
    x = rng.random((20, 3, 4))
    x[7, 1, 2] = np.nan
    assert run("whiten", x) == 2
    expected = "x.npy: bad rows among the first 14: 1 not finite (7); leave out rows that are not"
    assert error_of(capsys, "whiten").startswith(expected)
    assert os.listdir() == ["x.npy"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((20, 8)), "expected some that differ"),
        (np.ones((20, 8)), "expected some that differ"),
        (np.full((20, 8), 1 / 3), "expected some that differ"),
        (np.zeros((1, 8)), "expected at least 2 vectors"),
    ],
    ids=["zeros", "ones", "thirds", "one"],
)
def test_whiten_without_any_direction_is_one_error(run, capsys, rows, message):
    x = rows.astype("float32")
    assert run("whiten", x) == 2
    assert message in error_of(capsys, "whiten")
    assert os.listdir() == ["x.npy"]
    if len(x) > 1:
        assert run("whiten", x, "--eps", "1") == 0


def test_whiten_tells_rows_of_zeros(run, rng, capsys):
    x = rng.random((20, 3, 4))
    x[11] = 0
    assert run("whiten", x) == 0
    expected = "x.npy: bad rows among the first 20: 1 zero (11); --strict makes this an error"
    assert warning_of(capsys, "whiten") == expected
    os.unlink("o.npz")
    assert run("whiten", x, "--strict") == 2
    assert "1 zero (11); without --strict this is a warning" in error_of(capsys, "whiten")
    assert os.listdir() == ["x.npy"]


@pytest.mark.parametrize(
    ("source", "dtype", "value", "most"),
    [("float32", "float16", 70_000, "65504"), ("float64", "float32", 1e39, "3.40282e+38")],
)
def test_numbers_that_a_dtype_cannot_hold(run, maps, capsys, source, dtype, value, most):
    maps = maps.astype(source)
    maps[13, 2] = value
    options = ["--no-normalize", "--no-normalize-regions", "--levels", "1", "--dtype"]
    assert run("describe", maps, *options, dtype) == 2
    error = error_of(capsys, "describe")
    assert error.startswith(f"--dtype: expected numbers of at most {most}, which {dtype} has, got ")
    assert "in row 13; take a wider dtype, or normalise" in error
    assert os.listdir() == ["x.npy"]
    assert run("describe", maps, *options, source) == 0


def test_rows_that_a_dtype_makes_zero(run, maps, capsys):
    maps[5] *= 1e-9
    options = ["--no-normalize", "--no-normalize-regions", "--dtype", "float16"]
    assert run("describe", maps, *options) == 0
    assert "1 zero (5)" in warning_of(capsys, "describe")


STORED = {
    "whole maps": ({"chunks": (3, 4, 9, 12)}, ["c/2"], "6, 7, 8"),
    "part of a map": ({"chunks": (3, 2, 9, 12)}, ["c/6/1"], "18, 19"),
    "version 2": (
        {"chunks": (3, 4, 9, 12), "zarr_format": 2},
        ["0.0.0.0", "4.0.0.0"],
        "0, 1, 2, 12, 13, ...",
    ),
    "shards": ({"chunks": (1, 4, 9, 12), "shards": (4, 4, 9, 12)}, ["c/1"], "4, 5, 6, 7"),
}


def new_zarr(x, **options):
    return zarr.create_array(
        "x.zarr",
        shape=x.shape,
        dtype=x.dtype,
        fill_value=1,
        config={"write_empty_chunks": True},
        **options,
    )


@pytest.mark.parametrize("case", STORED)
def test_rows_never_written_to_a_zarr(run, maps, capsys, case):
    options, parts, rows = STORED[case]
    new_zarr(maps, **options)[...] = maps
    for part in parts:
        path = f"x.zarr/{part}"
        shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
    assert run("describe", None, name="x.zarr") == 0
    warning = warning_of(capsys, "describe")
    assert f"not written ({rows}); Zarr does not write chunks of its fill value either" in warning
    assert run("describe", None, "--strict", name="x.zarr") == 2
    assert "not written" in error_of(capsys, "describe")


@pytest.mark.parametrize("place", ["start", "end"])
@pytest.mark.parametrize("chunk", [(1, 4, 9, 12), (1, 1, 9, 12)])
def test_rows_never_written_to_a_shard(run, maps, capsys, place, chunk):
    """Shards reach beyond the array: chunks there are never written, and are no rows."""
    shards = {"shape": (8, 4, 9, 12), "index_location": place}
    array = new_zarr(maps[:10, :3], chunks=chunk, shards=shards)
    array[:5], array[6:, :2], array[7:] = maps[:5, :3], maps[6:10, :2], maps[7:10, :3]
    expected = "2 not written (5, 6); Zarr" if chunk[1] == 1 else "1 not written (5); Zarr"
    assert run("describe", None, name="x.zarr") == 0
    assert expected in warning_of(capsys, "describe")


def test_a_row_is_told_once(run, maps, capsys):
    """Rows that were never written are zeros too."""
    array = zarr.create_array("x.zarr", shape=maps.shape, dtype="float32", chunks=(5, 4, 9, 12))
    array[:10] = maps[:10]
    assert run("describe", None, name="x.zarr") == 0
    expected = "first 20: 10 not written (10, 11, 12, 13, 14, ...); Zarr"
    assert expected in warning_of(capsys, "describe")


def test_big_endian_zarr(run, maps):
    zarr.create_array("x.zarr", data=maps.astype(">f4"), zarr_format=2)
    assert run("describe", None, name="x.zarr") == 0
    np.testing.assert_array_equal(np.load("o.npy"), rmac.rmac(maps))


def test_a_zarr_of_any_name_and_an_array_inside(run, maps):
    zarr.create_group("x").create_array("layer4", data=maps)
    for name in ("x", "x/layer4"):
        assert run("describe", None, name=name) == 0
        np.testing.assert_array_equal(np.load("o.npy"), rmac.rmac(maps))
