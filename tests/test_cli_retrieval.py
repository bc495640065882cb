"""Queries on the command line: found in maps, re-ranked by what is in their boxes, evaluated."""

import json
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


GROUND_TRUTH = [
    {"easy": [5], "hard": [6, 7], "junk": [0]},
    {"easy": [9], "hard": [], "junk": [1]},
]


def write_truth(content=GROUND_TRUTH):
    with open("truth.json", "w") as file:
        json.dump(content, file)


def test_evaluate(run, maps, rng, capsys):
    del maps
    ranks = np.stack([rng.permutation(12) for _ in range(2)])
    np.save("ranks.npy", ranks)
    write_truth({"gnd": GROUND_TRUTH, "imlist": ["a"]})
    assert run("evaluate", "ranks.npy", "truth.json", "--at", 1, 3, "-o", "s.json") == 0
    lines = capsys.readouterr().out.splitlines()
    result = rmac.evaluate(ranks, GROUND_TRUTH, at=[1, 3])
    assert lines[0].split() == ["protocol", "queries", "mAP", "mP@1", "mP@3"]
    for line, (protocol, count) in zip(
        lines[1:], (("easy", 2), ("medium", 2), ("hard", 1)), strict=True
    ):
        scores = getattr(result, protocol)
        numbers = [scores.map, *scores.mean_precision]
        assert line.split() == [protocol, str(count), *(f"{n:.4f}" for n in numbers)]
    with open("s.json") as file:
        saved = json.load(file)
    assert saved["easy"]["ap"] == result.easy.ap.tolist()
    assert saved["hard"]["ap"][1] is None
    assert saved["medium"]["precision"] == result.medium.precision.tolist()
    assert saved["medium"]["at"] == [1, 3]


def test_evaluate_descriptors(run, maps, rng, capsys, monkeypatch):
    """Of queries of their own, and by themselves."""
    del maps
    monkeypatch.setattr(files, "_BATCH", 100)
    descriptors = rng.standard_normal((12, 4)).astype("float32")
    queries = rng.standard_normal((2, 4)).astype("float32")
    np.save("d.npy", descriptors)
    np.save("q.npy", queries)
    write_truth()
    assert run("evaluate", "d.npy", "truth.json", "--queries", "q.npy", "-o", "s.json") == 0
    ranks = np.argsort(-(queries @ descriptors.T), axis=1, kind="stable")
    expected = rmac.evaluate(ranks, GROUND_TRUTH)
    with open("s.json") as file:
        assert json.load(file)["medium"]["ap"] == expected.medium.ap.tolist()
    write_truth([{"easy": [(i + 1) % 12], "hard": [], "junk": [i]} for i in range(12)])
    assert run("evaluate", "d.npy", "truth.json") == 0
    assert "easy           12" in capsys.readouterr().out


def test_evaluate_tells_bad_descriptors(run, maps, rng, capsys):
    del maps
    descriptors = rng.random((12, 4))
    descriptors[7] = np.nan
    np.save("d.npy", descriptors)
    np.save("q.npy", descriptors[:2])
    write_truth()
    command = ["evaluate", "d.npy", "truth.json", "--queries", "q.npy"]
    assert run(*command) == 0
    assert "d.npy: bad rows among the first 12: 1 not finite (7)" in capsys.readouterr().err
    assert run(*command, "--strict") == 2
    assert "d.npy: bad rows" in error_of(capsys, "evaluate")


LOCATE = ["locate", "maps.npy", "queries.npy"]
RERANK = ["rerank", "maps.npy", "queries.npy", "ranks.npy"]
EVALUATE = ["evaluate", "ranks.npy", "truth.json"]
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
    "ranks to evaluate": (
        EVALUATE,
        "ranks.npy",
        [[1, 1], [2, 3]],
        "ranks.npy[0]: expected each im",
    ),
    "one row to evaluate": (
        EVALUATE,
        "ranks.npy",
        [[1, 2]],
        "truth.json: expected 1, one for each",
    ),
    "queries of ranks": (
        [*EVALUATE, "--queries", "queries.npy"],
        "ranks.npy",
        [[1, 2], [3, 4]],
        "--queries: expected none, since ranks.npy holds ranks",
    ),
    "maps as queries": (
        [*EVALUATE, "--queries", "queries.npy"],
        "ranks.npy",
        np.ones((12, 6)),
        "queries.npy: expected descriptors (Q, D), got shape (2, 6, 7, 9)",
    ),
}


@pytest.mark.usefixtures("maps")
@pytest.mark.parametrize("case", WRONG)
def test_wrong_files(run, capsys, case):
    command, name, content, message = WRONG[case]
    np.save("ranks.npy", [[1, 2], [3, 4]])
    write_truth()
    np.save(name, content)
    output = ["-o", "o.json" if command[0] == "evaluate" else "o.npy"]
    before = sorted(os.listdir())
    assert run(*command, *output) == 2
    assert error_of(capsys, command[0]).startswith(message)
    assert sorted(os.listdir()) == before


TRUTHS = {
    "text": ("hello", "truth.json: not a JSON file that can be read: "),
    "pickle": ("\x80\x04]\x94.", "truth.json: not a JSON file that can be read: "),
    "deep": ("[" * 100_000, "truth.json: not a JSON file that can be read: "),
    "twice": ('[{"easy": [], "easy": []}]', "not a JSON file that can be read: a name is twice"),
    "more": ("[] []", "truth.json: not a JSON file that can be read: Extra data"),
    "number": ("3", "truth.json: expected a list of dictionaries, got int"),
    "no junk": ('[{"easy": [1], "hard": []}]', "truth.json[0]: expected a dictionary with the key"),
    "floats": (
        '[{"easy": [1.5], "hard": [], "junk": []}]',
        "truth.json[0]['easy']: expected integers, got float64",
    ),
    "both": (
        '[{"easy": [1], "hard": [1], "junk": []}]',
        "truth.json[0]: expected no image in both easy and hard, got 1",
    ),
    "huge": (
        f'[{{"easy": [{10**30}], "hard": [], "junk": []}}]',
        "truth.json[0]['easy']: expected",
    ),
}


@pytest.mark.usefixtures("maps")
@pytest.mark.parametrize("case", TRUTHS)
def test_wrong_ground_truth(run, capsys, case):
    text, message = TRUTHS[case]
    np.save("ranks.npy", [[1, 2]])
    with open("truth.json", "w", encoding="latin-1") as file:
        file.write(text)
    assert run("evaluate", "ranks.npy", "truth.json") == 2
    assert message in error_of(capsys, "evaluate")


@pytest.mark.usefixtures("maps")
def test_a_ground_truth_that_is_too_large(run, capsys, monkeypatch):
    monkeypatch.setattr("rmac.cli.evaluate._MOST_BYTES", 50)
    np.save("ranks.npy", [[1, 2]])
    write_truth()
    assert run("evaluate", "ranks.npy", "truth.json") == 2
    assert "truth.json: expected a ground truth of at most 50 bytes" in error_of(capsys, "evaluate")


@pytest.mark.usefixtures("maps")
@pytest.mark.parametrize("other", ["truth.json", "ranks.json"])
def test_evaluate_replaces_no_input(run, capsys, other):
    np.save("ranks.npy", [[1, 2], [3, 4]])
    os.rename("ranks.npy", "ranks.json")
    write_truth()
    assert run("evaluate", "ranks.json", "truth.json", "-o", other) == 2
    assert "the output would replace the input" in error_of(capsys, "evaluate")
    assert run("evaluate", "ranks.json", "truth.json", "-o", "s.npy") == 2
    assert error_of(capsys, "evaluate").startswith("--output: expected a name that ends in .json")


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
        (EVALUATE, ["--at", "0"], "--at: expected an integer of at least 1, got 0"),
    ],
)
def test_wrong_options(run, capsys, command, flags, message):
    np.save("ranks.npy", [[1, 2], [3, 4]])
    write_truth()
    output = ["-o", "o.json" if command[0] == "evaluate" else "o.npy"]
    assert run(*command, *output, *flags) == 2
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
