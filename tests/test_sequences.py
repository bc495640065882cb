"""Sequences are maps of height 1 with a grid of their own; tokens are maps without a copy."""

import copy
import pickle

import hypothesis.strategies as st
import numpy as np
import pytest
import reference
from helpers import (
    CHANNELS,
    DTYPES,
    MEMORY,
    assert_same_values,
    check_array,
    examples,
    raises_line,
    random_map,
    stored_as,
    to_host,
)
from hypothesis import given, settings

import rmac
from rmac._arrays import feature_map
from rmac._backend import HOST
from rmac._options import AGGREGATES, PRESETS

AXES = {"NCT": (0, 1, 2), "NTC": (0, 2, 1)}
SEQUENCE_GRID_OPTIONS = {"levels": st.integers(1, 6), "preset": st.sampled_from(PRESETS)}


@given(length=st.integers(1, 200), **SEQUENCE_GRID_OPTIONS)
def test_windows_are_those_along_a_side_of_a_square_map(length, levels, preset):
    """Which is how other implementations, whose maps are recorded, would place them."""
    grid = rmac.sequence_grid(length, levels=levels, preset=preset)
    square = rmac.region_grid(length, length, levels=levels, preset=preset)
    for level in range(levels + 1):
        windows = grid.boxes[grid.level == level]
        assert not windows[:, 1::2].any()
        expected = square.boxes[(square.level == level) & (square.boxes[:, 1] == 0)]
        assert set(map(tuple, windows[:, ::2])) == set(map(tuple, expected[:, ::2]))


@given(length=st.integers(1, 200), **SEQUENCE_GRID_OPTIONS)
def test_a_level_is_so_many_windows_from_end_to_end(length, levels, preset):
    grid = rmac.sequence_grid(length, levels=levels, preset=preset)
    for level in range(1, levels + 1):
        first, last = grid.boxes[grid.level == level][:, ::2].T
        size = 2 * length // (level + 1)
        assert len(first) == (level if size else 0)
        if size:
            assert (last - first + 1 == size).all()
            even = np.arange(level) * (length - size) / max(level - 1, 1)
            assert (np.abs(first - even) <= 1).all()
            assert first[0] == 0
    assert (grid.level == 0).sum() == (preset == "cirtorch")
    assert grid.coverage == 1


def test_a_grid_of_a_sequence_as_an_object():
    grid = rmac.sequence_grid(20, levels=4, preset="matlab")
    assert (grid.height, grid.width, grid.levels, grid.overlap) == (1, 20, 4, None)
    assert repr(grid) == "<RegionGrid: 10 regions on a sequence of 20, levels=4, preset='matlab'>"
    assert rmac.sequence_grid(np.int16(20), levels=np.uint8(4), preset="matlab") == grid
    assert rmac.sequence_grid(7) is rmac.sequence_grid(7)
    for other in (pickle.loads(pickle.dumps(grid)), copy.deepcopy(grid)):
        assert other == grid
        assert hash(other) == hash(grid)
        np.testing.assert_array_equal(other.boxes, grid.boxes)
    assert grid != rmac.sequence_grid(20, levels=4)
    assert grid != rmac.region_grid(1, 20, levels=4, preset="matlab")
    np.testing.assert_array_equal(grid.to_image(3, 60)[0], [0, 0, 60, 3])


SEQUENCES = {
    "images": st.integers(1, 3),
    "channels": CHANNELS,
    "length": st.integers(1, 60),
    "dtype": st.sampled_from(sorted(DTYPES)),
    "layout": st.sampled_from(sorted(AXES)),
    "memory": MEMORY,
    "options": st.fixed_dictionaries(SEQUENCE_GRID_OPTIONS),
    "workers": st.integers(1, 4),
    "seed": st.integers(0, 2**32),
}


@pytest.mark.slow
@pytest.mark.usefixtures("shared_small_maps")
@settings(max_examples=examples(500))
@given(special=st.sampled_from([0.0, 0.05]), **SEQUENCES)
def test_region_pool_equals_the_oracle(
    xp, images, channels, length, dtype, layout, memory, special, options, workers, seed
):
    rng = np.random.default_rng(seed)
    maps = random_map(rng, (images, channels, 1, length), DTYPES[dtype], special)
    stored = stored_as(maps, memory, rng)[:, :, 0].transpose(AXES[layout])
    stored.flags.writeable = False
    expected = reference.region_pool(maps, rmac.sequence_grid(length, **options).boxes)
    threads = {"workers": workers} if xp is np else {}
    result = rmac.region_pool(xp.asarray(stored), layout=layout, **options, **threads)
    assert_same_values(check_array(result, xp, expected.shape, DTYPES[dtype]), expected)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_small_maps")
@settings(max_examples=examples(300))
@given(aggregate=st.sampled_from(AGGREGATES), **SEQUENCES)
def test_rmac_equals_the_oracle(
    xp, images, channels, length, dtype, layout, memory, aggregate, options, workers, seed
):
    rng = np.random.default_rng(seed)
    maps = stored_as(random_map(rng, (images, channels, 1, length), DTYPES[dtype]), memory, rng)
    boxes = rmac.sequence_grid(length, **options).boxes
    vectors = reference.region_pool(maps, boxes)
    expected = reference.rmac(vectors, aggregate=aggregate)
    result_dtype = np.dtype("float64" if dtype == "float64" else "float32")
    allowed = reference.rmac_error(vectors, result_dtype, aggregate=aggregate)
    threads = {"workers": workers} if xp is np else {}
    stored = xp.asarray(maps[:, :, 0].transpose(AXES[layout]))
    result = rmac.rmac(stored, layout=layout, aggregate=aggregate, **options, **threads)
    result = check_array(result, xp, expected.shape, result_dtype)
    assert (np.abs(result - expected) <= allowed).all()


@pytest.mark.parametrize("layout", sorted(AXES))
def test_a_list_is_its_sequences_one_by_one(xp, rng, layout):
    lengths = [1, 2, 17, 60]
    sequences = [random_map(rng, (1, 37, n), DTYPES["float16"]) for n in lengths]
    sequences = [xp.asarray(np.ascontiguousarray(x.transpose(AXES[layout]))) for x in sequences]
    described = rmac.rmac([x[0] for x in sequences], layout=layout)
    expected = np.concatenate([to_host(rmac.rmac(x, layout=layout)) for x in sequences])
    assert check_array(described, xp, (4, 37), "float32").tobytes() == expected.tobytes()
    pooled = rmac.region_pool([x[0] for x in sequences], layout=layout)
    for x, regions in zip(sequences, pooled, strict=True):
        expected = to_host(rmac.region_pool(x, layout=layout))[0]
        assert check_array(regions, xp, expected.shape, "float16").tobytes() == expected.tobytes()


def test_regions_are_a_grid_boxes_or_intervals(xp, rng):
    x = xp.asarray(random_map(rng, (2, 19, 30), DTYPES["float32"]))
    grid = rmac.sequence_grid(30, levels=4)
    expected = to_host(rmac.region_pool(x, layout="NCT", levels=4))
    for regions in (grid, grid.boxes, grid.boxes[:, ::2], grid.boxes[:, ::2].astype("u1").tolist()):
        result = rmac.region_pool(x, regions, layout="NCT")
        assert_same_values(check_array(result, xp, expected.shape, "float32"), expected)
    out = xp.zeros(expected.shape, dtype="float32")
    assert rmac.region_pool(x, grid, layout="NCT", out=out) is out
    assert_same_values(to_host(out), expected)
    empty = rmac.region_pool(x, np.empty((0, 2), int), layout="NCT")
    check_array(empty, xp, (2, 0, 19), "float32")


@pytest.mark.parametrize("layout", sorted(AXES))
def test_empty_batches_and_channels(xp, layout):
    for shape in [(0, 4, 7), (2, 0, 7)]:
        x = xp.zeros([shape[axis] for axis in AXES[layout]], dtype="float32")
        check_array(rmac.rmac(x, layout=layout), xp, shape[:2], "float32")
        check_array(rmac.region_pool(x, layout=layout), xp, (shape[0], 6, shape[1]), "float32")


@given(memory=MEMORY, layout=st.sampled_from(sorted(AXES)), seed=st.integers(0, 2**32))
def test_a_sequence_is_viewed_as_a_map_not_copied(memory, layout, seed):
    rng = np.random.default_rng(seed)
    x = stored_as(random_map(rng, (3, 4, 1, 5), DTYPES["float32"]), memory, rng)[:, :, 0]
    maps = feature_map(HOST, x.transpose(AXES[layout]), layout)[0]
    assert maps.shape == (3, 4, 1, 5)
    assert np.shares_memory(maps, x)
    assert (maps.strides[0], maps.strides[1], maps.strides[3]) == x.strides


def test_packed_channels_look_packed():
    maps = feature_map(HOST, np.zeros((3, 4, 5), np.float32), "NCT")[0]
    assert maps.strides == np.zeros((3, 4, 1, 5), np.float32).strides


def test_tokens_become_maps_without_a_copy(xp, rng):
    tokens = random_map(rng, (2, 1 + 6 * 7, 40), DTYPES["float32"])
    for start in (0, 1):  # with a class token cut off, where there is one
        own = tokens if start else np.ascontiguousarray(tokens[:, 1:])
        maps = own[:, start:].reshape(2, 6, 7, 40)
        assert np.shares_memory(maps, own)
        assert np.shares_memory(feature_map(HOST, maps, "NHWC")[0], own)
        boxes = rmac.region_grid(6, 7).boxes
        expected = reference.region_pool(maps.transpose(0, 3, 1, 2), boxes)
        on_device = xp.asarray(own)[:, start:].reshape(2, 6, 7, 40)
        result = to_host(rmac.region_pool(on_device, layout="NHWC"))
        assert_same_values(result, expected)


X = np.ones((2, 3, 12), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: rmac.sequence_grid(0), ValueError, "length: expected an integer of at least 1"),
        (lambda: rmac.sequence_grid(2.0), TypeError, "length: expected an integer, got float"),
        (lambda: rmac.sequence_grid(5, levels=0), ValueError, "levels: expected an integer of"),
        (lambda: rmac.sequence_grid(5, preset="x"), ValueError, "preset: expected one of 'caffe2'"),
        (
            lambda: rmac.rmac(X),
            ValueError,
            "x: expected 4 axes (N, C, H, W), got shape (2, 3, 12)",
        ),
        (
            lambda: rmac.rmac(X[None], layout="NCT"),
            ValueError,
            "x: expected 3 axes (N, C, T), got shape (1, 2, 3, 12)",
        ),
        (
            lambda: rmac.rmac([X], layout="NTC"),
            ValueError,
            "x[0]: expected 2 axes (T, C), got shape (2, 3, 12)",
        ),
        (
            lambda: rmac.rmac(X[:, :, :0], layout="NCT"),
            ValueError,
            "x: expected at least one cell, got 1x0",
        ),
        (lambda: rmac.rmac(X, layout="NCT", overlap=2), ValueError, "overlap: expected a number"),
        (
            lambda: rmac.region_pool(X, [[0, 12]], layout="NCT"),
            ValueError,
            "regions: expected 0 <= first <= last < 12, got [0, 12] in row 0",
        ),
        (
            lambda: rmac.region_pool(X, [[0, 3], [4, 3]], layout="NCT"),
            ValueError,
            "regions: expected 0 <= first <= last < 12, got [4, 3] in row 1",
        ),
        (
            lambda: rmac.region_pool(X, [[0, 0, 3, 1]], layout="NCT"),
            ValueError,
            "regions: expected 0 <= x1 <= x2 < 12 and 0 <= y1 <= y2 < 1, got [0, 0, 3, 1] in row 0",
        ),
        (
            lambda: rmac.region_pool(X, [[0, 0, 3]], layout="NCT"),
            ValueError,
            "regions: expected shape (R, 2) or (R, 4), got (1, 3)",
        ),
        (
            lambda: rmac.region_pool(X[..., None], [[0, 0]]),
            ValueError,
            "regions: expected shape (R, 4), got (1, 2)",
        ),
        (
            lambda: rmac.region_pool(X, rmac.sequence_grid(13), layout="NCT"),
            ValueError,
            "regions: expected a grid for the map's 1x12 cells, got one for 1x13",
        ),
        (
            lambda: rmac.roi_pool(X, np.zeros((1, 5)), layout="NCT"),
            ValueError,
            "layout: expected one of 'NCHW', 'NHWC', got 'NCT'",
        ),
        (
            lambda: rmac.rmac(X, layout="CT"),
            ValueError,
            "layout: expected one of 'NCHW', 'NHWC', 'NCT', 'NTC', got 'CT'",
        ),
    ],
)
def test_errors(call, error, message):
    with raises_line(error, message):
        call()
