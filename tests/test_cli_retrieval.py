"""Queries on the command line: found in maps, and re-ranked by what is in their boxes."""

import os

import numpy as np
import pytest
from helpers import error_of, write_zarr

import rmac
from rmac.cli import files, main, rerank

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command in a folder of its own, in small batches; return its exit status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "_BATCH", 5000)
    monkeypatch.setattr(rerank, "_BLOCK", 5000)
    return lambda *arguments: main([*map(str, arguments)])


@pytest.fixture
def maps(run, rng):
    """Maps with the inside of the first two pasted into others."""
    del run
    x = rng.random((12, 6, 7, 9), dtype="float32") ** 3
    x[5:8, :, 2:6, 3:8] = x[0, :, 1:5, 2:7]
    x[9, :, 0:4, 0:5] = x[1, :, 1:5, 2:7]
    np.save("maps.npy", x)
    np.save("queries.npy", x[:2])
    np.save("boxes.npy", [[2, 1, 6, 4]] * 2)
    return x


CROP = np.s_[:, 1:5, 2:7]


def maxima_of(x):
    return np.stack([one[CROP].max(axis=(1, 2)) for one in x[:2]])


SEARCH = {"search": "grid", "tolerance": 2, "step": 2, "refine": 1, "sweeps": 3, "workers": 1}
SEARCH_FLAGS = [f"--{name}={value}" for name, value in SEARCH.items()]


@pytest.mark.parametrize("options", [{}, SEARCH, {"aspect": 1.5}])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_locate(run, maps, options, dtype):
    x = (maps * 200).astype(dtype)
    np.save("maps.npy", x)
    np.save("queries.npy", x[:2])
    arguments = ["maps.npy", "queries.npy", "--boxes", "boxes.npy", "-o", "o.npy"]
    flags = [f"--{name}={value}" for name, value in options.items()]
    assert run("locate", *arguments, *flags) == 0
    result = np.load("o.npy")
    maxima = maxima_of(x).astype("float64" if dtype == "float64" else "float32")
    expected = rmac.localize(x, maxima, **({"aspect": 4 / 5} | options))
    assert result.dtype == expected.scores.dtype
    np.testing.assert_array_equal(result[..., :4], expected.boxes.swapaxes(0, 1))
    np.testing.assert_array_equal(result[..., 4], expected.scores.T)


def test_locate_finds_what_was_pasted(run, maps):
    assert run("locate", "maps.npy", "queries.npy", "--boxes", "boxes.npy", "-o", "o.npy") == 0
    found = np.load("o.npy")[..., 4] > 0.9999
    np.testing.assert_array_equal(np.flatnonzero(found[:, 0]), [0, 5, 6, 7])
    np.testing.assert_array_equal(np.flatnonzero(found[:, 1]), [1, 9])
    del maps


def test_locate_whole_queries_and_vectors(run, maps):
    """Vectors have no aspect."""
    assert run("locate", "maps.npy", "queries.npy", "-o", "o.npy") == 0
    vectors = maps[:2].max(axis=(2, 3))
    whole = rmac.localize(maps, vectors, aspect=7 / 9)
    np.testing.assert_array_equal(np.load("o.npy")[..., :4], whole.boxes.swapaxes(0, 1))
    np.save("queries.npy", vectors)
    for flags, aspect in (([], None), (["--aspect", "0.5"], 0.5)):
        assert run("locate", "maps.npy", "queries.npy", "-o", "o.npy", *flags) == 0
        expected = rmac.localize(maps, vectors, aspect=aspect)
        np.testing.assert_array_equal(np.load("o.npy")[..., 4], expected.scores.T)


def test_locate_in_another_layout_and_file(run, maps):
    assert run("locate", "maps.npy", "queries.npy", "--boxes", "boxes.npy", "-o", "a.npy") == 0
    write_zarr("x.zarr", np.ascontiguousarray(maps.transpose(0, 2, 3, 1)))
    np.save("queries.npy", maps[:2].transpose(0, 2, 3, 1))
    arguments = ["x.zarr", "queries.npy", "--key", "x", "--layout", "NHWC", "-o", "b.npy"]
    assert run("locate", *arguments, "--boxes", "boxes.npy") == 0
    np.testing.assert_array_equal(np.load("a.npy"), np.load("b.npy"))


def test_locate_quantises_for_the_search_of_the_paper(run, maps):
    np.save("maps.npy", maps * 128)
    assert run("locate", "maps.npy", "queries.npy", "--search", "aml", "-o", "o.npy") == 0
    vectors = maps[:2].max(axis=(2, 3))
    expected = rmac.localize(rmac.quantize(maps * 128), vectors, search="aml", aspect=7 / 9)
    np.testing.assert_array_equal(np.load("o.npy")[..., :4], expected.boxes.swapaxes(0, 1))


def test_bad_maps_are_told(run, maps, capsys):
    maps[4] = np.nan
    np.save("maps.npy", maps)
    assert run("locate", "maps.npy", "queries.npy", "-o", "o.npy") == 0
    assert "maps.npy: bad rows among the first 12: 1 not finite (4)" in capsys.readouterr().err
    assert run("locate", "maps.npy", "queries.npy", "-o", "s.npy", "--strict") == 2
    assert "not finite (4); without --strict" in error_of(capsys, "locate")
    assert not os.path.exists("s.npy")


@pytest.mark.parametrize("command", ["locate", "rerank"])
def test_bad_queries_are_told(run, maps, capsys, command):
    maps[1] = 0
    np.save("queries.npy", maps[:2])
    ranks = ["ranks.npy"] if command == "rerank" else []
    np.save("ranks.npy", [[3, 4], [5, 6]])
    assert run(command, "maps.npy", "queries.npy", *ranks, "-o", "o.npy") == 0
    assert "queries.npy: bad rows among the first 2: 1 zero (1)" in capsys.readouterr().err
    assert run(command, "maps.npy", "queries.npy", *ranks, "-o", "s.npy", "--strict") == 2
    assert "queries.npy: bad rows" in error_of(capsys, command)


def reranked(maps, ranks, top, **options):
    """What rmac rerank writes, one query after the other."""
    rows = []
    for crop, row in zip((maps[0][CROP], maps[1][CROP]), ranks, strict=True):
        query = rmac.rmac(crop[None], preset="matlab")[0]
        x, first = maps[row[:top]], np.array(row[:top])
        boxes = rmac.localize(x, crop.max(axis=(1, 2)), aspect=4 / 5).boxes
        result = rmac.rerank(query, x, boxes)
        order = result.order
        if options:
            expanded = rmac.expand(query[None], result.vectors, order[None, : options["expand"]])
            order = np.argsort(-(result.vectors @ expanded[0]), kind="stable")
        rows.append([*first[order], *row[top:]])
    return rows


@pytest.mark.parametrize("options", [{}, {"expand": 2}])
@pytest.mark.parametrize("top", [1, 4, 100])
def test_rerank(run, maps, rng, options, top):
    ranks = [rng.permutation(12)[:8].tolist() for _ in range(2)]
    np.save("ranks.npy", ranks)
    arguments = ["maps.npy", "queries.npy", "ranks.npy", "-o", "o.npy", "--boxes", "boxes.npy"]
    flags = [f"--{name}={value}" for name, value in options.items()]
    assert run("rerank", *arguments, f"--top={top}", *flags) == 0
    result = np.load("o.npy")
    assert result.dtype == np.int64
    np.testing.assert_array_equal(result, reranked(maps, ranks, top, **options))


def test_rerank_what_descriptors_rank(run, maps):
    """As with their ranks; with the same whitening of queries, maps and boxes."""
    regions = rmac.rmac(maps, preset="matlab", aggregate="none")
    rmac.Whitening(dim=4).fit(regions).save("w.npz")
    describe = ["maps.npy", "-o", "d.npy", "--preset", "matlab", "--whitening", "w.npz"]
    assert run("describe", *describe) == 0
    flags = ["--boxes", "boxes.npy", "--whitening", "w.npz"]
    assert run("rerank", "maps.npy", "queries.npy", "d.npy", "-o", "a.npy", *flags) == 0
    whitening = rmac.Whitening.load("w.npz")
    crops = [one[CROP] for one in maps[:2]]
    queries = rmac.rmac(crops, preset="matlab", whitening=whitening)
    np.save("ranks.npy", np.argsort(-(queries @ np.load("d.npy").T), axis=1, kind="stable"))
    assert run("rerank", "maps.npy", "queries.npy", "ranks.npy", "-o", "b.npy", *flags) == 0
    result = np.load("a.npy")
    assert result.shape == (2, 12)
    assert set(result[0, :4]) == {0, 5, 6, 7}
    np.testing.assert_array_equal(result, np.load("b.npy"))


def test_rerank_rows_of_different_lengths(run, maps):
    np.save("ranks.npy", [[3, 5, 0, -1, -1], [9, -1, -1, -1, -1]])
    assert run("rerank", "maps.npy", "queries.npy", "ranks.npy", "-o", "o.npy") == 0
    result = np.load("o.npy")
    assert set(result[0]) == {0, 3, 5}
    np.testing.assert_array_equal(result[1], [9, -1, -1])
    del maps


def test_rerank_puts_maps_that_are_not_finite_last(run, maps, capsys):
    maps[5, 2] = np.nan
    np.save("maps.npy", maps)
    np.save("ranks.npy", [[5, 3, 0]] * 2)
    assert run("rerank", "maps.npy", "queries.npy", "ranks.npy", "-o", "o.npy") == 0
    assert "maps.npy: bad rows: 1 not finite (5); they come last" in capsys.readouterr().err
    assert np.load("o.npy")[0, 2] == 5
    assert run("rerank", "maps.npy", "queries.npy", "ranks.npy", "-o", "s.npy", "--strict") == 2
    assert "maps.npy: bad rows: 1 not finite (5); without" in error_of(capsys, "rerank")
    assert not os.path.exists("s.npy")


LOCATE = ["locate", "maps.npy", "queries.npy"]
RERANK = ["rerank", "maps.npy", "queries.npy", "ranks.npy"]
WRONG = {
    "vectors of other channels": (LOCATE, "queries.npy", np.ones((2, 5)), "queries.npy: expected"),
    "maps of other channels": (
        LOCATE,
        "queries.npy",
        np.ones((2, 5, 3, 3)),
        "queries.npy: expecte",
    ),
    "3-d queries": (
        LOCATE,
        "queries.npy",
        np.ones((2, 6, 3)),
        "queries.npy: expected vectors (Q, ",
    ),
    "no queries": (
        LOCATE,
        "queries.npy",
        np.ones((0, 6)),
        "queries.npy: expected at least one que",
    ),
    "complex queries": (
        LOCATE,
        "queries.npy",
        np.ones((2, 6), "c8"),
        "queries.npy: expected float16",
    ),
    "3-d maps": (LOCATE, "maps.npy", np.ones((2, 6, 3)), "maps.npy: expected 4 axes (N, C, H, W)"),
    "integer maps": (LOCATE, "maps.npy", np.ones((2, 6, 3, 3), int), "maps.npy: expected float16"),
    "one box": (
        [*LOCATE, "--boxes", "boxes.npy"],
        "boxes.npy",
        np.zeros((1, 4), int),
        "boxes.npy: expected shape (2, 4), a box for each map of queries.npy, got (1, 4)",
    ),
    "box outside": (
        [*LOCATE, "--boxes", "boxes.npy"],
        "boxes.npy",
        [[0, 0, 3, 3], [0, 0, 9, 3]],
        "boxes.npy: expected 0 <= x1 <= x2 < 9 and 0 <= y1 <= y2 < 7, got [0, 0, 9, 3] in row",
    ),
    "boxes of floats": (
        [*RERANK, "--boxes", "boxes.npy"],
        "boxes.npy",
        np.zeros((2, 4)),
        "boxes.npy: expected integers, got float64",
    ),
    "boxes of vectors": (
        [*LOCATE, "--boxes", "boxes.npy"],
        "queries.npy",
        np.ones((2, 6)),
        "--boxes: expected none, since queries.npy is vectors (Q, C)",
    ),
    "rows of ranks": (RERANK, "ranks.npy", [[1, 2]], "ranks.npy: expected 2 rows of ranks, as que"),
    "ranks out of range": (
        RERANK,
        "ranks.npy",
        [[1, 2], [3, 12]],
        "ranks.npy[1]: expected ranks of the 12 maps, 0 to 11, got 12",
    ),
    "ranks twice": (
        RERANK,
        "ranks.npy",
        [[1, 2], [3, 3]],
        "ranks.npy[1]: expected each image once",
    ),
    "ranks of an axis": (RERANK, "ranks.npy", [1, 2], "ranks.npy: expected ranks (Q, M) of int"),
    "descriptors of others": (
        RERANK,
        "ranks.npy",
        np.ones((11, 6)),
        "ranks.npy: expected 12 descriptors, as maps.npy has maps, got 11",
    ),
    "descriptors of other columns": (
        RERANK,
        "ranks.npy",
        np.ones((12, 5)),
        "ranks.npy: expected 6 columns, as the descriptors of queries have, got 5",
    ),
    "vectors to rerank": (RERANK, "queries.npy", np.ones((2, 6)), "queries.npy: expected 4 axes"),
}


@pytest.mark.usefixtures("maps")
@pytest.mark.parametrize("case", WRONG)
def test_wrong_files(run, capsys, case):
    command, name, content, message = WRONG[case]
    np.save("ranks.npy", [[1, 2], [3, 4]])
    np.save(name, content)
    before = sorted(os.listdir())
    assert run(*command, "-o", "o.npy") == 2
    assert error_of(capsys, command[0]).startswith(message)
    assert sorted(os.listdir()) == before


@pytest.mark.usefixtures("maps")
@pytest.mark.parametrize("name", ["queries.npy", "boxes.npy", "ranks.npy"])
def test_rerank_replaces_no_input(run, capsys, name):
    np.save("ranks.npy", [[1, 2], [3, 4]])
    assert run(*RERANK, "--boxes", "boxes.npy", "-o", name) == 2
    assert "the output would replace the input" in error_of(capsys, "rerank")


@pytest.mark.usefixtures("maps")
@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        (LOCATE, ["--tolerance", "0.5"], "--tolerance: expected"),
        (LOCATE, ["--step", "0"], "--step: expected"),
        (LOCATE, ["--aspect", "-1"], "--aspect: expected"),
        (RERANK, ["--aspect", "0"], "--aspect: expected"),
        (RERANK, ["--sweeps", "-1"], "--sweeps: expected"),
        (RERANK, ["--levels", "0"], "--levels: expected"),
        (RERANK, ["--top", "0"], "--top: expected an integer of at least 1, got 0"),
        (RERANK, ["--expand", "-1"], "--expand: expected an integer of at least 1, got -1"),
        (
            RERANK,
            ["--whitening", "queries.npy"],
            "queries.npy: expected a file that Whitening.save",
        ),
    ],
)
def test_wrong_options(run, capsys, command, flags, message):
    np.save("ranks.npy", [[1, 2], [3, 4]])
    assert run(*command, "-o", "o.npy", *flags) == 2
    assert error_of(capsys, command[0]).startswith(message)


@pytest.mark.parametrize(("query", "scene"), [("box", "box_in_scene"), ("graf1", "graf3")])
def test_demo_locates(run, capsys, query, scene):
    assert run("demo", "--locate", "--query", query, "--plot", "box.png") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"query: {query}"
    assert lines[1].startswith(f"scene: {scene}, ")
    assert f"{query} is at x " in lines[3]
    with open("box.png", "rb") as file:
        assert file.read(4) == b"\x89PNG"
