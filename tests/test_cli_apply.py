"""Whitenings on the command line: of regional vectors, of descriptors, and of the other kind."""

import os

import numpy as np
import pytest
from helpers import error_of

import rmac
from rmac.cli import files, main

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command in a folder of its own, in small batches; return its exit status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "_BATCH", 2000)
    return lambda *arguments: main([*map(str, arguments)])


@pytest.fixture
def learned(run, rng):
    """Vectors of both kinds, and a whitening of each."""
    np.save("maps.npy", rng.random((60, 6, 5, 8), dtype="float32"))
    for name, options in (("regions", ["--aggregate", "none"]), ("descriptors", [])):
        assert run("describe", "maps.npy", "-o", f"{name}.npy", *options) == 0
        assert run("whiten", f"{name}.npy", "-o", f"{name}.npz", "--dim", 4) == 0


def normalised(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.usefixtures("learned")
@pytest.mark.parametrize("kind", ["regions", "descriptors"])
@pytest.mark.parametrize("dtype", [None, "float16", "float64"])
def test_apply_whitens_and_normalises(run, capsys, kind, dtype):
    options = ["--dtype", dtype] if dtype else []
    assert run("apply", f"{kind}.npz", f"{kind}.npy", "-o", "o.npy", *options, "--strict") == 0
    assert capsys.readouterr().err == ""
    x, result = np.load(f"{kind}.npy"), np.load("o.npy")
    expected = rmac.Whitening.load(f"{kind}.npz").apply(x)
    assert result.shape == expected.shape
    assert result.dtype == (dtype or "float32")
    tolerance = 1e-3 if dtype == "float16" else 1e-5
    np.testing.assert_allclose(result, normalised(expected), atol=tolerance)
    assert run("apply", f"{kind}.npz", f"{kind}.npy", "-o", "o.npy", "--no-normalize") == 0
    np.testing.assert_allclose(np.load("o.npy"), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("learned")
def test_apply_of_regions_is_the_middle_of_describe(run):
    """Whitened, summed and normalised, regional vectors are whitened descriptors."""
    assert run("apply", "regions.npz", "regions.npy", "-o", "r.npy") == 0
    assert run("describe", "maps.npy", "-o", "d.npy", "--whitening", "regions.npz") == 0
    expected = normalised(np.load("r.npy").sum(axis=1))
    np.testing.assert_allclose(np.load("d.npy"), expected, atol=1e-5)


@pytest.mark.usefixtures("learned")
def test_apply_tells_bad_rows(run, capsys):
    x = np.load("descriptors.npy")
    x[[5, 30], 1] = np.nan
    np.save("x.npy", x)
    assert run("apply", "descriptors.npz", "x.npy", "-o", "o.npy") == 0
    assert "x.npy: bad rows among the first 60: 2 not finite (5, 30)" in capsys.readouterr().err
    os.unlink("o.npy")
    assert run("apply", "descriptors.npz", "x.npy", "-o", "o.npy", "--strict") == 2
    assert "2 not finite (5, 30); without --strict" in error_of(capsys, "apply")
    assert not os.path.exists("o.npy")


CANNOT_APPLY = {
    "channels": (
        (40, 7),
        "float32",
        "x.npy: expected 6 channels, as descriptors.npz was learned from, got 7",
    ),
    "1-d": ((6,), "float32", "x.npy: expected 2 or 3 axes, (M, C) or (N, R, C), got shape (6,)"),
    "complex": ((40, 6), "complex64", "x.npy: expected float16, bfloat16"),
}


@pytest.mark.usefixtures("learned")
@pytest.mark.parametrize("case", CANNOT_APPLY)
def test_apply_to_what_cannot_be(run, capsys, case):
    shape, dtype, message = CANNOT_APPLY[case]
    np.save("x.npy", np.ones(shape, dtype))
    assert run("apply", "descriptors.npz", "x.npy", "-o", "o.npy") == 2
    assert error_of(capsys, "apply").startswith(message)
    assert not os.path.exists("o.npy")


@pytest.mark.usefixtures("learned")
@pytest.mark.parametrize("name", ["regions.npz", "regions.npy"])
def test_apply_replaces_neither_input(run, capsys, name):
    os.rename(name, "in.npy")
    inputs = ["in.npy" if one == name else one for one in ("regions.npz", "regions.npy")]
    assert run("apply", *inputs, "-o", "in.npy") == 2
    assert "the output would replace the input" in error_of(capsys, "apply")


@pytest.mark.usefixtures("learned")
def test_apply_without_rows(run):
    np.save("x.npy", np.empty((0, 6), "float32"))
    assert run("apply", "descriptors.npz", "x.npy", "-o", "o.npy") == 0
    assert np.load("o.npy").shape == (0, 4)


OTHER_KIND = {
    "describe": (["describe", "maps.npy", "--whitening", "descriptors.npz"], "rmac apply"),
    "apply": (["apply", "regions.npz", "descriptors.npy"], "rmac describe --whitening"),
}


@pytest.mark.usefixtures("learned")
@pytest.mark.parametrize("command", OTHER_KIND)
def test_a_whitening_of_the_other_kind_is_told(run, capsys, command):
    arguments, remedy = OTHER_KIND[command]
    assert run(*arguments, "-o", "o.npy") == 0
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1
    assert warning.startswith(f"rmac {command}: warning: ")
    assert remedy in warning
    os.unlink("o.npy")
    assert run(*arguments, "-o", "o.npy", "--strict") == 2
    assert remedy in error_of(capsys, command)
    assert not os.path.exists("o.npy")


@pytest.mark.usefixtures("learned")
@pytest.mark.parametrize("kind", ["regions", "descriptors"])
def test_the_kind_is_kept_and_can_be_said(run, kind):
    assert rmac.Whitening.load(f"{kind}.npz").kind == kind
    other = ({"regions", "descriptors"} - {kind}).pop()
    assert run("whiten", f"{kind}.npy", "-o", "w.npz", "--kind", other) == 0
    assert rmac.Whitening.load("w.npz").kind == other
