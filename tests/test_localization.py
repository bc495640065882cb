"""The boxes and scores of `localize`: as the paper's code, and as each box scored by itself."""

import itertools
from pathlib import Path

import boxes_reference as reference
import hypothesis.strategies as st
import numpy as np
import pytest
from helpers import (
    DTYPES,
    LAYOUTS,
    MEMORY,
    Tensor,
    check_array,
    examples,
    localize,
    outputs_of_isas,
    peak_memory,
    raises_line,
    random_map,
    stored_as,
)
from hypothesis import given, settings

import rmac
from rmac import localization
from rmac.cpu import search

SEARCHES = ["best", "grid", "aml"]


@pytest.fixture(scope="module")
def recorded():
    return dict(np.load(Path(__file__).parent / "data" / "localization.npz").items())


@pytest.mark.usefixtures("both_ways_to_share")
@pytest.mark.parametrize("workers", [1, 3])
def test_the_code_of_the_paper(recorded, workers):
    """Every box and every bit of the scores."""
    differing, jobs = [], 0
    for k in range(recorded["cases"]):
        names = ("q", "aspect", "tolerance", "params", "box", "score")
        for job in zip(*(recorded[f"{name}{k}"] for name in names), strict=True):
            query, aspect, tolerance, (step, refine, sweeps), box, score = job
            found = rmac.localize(
                recorded[f"x{k}"][None],
                query,
                search="aml",
                aspect=aspect if aspect > 0 else None,
                tolerance=tolerance,
                step=step,
                refine=refine,
                sweeps=sweeps,
                workers=workers,
            )
            jobs += 1
            if found.boxes[0].tolist() != box.tolist() or found.scores[0] != score:
                differing.append((k, found, box, score))
    assert differing == []
    assert jobs == 432


SETTINGS = st.fixed_dictionaries(
    {
        "tolerance": st.sampled_from([1, 1.1, 1.3, 3]),
        "step": st.integers(1, 4),
        "refine": st.integers(0, 3),
        "sweeps": st.integers(0, 5),
    }
)
ASPECTS = st.one_of(st.none(), st.sampled_from([0.01, 0.3, 0.75, 1, 4 / 3, 2]))
DRAWN = {
    "images": st.integers(1, 3),
    "channels": st.one_of(st.integers(1, 40), st.sampled_from([64, 112, 113, 128, 130, 200])),
    "size": st.tuples(st.integers(1, 12), st.integers(1, 12)),
    "aspects": st.lists(ASPECTS, min_size=1, max_size=5),
    "dtype": st.sampled_from(sorted(DTYPES)),
    "layout": st.sampled_from(sorted(LAYOUTS)),
    "memory": MEMORY,
    "ragged": st.booleans(),
    "workers": st.integers(1, 3),
    "seed": st.integers(0, 2**32),
}


def arranged(x, layout, memory, ragged, rng):
    """The same maps in other memory, axes and containers, and as they are read then."""
    stored = stored_as(x, memory, rng)
    y = stored.transpose(LAYOUTS[layout])
    return [*y] if ragged else y


def aspects_of(drawn):
    """As the function takes them: all None, or all numbers."""
    return None if None in drawn else drawn


@pytest.mark.slow
@pytest.mark.usefixtures("both_ways_to_share")
@settings(max_examples=examples(60))
@given(options=SETTINGS, special=st.sampled_from([0, 0.01, 0.3]), **DRAWN)
def test_best_equals_every_box_scored(
    xp,
    options,
    special,
    images,
    channels,
    size,
    aspects,
    dtype,
    layout,
    memory,
    ragged,
    workers,
    seed,
):
    rng = np.random.default_rng(seed)
    x = random_map(rng, (images, channels, *size), DTYPES[dtype], special)
    queries, wanted = rng.standard_normal((len(aspects), channels)), aspects_of(aspects)
    y = arranged(x, layout, memory, ragged, rng)
    found = localize(xp, y, queries, aspect=wanted, layout=layout, workers=workers, **options)
    assert found.boxes.dtype == np.int64
    assert found.scores.dtype == ("float64" if dtype == "float64" else "float32")
    for i, query in enumerate(queries):
        for n, one in enumerate(x):
            boxes = reference.boxes(size, wanted and wanted[i], options["tolerance"])
            whole = (0, 0, size[1] - 1, size[0] - 1)
            score = reference.exact_score(one, query)
            scores = np.array([score(box) for box in boxes or [whole]], np.float64)
            box, value = tuple(found.boxes[i, n]), found.scores[i, n]
            if np.isnan(scores).all():
                assert box == whole
                assert np.isnan(value)
                continue
            assert abs(value - np.nanmax(scores)) <= 1e-6
            near = [b for b, s in zip(boxes or [whole], scores, strict=True) if s >= value - 2e-6]
            assert box in near


@pytest.mark.slow
@pytest.mark.usefixtures("both_ways_to_share")
@pytest.mark.parametrize("name", ["best", "grid"])
@settings(max_examples=examples(40))
@given(options=SETTINGS, high=st.integers(1, 3), **DRAWN)
def test_ties_are_decided_as_documented(
    xp,
    name,
    options,
    high,
    images,
    channels,
    size,
    aspects,
    dtype,
    layout,
    memory,
    ragged,
    workers,
    seed,
):
    """Small integers and queries of one channel: all sums are exact, and most boxes tie."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, high, (images, channels, *size), endpoint=True).astype(DTYPES[dtype])
    queries = np.eye(channels)[rng.integers(0, channels, len(aspects))]
    wanted = aspects_of(aspects)
    y = arranged(x, layout, memory, ragged, rng)
    found = localize(
        xp, y, queries, search=name, aspect=wanted, layout=layout, workers=workers, **options
    )
    for i, query in enumerate(queries):
        for n, one in enumerate(x):
            box, score = reference.localize(
                one, query, name, **(options | {"aspect": wanted and wanted[i]})
            )
            assert tuple(found.boxes[i, n]) == box
            assert found.scores[i, n] == score


@pytest.mark.slow
@pytest.mark.usefixtures("both_ways_to_share")
@settings(max_examples=examples(30))
@given(options=SETTINGS, **(DRAWN | {"dtype": st.just("uint8")}))
def test_aml_equals_its_oracle(
    options, images, channels, size, aspects, dtype, layout, memory, ragged, workers, seed
):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 8, (images, channels, *size), endpoint=True).astype(dtype)
    x *= rng.random(x.shape) < 0.3
    queries, wanted = rng.standard_normal((len(aspects), channels)), aspects_of(aspects)
    y = arranged(x, layout, memory, ragged, rng)
    found = rmac.localize(
        y, queries, search="aml", aspect=wanted, layout=layout, workers=workers, **options
    )
    for i, query in enumerate(queries):
        for n, one in enumerate(x):
            box, score = reference.localize(
                one, query, "aml", **(options | {"aspect": wanted and wanted[i]})
            )
            assert tuple(found.boxes[i, n]) == box
            assert found.scores[i, n] == np.float32(score)


@pytest.mark.parametrize("dtype", [name for name in sorted(DTYPES) if "int" in name])
def test_integers_of_any_size_are_searched(xp, rng, dtype):
    """Maps of each part of their range, as the same numbers in float32."""
    info = np.iinfo(dtype)
    edges = np.linspace(info.min, info.max, 17).astype(int)
    queries = rng.standard_normal((3, 40))
    for low, high in itertools.pairwise(edges):
        x = rng.integers(low, high, (2, 40, 8, 9), endpoint=True).astype(dtype)
        scores = localize(xp, x, queries).scores
        expected = localize(xp, x.astype(np.float32), queries).scores
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("both_ways_to_share")
@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_nothing_else_in_a_call_changes_a_bit(xp, rng, name, dtype):
    """Neither workers, nor other maps, nor other queries and their aspects."""
    if name == "aml" and (dtype != "uint8" or xp is not np):
        pytest.skip("levels are uint8, on the host")
    sizes = [(11, 9), (11, 9), (4, 17), (1, 3)]
    maps = [random_map(rng, (70, *size), DTYPES[dtype]) for size in sizes]
    if name == "aml":
        maps = [x // 30 for x in maps]
    elif dtype == "float32":
        maps[1] *= np.float32(1e30)  # it is summed in float64
    count = 21 if xp is np else 5
    queries, aspects = rng.standard_normal((count, 70)), np.exp(rng.standard_normal(count))
    together = [
        localize(xp, maps, queries, search=name, aspect=aspects, tolerance=1.3, workers=workers)
        for workers in ((1, 2, 3) if xp is np else (None,))
    ]
    for i in range(0, count, 4):
        for n, x in enumerate(maps):
            alone = localize(xp, x[None], queries[i], search=name, aspect=aspects[i], tolerance=1.3)
            for found in together:
                assert found.boxes[i, n].tolist() == alone.boxes[0].tolist()
                assert found.scores[i, n].tobytes() == alone.scores[0].tobytes()


def test_queries_of_any_length(xp, rng):
    """One that is scaled does not change the bits of others."""
    x, queries = rng.random((1, 20, 9, 8)), rng.random((5, 20))
    expected = localize(xp, x, queries, aspect=1)
    for scale in (1e-200, 1e200):
        found = localize(xp, x, np.concatenate([queries, queries * scale]), aspect=1)
        assert found.boxes.tolist() == 2 * expected.boxes.tolist()
        assert found.scores[:5].tobytes() == expected.scores.tobytes()
        np.testing.assert_allclose(found.scores[5:], expected.scores, rtol=1e-12)


def test_more_boxes_than_are_kept_at_a_time(xp, rng):
    """216,225 boxes and 30 queries: 27 MB of sums for each tile of channels."""
    x, queries = rng.random((1, 3, 30, 30), dtype="f4"), rng.standard_normal((30, 3))
    alone = localize(xp, x, queries[11])
    for workers in (1, 2):
        found = localize(xp, x, queries, workers=workers)
        assert found.boxes[11].tolist() == alone.boxes.tolist()
        assert found.scores[11] == alone.scores


@pytest.mark.parametrize("name", SEARCHES)
def test_shapes_of_results(xp, rng, name):
    if name == "aml" and xp is not np:
        pytest.skip("on the host alone")
    x, queries = rng.integers(0, 8, (3, 5, 6, 7)).astype("u1"), rng.random((4, 5))
    x, queries = xp.asarray(x), xp.asarray(queries)
    found = rmac.localize(x, queries, search=name)
    assert type(found) is localization.Localization
    boxes = check_array(found.boxes, xp, (4, 3, 4), np.int64)
    scores = check_array(found.scores, xp, (4, 3), np.float32)
    one = rmac.localize(x, queries[1], search=name)
    assert check_array(one.boxes, xp, (3, 4), np.int64).tolist() == boxes[1].tolist()
    assert check_array(one.scores, xp, (3,), np.float32).tolist() == scores[1].tolist()
    assert rmac.localize(x[:0], queries, search=name).boxes.shape == (4, 0, 4)
    assert rmac.localize(x, queries[:0], search=name).scores.shape == (0, 3)


@pytest.mark.parametrize("name", ["best", "grid"])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_maps_without_channels(xp, name, dtype):
    """All scores are 0, so the first of the smallest boxes is best; for a grid, the first."""
    found = localize(xp, np.empty((1, 0, 5, 6), dtype), np.empty(0), search=name)
    assert found.scores.tolist() == [0]
    assert found.boxes.tolist() == [[0, 0, 0, 0] if name == "best" else [0, 0, 1, 1]]


def test_queries_that_score_nothing(xp, rng):
    """A query of zeros scores 0 everywhere, so the first cell is best; one with a NaN never."""
    x = rng.random((1, 5, 6, 7))
    for value, score, box in ((0.0, 0, [0, 0, 0, 0]), (np.nan, np.nan, [0, 0, 6, 5])):
        found = localize(xp, x, np.full(5, value))
        np.testing.assert_array_equal(found.scores, [score])
        assert found.boxes.tolist() == [box]


@pytest.mark.usefixtures("elsewhere")
def test_arrays_of_other_libraries(rng):
    x, queries = rng.random((3, 4, 5, 6)), rng.random((2, 4))
    expected = rmac.localize(x, queries)
    for maps in (Tensor(x), [Tensor(one) for one in x]):
        found = rmac.localize(maps, Tensor(queries))
        for one, other in zip(found, expected, strict=True):
            assert type(one) is Tensor
            np.testing.assert_array_equal(one._array, other)


@pytest.mark.slow
def test_isas_agree(rng):
    """Baseline has no fused multiplication, so that scores differ in their last bits."""
    x, queries = rng.random((2, 130, 9, 12), dtype="f4"), rng.random((3, 130))
    code = (
        "import sys, numpy as np, rmac\n"
        "data = sys.stdin.buffer.read()\n"
        "x = np.frombuffer(data[:2 * 130 * 9 * 12 * 4], 'f4').reshape(2, 130, 9, 12)\n"
        "queries = np.frombuffer(data[x.nbytes:]).reshape(3, 130)\n"
        "for dtype in ('f4', 'f8', 'f2', 'u1'):\n"
        "    y = (x * 255).astype(dtype)\n"
        "    for search in ('best', 'grid'):\n"
        "        found = rmac.localize(y, queries, search=search, aspect=0.75)\n"
        "        sys.stdout.buffer.write(found.boxes.tobytes())\n"
        "        sys.stdout.buffer.write(found.scores.astype('f8').tobytes())\n"
    )
    results = outputs_of_isas(code, x.tobytes() + queries.tobytes())
    blocks = [np.frombuffer(result, np.int64).reshape(8, 30) for result in results]
    for block in blocks:
        np.testing.assert_array_equal(block[:, :24], blocks[0][:, :24])
        scores, expected = block[:, 24:].view("f8"), blocks[0][:, 24:].view("f8")
        np.testing.assert_allclose(scores, expected, rtol=2e-7)


def test_no_copy_of_the_map(rng):
    x = random_map(rng, (64, 256, 16, 32), DTYPES["float32"])
    query = rng.random(256)
    for view in (x, x[..., ::2], x.reshape(64, 16, 32, 256).transpose(0, 3, 1, 2)):
        for name in ("best", "grid"):
            peak = peak_memory(
                lambda view=view, name=name: rmac.localize(
                    view, query, search=name, aspect=1, workers=1
                )
            )
            assert peak < x.nbytes / 4


def test_no_quarter_of_a_power_of_two_has_two_roots():
    """And none lies so close below the next one that a sum in float64 is rounded over it."""
    thresholds = [(2 * k + 1) ** 10 for k in range(39)]
    starts = [(4 + i % 4) << (i // 4) for i in range(64 * 4)]  # of 4 times the sums
    for start, stop in itertools.pairwise(starts):
        inside = [power for power in thresholds if start <= 4 * power < stop]
        assert len(inside) <= 1
        assert all(stop - 4 * power > 2 * stop >> 53 for power in inside)
    table = search.ROOTS.view([("root", "f8"), ("threshold", "i8")])
    assert table["root"][-1] + 2 * (table["threshold"][-1] < 2**63 - 1) == 2 * len(thresholds)


X, Q = np.ones((2, 5, 6, 7), np.float32), np.ones((3, 5))


@pytest.mark.parametrize(
    ("queries", "options", "error", "message"),
    [
        (Q[:, :4], {}, ValueError, "queries: expected shape (5,) or (Q, 5), got (3, 4)"),
        (Q[None], {}, ValueError, "queries: expected shape (5,) or (Q, 5), got (1, 3, 5)"),
        (Q > 0, {}, TypeError, "queries: expected float16, bfloat16, float32, "),
        (Q.tolist(), {}, TypeError, "queries: expected a numpy.ndarray"),
        (Q, {"search": "worst"}, ValueError, "search: expected one of 'best', 'grid', 'aml'"),
        (Q, {"search": "aml"}, TypeError, 'x: expected uint8 levels for search="aml", got float32'),
        (Q, {"aspect": 0}, ValueError, "aspect: expected a number with 0 < aspect, finite, got 0"),
        (Q, {"aspect": "1"}, TypeError, "aspect: expected a number, got '1'"),
        (Q, {"aspect": [1, 2]}, ValueError, "aspect: expected 3 numbers, got 2"),
        (Q, {"aspect": [1, 2, None]}, TypeError, "aspect: expected a number with 0 < aspect"),
        (Q, {"tolerance": 0.9}, ValueError, "tolerance: expected a number with 1 <= tolerance"),
        (Q, {"step": 0}, ValueError, "step: expected an integer of at least 1, got 0"),
        (Q, {"refine": -1}, ValueError, "refine: expected an integer of at least 0, got -1"),
        (Q, {"sweeps": 1.5}, TypeError, "sweeps: expected an integer, got float"),
        (Q, {"layout": "NCT"}, ValueError, "layout: expected one of 'NCHW', 'NHWC', got 'NCT'"),
        (Q, {"workers": 0}, ValueError, "workers: expected an integer of at least 1, got 0"),
    ],
)
def test_wrong_arguments(queries, options, error, message):
    with raises_line(error, message):
        rmac.localize(X, queries, **options)


def test_a_map_of_too_many_cells():
    x = np.broadcast_to(np.float32(1), (1, 5, 2**20, 2**20))
    with pytest.raises(MemoryError, match="x: maps of 1048576x1048576 cells have too many boxes"):
        rmac.localize(x, Q, aspect=1)


def test_a_map_without_cells():
    with pytest.raises(ValueError, match="x: expected at least one cell, got 0x7"):
        rmac.localize(X[:, :, :0], Q)
