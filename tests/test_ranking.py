"""Re-ranking and query expansion: as the paper's code, and as the formulas in float64."""

from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import reference
from helpers import (
    DTYPES,
    Tensor,
    check_array,
    examples,
    peak_memory,
    raises_line,
    random_map,
    to_host,
)
from hypothesis import given, settings

import rmac
from rmac import ranking
from rmac.cli.demo import feature_maps

DATA = np.load(Path(__file__).parent / "data" / "retrieval.npz")
QUERIES = range(len(DATA["e2e_query_index"]))


class Paper:
    """What the paper's test.m makes of the photographs, by R-MAC or by MAC."""

    def __init__(self, kind, xp):
        self.kind, self.xp = kind, xp
        activation = [x * np.float32(0.5) for x in feature_maps().values()]
        self.maps = [xp.asarray(x) for x in activation]
        levels = [np.floor((15 + np.minimum(x, 128)) / 16).astype(np.uint8) for x in activation]
        self.levels = [xp.asarray(x) for x in levels]
        projection = (self["eigvec"] / np.sqrt(self["eigval"])).T
        self.whitening = rmac.Whitening.from_projection(
            xp.asarray(self["mean"]), xp.asarray(projection)
        )

    def __getitem__(self, name):
        return DATA[f"e2e_{self.kind}_{name}"]

    def crop(self, maps, index, box):
        """A map inside a box; for MAC the maxima, as a map of one cell, which has one region."""
        x1, y1, x2, y2 = box
        crop = maps[index][:, y1 : y2 + 1, x1 : x2 + 1]
        if self.kind == "rmac":
            return crop
        whole = [[0, 0, crop.shape[2] - 1, crop.shape[1] - 1]]
        return rmac.region_pool(crop[None], whole).reshape(-1, 1, 1)

    def crops_to_rerank(self, index, boxes):
        """Quantised maps and boxes. The paper squares the maxima of quantised crops for MAC."""
        if self.kind == "rmac":
            return [self.levels[i] for i in index], boxes
        maxima = [self.crop(self.levels, *one) for one in zip(index, boxes, strict=True)]
        squares = [self.xp.asarray(to_host(one) ** 2) for one in maxima]
        return squares, [[0, 0, 0, 0]] * len(squares)

    def describe(self, crops):
        return to_host(rmac.rmac(crops, preset="matlab", whitening=self.whitening))


@pytest.fixture(params=["rmac", "mac"])
def paper(request, xp):
    return Paper(request.param, xp)


def test_the_lists_of_the_paper(paper, xp):
    """Before and after re-ranking and after expansion, and all scores."""
    whole = [[0, 0, x.shape[2] - 1, x.shape[1] - 1] for x in paper.maps]
    database = paper.describe([paper.crop(paper.maps, i, box) for i, box in enumerate(whole)])
    crops = zip(DATA["e2e_query_index"], DATA["e2e_query_box"].tolist(), strict=True)
    queries = paper.describe([paper.crop(paper.maps, i, box) for i, box in crops])
    for q in QUERIES:
        ranks = np.argsort(-(database @ queries[q]), kind="stable")
        np.testing.assert_array_equal(ranks, paper["ranks"][q])
        maps, boxes = paper.crops_to_rerank(ranks, paper["box"][q].tolist())
        query = xp.asarray(queries[q])
        order, scores, vectors = rmac.rerank(query, maps, boxes, whitening=paper.whitening)
        np.testing.assert_array_equal(ranks[to_host(order)], paper["ranks_rerank"][q])
        np.testing.assert_allclose(to_host(scores), paper["rerank_scores"][q], atol=1e-5)
        if q < len(paper["box_vectors"]):
            np.testing.assert_allclose(to_host(vectors), paper["box_vectors"][q], atol=1e-5)
        expanded = rmac.expand(query[None], vectors, order[None, :5], normalize=False)
        scores = to_host(vectors) @ to_host(expanded)[0] / 6
        np.testing.assert_allclose(scores, paper["qe_scores"][q], atol=1e-5)
        after = ranks[np.argsort(-scores, kind="stable")]
        np.testing.assert_array_equal(after, paper["ranks_qe"][q])


@pytest.mark.parametrize("kind", ["rmac", "mac"])
def test_the_precisions_of_the_paper(kind):
    for name, expected in zip(
        ("ranks", "ranks_rerank", "ranks_qe"), DATA[f"e2e_{kind}_ap"], strict=True
    ):
        positives, junk = DATA["e2e_ok"][:, None], DATA["e2e_junk"][:, None]
        ap = rmac.average_precision(DATA[f"e2e_{kind}_{name}"], positives, junk)
        np.testing.assert_allclose(ap, expected, rtol=1e-12)


@st.composite
def boxes_on(draw, height, width):
    x1, y1 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return [x1, y1, draw(st.integers(x1, width - 1)), draw(st.integers(y1, height - 1))]


@settings(max_examples=examples(100))
@given(data=st.data(), dtype=st.sampled_from(sorted(DTYPES)), seed=st.integers(0, 2**32))
def test_rerank_equals_the_oracle(xp, data, dtype, seed):
    rng = np.random.default_rng(seed)
    count, channels = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 20))
    ragged = count > 0 and data.draw(st.booleans())
    sizes = data.draw(st.lists(st.tuples(*[st.integers(1, 9)] * 2), min_size=5, max_size=5))
    sizes = sizes[:count] if ragged else [sizes[0]] * count
    maps = [random_map(rng, (channels, *size), DTYPES[dtype]) for size in sizes]
    boxes = [data.draw(boxes_on(*size)) for size in sizes]
    layout = data.draw(st.sampled_from(["NCHW", "NHWC"]))
    query = rng.standard_normal(channels)
    expected = reference.rerank(
        query, maps, boxes, lambda crop: rmac.rmac(crop[None], preset="matlab")[0]
    )
    x = [np.ascontiguousarray(one.transpose(1, 2, 0)) if layout == "NHWC" else one for one in maps]
    shape = (0, 3, 4, channels) if layout == "NHWC" else (0, channels, 3, 4)
    if ragged:
        x = [xp.asarray(one) for one in x]
    else:
        x = xp.asarray(np.stack(x) if x else np.empty(shape, DTYPES[dtype]))
    result = rmac.rerank(xp.asarray(query), x, boxes, layout=layout)
    dtype = "float64" if dtype == "float64" else "float32"
    vectors = check_array(result.vectors, xp, (count, channels), dtype)
    scores = check_array(result.scores, xp, (count,), dtype)
    order = check_array(result.order, xp, (count,), "int64")
    rounding = 0 if xp is np else 8 * np.finfo(dtype).eps  # a GPU adds in another order
    np.testing.assert_allclose(vectors, expected[2].reshape(count, channels), rtol=0, atol=rounding)
    np.testing.assert_allclose(scores, expected[1], atol=1e-6 * np.linalg.norm(query))
    assert order.tolist() == sorted(range(count), key=lambda i: -scores[i])


def test_maps_of_equal_scores_keep_their_order_and_nan_comes_last(xp, rng):
    x = rng.random((6, 3, 4, 5), dtype="f4")
    x[[1, 4]] = x[2]
    x[3, 1] = np.nan
    query = rmac.rmac(x[2:3], preset="matlab")[0]
    result = rmac.rerank(xp.asarray(query), xp.asarray(x), [[0, 0, 4, 3]] * 6)
    order = to_host(result.order).tolist()
    assert order[:3] == [1, 2, 4]
    assert order[-1] == 3
    np.testing.assert_array_equal(np.isnan(to_host(result.scores)), np.arange(6) == 3)


@pytest.mark.filterwarnings("error")
def test_rerank_with_a_whitening_and_its_options(xp, rng):
    x, box = rng.random((7, 6, 9, 12), dtype="f4"), [2, 1, 9, 7]
    crops = np.ascontiguousarray(x[:, :, 1:8, 2:10])
    learned = rmac.Whitening(dim=4).fit(rmac.rmac(crops, aggregate="none"))
    whitening = (
        learned
        if xp is np
        else rmac.Whitening.from_projection(
            xp.asarray(np.array(learned.mean)), xp.asarray(np.array(learned.projection))
        )
    )
    options = {"whitening": whitening, "levels": 2, "preset": "cirtorch"}
    expected = to_host(rmac.rmac(xp.asarray(crops), **options))
    query = xp.asarray(expected[5])
    result = rmac.rerank(query, xp.asarray(x), [box] * 7, **options)
    np.testing.assert_allclose(to_host(result.vectors), expected, atol=1e-6)
    assert int(result.order[0]) == 5


def test_boxes_may_be_where_the_maps_are(xp, rng):
    x = xp.asarray(rng.random((3, 4, 5, 6)))
    query, boxes = xp.asarray(rng.random(4)), np.array([[0, 0, 2, 2], [1, 1, 5, 4], [3, 3, 3, 3]])
    expected = rmac.rerank(query, x, boxes.tolist())
    result = rmac.rerank(query, x, xp.asarray(boxes))
    for one, other in zip(result, expected, strict=True):
        np.testing.assert_array_equal(to_host(one), to_host(other))


@pytest.mark.usefixtures("elsewhere")
def test_arrays_of_other_libraries(rng):
    x, query, boxes = rng.random((3, 4, 5, 6)), rng.random(4), np.array([[0, 0, 2, 2]] * 3)
    expected = rmac.rerank(query, x, boxes)
    for maps in (Tensor(x), [Tensor(one) for one in x]):
        result = rmac.rerank(Tensor(query), maps, Tensor(boxes))
        assert type(result) is ranking.Reranked
        for one, other in zip(result, expected, strict=True):
            assert type(one) is Tensor
            np.testing.assert_array_equal(one._array, other)
    expanded = rmac.expand(Tensor(x[0, 0]), Tensor(x[1, 0]), Tensor(boxes[:, :1].repeat(5, 0)[:5]))
    assert type(expanded) is Tensor


@settings(max_examples=examples(200))
@given(
    shape=st.tuples(*[st.integers(0, 9)] * 3, st.sampled_from([0, 1, 7, 70])),
    dtypes=st.tuples(*[st.sampled_from(sorted(DTYPES))] * 2),
    index=st.sampled_from(["int64", "int32", "int8"]),
    alpha=st.sampled_from([0, 0.5, 1, 3]),
    normalize=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_expand_equals_the_oracle(xp, shape, dtypes, index, alpha, normalize, seed):
    rng = np.random.default_rng(seed)
    count, rows, neighbours, dim = shape
    queries = random_map(rng, (count, dim), DTYPES[dtypes[0]])
    descriptors = random_map(rng, (rows, dim), DTYPES[dtypes[1]])
    found = rng.integers(-1, rows, (count, neighbours)).astype(index)
    sums, sizes = reference.expand(queries, descriptors, found, alpha)
    arrays = [xp.asarray(one) for one in (queries, descriptors, found)]
    result = rmac.expand(*arrays, alpha=alpha, normalize=normalize)
    dtype = "float64" if dtypes[0] == "float64" else "float32"
    result = check_array(result, xp, (count, dim), dtype)
    expected, allowed = (reference.l2(sums), sizes) if normalize else (sums, sizes)
    if normalize:
        norm = np.linalg.norm(sums, axis=1, keepdims=True)
        allowed = allowed / np.where(norm == 0, 1, norm) + np.linalg.norm(allowed, axis=1)[:, None]
        allowed = allowed / np.where(norm == 0, 1, norm)
    eps = np.finfo(dtype).eps
    assert (abs(result - expected) <= 4 * eps * abs(expected) + 1e-13 * allowed).all()


def test_expand_with_no_similarity_adds_nothing_but_for_alpha_0(xp):
    queries, descriptors = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0], [-1.0, 1.0]])
    arrays = [xp.asarray(one) for one in (queries, descriptors, np.array([[0, 1]]))]
    for alpha, expected in ((0, [[0, 2]]), (1, [[1, 0]]), (3, [[1, 0]])):
        result = to_host(rmac.expand(*arrays, alpha=alpha, normalize=False))
        np.testing.assert_array_equal(result, expected)


def test_neighbours_of_minus_1_are_not_read(xp):
    """The last descriptor is NaN, and counts only where it is named."""
    descriptors = np.array([[1, 2], [np.nan, np.nan]], "f4")
    found = np.array([[0, -1], [-1, -1], [0, 1]])
    queries = np.ones((3, 2), "f4")
    arrays = [xp.asarray(one) for one in (queries, descriptors, found)]
    for alpha in (0, 3):
        result = to_host(rmac.expand(*arrays, alpha=alpha))
        np.testing.assert_array_equal(np.isnan(result).all(axis=1), [False, False, True])


def test_database_augmentation(xp, rng):
    """The database as queries; each descriptor is its own first neighbour."""
    descriptors = rmac.rmac(rng.random((12, 6, 5, 5)))
    found = np.argsort(-(descriptors @ descriptors.T), axis=1)[:, :3]
    result = rmac.expand(*[xp.asarray(one) for one in (descriptors, descriptors, found)])
    expected = reference.l2(descriptors + descriptors[found].sum(axis=1))
    np.testing.assert_allclose(to_host(result), expected, rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_norms_neither_overflow_nor_vanish(xp, rng, scale):
    x = rng.random((3, 5))
    found = xp.asarray(np.array([[0, 1], [1, 2], [2, 0]]))
    expected = to_host(rmac.expand(xp.asarray(x), xp.asarray(x), found))
    result = rmac.expand(xp.asarray(x * scale), xp.asarray(x * scale), found)
    np.testing.assert_allclose(to_host(result), expected, rtol=1e-12)


def test_blocks_do_not_change_a_bit(xp, rng, monkeypatch):
    arrays = rng.random((17, 40), dtype="f4"), rng.random((9, 40)), rng.integers(-1, 9, (17, 5))
    arrays = [xp.asarray(one) for one in arrays]
    expected = to_host(rmac.expand(*arrays, alpha=3))
    monkeypatch.setattr(ranking, "_BLOCK", 120)
    assert to_host(rmac.expand(*arrays, alpha=3)).tobytes() == expected.tobytes()
    one = rmac.expand(arrays[0][7:8], arrays[1], arrays[2][7:8], alpha=3)
    assert to_host(one).tobytes() == expected[7:8].tobytes()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_queries():
    """Beside the result and the copy of the neighbours."""
    peaks, descriptors = [], np.ones((50, 64), np.float16)
    for count in (40_000, 160_000):
        queries, found = np.ones((count, 64), np.float16), np.zeros((count, 3), np.int8)
        peak = peak_memory(lambda q=queries, f=found: rmac.expand(q, descriptors, f, alpha=1))
        peaks.append(peak - count * (64 * 4 + 3))
    assert peaks[1] < peaks[0] * 1.1


Q, D = np.ones((4, 7), np.float32), np.ones((9, 7), np.float32)
K = np.zeros((4, 2), np.int64)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((Q[0], D, K), {}, ValueError, "queries: expected shape (Q, D), got (7,)"),
        ((Q, D[0], K), {}, ValueError, "descriptors: expected shape (N, D), got (7,)"),
        ((Q, D[:, :3], K), {}, ValueError, "descriptors: expected 7 columns as queries has, got 3"),
        ((Q, D, K[0]), {}, ValueError, "neighbours: expected shape (Q, K), got (2,)"),
        ((Q, D, K[:3]), {}, ValueError, "neighbours: expected 4 rows as queries has, got 3"),
        ((Q, D, K + 9), {}, ValueError, "neighbours: expected -1 or a row of descriptors, 0 to 8"),
        ((Q, D, K - 2), {}, ValueError, "got -2 in row 0"),
        (
            (Q, D[:0], K),
            {},
            ValueError,
            "neighbours: expected -1 alone, since descriptors is empty",
        ),
        ((Q, D, K * 1.0), {}, TypeError, "neighbours: expected integers, got float64"),
        ((Q, D, K > 0), {}, TypeError, "neighbours: expected integers, got bool"),
        ((Q, D, K.tolist()), {}, TypeError, "neighbours: expected a numpy.ndarray or cupy.ndarray"),
        ((Q.astype("i4"), D, K), {}, TypeError, "queries: expected float16, bfloat16, float32"),
        ((Q, D.astype("c8"), K), {}, TypeError, "descriptors: expected float16, bfloat16, float32"),
        (
            (Q, np.ma.ones((9, 7)), K),
            {},
            TypeError,
            "descriptors: expected an array without a mask",
        ),
        ((Q, D, K), {"alpha": -1}, ValueError, "alpha: expected a number with 0 <= alpha, finite"),
        ((Q, D, K), {"alpha": np.inf}, ValueError, "alpha: expected"),
        ((Q, D, K), {"alpha": "3"}, TypeError, "alpha: expected a number, got '3'"),
        ((Q, D, K), {"normalize": 1}, TypeError, "normalize: expected True or False, got 1"),
    ],
)
def test_errors_of_expand(arguments, options, error, message):
    with raises_line(error, message):
        rmac.expand(*arguments, **options)


X = np.ones((2, 7, 5, 6), np.float32)
B = [[0, 0, 5, 4], [1, 1, 2, 2]]
OF_OTHERS = rmac.Whitening.from_projection(np.zeros(9), np.eye(9))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((Q, X, B), {}, ValueError, "query: expected shape (7,), got (4, 7)"),
        ((Q[0, :3], X, B), {}, ValueError, "query: expected shape (7,), got (3,)"),
        ((Q[0] > 0, X, B), {}, TypeError, "query: expected float16, bfloat16, float32"),
        ((Q[0].tolist(), X, B), {}, TypeError, "query: expected a numpy.ndarray or cupy.ndarray"),
        ((Q[0], X[0], B), {}, ValueError, "maps: expected 4 axes (N, C, H, W), got shape (7, 5"),
        ((Q[0], [X], B), {}, ValueError, "maps[0]: expected 3 axes (C, H, W), got shape (2, 7, 5"),
        ((Q[0], [], []), {}, ValueError, "maps: expected at least one array, got none"),
        (
            (Q[0], [X[0], X[1, :3]], B),
            {},
            ValueError,
            "maps[1]: expected 7 channels as maps[0] has",
        ),
        ((Q[0], X[..., :0], B), {}, ValueError, "maps: expected at least one cell, got 5x0"),
        ((Q[0], X.astype("i8"), B), {}, TypeError, "maps: expected float16, bfloat16, float32"),
        ((Q[0], X, B[:1]), {}, ValueError, "boxes: expected shape (2, 4), got (1, 4)"),
        ((Q[0], X, [B[0], B[0][:3]]), {}, ValueError, "boxes: expected shape (N, 4), got "),
        ((Q[0], X, np.array(B) * 1.0), {}, TypeError, "boxes: expected integers, got float64"),
        (
            (Q[0], X, [B[0], [1, 1, 6, 2]]),
            {},
            ValueError,
            "boxes: expected 0 <= x1 <= x2 < 6 and 0 <= y1 <= y2 < 5, got [1, 1, 6, 2] in row 1",
        ),
        ((Q[0], X, [[3, 0, 2, 1], B[1]]), {}, ValueError, "got [3, 0, 2, 1] in row 0"),
        ((Q[0], X, B), {"layout": "NCT"}, ValueError, "layout: expected one of 'NCHW', 'NHWC'"),
        ((Q[0], X, B), {"levels": 0}, ValueError, "levels: expected an integer of at least 1"),
        ((Q[0], X, B), {"preset": "x"}, ValueError, "preset: expected one of"),
        ((Q[0], X, B), {"whitening": 3}, TypeError, "whitening: expected a Whitening, got int"),
        ((Q[0], X, B), {"whitening": OF_OTHERS}, ValueError, "maps: expected 9 channels, got 7"),
        ((Q[0], X[:0], []), {"levels": 0}, ValueError, "levels: expected an integer of at least 1"),
    ],
)
def test_errors_of_rerank(arguments, options, error, message):
    with raises_line(error, message):
        rmac.rerank(*arguments, **options)


def test_a_box_on_the_map_of_another_size():
    maps = [np.ones((7, 5, 6), "f4"), np.ones((7, 6, 5), "f4")]
    with pytest.raises(ValueError, match=r"x2 < 5 and 0 <= y1 <= y2 < 6, got .* in row 1"):
        rmac.rerank(Q[0], maps, [[0, 0, 5, 4]] * 2)
