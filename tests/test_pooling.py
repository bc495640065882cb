"""Regional maxima are exact, in every dtype, layout and number of threads."""

import itertools

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import reference
from helpers import (
    CHANNELS,
    DTYPES,
    GRID_OPTIONS,
    LAYOUTS,
    MAPS,
    MEANS,
    MEMORY,
    assert_same_values,
    assert_within,
    check_array,
    examples,
    random_map,
    stored_as,
    to_host,
)
from hypothesis import given, settings

import rmac
from rmac import _options

SPECIAL = st.sampled_from([0.0, 0.01, 0.9])  # the share of values that are NaN, infinite or zero


@pytest.mark.slow
@pytest.mark.usefixtures("shared_small_maps")
@settings(max_examples=examples(2500))
@given(special=SPECIAL, options=GRID_OPTIONS, **MAPS)
def test_region_pool_equals_the_oracle(
    xp, images, channels, size, dtype, layout, memory, special, workers, options, seed
):
    rng = np.random.default_rng(seed)
    x = random_map(rng, (images, channels, *size), DTYPES[dtype], special)
    grid = rmac.region_grid(*size, **options)
    stored = stored_as(x, memory, rng).transpose(LAYOUTS[layout])
    expected = reference.region_pool(x, grid.boxes)
    stored.flags.writeable = False
    threads = {"workers": workers} if xp is np else {}
    result = rmac.region_pool(xp.asarray(stored), layout=layout, **options, **threads)
    result = check_array(result, xp, expected.shape, DTYPES[dtype])
    assert_same_values(result, expected)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_small_maps")
@settings(max_examples=examples(1000))
@given(special=SPECIAL, pool=MEANS, options=GRID_OPTIONS, **MAPS | {"images": st.integers(1, 2)})
def test_means_equal_the_oracle(
    xp, images, channels, size, dtype, layout, memory, special, pool, workers, options, seed
):
    rng = np.random.default_rng(seed)
    x = random_map(rng, (images, channels, *size), DTYPES[dtype], special)
    stored = xp.asarray(stored_as(x, memory, rng).transpose(LAYOUTS[layout]))
    boxes = rmac.region_grid(*size, **options).boxes
    result_dtype = np.dtype("float64" if dtype == "float64" else "float32")
    expected, allowed = reference.region_mean(x, boxes, result_dtype, **pool)
    threads = {"workers": workers} if xp is np else {}
    result = rmac.region_pool(stored, layout=layout, **pool, **options, **threads)
    result = check_array(result, xp, expected.shape, result_dtype)
    assert_within(result, expected, allowed)
    again = rmac.region_pool(stored[-1:], layout=layout, **pool, **options)
    assert to_host(again).tobytes() == result[-1:].tobytes()


def test_means_are_right_far_from_one(xp):
    """Powers of less than 1e-6 and of a million are in the range of what they are summed in."""
    for value, p in ((1e-7, 5), (1e-7, 49.9), (1e6, 5), (1e6, 6), (1e6, 49.9), (6e4, 7.3)):
        x = xp.asarray(np.full((1, 20, 24, 32), value, np.float32))
        pooled = to_host(rmac.region_pool(x, pool="gem", p=p))
        np.testing.assert_allclose(pooled, max(value, 1e-6), rtol=2e-6)


def test_means_of_any_boxes(xp, rng):
    corners = np.sort(rng.integers(0, (40, 30), (600, 2, 2)), axis=1)
    boxes = corners.reshape(-1, 4)
    x = random_map(rng, (1, 20, 30, 40), DTYPES["float64"])
    for order in LAYOUTS.values():
        stored = np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))
        expected, allowed = reference.region_mean(x, boxes, np.float64, pool="gem")
        result = rmac.region_pool(xp.asarray(stored), boxes, pool="gem")
        assert_within(to_host(result), expected, allowed)


def test_means_of_boxes_whose_maxima_came_first(xp, rng):
    """Two boxes that overlap make the third: they have its maximum, and add some cells twice."""
    x = random_map(rng, (2, 20, 8, 8), DTYPES["float32"])
    boxes = [[0, 0, 5, 5], [2, 2, 7, 7], [0, 0, 7, 7]]
    rmac.region_pool(xp.asarray(x), boxes)
    means = to_host(rmac.region_pool(xp.asarray(x), boxes, pool="mean"))
    cells = [x[:, :, y1 : y2 + 1, x1 : x2 + 1].astype(np.float64) for x1, y1, x2, y2 in boxes]
    expected = np.stack([one.mean(axis=(2, 3)) for one in cells], axis=1)
    np.testing.assert_allclose(means, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=examples(400))
@given(
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    count=st.integers(0, 40),
    memory=MEMORY,
    dtype=st.sampled_from(sorted(DTYPES)),
    seed=st.integers(0, 2**32),
)
def test_region_pool_takes_any_boxes(xp, size, count, memory, dtype, seed):
    rng = np.random.default_rng(seed)
    height, width = size
    x1, x2 = np.sort(rng.integers(0, width, (2, count)), axis=0)
    y1, y2 = np.sort(rng.integers(0, height, (2, count)), axis=0)
    boxes = np.stack([x1, y1, x2, y2], axis=1).astype(rng.choice(["int64", "int32", "uint8"]))
    x = stored_as(random_map(rng, (2, 19, *size), DTYPES[dtype], 0.02), memory, rng)
    expected = reference.region_pool(x, boxes)
    result = rmac.region_pool(xp.asarray(x), boxes)
    assert_same_values(check_array(result, xp, expected.shape, x.dtype), expected)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_small_maps")
@settings(max_examples=examples(400))
@given(
    channels=CHANNELS,
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    output_size=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    scale=st.sampled_from([1.0, 0.5, 1 / 16, 0.3]),
    count=st.integers(0, 12),
    layout=st.sampled_from(sorted(LAYOUTS)),
    dtype=st.sampled_from(sorted(DTYPES)),
    workers=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
def test_roi_pool_equals_the_oracle(
    xp, channels, size, output_size, scale, count, layout, dtype, workers, seed
):
    rng = np.random.default_rng(seed)
    x = random_map(rng, (3, channels, *size), DTYPES[dtype], 0.02)
    reach = max(size) / scale
    corners = rng.uniform(-0.3 * reach, 1.3 * reach, (count, 4))
    if rng.random() < 0.5:
        corners = np.round(2 * corners) / 2
    rois = np.column_stack([rng.integers(0, 3, count), corners]).astype("float32")
    expected = reference.roi_pool(x, rois, output_size, scale)
    threads = {"workers": workers} if xp is np else {}
    result = rmac.roi_pool(
        xp.asarray(np.ascontiguousarray(x.transpose(LAYOUTS[layout]))),
        xp.asarray(rois),
        output_size=output_size,
        spatial_scale=scale,
        layout=layout,
        **threads,
    )
    assert_same_values(check_array(result, xp, expected.shape, DTYPES[dtype]), expected)


def test_rmac_regions_feed_roi_pool(xp, rng):
    x = xp.asarray(random_map(rng, (3, 20, 24, 32), DTYPES["float32"]))
    pooled = rmac.roi_pool(x, rmac.rmac_regions(x))
    regions = rmac.region_pool(x)
    assert pooled.shape == (60, 20, 1, 1)
    assert_same_values(to_host(pooled).reshape(3, 20, 20), to_host(regions))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_extreme_values_come_back_bit_for_bit(xp, dtype, layout):
    dtype = DTYPES[dtype]
    info = ml_dtypes.finfo(dtype)
    ordered = [-np.inf, info.min, -1, -info.smallest_subnormal, -0.0, 0.0]
    ordered += [info.smallest_subnormal, info.tiny, 1, info.max, np.inf, np.nan, -np.nan]
    for low, high in itertools.pairwise(ordered):
        x = np.full((1, 33, 4, 5), low, dtype)
        x[0, ::2, 2, 3] = high
        expected = reference.region_pool(x, [[0, 0, 4, 3]])
        assert np.isnan(expected[0, 0, 0]) == np.isnan(high)
        stored = np.ascontiguousarray(x.transpose(LAYOUTS[layout]))
        result = rmac.region_pool(xp.asarray(stored), [[0, 0, 4, 3]], layout=layout)
        assert_same_values(to_host(result), expected)


@pytest.mark.parametrize("sign", [1, -1])
def test_nan_of_either_sign_propagates_to_every_region_that_holds_it(xp, sign):
    x = np.full((1, 1, 12, 16), np.inf, "float32")
    x[0, 0, 5, 7] = np.copysign(np.nan, sign)
    grid = rmac.region_grid(12, 16)
    x1, y1, x2, y2 = grid.boxes.T
    holds = (x1 <= 7) & (x2 >= 7) & (y1 <= 5) & (y2 >= 5)
    assert 0 < holds.sum() < len(grid)
    result = to_host(rmac.region_pool(xp.asarray(x)))
    np.testing.assert_array_equal(np.isnan(result[0, :, 0]), holds)


@pytest.mark.usefixtures("both_ways_to_share")
@pytest.mark.parametrize("shape", [(1, 3, 8, 9), (5, 33, 24, 32), (2, 100, 7, 7), (1, 1, 1, 300)])
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_workers_do_not_change_a_bit(rng, shape, layout):
    x = random_map(rng, shape, DTYPES["float32"], 0.01).transpose(LAYOUTS[layout])
    for stored in (x, np.ascontiguousarray(x)):
        for function in (rmac.region_pool, rmac.rmac):
            results = {function(stored, layout=layout, workers=n).tobytes() for n in range(1, 9)}
            assert len(results) == 1


def test_an_image_does_not_depend_on_its_batch(xp, rng):
    x = xp.asarray(random_map(rng, (7, 40, 13, 20), DTYPES["float32"]))
    for function in (rmac.region_pool, rmac.rmac):
        together = to_host(function(x))
        alone = np.concatenate([to_host(function(x[n : n + 1])) for n in range(7)])
        assert together.tobytes() == alone.tobytes()


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_out(xp, rng, dtype):
    x = xp.asarray(random_map(rng, (2, 19, 7, 9), DTYPES[dtype]))
    expected = to_host(rmac.region_pool(x))
    room = xp.zeros((*expected.shape[:2], 2 * expected.shape[2]), dtype=DTYPES[dtype])
    for out in (
        room[..., :19].copy(),
        room[..., ::2],
        room.transpose(1, 0, 2)[:, :, :19].transpose(1, 0, 2),
    ):
        assert rmac.region_pool(x, out=out) is out
        assert_same_values(to_host(out), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_boxes_of_each_image(xp, rng, dtype):
    x = xp.asarray(random_map(rng, (3, 5, 9, 12), DTYPES["float32"]))
    boxes = [np.array([[0, 0, 3, 3], [2, 1, 11, 8]], dtype), np.zeros((0, 4), dtype)]
    boxes.append(np.array([[5, 5, 1, 1]], dtype))
    rows = [[i, *box] for i, some in enumerate(boxes) for box in some.tolist()]
    expected = rmac.roi_pool(x, xp.asarray(np.array(rows, "float32")), output_size=2)
    for kind in (list, tuple):
        pooled = rmac.roi_pool(x, kind(map(xp.asarray, boxes)), output_size=2)
        np.testing.assert_array_equal(to_host(pooled), to_host(expected))
    none = rmac.roi_pool(x[:0], [])
    assert none.shape == (0, 5, 1, 1)


@pytest.mark.parametrize(
    ("boxes", "error", "message"),
    [
        ([np.zeros((2, 4))], ValueError, "rois: expected 2 arrays of boxes, one for each image of"),
        ([np.zeros((2, 4))] * 3, ValueError, "got 3"),
        ([np.zeros((2, 4)), np.zeros((2, 5))], ValueError, r"rois\[1\]: expected shape \(L, 4\)"),
        ([np.zeros((2, 4)), np.zeros(4)], ValueError, r"rois\[1\]: .*, got \(4,\)"),
        ([np.zeros((2, 4)), None], TypeError, r"rois\[1\]: expected a numpy.ndarray"),
        (
            [np.zeros((2, 4)), np.zeros((1, 4), bool)],
            TypeError,
            r"rois\[1\]: expected real numbers",
        ),
        ([np.zeros((2, 4)), np.full((1, 4), np.nan)], ValueError, "rois: expected finite"),
        ([[0, 0, 0, 1, 1]], TypeError, r"rois: .* \(K, 5\), or a list of one \(L, 4\)"),
    ],
)
def test_wrong_boxes_of_each_image(boxes, error, message):
    with pytest.raises(error, match=message):
        rmac.roi_pool(np.ones((2, 3, 5, 6), np.float32), boxes)


def test_roi_pool_out(xp, rng):
    x = xp.asarray(random_map(rng, (2, 19, 7, 9), DTYPES["float32"]))
    rois = rmac.rmac_regions(x)
    expected = to_host(rmac.roi_pool(x, rois, output_size=2))
    room = xp.ones((2, *expected.shape), dtype="float32")
    for out in (room[0], room.transpose(1, 2, 3, 4, 0)[..., 1]):
        assert rmac.roi_pool(x, rois, output_size=2, out=out) is out
        assert_same_values(to_host(out), expected)


def test_roi_pool_batch_index_of_more_digits_than_float32_has():
    x = np.zeros((2**24 + 3, 1, 1, 1), np.uint8)
    x[2**24 + 1] = 7
    assert rmac.roi_pool(x, np.array([[2**24 + 1, 0, 0, 0, 0]])).item() == 7


def test_misaligned_out(rng):
    x = random_map(rng, (1, 19, 7, 9), DTYPES["float32"])
    expected = rmac.region_pool(x)
    out = np.zeros(expected.nbytes + 1, np.uint8)[1:].view("f4").reshape(expected.shape)
    assert not out.flags.aligned
    assert rmac.region_pool(x, out=out) is out
    assert_same_values(out.copy(), expected)


def test_out_may_share_memory_with_x(rng):
    memory = random_map(rng, (1, 19, 9, 9), DTYPES["float32"])
    expected = rmac.region_pool(memory.copy())
    out = memory.reshape(-1)[: expected.size].reshape(expected.shape)
    rmac.region_pool(memory, out=out)
    assert_same_values(out, expected)


def test_input_is_not_written(rng):
    x = random_map(rng, (2, 30, 9, 11), DTYPES["float32"], 0.1)
    before = x.tobytes()
    rmac.region_pool(x)
    rmac.rmac(x)
    assert x.tobytes() == before


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_empty_batches_and_channels(xp, layout):
    for shape in [(0, 4, 5, 6), (2, 0, 5, 6), (0, 0, 5, 6)]:
        x = xp.zeros([shape[axis] for axis in LAYOUTS[layout]], dtype="float16")
        regions = len(rmac.region_grid(5, 6))
        pooled = rmac.region_pool(x, layout=layout)
        check_array(pooled, xp, (shape[0], regions, shape[1]), "float16")
        check_array(rmac.rmac(x, layout=layout), xp, shape[:2], "float32")
        concat = rmac.rmac(x, layout=layout, aggregate="concat")
        check_array(concat, xp, (shape[0], regions * shape[1]), "float32")
        rois = xp.zeros((0, 5), dtype="float32")
        pooled = rmac.roi_pool(x, rois, output_size=2, layout=layout)
        check_array(pooled, xp, (0, shape[1], 2, 2), "float16")
        check_array(rmac.rmac_regions(x), xp, (0, 5), "float32")


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("pool", _options.POOLS)
def test_none_of_some_images(xp, layout, pool):
    """A slice of no images has the strides of many."""
    shape = [(2, 16, 5, 6)[axis] for axis in LAYOUTS[layout]]
    x = xp.zeros(shape, dtype="float32")[:0]
    options = {"layout": layout, "pool": pool}
    regions = len(rmac.region_grid(5, 6))
    check_array(rmac.region_pool(x, **options), xp, (0, regions, 16), "float32")
    check_array(rmac.rmac(x, **options), xp, (0, 16), "float32")
    whitening = rmac.Whitening.from_projection(xp.zeros(16), xp.ones((3, 16)))
    check_array(rmac.rmac(x, whitening=whitening, **options), xp, (0, 3), "float32")


def test_no_regions(xp):
    result = rmac.region_pool(xp.zeros((2, 3, 4, 5)), np.empty((0, 4), int))
    check_array(result, xp, (2, 0, 3), "float64")


def test_roi_pool_on_a_map_without_cells_gives_zeros(xp):
    result = rmac.roi_pool(xp.ones((1, 3, 0, 4)), xp.asarray([[0, 0, 0, 3, 3]]), output_size=2)
    assert not check_array(result, xp, (1, 3, 2, 2), "float64").any()


@pytest.mark.parametrize("shape", [(1, 3, 1, 200), (1, 3, 200, 1), (2, 5, 1, 1), (1, 1, 3, 61)])
def test_thin_maps(xp, rng, shape):
    x = random_map(rng, shape, DTYPES["float32"])
    boxes = rmac.region_grid(*shape[2:]).boxes
    assert_same_values(to_host(rmac.region_pool(xp.asarray(x))), reference.region_pool(x, boxes))


def test_more_than_two_to_the_31_elements_in_the_batch(rng):
    """Through a batch axis of stride 0, so that the memory is that of one map."""
    one = random_map(rng, (1, 32, 16, 16), DTYPES["int8"])
    many = np.broadcast_to(one, (2**31 // one.size + 2, *one.shape[1:]))
    assert many.size > 2**31
    result = rmac.region_pool(many, [[0, 0, 15, 15], [3, 4, 9, 9]])
    expected = rmac.region_pool(one, [[0, 0, 15, 15], [3, 4, 9, 9]])
    assert np.array_equal(result, np.broadcast_to(expected, result.shape))


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_more_than_two_to_the_31_elements_apart(layout):
    """The last cell of a map is further from its first than 32 bits can say."""
    height, width = 46_400, 46_400
    shape = (1, 1, height, width) if layout == "NCHW" else (1, height, width, 1)
    x = np.zeros(shape, np.uint8)
    assert x.size > 2**31
    x.reshape(-1)[-1] = 7
    corner = [width - 3, height - 3, width - 1, height - 1]
    assert rmac.region_pool(x, [corner, [0, 0, 2, 2]], layout=layout).ravel().tolist() == [7, 0]


def test_subclasses_and_memory_maps_are_arrays(tmp_path, rng):
    x = random_map(rng, (2, 5, 6, 7), DTYPES["float32"])
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    result = rmac.region_pool(mapped)
    assert type(result) is np.ndarray
    assert_same_values(result, rmac.region_pool(x))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("channels", [1, 5, 16, 33, 64])
@pytest.mark.parametrize("size", [(1, 40), (7, 7), (14, 14), (24, 32), (12, 5), (3, 100)])
def test_sums_of_values_as_they_are_have_the_bits_of_sums_of_copies(
    xp, rng, size, channels, dtype, layout
):
    """Powers are taken of copies, and a first power changes nothing."""
    shape = (2, channels, *size) if layout == "NCHW" else (2, *size, channels)
    x = xp.asarray(rng.uniform(1, 2, shape).astype(dtype))
    mean = rmac.region_pool(x, pool="mean", layout=layout)
    powers = rmac.region_pool(x, pool="gem", p=1, layout=layout)
    assert to_host(mean).tobytes() == to_host(powers).tobytes()
