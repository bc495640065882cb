"""The command line: results, whole files or none, and errors of one line with status 2."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import rmac
from rmac import describe
from rmac.cli import main


@pytest.fixture
def features(tmp_path, rng):
    path = tmp_path / "features.npy"
    np.save(path, rng.standard_normal((5, 8, 9, 12)).astype("float32"))
    return path


def lines_of(capsys):
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("query", "first"), [(None, "box_in_scene"), ("graf1", "graf3"), ("leuvenA", "leuvenB")]
)
def test_demo_ranks_the_same_scene_first(capsys, query, first):
    assert main(["demo", *(["--query", query] if query else [])]) == 0
    lines = lines_of(capsys)
    assert lines[0] == f"query: {query or 'box'}"
    assert lines[3].split()[0] == "1"
    assert lines[3].split()[2] == first
    assert len([line for line in lines if line[:4].strip().isdecimal()]) == 19
    assert "ms per image" in lines[-1]


def test_demo_names_the_photographs_it_knows(capsys):
    assert main(["demo", "--query", "nobody"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "graf1, graf3" in error


def test_demo_plots(tmp_path, capsys):
    path = tmp_path / "grid.png"
    assert main(["demo", "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert str(path) in capsys.readouterr().out


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8"])
def test_describe(tmp_path, rng, monkeypatch, layout, order, dtype):
    monkeypatch.setattr(describe, "_BATCH", 20_000)  # several batches, the last not full
    x = (50 * rng.random((7, 9, 12, 8))).astype(dtype, order=order)
    np.save(tmp_path / "x.npy", x)
    arguments = ["-o", str(tmp_path / "d.npy"), "--layout", layout, "--levels", "2"]
    arguments += ["--overlap", "0.3", "--preset", "matlab", "--workers", "2"]
    assert main(["describe", str(tmp_path / "x.npy"), *arguments]) == 0
    expected = rmac.rmac(x, layout=layout, levels=2, overlap=0.3, preset="matlab")
    result = np.load(tmp_path / "d.npy")
    assert result.dtype == expected.dtype
    np.testing.assert_array_equal(result, expected)
    assert sorted(os.listdir(tmp_path)) == ["d.npy", "x.npy"]


def test_describe_no_maps(tmp_path):
    np.save(tmp_path / "x.npy", np.empty((0, 6, 4, 4), "float32"))
    assert main(["describe", str(tmp_path / "x.npy"), "-o", str(tmp_path / "d.npy")]) == 0
    assert np.load(tmp_path / "d.npy").shape == (0, 6)


def test_describe_gives_the_output_an_ordinary_mode(features, tmp_path):
    assert main(["describe", str(features), "-o", str(tmp_path / "d.npy")]) == 0
    assert (tmp_path / "d.npy").stat().st_mode == features.stat().st_mode


def write(path, array):
    np.save(path, array)
    return path


def truncated(path):
    np.save(path, np.ones((4, 3, 5, 5), "float32"))
    path.write_bytes(path.read_bytes()[:-10])
    return path


def with_header(text, data=b""):
    """A file of format 1.0 whose header is any text."""

    def write_it(path):
        header = text.encode()
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data)
        return path

    return write_it


def npy_header(descr="'<f4'", shape="(1, 2, 3, 4)"):
    return with_header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n")


BAD_FILES = {
    "header cut short": (with_header("{'descr': ("), "not a .npy file"),
    "header of brackets": (with_header("[" * 200), "not a .npy file"),
    "header with a list as key": (with_header("{[]: 1}"), "not a .npy file"),
    "dtype in a tuple": (npy_header(descr="('<f4',)"), "not a .npy file"),
    "negative shape": (npy_header(shape="(-1, 2, 3, 4)"), "its shape is (-1, 2, 3, 4)"),
    "huge shape": (npy_header(shape=f"(0, {2**64}, 3, 4)"), "not a .npy file"),
    "bfloat16": (npy_header(descr="'|V2'"), "bfloat16, perhaps"),
    "unknown version": (
        lambda path: path.write_bytes(b"\x93NUMPY\x07\x00" + bytes(200)) and path,
        "its format has version (7, 0)",
    ),
    "truncated": (truncated, "truncated: 1200 bytes of data expected, 1190 there"),
    "headless": (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v") and path, "not a .npy file"),
    "text": (lambda path: path.write_text("hello") and path, "not a .npy file"),
    "empty": (lambda path: path.write_bytes(b"") or path, "not a .npy file"),
    "missing": (lambda path: path, "No such file"),
    "folder": (lambda path: path.mkdir() or path, "Is a directory"),
    "3-d": (lambda path: write(path, np.ones((3, 5, 5))), "expected 4 axes"),
    "complex": (lambda path: write(path, np.ones((1, 3, 5, 5), complex)), "got complex128"),
    "objects": (lambda path: write(path, np.full((1, 1, 1, 1), None)), "expected numbers"),
    "byte-swapped": (lambda path: write(path, np.ones((1, 3, 5, 5), ">f4")), "byte-swapped"),
    "no cells": (lambda path: write(path, np.ones((2, 3, 0, 5))), "expected at least one cell"),
}


@pytest.mark.parametrize("case", sorted(BAD_FILES))
def test_describe_a_bad_file(tmp_path, case, capsys):
    make, message = BAD_FILES[case]
    path = make(tmp_path / "x.npy")
    assert main(["describe", str(path), "-o", str(tmp_path / "d.npy")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rmac describe: error: ")
    assert message in error
    assert str(path) in error
    assert error.count("\n") == 1
    assert not (tmp_path / "d.npy").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--levels", "0"], "levels: expected an integer of at least 1, got 0"),
        (["--overlap", "2"], "overlap: expected a number with 0 <= overlap < 1, got 2.0"),
        (["--workers", "0"], "workers: expected an integer of at least 1, got 0"),
    ],
)
def test_describe_with_a_bad_option(features, tmp_path, capsys, arguments, message):
    assert main(["describe", str(features), "-o", str(tmp_path / "d.npy"), *arguments]) == 2
    assert capsys.readouterr().err == f"rmac describe: error: {message}\n"
    assert os.listdir(tmp_path) == ["features.npy"]


@pytest.mark.parametrize("output", ["nowhere/d.npy", ".", "features.npy", "pipe", "x" * 300])
def test_describe_to_an_unwritable_path(features, tmp_path, capsys, output):
    os.mkfifo(tmp_path / "pipe")
    before = features.read_bytes()
    assert main(["describe", str(features), "-o", str(tmp_path / output)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rmac describe: error: ")
    assert str(tmp_path / output) in error
    assert error.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["features.npy", "pipe"]
    assert features.read_bytes() == before


def test_describe_without_a_name_to_write_to(features, capsys):
    assert main(["describe", str(features), "-o", ""]) == 2
    assert "no such folder to write to" in capsys.readouterr().err


def test_describe_follows_a_link(features, tmp_path):
    (tmp_path / "link.npy").symlink_to(tmp_path / "d.npy")
    assert main(["describe", str(features), "-o", str(tmp_path / "link.npy")]) == 0
    assert (tmp_path / "link.npy").is_symlink()
    assert np.load(tmp_path / "d.npy").shape == (5, 8)


def test_describe_leaves_nothing_behind_when_it_fails_half_way(features, tmp_path, monkeypatch):
    (tmp_path / "d.npy").write_text("from before")
    monkeypatch.setattr(describe, "_BATCH", 1)
    calls = []

    def fail_at_last(x, **options):
        calls.append(len(x))
        if len(calls) == 4:
            raise MemoryError("no more")
        return rmac_function(x, **options)

    rmac_function = rmac.rmac
    monkeypatch.setattr(rmac, "rmac", fail_at_last)
    assert main(["describe", str(features), "-o", str(tmp_path / "d.npy")]) == 2
    assert (tmp_path / "d.npy").read_text() == "from before"
    assert sorted(os.listdir(tmp_path)) == ["d.npy", "features.npy"]


STUCK = """
import signal, sys, time, rmac
from rmac.cli import main

# where the tests run in the background, children begin with Ctrl-C ignored
signal.signal(signal.SIGINT, signal.default_int_handler)

def stuck(x, describe=rmac.rmac, **options):
    if len(x):
        time.sleep(60)
    return describe(x, **options)

rmac.rmac = stuck
sys.exit(main(sys.argv[1:]))
"""


def end_describe_half_way(features, kind):
    """Return the exit status of a command that was sent a signal with its output under way."""
    folder = features.parent
    command = [sys.executable, "-P", "-c", STUCK, "describe", features, "-o", folder / "d.npy"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE) as process:
        while not list(folder.glob(".rmac-*.part")) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(kind)
        process.stderr.read()
        return process.wait()


def test_describe_killed_has_no_output_and_runs_again(features):
    output = features.parent / "d.npy"
    assert end_describe_half_way(features, signal.SIGKILL) == -signal.SIGKILL
    assert not output.exists()
    assert main(["describe", str(features), "-o", str(output)]) == 0
    np.testing.assert_array_equal(np.load(output), rmac.rmac(np.load(features)))


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_describe_ended_leaves_nothing_behind(features, kind):
    assert end_describe_half_way(features, kind) == 130
    assert os.listdir(features.parent) == ["features.npy"]


def test_usage_errors_have_status_2(capsys):
    for arguments in (
        [],
        ["describe"],
        ["demo", "--nonsense"],
        ["describe", "x", "-o", "y", "--levels", "a"],
    ):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"rmac {rmac.__version__}\n"


def test_a_closed_pipe_is_no_error():
    code = "import sys; from rmac.cli import main; sys.exit(main(['demo']))"
    command = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, cwd="/") as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0
