"""Descriptors agree with the float64 oracle within the rounding that their arithmetic explains."""

import hypothesis.strategies as st
import numpy as np
import pytest
import reference
from helpers import (
    DTYPES,
    GRID_OPTIONS,
    LAYOUTS,
    MAPS,
    MEANS,
    check_array,
    examples,
    peak_memory,
    random_map,
    stored_as,
    to_host,
)
from hypothesis import given, settings

import rmac
from rmac import descriptors
from rmac._options import AGGREGATES

DESCRIPTOR_OPTIONS = st.fixed_dictionaries(
    {
        "normalize_regions": st.booleans(),
        "aggregate": st.sampled_from(AGGREGATES),
        "normalize": st.booleans(),
        "eps": st.sampled_from([0.0, 1e-6, 0.5]),
    }
)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_small_maps")
@settings(max_examples=examples(1000))
@given(
    pool=st.one_of(st.just({}), MEANS),
    grid_options=GRID_OPTIONS,
    options=DESCRIPTOR_OPTIONS,
    **MAPS | {"size": st.tuples(st.integers(1, 30), st.integers(1, 30))},
)
def test_rmac_equals_the_oracle(
    xp, images, channels, size, dtype, layout, memory, pool, grid_options, options, workers, seed
):
    rng = np.random.default_rng(seed)
    x = stored_as(random_map(rng, (images, channels, *size), DTYPES[dtype]), memory, rng)
    stored = xp.asarray(x.transpose(LAYOUTS[layout]))
    if pool:
        vectors = to_host(rmac.region_pool(stored, layout=layout, **pool, **grid_options))
    else:
        vectors = reference.region_pool(x, rmac.region_grid(*size, **grid_options).boxes)
    expected = reference.rmac(vectors, **options)
    result_dtype = np.dtype("float64" if dtype == "float64" else "float32")
    allowed = reference.rmac_error(vectors, result_dtype, **options)

    threads = {"workers": workers} if xp is np else {}
    result = rmac.rmac(stored, layout=layout, **pool, **grid_options, **options, **threads)
    result = check_array(result, xp, expected.shape, result_dtype)
    assert (np.abs(result - expected) <= allowed).all()


def test_large_float16_activations_do_not_overflow(xp):
    x = xp.asarray(np.full((1, 2048, 7, 7), 2000, dtype="float16"))
    result = to_host(rmac.rmac(x))
    np.testing.assert_allclose(result, 2048**-0.5, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e30, 1e37])
def test_scale_does_not_matter(xp, rng, scale):
    x = np.abs(random_map(rng, (1, 64, 9, 9), DTYPES["float32"]))
    small_or_large = rmac.rmac(xp.asarray(x * np.float32(scale)))
    np.testing.assert_allclose(
        to_host(small_or_large), to_host(rmac.rmac(xp.asarray(x))), rtol=2e-6
    )


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_value_of_a_small_dtype_widens_exactly(xp, dtype):
    dtype = DTYPES[dtype]
    if dtype.itemsize > 2:
        values = np.array([-1.5, 0, 3e-310, 1e-40, 7], dtype)
    else:
        values = np.arange(2 ** (8 * dtype.itemsize)).astype(f"u{dtype.itemsize}").view(dtype)
    expected = values.astype("float64" if dtype == "float64" else "float32")
    result = rmac.rmac(
        xp.asarray(values[None, :, None, None]),
        levels=1,
        normalize_regions=False,
        normalize=False,
    )
    if xp is not np:  # where float32 arithmetic takes subnormals as 0
        tiny = np.finfo(np.float32).tiny if expected.dtype == np.float32 else 0
        expected[np.abs(expected) < tiny] = 0
    np.testing.assert_array_equal(to_host(result)[0], expected)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_a_zero_map_stays_zero(xp, aggregate):
    result = to_host(rmac.rmac(xp.zeros((2, 5, 6, 7)), aggregate=aggregate))
    assert not result.any()


def test_a_nan_spoils_its_own_image_only(xp):
    x = np.ones((3, 4, 6, 6), "float32")
    x[1, 2, 3, 3] = np.nan
    result = to_host(rmac.rmac(xp.asarray(x)))
    assert np.isnan(result[1]).all()
    assert np.isfinite(result[[0, 2]]).all()


def test_out(xp, rng):
    x = xp.asarray(random_map(rng, (3, 20, 9, 9), DTYPES["float16"]))
    expected = to_host(rmac.rmac(x))
    for out in (xp.zeros((3, 20), dtype="float32"), xp.zeros((20, 3), dtype="float32").T):
        assert rmac.rmac(x, out=out) is out
        assert to_host(out).tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_one_channel_becomes_exactly_one(xp, rng, dtype):
    """So that opposite regions cancel, as they do in exact arithmetic, whatever their size."""
    x = xp.asarray(random_map(rng, (200, 1, 1, 11), DTYPES[dtype]))
    vectors = to_host(rmac.rmac(x, aggregate="none"))
    assert (np.abs(vectors) == 1).all()
    np.testing.assert_array_equal(to_host(rmac.rmac(x)), np.sign(vectors.sum(axis=1)))


@pytest.mark.usefixtures("both_ways_to_share")
@pytest.mark.parametrize("images", [1, 3, 4, 9])
def test_images_share_workers_and_workers_share_images(rng, images):
    """Both ways to divide the work, with 4 workers."""
    x = random_map(rng, (images, 300, 9, 9), DTYPES["float32"])
    expected = rmac.rmac(x, workers=1)
    assert rmac.rmac(x, workers=4).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("float32", 3e38),
        ("float32", 1e-44),
        ("float64", 1e200),
        ("float64", 1e-170),
        ("bfloat16", 3e38),
    ],
)
@pytest.mark.parametrize("aggregate", ["sum", "concat"])
def test_extreme_finite_values_give_unit_vectors(xp, dtype, value, aggregate):
    x = np.full((1, 2048, 3, 3), value).astype(DTYPES[dtype])
    result = to_host(rmac.rmac(xp.asarray(x), aggregate=aggregate)).astype("float64")
    assert abs(np.linalg.norm(result) - 1) < 1e-6
    np.testing.assert_allclose(result, result[0, 0])


def test_an_infinite_value_is_all_of_its_region(xp):
    """As v / (norm + eps) has it: 0 beside it, and itself undefined."""
    x = np.ones((1, 20, 3, 3), np.float32)
    x[0, 3] = np.inf
    vectors = to_host(rmac.rmac(xp.asarray(x), levels=1, aggregate="none"))[0, 0]
    assert np.isnan(vectors[3])
    assert not np.delete(vectors, 3).any()


@pytest.mark.parametrize("eps", [1e30, 1e39, 1e300])
def test_a_huge_eps_makes_a_descriptor_small(xp, eps):
    x = np.full((1, 20, 7, 7), 3, np.float32)
    result = to_host(rmac.rmac(xp.asarray(x), eps=eps, normalize=False))
    assert (np.abs(result) < 1e-27).all()


@pytest.fixture(scope="module")
def whitening(xp):
    vectors = np.random.default_rng(5).standard_normal((400, 20)) @ np.diag(np.arange(1, 21))
    return rmac.Whitening(dim=12).fit(xp.asarray(vectors + 2))


@pytest.mark.parametrize("block", [1, 1 << 12, 1 << 25])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_whitening_comes_after_the_regions(
    xp, rng, monkeypatch, whitening, dtype, aggregate, normalize, block
):
    """L2, whiten, L2, aggregate, L2, in any number of blocks."""
    monkeypatch.setattr(descriptors, "_BLOCK", block)
    x = xp.asarray(random_map(rng, (5, 20, 9, 12), DTYPES[dtype]))
    options = {"aggregate": aggregate, "normalize": normalize}
    regions = to_host(rmac.rmac(x, pool="mean", aggregate="none")).astype("float64")
    vectors = (regions - to_host(whitening.mean)) @ to_host(whitening.projection).T
    expected = reference.rmac(vectors, **options)
    result = rmac.rmac(x, pool="mean", whitening=whitening, **options)
    result = check_array(result, xp, expected.shape, "float64" if dtype == "float64" else "float32")
    np.testing.assert_allclose(result, expected, atol=30 * np.finfo(result.dtype).eps)
    out = xp.zeros(expected.shape[::-1], result.dtype).T
    assert rmac.rmac(x, pool="mean", whitening=whitening, out=out, **options) is out
    np.testing.assert_array_equal(to_host(out), result)


def test_whitening_without_normalised_regions(xp, rng, whitening):
    x = xp.asarray(random_map(rng, (2, 20, 7, 7), DTYPES["float64"]))
    plain = {"normalize_regions": False, "aggregate": "none"}
    expected = to_host(whitening.apply(rmac.rmac(x, **plain)))
    result = to_host(rmac.rmac(x, whitening=whitening, **plain))
    np.testing.assert_allclose(result, expected, rtol=1e-12)


def test_whitening_of_maps_of_different_sizes(xp, rng, monkeypatch, whitening):
    sizes = [(5, 5), (9, 12), (7, 7), (12, 9), (20, 11), (3, 3), (9, 12), (1, 1)]
    maps = [xp.asarray(random_map(rng, (20, *size), DTYPES["float32"])) for size in sizes]
    alone = [to_host(rmac.rmac(x[None], whitening=whitening))[0] for x in maps]
    for block in (1, 1 << 12, 1 << 25):
        monkeypatch.setattr(descriptors, "_BLOCK", block)
        result = to_host(rmac.rmac(maps, whitening=whitening))
        np.testing.assert_allclose(result, alone, atol=1e-6)


def test_whitening_takes_memory_for_a_block_alone(rng, monkeypatch):
    monkeypatch.setattr(descriptors, "_BLOCK", 1 << 20)
    x = random_map(rng, (200, 256, 7, 7), DTYPES["float32"])
    w = rmac.Whitening.from_projection(np.zeros(256), np.eye(256))
    rmac.rmac(x, whitening=w)
    peak = peak_memory(lambda: rmac.rmac(x, whitening=w, workers=1))
    assert peak < 2 << 20  # where all regions take 2.9 MB, twice


def test_whitening_no_images(xp, whitening):
    result = rmac.rmac(xp.zeros((0, 20, 5, 5), np.float32), whitening=whitening)
    check_array(result, xp, (0, 12), "float32")


def test_whitening_that_does_not_fit(xp, whitening):
    x = xp.zeros((1, 21, 5, 5), np.float32)
    with pytest.raises(ValueError, match="x: expected 20 channels, got 21"):
        rmac.rmac(x, whitening=whitening)
    with pytest.raises(ValueError, match="whitening: expected a fitted one"):
        rmac.rmac(x, whitening=rmac.Whitening())
    with pytest.raises(TypeError, match=r"whitening: .* got numpy\.ndarray"):
        rmac.rmac(x, whitening=np.eye(21))
    if xp is not np:
        with pytest.raises(
            TypeError, match=r"x: expected an array where the Whitening is.*to_cupy"
        ):
            rmac.rmac(x[:, :20], whitening=whitening.to_numpy())


def test_regions_of_your_own(xp, rng):
    x = random_map(rng, (3, 20, 9, 12), DTYPES["float32"])
    stored = xp.asarray(x)
    for regions in (
        rmac.region_grid(9, 12, preset="matlab"),
        [[0, 0, 11, 8]],
        np.array([[2, 1, 7, 6], [0, 0, 0, 0]]),
    ):
        maxima = to_host(rmac.region_pool(stored, regions))
        expected = reference.rmac(maxima)
        np.testing.assert_allclose(to_host(rmac.rmac(stored, regions=regions)), expected, atol=1e-6)
        concatenated = rmac.rmac(stored, regions=regions, aggregate="concat")
        assert concatenated.shape == (3, 20 * maxima.shape[1])
    both = rmac.rmac([stored[0], stored[1, :, :8]], regions=[[0, 0, 11, 7]])
    np.testing.assert_array_equal(
        to_host(both), to_host(rmac.rmac(stored[:2], regions=[[0, 0, 11, 7]]))
    )
    sequences = xp.asarray(x[:, :, 0])
    np.testing.assert_array_equal(
        to_host(rmac.rmac(sequences, regions=[[0, 4]], layout="NCT")),
        to_host(rmac.rmac(stored[:, :, :1], regions=[[0, 0, 4, 0]])),
    )


def test_regions_of_your_own_are_whitened(rng):
    x = random_map(rng, (30, 8, 9, 12), DTYPES["float32"])
    regions = [[0, 0, 11, 8], [0, 0, 5, 5]]
    vectors = rmac.rmac(x, regions=regions, aggregate="none")
    whitening = rmac.Whitening(4).fit(vectors)
    expected = reference.rmac(whitening.apply(vectors))
    result = rmac.rmac(x, regions=regions, whitening=whitening)
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        (np.empty((0, 4), int), "regions: expected at least one box, got none"),
        ([[0, 0, 12, 8]], "regions: expected 0 <= x1 <= x2 < 12"),
        (rmac.region_grid(12, 9), "regions: expected a grid for the map's 9x12 cells"),
    ],
)
def test_wrong_regions(regions, message):
    with pytest.raises(ValueError, match=message):
        rmac.rmac(np.ones((2, 3, 9, 12), np.float32), regions=regions)
