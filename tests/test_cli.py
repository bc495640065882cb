"""The command line: results, whole files or none, and errors of one line with status 2."""

import contextlib
import inspect
import os
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import zarr

import rmac
from rmac import files
from rmac.cli import main


@pytest.fixture
def features(tmp_path, rng):
    path = tmp_path / "features.npy"
    np.save(path, rng.standard_normal((5, 8, 9, 12)).astype("float32"))
    return path


@pytest.fixture
def vectors(tmp_path, rng):
    path = tmp_path / "vectors.npy"
    np.save(path, rng.standard_normal((40, 3, 8)).astype("float32"))
    return path


@pytest.fixture(params=["describe", "whiten"])
def command(request):
    """A command, and a file that it reads."""
    source = {"describe": "features", "whiten": "vectors"}[request.param]
    return [request.param, str(request.getfixturevalue(source))]


@pytest.fixture
def suffix(command):
    """How the names of its outputs end."""
    return {"describe": ".npy", "whiten": ".npz"}[command[0]]


def error_of(capsys, command):
    """Return what a command said in its one line."""
    start, line = f"rmac {command}: error: ", capsys.readouterr().err
    assert line.startswith(start)
    assert line.count("\n") == 1
    return line.removeprefix(start).removesuffix("\n")


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


def test_demo_draws_pictures_only(capsys):
    assert main(["demo", "--plot", "/dev/null"]) == 2
    expected = "--plot: expected a name that ends in .png, got '/dev/null'"
    assert error_of(capsys, "demo") == expected


def test_a_bar_on_a_terminal(command, suffix, tmp_path):
    pytest.importorskip("tqdm")
    here, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    arguments = [sys.executable, "-P", "-m", "rmac", *command, "-o", tmp_path / f"o{suffix}"]
    subprocess.run(arguments, cwd=tmp_path, stderr=terminal, check=True)
    os.close(terminal)
    said = b""
    with open(here, "rb", buffering=0) as terminal, contextlib.suppress(OSError):  # at its end
        while part := terminal.read(1 << 16):
            said += part
    assert b"100%" in said


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8"])
def test_describe(tmp_path, rng, monkeypatch, layout, order, dtype):
    monkeypatch.setattr(files, "_BATCH", 20_000)  # several batches, the last not full
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


OPTIONS = {
    "pool": "gem",
    "p": 2.5,
    "levels": 2,
    "overlap": 0.2,
    "preset": "cirtorch",
    "layout": "NHWC",
    "aggregate": "mean",
    "eps": 0.5,
    "workers": 1,
    "normalize_regions": False,
    "normalize": False,
}


def as_arguments(options):
    return [
        f"--no-{name.replace('_', '-')}" if value is False else f"--{name}={value}"
        for name, value in options.items()
    ]


def test_describe_passes_each_option_on_if_it_is_given(features, tmp_path, monkeypatch):
    calls = []

    def record(x, **options):
        calls.append(options)
        return describe(x)

    describe = rmac.rmac
    monkeypatch.setattr(rmac, "rmac", record)
    command = ["describe", str(features), "-o", str(tmp_path / "d.npy")]
    assert main(command) == 0
    assert main([*command, *as_arguments(OPTIONS)]) == 0
    assert calls == [{}, {}, OPTIONS, OPTIONS]
    others = {"x", "out", "whitening"}  # the last has a test of its own
    assert OPTIONS.keys() == inspect.signature(describe).parameters.keys() - others


def test_describe_help_tells_the_defaults_of_rmac(capsys):
    with pytest.raises(SystemExit):
        main(["describe", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name in OPTIONS.keys() - {"workers", "normalize_regions", "normalize"}:
        default = inspect.signature(rmac.rmac).parameters[name].default
        told = re.search(r"\(default: (.*?)\)", text.rpartition(f"--{name} ")[2])[1]
        assert told == (default if isinstance(default, str) else f"{default:g}")


@pytest.mark.parametrize("options", [{"pool": "mean"}, {"pool": "gem"}, {"pool": "gem", "p": 2.5}])
def test_describe_with_other_pools(features, tmp_path, options):
    command = ["describe", str(features), "-o", str(tmp_path / "d.npy")]
    assert main([*command, *as_arguments(options)]) == 0
    expected = rmac.rmac(np.load(features), **options)
    np.testing.assert_array_equal(np.load(tmp_path / "d.npy"), expected)


@pytest.mark.parametrize("layout", ["NCT", "NTC"])
def test_describe_sequences(tmp_path, rng, layout):
    x = rng.random((5, 8, 12), dtype="float32")
    np.save(tmp_path / "x.npy", x)
    command = ["describe", str(tmp_path / "x.npy"), "-o", str(tmp_path / "d.npy")]
    assert main([*command, "--layout", layout]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "d.npy"), rmac.rmac(x, layout=layout))


@pytest.mark.parametrize("aggregate", ["mean", "concat", "none"])
def test_describe_aggregates(features, tmp_path, monkeypatch, aggregate):
    monkeypatch.setattr(files, "_BATCH", 10_000)
    command = ["describe", str(features), "-o", str(tmp_path / "d.npy")]
    assert main([*command, "--aggregate", aggregate]) == 0
    expected = rmac.rmac(np.load(features), aggregate=aggregate)
    np.testing.assert_array_equal(np.load(tmp_path / "d.npy"), expected)


def test_describe_takes_fewer_maps_at_a_time_where_it_makes_much_of_them(
    features, tmp_path, monkeypatch
):
    monkeypatch.setattr(files, "_BATCH", 10_000)  # two maps and little more
    counts = []

    def count(x, **options):
        counts.append(len(x))
        return describe(x, **options)

    describe = rmac.rmac
    monkeypatch.setattr(rmac, "rmac", count)
    command = ["describe", str(features), "-o", str(tmp_path / "d.npy"), "--aggregate", "none"]
    assert main([*command, "--levels", "1"]) == 0
    assert main([*command, "--levels", "6"]) == 0
    assert counts == [0, 2, 2, 1, 0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("source", ["float32", "float64"])
def test_describe_in_a_dtype(features, tmp_path, dtype, source):
    x = np.load(features).astype(source)
    np.save(features, x)
    command = ["describe", str(features), "-o", str(tmp_path / "d.npy")]
    assert main([*command, "--dtype", dtype]) == 0
    result = np.load(tmp_path / "d.npy")
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, rmac.rmac(x).astype(dtype))


def write_zarr(path, x):
    group = zarr.create_group(path)
    group.create_array("x", shape=x.shape, dtype=x.dtype, chunks=(2, 4, 5, 12))[...] = x


def write_safetensors(path, x):
    safetensors.numpy.save_file({"w": np.ones(3), "x": x}, path)


@pytest.mark.parametrize(
    ("name", "write", "dtype"),
    [("x.zarr", write_zarr, "float32"), ("x.safetensors", write_safetensors, ml_dtypes.bfloat16)],
)
def test_describe_other_files(features, tmp_path, monkeypatch, name, write, dtype):
    monkeypatch.setattr(files, "_BATCH", 8000)  # two maps of float32
    x = np.load(features).astype(dtype)
    write(tmp_path / name, x)
    command = ["describe", str(tmp_path / name), "--key", "x", "-o", str(tmp_path / "d.npy")]
    assert main(command) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "d.npy"), rmac.rmac(x))


def test_describe_without_the_right_key(features, tmp_path, capsys):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, np.load(features))
    command = ["describe", str(path), "-o", str(tmp_path / "d.npy")]
    for key, got in (([], "none"), (["--key", "y"], "'y'")):
        assert main([*command, *key]) == 2
        error = error_of(capsys, "describe")
        assert error == f"--key: expected one of w, x in {path}, got {got}"
    assert not (tmp_path / "d.npy").exists()


def whitening_of(channels, path):
    vectors = np.random.default_rng(1).standard_normal((50, channels))
    rmac.Whitening(dim=5).fit(vectors).save(path)
    return path


def test_describe_whitened(features, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_BATCH", 10_000)
    path = whitening_of(8, tmp_path / "w.npz")
    command = ["describe", str(features), "-o", str(tmp_path / "d.npy")]
    assert main([*command, "--whitening", str(path)]) == 0
    result = np.load(tmp_path / "d.npy")
    assert result.shape == (5, 5)
    whitening = rmac.Whitening.load(path)
    np.testing.assert_array_equal(result, rmac.rmac(np.load(features), whitening=whitening))


BAD_WHITENINGS = {
    "missing": (lambda _path: None, "No such file"),
    "text": (lambda path: path.write_text("hello"), "expected a file that Whitening.save wrote"),
    "channels": (lambda path: whitening_of(9, path), "9"),
}


@pytest.mark.parametrize("case", BAD_WHITENINGS)
def test_describe_with_a_bad_whitening(features, tmp_path, capsys, case):
    make, message = BAD_WHITENINGS[case]
    path = tmp_path / "w.npz"
    make(path)
    before = set(os.listdir(tmp_path))
    command = ["describe", str(features), "-o", str(tmp_path / "d.npy")]
    assert main([*command, "--whitening", str(path)]) == 2
    assert message in error_of(capsys, "describe")
    assert set(os.listdir(tmp_path)) == before


def test_describe_does_not_replace_its_whitening(features, tmp_path, capsys):
    path = str(whitening_of(8, tmp_path / "w.npy"))
    assert main(["describe", str(features), "-o", path, "--whitening", path]) == 2
    assert "would replace the input" in error_of(capsys, "describe")
    rmac.Whitening.load(path)


@pytest.mark.parametrize("shape", [(120, 8), (40, 3, 8)])
@pytest.mark.parametrize("options", [{}, {"dim": 5}, {"dim": 5, "eps": 0.97}])
def test_whiten(vectors, tmp_path, monkeypatch, shape, options):
    monkeypatch.setattr(files, "_BATCH", 1000)
    x = np.load(vectors).reshape(shape)
    np.save(vectors, x)
    command = ["whiten", str(vectors), "-o", str(tmp_path / "w.npz")]
    assert main([*command, *as_arguments(options)]) == 0
    result = rmac.Whitening.load(tmp_path / "w.npz")
    expected = rmac.Whitening(**options).fit(x)
    np.testing.assert_allclose(result.projection, expected.projection, atol=1e-6)
    np.testing.assert_allclose(result.mean, expected.mean, atol=1e-6)
    assert sorted(os.listdir(tmp_path)) == ["vectors.npy", "w.npz"]


def test_whiten_takes_what_describe_gives(features, tmp_path):
    regions, whitening = tmp_path / "r.npy", tmp_path / "w.npz"
    describe = ["describe", str(features), "-o"]
    assert main([*describe, str(regions), "--aggregate", "none", "--dtype", "float16"]) == 0
    assert main(["whiten", str(regions), "-o", str(whitening), "--dim", "4"]) == 0
    assert rmac.Whitening.load(whitening).dim == 4


CANNOT_WHITEN = {
    "1-d": ((8,), "float32", 4, "expected 2 or 3 axes, (M, C) or (N, R, C), got shape (8,)"),
    "maps": ((2, 8, 5, 5), "float32", 4, "(M, C) or (N, R, C), got shape (2, 8, 5, 5)"),
    "large dim": ((40, 8), "float32", 9, "dim: expected at most the 8 channels, got 9"),
    "no dim": ((40, 8), "float32", 0, "dim: expected an integer of at least 1, got 0"),
    "complex": ((40, 8), "complex128", 4, "vectors.npy: expected float16, bfloat16, float32"),
    "no channels": ((40, 0), "float32", 4, "vectors.npy: expected at least one channel, got 0"),
    "one": ((1, 8), "float32", 4, "vectors.npy: expected at least 2 vectors to learn from, got 1"),
}


@pytest.mark.parametrize("case", CANNOT_WHITEN)
def test_whiten_what_cannot_be(vectors, tmp_path, monkeypatch, capsys, case):
    shape, dtype, dim, message = CANNOT_WHITEN[case]
    if case != "one":  # all others are found before the work
        monkeypatch.setattr(files, "_progress", None)
    np.save(vectors, np.ones(shape, dtype))
    command = ["whiten", str(vectors), "-o", str(tmp_path / "w.npz")]
    assert main([*command, "--dim", str(dim)]) == 2
    assert message in error_of(capsys, "whiten")
    assert os.listdir(tmp_path) == ["vectors.npy"]


def test_whiten_vectors_that_are_not_finite(vectors, tmp_path, capsys):
    x = np.load(vectors)
    x[-1, -1, -1] = np.nan
    np.save(vectors, x)
    assert main(["whiten", str(vectors), "-o", str(tmp_path / "w.npz")]) == 2
    assert f"{vectors}: expected finite numbers, got nan" in error_of(capsys, "whiten")
    assert os.listdir(tmp_path) == ["vectors.npy"]


@pytest.mark.filterwarnings("default")
def test_whiten_warns_in_one_line(vectors, tmp_path, capsys):
    x = np.load(vectors)
    x[..., 3] = 1
    np.save(vectors, x)
    assert main(["whiten", str(vectors), "-o", str(tmp_path / "w.npz")]) == 0
    line = capsys.readouterr().err
    assert line.startswith("rmac whiten: warning: 1 of 8 variances are zero")
    assert line.count("\n") == 1
    assert rmac.Whitening.load(tmp_path / "w.npz").dim == 8


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
    "3-d": (
        lambda path: write(path, np.ones((3, 5, 5))),
        "expected 4 axes (N, C, H, W), got shape (3, 5, 5)",
    ),
    "complex": (lambda path: write(path, np.ones((1, 3, 5, 5), complex)), "got complex128"),
    "objects": (lambda path: write(path, np.full((1, 1, 1, 1), None)), "got Python objects"),
    "no cells": (
        lambda path: write(path, np.ones((2, 3, 0, 5))),
        "expected at least one cell, got 0x5",
    ),
}


@pytest.mark.parametrize("case", sorted(BAD_FILES))
def test_describe_a_bad_file(tmp_path, case, capsys):
    make, message = BAD_FILES[case]
    path = make(tmp_path / "x.npy")
    assert main(["describe", str(path), "-o", str(tmp_path / "d.npy")]) == 2
    error = error_of(capsys, "describe")
    assert message in error
    assert str(path) in error
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
    assert error_of(capsys, "describe") == message
    assert os.listdir(tmp_path) == ["features.npy"]


@pytest.mark.parametrize("output", ["nowhere/d", "folder", "pipe", "x" * 300])
def test_an_unwritable_path_is_found_before_the_work(
    command, suffix, tmp_path, monkeypatch, capsys, output
):
    monkeypatch.setattr(files, "_progress", None)
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    before = sorted(os.listdir(tmp_path))
    path = str(tmp_path / output) + suffix
    assert main([*command, "-o", path]) == 2
    assert path in error_of(capsys, command[0])
    assert sorted(os.listdir(tmp_path)) == before


def test_the_output_does_not_replace_the_input(command, suffix, tmp_path, capsys):
    path = Path(command[1]).rename(tmp_path / f"x{suffix}")
    before = path.read_bytes()
    assert main([command[0], str(path), "-o", str(path)]) == 2
    assert "would replace the input" in error_of(capsys, command[0])
    assert path.read_bytes() == before


def test_the_output_does_not_get_into_the_input(features, tmp_path, capsys):
    path = tmp_path / "x.zarr"
    write_zarr(path, np.load(features))
    assert main(["describe", str(path), "--key", "x", "-o", str(path / "x" / "d.npy")]) == 2
    assert "would replace the input" in error_of(capsys, "describe")
    assert not (path / "x" / "d.npy").exists()


@pytest.mark.parametrize("output", ["", "-", "d", "d.zarr", "npy"])
def test_an_output_of_another_kind(command, suffix, capsys, output):
    assert main([*command, "-o", output]) == 2
    expected = f"--output: expected a name that ends in {suffix}, got {output!r}"
    assert error_of(capsys, command[0]) == expected


def test_describe_byte_swapped_maps(features, tmp_path):
    x = np.load(features)
    np.save(features, x.astype(">f4"))
    assert main(["describe", str(features), "-o", str(tmp_path / "d.npy")]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "d.npy"), rmac.rmac(x))


def test_an_output_that_is_replaced_keeps_its_mode(features, tmp_path):
    path = tmp_path / "d.npy"
    path.touch(mode=0o600)
    assert main(["describe", str(features), "-o", str(path)]) == 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_size


def test_a_full_disk_is_told_of_by_name(command, suffix, tmp_path):
    code = "import resource, sys; from rmac.cli import main; "
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); sys.exit(main(sys.argv[1:]))"
    path = tmp_path / f"output{suffix}"
    result = subprocess.run(
        [sys.executable, "-P", "-c", code, *command, "-o", path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.endswith(f"error: {path}: cannot be written: File too large\n")
    assert os.listdir(tmp_path) == [Path(command[1]).name]


def test_describe_follows_a_link(features, tmp_path):
    (tmp_path / "link.npy").symlink_to(tmp_path / "d.npy")
    assert main(["describe", str(features), "-o", str(tmp_path / "link.npy")]) == 0
    assert (tmp_path / "link.npy").is_symlink()
    assert np.load(tmp_path / "d.npy").shape == (5, 8)


def test_describe_leaves_nothing_behind_when_it_fails_half_way(features, tmp_path, monkeypatch):
    (tmp_path / "d.npy").write_text("from before")
    monkeypatch.setattr(files, "_BATCH", 1)
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
from rmac.cli import program

# where the tests run in the background, children begin with these ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

def stuck(function):
    def call(*args, **options):
        if len(args[-1]):
            time.sleep(60)
        return function(*args, **options)
    return call

rmac.rmac = stuck(rmac.rmac)
rmac.Whitening.partial_fit = stuck(rmac.Whitening.partial_fit)
program()
"""


def end_half_way(command, output, kind):
    """Return the exit status of a command that was sent a signal with its output under way."""
    arguments = [sys.executable, "-P", "-c", STUCK, *command, "-o", output]
    folder = output.parent
    with subprocess.Popen(arguments, cwd=folder, stderr=subprocess.PIPE) as process:
        while not list(folder.glob(".rmac-*.part")) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(kind)
        process.stderr.read()
        return process.wait()


def test_a_killed_command_has_no_output_and_runs_again(command, suffix, tmp_path):
    output = tmp_path / f"output{suffix}"
    assert end_half_way(command, output, signal.SIGKILL) == -signal.SIGKILL
    assert not output.exists()
    assert main([*command, "-o", str(output)]) == 0
    np.load(output)


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_ended_command_leaves_nothing_behind(command, suffix, tmp_path, kind):
    assert end_half_way(command, tmp_path / f"output{suffix}", kind) == 128 + kind
    assert os.listdir(tmp_path) == [Path(command[1]).name]


def test_a_command_started_with_nohup_outlives_the_terminal(features, tmp_path):
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    code += "from rmac.cli import program; program(); "
    code += "assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN"
    command = [sys.executable, "-P", "-c", code, "describe", features, "-o", tmp_path / "d.npy"]
    subprocess.run(command, cwd=tmp_path, check=True)


LIMITED = """
import resource, sys
from rmac.cli import main

used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = used + int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("name", "shape", "output"),
    [("describe", (4096, 64, 16, 16), "d.npy"), ("whiten", (65536, 16, 64), "w.npz")],
)
def test_memory_does_not_grow_with_the_file(tmp_path, name, shape, output):
    """A file of 256 MB is done with half of that beside its mapping."""
    path = tmp_path / "x.npy"
    x = np.lib.format.open_memmap(path, "w+", "float32", shape)
    assert x.nbytes == 1 << 28
    command = [sys.executable, "-P", "-c", LIMITED, str(x.nbytes + (1 << 27)), name, path]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, "-o", tmp_path / output],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    np.load(tmp_path / output)


def test_a_corrupt_zarr_ends_in_one_line(tmp_path):
    path = tmp_path / "x.zarr"
    options = {"shape": (64, 32, 4, 4), "chunks": (1, 1, 4, 4), "dtype": "float32"}
    zarr.create_array(path, **options)[...] = 1
    for chunk in (path / "c" / "1").glob("*/0/0"):
        chunk.write_bytes(b"nonsense")
    command = [sys.executable, "-P", "-m", "rmac", "describe", path, "-o", tmp_path / "d.npy"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith(f"rmac describe: error: {path}: not a .zarr folder that can be")
    assert result.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == ["x.zarr"]


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
