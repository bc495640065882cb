"""Calls of what ranks and evaluates, with what they must give."""

import boxes_reference
import numpy as np
import reference

import rmac
from fuzz.calls import (
    DTYPES,
    Call,
    chance,
    close_values,
    draw_values,
    draw_workers,
    pick,
    result_dtype,
    same_values,
    stored,
)

LABELS = ("easy", "hard", "junk")
_IMAGES = 20


def _vectors(rng, memory, shape):
    """Vectors in any strides, equal to the values that are returned with them."""
    values = draw_values(rng, (1, 1, *shape), pick(rng, DTYPES))
    return stored(rng, memory, values)[0, 0], values[0, 0]


def expand(rng, memory):
    count, rows, neighbours, dim = (int(pick(rng, (0, 1, 2, 5))) for _ in range(4))
    queries, plain = _vectors(rng, memory, (count, dim))
    descriptors, known = _vectors(rng, memory, (rows, dim))
    found = rng.integers(-1, rows, (count, neighbours)).astype(pick(rng, ("i8", "i4", "i1")))
    alpha, normalize = pick(rng, (0, 0.0, 1, 3.0)), chance(rng, 0.5)
    expected, allowed = reference.expand(plain, known, found, alpha)
    dtype = result_dtype(plain.dtype)
    if normalize:
        norms = np.linalg.norm(expected, axis=1, keepdims=True)
        norms = np.where(norms == 0, 1, norms)
        expected = expected / norms
        sizes = np.linalg.norm(allowed, axis=1, keepdims=True) / norms
        allowed = allowed / norms + sizes * (1 + abs(expected))
    allowed = 1e-12 * allowed + 4 * np.finfo(dtype).eps * abs(expected)

    def expand(queries, descriptors, neighbours, alpha, normalize):
        return rmac.expand(queries, descriptors, neighbours, alpha=alpha, normalize=normalize)

    def check(result):
        close_values(result, expected, allowed, dtype)

    options = {
        "descriptors": descriptors,
        "neighbours": memory.input(found),
        "alpha": alpha,
        "normalize": normalize,
    }
    kinds = {
        "queries": "array",
        "descriptors": "array",
        "neighbours": "array",
        "alpha": "float",
        "normalize": "flag",
    }
    return Call(expand, queries, options, check, kinds, name="queries")


def _box(rng, height, width):
    x1, y1 = int(rng.integers(width)), int(rng.integers(height))
    return [x1, y1, int(rng.integers(x1, width)), int(rng.integers(y1, height))]


def rerank(rng, memory):
    count, channels, height, width = (int(side) for side in rng.integers(1, (5, 9, 9, 9)))
    values = draw_values(rng, (count, channels, height, width), pick(rng, DTYPES))
    view, layout = stored(rng, memory, values), pick(rng, ("NCHW", "NHWC"))
    boxes = [_box(rng, height, width) for _ in range(count)]
    query, plain = _vectors(rng, memory, (1, channels))
    levels, preset = int(rng.integers(1, 4)), pick(rng, ("caffe2", "matlab", "cirtorch"))

    def describe(crop):
        return rmac.rmac(crop[None], levels=levels, preset=preset)[0]

    _, scores, vectors = reference.rerank(plain[0], values, boxes, describe)
    dtype = result_dtype(values.dtype)
    size = float(np.linalg.norm(plain[0].astype(np.float64)))

    def rerank(maps, query, boxes, **options):
        return rmac.rerank(query, maps, boxes, **options)

    def check(result):
        same_values(result.vectors, vectors)
        allowed = np.full(count, 2 * np.finfo(dtype).eps * size)
        close_values(result.scores, scores, allowed, dtype)
        expected = sorted(range(count), key=lambda i: -result.scores[i])
        same_values(result.order, np.array(expected))

    options = {
        "query": query[0],
        "boxes": boxes,
        "levels": levels,
        "preset": preset,
        "layout": layout,
        "workers": draw_workers(rng),
    }
    kinds = {
        "maps": "maps",
        "query": "array",
        "boxes": "boxes of maps",
        "levels": "int",
        "preset": "word",
        "layout": "word",
        "workers": "int",
    }
    if layout == "NHWC":
        view = view.transpose(0, 2, 3, 1)
    return Call(rerank, view, options, check, kinds, name="maps")


def localize(rng, memory):
    count, channels, height, width = (int(side) for side in rng.integers(1, (4, 70, 7, 7)))
    values = draw_values(rng, (count, channels, height, width), pick(rng, DTYPES), 0.02)
    view, layout = stored(rng, memory, values), pick(rng, ("NCHW", "NHWC"))
    queries, plain = _vectors(rng, memory, (int(rng.integers(1, 4)), channels))
    aspect, tolerance = float(rng.choice([0.3, 1, 1.5])), float(rng.choice([1, 1.1, 2]))
    boxes = boxes_reference.boxes((height, width), aspect, tolerance)
    boxes = boxes or [(0, 0, width - 1, height - 1)]
    scored = [[boxes_reference.exact_score(x, query) for x in values] for query in plain]
    scores = np.array([[[one(box) for box in boxes] for one in row] for row in scored], np.float64)
    expected = np.where(np.isnan(scores).all(axis=2), np.nan, np.fmax.reduce(scores, axis=2))
    dtype = result_dtype(values.dtype)

    def localize(x, queries, **options):
        return rmac.localize(x, queries, **options)

    def check(result):
        close_values(result.scores, expected, np.full(expected.shape, 1e-6), dtype)
        for q, row in enumerate(result.boxes.tolist()):
            for n, box in enumerate(row):
                if not np.isnan(expected[q, n]):
                    assert scores[q, n, boxes.index(tuple(box))] >= expected[q, n] - 2e-6

    options = {
        "queries": queries,
        "aspect": aspect,
        "tolerance": tolerance,
        "layout": layout,
        "workers": draw_workers(rng),
    }
    kinds = {
        "x": "maps",
        "queries": "array",  # the aspect may be an array too
        "tolerance": "float",
        "layout": "word",
        "workers": "int",
    }
    if layout == "NHWC":
        view = view.transpose(0, 2, 3, 1)
    return Call(localize, view, options, check, kinds)


def _ranks(rng):
    """Ranks (Q, M), and the labelled images of each query, by their labels."""
    ranks = np.full((int(rng.integers(0, 4)), int(rng.integers(0, 9))), -1)
    truth = []
    for row in ranks:
        held = int(rng.integers(len(row) + 1))
        row[:held] = rng.permutation(_IMAGES)[:held]
        cuts = np.sort(rng.integers(0, _IMAGES, 3)).tolist()
        lists = np.split(rng.permutation(_IMAGES), cuts)[:3]
        truth.append({label: some.tolist() for label, some in zip(LABELS, lists, strict=True)})
    return ranks, truth


def average_precision(rng, memory):
    ranks, truth = _ranks(rng)
    positives, junk = ([images[label] for images in truth] for label in ("easy", "junk"))
    expected = [
        reference.evaluate(row, {*right}, {*wrong}, [])[0]
        for row, right, wrong in zip(ranks, positives, junk, strict=True)
    ]

    def average_precision(ranks, positives, junk):
        return rmac.average_precision(ranks, positives, junk)

    def check(result):
        close_values(result, np.array(expected, float), np.full(len(ranks), 1e-12), np.float64)

    kinds = {"ranks": "ranks", "positives": "labels", "junk": "labels"}
    options = {"positives": positives, "junk": junk}
    return Call(average_precision, memory.input(ranks), options, check, kinds, name="ranks")


def evaluate(rng, memory):
    ranks, truth = _ranks(rng)
    at = [1, int(rng.integers(2, 9))]
    expected = [
        reference.evaluate(row, {*images["easy"], *images["hard"]}, {*images["junk"]}, at)
        for row, images in zip(ranks, truth, strict=True)
    ]

    def evaluate(ranks, ground_truth, at):
        return rmac.evaluate(ranks, ground_truth, at=at).medium

    def check(result):
        ap = np.array([one[0] for one in expected], float)
        precision = np.array([one[1] for one in expected], float).reshape(-1, 2)
        close_values(result.ap, ap, np.full(ap.shape, 1e-12), np.float64)
        close_values(result.precision, precision, np.full(precision.shape, 1e-12), np.float64)

    kinds = {"ranks": "ranks", "ground_truth": "ground truth", "at": "places"}
    options = {"ground_truth": truth, "at": at}
    return Call(evaluate, memory.input(ranks), options, check, kinds, name="ranks")
