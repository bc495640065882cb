"""The command line: what its commands make of files, options and errors in them."""

import contextlib
import inspect
import os
import re
import subprocess
import sys
import termios
import threading

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from helpers import error_of, write_zarr

import rmac
from rmac.cli import files, main


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


@pytest.mark.parametrize("order", ["C", "F"])
def test_describe_in_threads_of_their_own_keeps_the_order(tmp_path, rng, monkeypatch, order):
    monkeypatch.setattr(files, "_TILE", 9000)  # two maps
    x = rng.random((101, 8, 9, 12)).astype("float32", order=order)
    np.save(tmp_path / "x.npy", x)
    seen = set()

    def note(part, **options):
        seen.add((threading.get_ident(), len(part), options.get("workers")))
        return describe(part, **options)

    describe = rmac.rmac
    monkeypatch.setattr(rmac, "rmac", note)
    command = ["describe", str(tmp_path / "x.npy"), "-o", str(tmp_path / "d.npy")]
    assert main([*command, "--workers", "4"]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "d.npy"), describe(x))
    assert {(count, workers) for _, count, workers in seen} == {(0, 4), (2, 1), (1, 1)}
    idents = {thread for thread, count, _ in seen if count}
    assert 1 <= len(idents) <= 4
    assert threading.get_ident() not in idents


def test_describe_shares_large_maps_among_threads(tmp_path, monkeypatch):
    monkeypatch.setattr("rmac.cli.describe._LARGEST", 3 * (4 * 8 * 9 * 12 + 32))
    np.save(tmp_path / "x.npy", np.ones((9, 8, 9, 12), "float32"))
    calls = []
    command = ["describe", str(tmp_path / "x.npy"), "-o", str(tmp_path / "d.npy")]
    describe = rmac.rmac
    monkeypatch.setattr(rmac, "rmac", lambda x, **o: calls.append(o) or describe(x, **o))
    for workers, passed in ((2, 1), (8, 1), (1, 1)):
        calls.clear()
        assert main([*command, "--workers", str(workers)]) == 0
        assert calls[-1] == {"workers": passed}
    monkeypatch.setattr("rmac.cli.describe._LARGEST", 10)
    assert main([*command, "--workers", "4"]) == 0
    assert calls[-1] == {"workers": 4}


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
    "zero_point": 0,
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
        f"--no-{flag}" if value is False else f"--{flag}={value}"
        for flag, value in ((name.replace("_", "-"), value) for name, value in options.items())
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
    assert calls[0] == {}
    assert calls[1] in ({}, {"workers": 1})  # several threads have batches of their own
    assert calls[2:] == [OPTIONS, OPTIONS]
    others = {"x", "out", "regions", "whitening"}  # the last has a test of its own
    assert OPTIONS.keys() == inspect.signature(describe).parameters.keys() - others


def test_describe_help_tells_the_defaults_of_rmac(capsys):
    with pytest.raises(SystemExit):
        main(["describe", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name in OPTIONS.keys() - {"workers", "normalize_regions", "normalize"}:
        default = inspect.signature(rmac.rmac).parameters[name].default
        told = re.search(r"\(default: (.*?)\)", text.rpartition(f"--{name.replace('_', '-')} ")[2])[
            1
        ]
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
    command += ["--workers", "1"]
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
        monkeypatch.setattr(files, "progress", None)
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
    assert error_of(capsys, "whiten") == (
        f"{vectors}: bad rows among the first 40: 1 not finite (39); leave out rows that are not "
        "finite"
    )
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
    assert rmac.Whitening.load(tmp_path / "w.npz").dim == 7


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
