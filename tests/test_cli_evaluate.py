"""rmac evaluate: ranks and descriptors against a ground truth."""

import json
import os

import numpy as np
import pytest
from helpers import error_of

import rmac
from rmac.cli import files, main

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the command in a folder of its own; return its exit status."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: main(["evaluate", *map(str, arguments)])


GROUND_TRUTH = [
    {"easy": [5], "hard": [6, 7], "junk": [0]},
    {"easy": [9], "hard": [], "junk": [1]},
]


def write_truth(content=GROUND_TRUTH):
    with open("truth.json", "w") as file:
        json.dump(content, file)


def test_evaluate(run, rng, capsys):
    ranks = np.stack([rng.permutation(12) for _ in range(2)])
    np.save("ranks.npy", ranks)
    write_truth({"gnd": GROUND_TRUTH, "imlist": ["a"]})
    assert run("ranks.npy", "truth.json", "--at", 1, 3, "-o", "s.json") == 0
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


def test_evaluate_descriptors(run, rng, capsys, monkeypatch):
    """Of queries of their own, and by themselves."""
    monkeypatch.setattr(files, "_BATCH", 100)
    descriptors = rng.standard_normal((12, 4)).astype("float32")
    queries = rng.standard_normal((2, 4)).astype("float32")
    np.save("d.npy", descriptors)
    np.save("q.npy", queries)
    write_truth()
    assert run("d.npy", "truth.json", "--queries", "q.npy", "-o", "s.json") == 0
    ranks = np.argsort(-(queries @ descriptors.T), axis=1, kind="stable")
    expected = rmac.evaluate(ranks, GROUND_TRUTH)
    with open("s.json") as file:
        assert json.load(file)["medium"]["ap"] == expected.medium.ap.tolist()
    write_truth([{"easy": [(i + 1) % 12], "hard": [], "junk": [i]} for i in range(12)])
    assert run("d.npy", "truth.json") == 0
    assert "easy           12" in capsys.readouterr().out


def test_evaluate_tells_bad_descriptors(run, rng, capsys):
    descriptors = rng.random((12, 4))
    descriptors[7] = np.nan
    np.save("d.npy", descriptors)
    np.save("q.npy", descriptors[:2])
    write_truth()
    command = ["d.npy", "truth.json", "--queries", "q.npy"]
    assert run(*command) == 0
    assert "d.npy: bad rows among the first 12: 1 not finite (7)" in capsys.readouterr().err
    assert run(*command, "--strict") == 2
    assert "d.npy: bad rows" in error_of(capsys, "evaluate")


WRONG = {
    "ranks twice": ([[1, 1], [2, 3]], [], "ranks.npy[0]: expected each im"),
    "one row": ([[1, 2]], [], "truth.json: expected 1, one for each"),
    "queries of ranks": (
        [[1, 2], [3, 4]],
        ["--queries", "queries.npy"],
        "--queries: expected none, since ranks.npy holds ranks",
    ),
    "maps as queries": (
        np.ones((12, 6)),
        ["--queries", "queries.npy"],
        "queries.npy: expected descriptors (Q, D), got shape (2, 6, 7, 9)",
    ),
    "places": ([[1, 2], [3, 4]], ["--at", "0"], "--at: expected an integer of at least 1, got 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_ranks_and_queries(run, capsys, case):
    ranks, flags, message = WRONG[case]
    np.save("ranks.npy", ranks)
    np.save("queries.npy", np.ones((2, 6, 7, 9)))
    write_truth()
    before = sorted(os.listdir())
    assert run("ranks.npy", "truth.json", "-o", "o.json", *flags) == 2
    assert error_of(capsys, "evaluate").startswith(message)
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


@pytest.mark.parametrize("case", TRUTHS)
def test_wrong_ground_truth(run, capsys, case):
    text, message = TRUTHS[case]
    np.save("ranks.npy", [[1, 2]])
    with open("truth.json", "w", encoding="latin-1") as file:
        file.write(text)
    assert run("ranks.npy", "truth.json") == 2
    assert message in error_of(capsys, "evaluate")


def test_a_ground_truth_that_is_too_large(run, capsys, monkeypatch):
    monkeypatch.setattr("rmac.cli.evaluate._MOST_BYTES", 50)
    np.save("ranks.npy", [[1, 2]])
    write_truth()
    assert run("ranks.npy", "truth.json") == 2
    assert "truth.json: expected a ground truth of at most 50 bytes" in error_of(capsys, "evaluate")


@pytest.mark.parametrize("other", ["truth.json", "ranks.json"])
def test_evaluate_replaces_no_input(run, capsys, other):
    np.save("ranks.npy", [[1, 2], [3, 4]])
    os.rename("ranks.npy", "ranks.json")
    write_truth()
    assert run("ranks.json", "truth.json", "-o", other) == 2
    assert "the output would replace the input" in error_of(capsys, "evaluate")
    assert run("ranks.json", "truth.json", "-o", "s.npy") == 2
    assert error_of(capsys, "evaluate").startswith("--output: expected a name that ends in .json")
