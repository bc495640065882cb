"""Inputs that change, never end, claim too much, or have rows that no descriptor can be made of."""

import os
import signal
import socket
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy
import zarr
from helpers import error_of, write_zarr

import rmac
from rmac.cli import files, flat_files, main
from rmac.cli.inputs import open_inputs


@pytest.fixture(autouse=True)
def _no_hang():
    """End a test that waits for a file without end."""

    def stop(*_args):
        raise AssertionError("it waited")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def describe(features, tmp_path):
    """Run `rmac describe` on a file, the features if none is given; return its exit status."""

    def run(path=features, *arguments):
        return main(["describe", str(path), "-o", str(tmp_path / "d.npy"), *arguments])

    return run


def test_arrays_appended_to_one_file(features, tmp_path, describe, capsys):
    x = np.load(features)
    with open(tmp_path / "x.npy", "wb") as file:
        np.save(file, x)
        np.save(file, x)
    assert describe(tmp_path / "x.npy") == 2
    error = error_of(capsys, "describe")
    assert f"x.npy: expected one array, got {x.nbytes + 128} bytes after it" in error
    assert "np.load(file)" in error
    assert not (tmp_path / "d.npy").exists()


def a_socket(path):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


ENDLESS = {
    "FIFO": (os.mkfifo, "a FIFO"),
    "socket": (a_socket, "a socket"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "a device"),
}


@pytest.mark.parametrize("name", ["x.npy", "x.safetensors"])
@pytest.mark.parametrize("case", ENDLESS)
def test_files_without_end_are_refused_at_once(tmp_path, describe, capsys, case, name, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    make, got = ENDLESS[case]
    make(tmp_path / name)
    assert describe(name) == 2
    assert error_of(capsys, "describe") == f"{name}: expected a regular file, got {got}"


def test_a_whitening_without_end_is_refused_at_once(tmp_path, describe, features, capsys):
    os.mkfifo(tmp_path / "w.npz")
    assert describe(features, "--whitening", str(tmp_path / "w.npz")) == 2
    error = error_of(capsys, "describe")
    assert error.startswith(f"{tmp_path / 'w.npz'}: expected ")
    assert "regular file" in error


@pytest.mark.parametrize("part", ["zarr.json", "x/zarr.json", "x/c/0/0/0/0"])
def test_a_part_of_a_zarr_without_end(features, tmp_path, part):
    """In a process of its own: Zarr's threads cannot be stopped while they wait."""
    write_zarr(tmp_path / "x.zarr", np.load(features))
    (tmp_path / "x.zarr" / part).unlink()
    os.mkfifo(tmp_path / "x.zarr" / part)
    command = [sys.executable, "-P", "-m", "rmac", "describe", tmp_path / "x.zarr"]
    result = subprocess.run(
        [*command, "-o", tmp_path / "d.npy"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.endswith(f"{part}: expected a regular file, got a FIFO\n")
    assert result.stderr.count("\n") == 1


def test_a_zarr_of_links_without_end(tmp_path, describe, capsys):
    group = zarr.create_group(tmp_path / "x.zarr")
    for name in "ab":
        group.create_group(name)
        (tmp_path / "x.zarr" / name / "c").symlink_to("..")
    assert describe(tmp_path / "x.zarr") == 2
    assert "not a Zarr folder that can be read" in error_of(capsys, "describe")


def sparse(path, start, size):
    with open(path, "wb") as file:
        file.write(start)
        file.truncate(size)


CLAIMS = {
    "a long header": ("x.npy", b"\x93NUMPY\2\0" + (3 << 30).to_bytes(4, "little"), 4 << 30),
    "a long JSON": ("x.safetensors", (90_000_000).to_bytes(8, "little"), 4 << 30),
    "more than the file": ("x.safetensors", (9_000_000).to_bytes(8, "little"), 100),
}


@pytest.mark.parametrize("case", CLAIMS)
def test_a_header_takes_no_memory_before_it_is_checked(tmp_path, describe, capsys, case):
    name, start, size = CLAIMS[case]
    sparse(tmp_path / name, start, size)
    tracemalloc.start()
    assert describe(tmp_path / name) == 2
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
    assert "that can be read" in error_of(capsys, "describe")


SHAPES = [
    (1 << 40, 0, 4, 4),  # it has no bytes, and would take for ever
    (0, 1 << 31, 1 << 31, 4),
    (1 << 31, 1 << 31, 1 << 31, 4),
    (1,) * 65,
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["npy", "zarr"])
def test_shapes_that_cannot_be(tmp_path, describe, capsys, shape, kind):
    path = tmp_path / f"x.{kind}"
    if kind == "npy":
        with open(path, "wb") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "<f4", "fortran_order": False, "shape": shape}
            )
    else:
        zarr.create_array(path, shape=shape, chunks=(1,) * len(shape), dtype="float32")
    assert describe(path) == 2
    assert f"its shape is {shape}"[:100] in error_of(capsys, "describe")


def shorten(path):
    os.truncate(path, 3000)


def grow(path):
    with open(path, "ab") as file:
        file.write(b"more")


def rewrite(path):
    content = path.read_bytes()
    os.utime(path, ns=(0, 0))
    with open(path, "r+b") as file:
        file.write(content)


CHANGES = [shorten, grow, rewrite]


def after_a_batch(monkeypatch, change):
    """Let `change` run when the first batch has been read."""
    results, changes = files.results, [change]

    def changing(*arguments):
        for part in results(*arguments):
            yield part
            if changes:
                changes.pop()()

    monkeypatch.setattr(files, "_BATCH", 8000)  # two maps
    monkeypatch.setattr("rmac.cli.describe.results", changing)


def save_safetensors(path, x):
    safetensors.numpy.save_file({"x": x}, path)


SAVE = {
    "C": ("x.npy", np.save),
    "Fortran": ("x.npy", lambda path, x: np.save(path, np.asfortranarray(x))),
    "safetensors": ("x.safetensors", save_safetensors),
}


@pytest.mark.parametrize("save", SAVE)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("workers", ["1", "3"])
def test_a_file_that_changes_while_it_is_read(
    features, tmp_path, describe, capsys, monkeypatch, save, change, workers
):
    name, write = SAVE[save]
    write(tmp_path / name, np.concatenate([np.load(features)] * 40))
    after_a_batch(monkeypatch, lambda: change(tmp_path / name))
    assert describe(tmp_path / name, "--workers", workers) == 2
    assert f"{name}: was changed while it was read" in error_of(capsys, "describe")
    assert sorted(os.listdir(tmp_path)) == ["features.npy", name]


def test_a_file_that_is_replaced_is_read_to_its_end(features, tmp_path, describe, monkeypatch):
    x = np.load(features)
    np.save(tmp_path / "y.npy", 0 * x)
    after_a_batch(monkeypatch, lambda: os.replace(tmp_path / "y.npy", features))
    assert describe(features, "--workers", "1") == 0
    np.testing.assert_array_equal(np.load(tmp_path / "d.npy"), rmac.rmac(x))


def test_a_failing_disk_is_blamed_on_the_input(features, describe, capsys, monkeypatch):
    inputs = open_inputs([str(features)], None, [4])

    def fail(*_arguments):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("rmac.cli.describe.open_inputs", lambda *_args, **_options: inputs)
    monkeypatch.setattr(os, "preadv", fail)
    assert describe() == 2
    assert error_of(capsys, "describe") == f"{features}: cannot be read: Input/output error"


@pytest.mark.parametrize("short", [0, 1 << 14])
@pytest.mark.parametrize("dtype", ["float32", ">f8", "uint8"])
def test_columns_of_fortran_order(tmp_path, rng, monkeypatch, short, dtype):
    monkeypatch.setattr(flat_files, "_SHORT_COLUMN", short)
    monkeypatch.setattr(flat_files, "_COLUMNS", 300)
    x = (90 * rng.random((9, 3, 4, 5))).astype(dtype, order="F")
    np.save(tmp_path / "x.npy", x)
    array = files.open_array(str(tmp_path / "x.npy"))
    for first, last in ((0, 9), (2, 5), (8, 9), (4, 4)):
        np.testing.assert_array_equal(array.read(first, last), x[first:last])
