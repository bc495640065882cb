"""Maps of quantised integers: `zero_point` is the value that stands for 0."""

import numpy as np
import pytest
import reference
from helpers import GRID_OPTIONS, assert_within, check_array, to_host
from hypothesis import given, settings
from hypothesis import strategies as st

import rmac
from rmac import _options
from rmac._dtypes import DTYPES
from rmac.cli import main

QUANTISED = {name: info.zero_points for name, info in DTYPES.items() if info.zero_points != (0, 0)}
POINTS = [(name, point) for name, ends in QUANTISED.items() for point in (*ends, 3)]


def random_codes(rng, shape, dtype):
    low, high = QUANTISED[dtype]
    return rng.integers(low, high, shape, dtype, endpoint=True)


def test_integers_of_8_bits_are_quantised():
    assert QUANTISED == {"uint8": (0, 255), "int8": (-128, 127)}


@pytest.mark.parametrize("layout", _options.LAYOUTS)
@pytest.mark.parametrize(("dtype", "zero_point"), POINTS)
def test_descriptors_are_those_of_what_the_codes_stand_for(xp, rng, dtype, zero_point, layout):
    """To the bit, as float32 holds the differences."""
    x = random_codes(rng, (3, 70, 9, 12)[: len(layout)], dtype)
    real = x.astype(np.float32) - zero_point
    result = rmac.rmac(xp.asarray(x), zero_point=zero_point, layout=layout)
    expected = rmac.rmac(xp.asarray(real), layout=layout)
    result = check_array(result, xp, expected.shape, np.dtype(np.float32))
    np.testing.assert_array_equal(result, to_host(expected))


@pytest.mark.parametrize(("dtype", "zero_point"), POINTS)
@pytest.mark.parametrize("pool", [{"pool": "mean"}, {"pool": "gem"}, {"pool": "gem", "p": 6.5}])
@settings(max_examples=5)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    grid=GRID_OPTIONS,
    nhwc=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_means_are_those_of_what_the_codes_stand_for(
    xp, dtype, zero_point, pool, size, grid, nhwc, seed
):
    x = random_codes(np.random.default_rng(seed), (2, 70, *size), dtype)
    pool = pool | {"zero_point": zero_point}
    boxes = rmac.region_grid(*size, **grid).boxes
    expected, allowed = reference.region_mean(x, boxes, np.float32, **pool)
    stored = xp.asarray(np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if nhwc else x)
    result = rmac.region_pool(stored, layout="NHWC" if nhwc else "NCHW", **grid, **pool)
    result = check_array(result, xp, expected.shape, np.dtype(np.float32))
    assert_within(result, expected, allowed)


def test_maps_of_a_list_share_one(xp, rng):
    maps = [random_codes(rng, (20, *size), "int8") for size in ((5, 7), (9, 4), (5, 7))]
    real = [xp.asarray(x.astype(np.float32) + 128) for x in maps]
    maps = [xp.asarray(x) for x in maps]
    np.testing.assert_array_equal(
        to_host(rmac.rmac(maps, zero_point=-128)), to_host(rmac.rmac(real))
    )
    for pooled, expected in zip(
        rmac.region_pool(maps, pool="mean", zero_point=-128),
        rmac.region_pool(real, pool="mean"),
        strict=True,
    ):
        np.testing.assert_allclose(to_host(pooled), to_host(expected), rtol=1e-5)


def test_regional_vectors_for_a_whitening(xp, rng):
    x = random_codes(rng, (30, 16, 6, 6), "uint8")
    real = xp.asarray(x.astype(np.float32) - 100)
    vectors = rmac.rmac(xp.asarray(x), zero_point=100, aggregate="none")
    whitening = rmac.Whitening(dim=8).fit(vectors)
    result = rmac.rmac(xp.asarray(x), zero_point=100, whitening=whitening)
    np.testing.assert_array_equal(to_host(result), to_host(rmac.rmac(real, whitening=whitening)))


@pytest.mark.parametrize(
    ("dtype", "zero_point", "message"),
    [
        ("int8", -129, "zero_point: expected -128 to 127 with int8 maps, got -129"),
        ("uint8", 256, "zero_point: expected 0 to 255 with uint8 maps, got 256"),
        ("uint8", 10**400, "zero_point: expected 0 to 255 with uint8 maps, got 1000"),
        ("float32", 1, "zero_point: expected 0 with float32 maps, got 1"),
    ],
)
@pytest.mark.parametrize("call", [rmac.rmac, lambda x, **o: rmac.region_pool(x, pool="mean", **o)])
def test_a_value_that_maps_cannot_have_is_an_error(xp, call, dtype, zero_point, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call(xp.ones((1, 2, 3, 3), dtype), zero_point=zero_point)


@pytest.mark.parametrize("zero_point", [0.0, "0", True, None])
def test_another_type_is_an_error(zero_point):
    with pytest.raises(TypeError, match=r"^zero_point: expected an integer, got"):
        rmac.rmac(np.ones((1, 2, 3, 3), "int8"), zero_point=zero_point)


def test_maxima_of_regions_keep_their_values(xp):
    x = xp.ones((1, 2, 3, 3), "int8")
    with pytest.raises(ValueError, match=r'^zero_point: expected 0 with pool="max", got 1; maxima'):
        rmac.region_pool(x, zero_point=1)


def test_describe(tmp_path, rng, capsys):
    x = random_codes(rng, (4, 8, 5, 6), "int8")
    np.save(tmp_path / "x.npy", x)
    command = ["describe", str(tmp_path / "x.npy"), "-o", str(tmp_path / "d.npy"), "--zero-point"]
    assert main([*command, "-128"]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "d.npy"), rmac.rmac(x, zero_point=-128))
    assert main([*command, "300"]) == 2
    assert "--zero-point: expected -128 to 127 with int8 maps, got 300" in capsys.readouterr().err
