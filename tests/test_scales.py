"""Descriptors of several scales become one, as the formula says in float64."""

import hypothesis.strategies as st
import numpy as np
import pytest
import reference
from helpers import (
    ARRAYS,
    DTYPES,
    Tensor,
    check_array,
    examples,
    peak_memory,
    raises_line,
    to_host,
)
from hypothesis import given, settings

import rmac
from rmac import scales

POWERS = [0.3, 1, 2, 2.5, 3, 30, np.inf]


@settings(max_examples=examples(300))
@given(
    count=st.integers(1, 5),
    images=st.integers(0, 9),
    dim=st.integers(0, 70),
    dtype=st.sampled_from(sorted(DTYPES)),
    p=st.sampled_from(POWERS),
    stacked=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_equals_the_oracle(xp, count, images, dim, dtype, p, stacked, seed):
    rng = np.random.default_rng(seed)
    descriptors = (rng.random((count, images, dim)) * 100).astype(DTYPES[dtype])
    descriptors[:, rng.random(images) < 0.2] = 0
    descriptors[rng.random(descriptors.shape) < 0.1] = 0
    expected = reference.merge_scales(descriptors, p)
    arrays = xp.asarray(descriptors) if stacked else [xp.asarray(d) for d in descriptors]
    result = rmac.merge_scales(arrays, p=p)
    result_dtype = "float64" if dtype == "float64" else "float32"
    result = check_array(result, xp, (images, dim), result_dtype)
    np.testing.assert_allclose(result, expected, rtol=1e-12 if dtype == "float64" else 1e-7)


def test_signed_elements_have_a_sum_and_a_maximum(xp, rng):
    descriptors = rng.standard_normal((3, 8, 40))
    for p, merged in ((1, descriptors.sum(axis=0)), (np.inf, descriptors.max(axis=0))):
        result = to_host(rmac.merge_scales(xp.asarray(descriptors), p=p))
        np.testing.assert_allclose(result, reference.l2(merged), rtol=1e-12)


@pytest.mark.parametrize("p", [0.5, 2, 3])
def test_an_image_with_negative_elements_has_no_other_mean(xp, rng, p):
    descriptors = rng.random((3, 4, 5))
    descriptors[1, 2, 3] *= -1
    result = to_host(rmac.merge_scales(xp.asarray(descriptors), p=p))
    np.testing.assert_array_equal(np.isnan(result).any(axis=1), [False, False, True, False])


@pytest.mark.parametrize("p", POWERS)
def test_nan_and_infinity_are_not_lost(xp, p):
    descriptors = np.ones((2, 3, 4))
    descriptors[0, 1, 2] = np.nan
    descriptors[1, 2, 0] = np.inf
    result = to_host(rmac.merge_scales(xp.asarray(descriptors), p=p))
    np.testing.assert_array_equal(np.isnan(result).any(axis=1), [False, True, True])


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [("f4", 1e-40), ("f4", 1e-30), ("f4", 1e30), ("f8", 1e-308), ("f8", 1e-200), ("f8", 4e307)],
)
@pytest.mark.parametrize("p", [1e-3, *POWERS])
def test_no_power_overflows_or_vanishes(xp, dtype, scale, p):
    if xp.__name__ == "cupy" and (dtype, scale) == ("f4", 1e-40):
        pytest.skip("CuPy takes float32 subnormals as 0")
    descriptors = np.array([[[1, 2, 4]], [[2, 1, 1]]], dtype)
    expected = to_host(rmac.merge_scales(xp.asarray(descriptors), p=p))
    result = rmac.merge_scales(xp.asarray(descriptors * np.dtype(dtype).type(scale)), p=p)
    np.testing.assert_allclose(to_host(result), expected, rtol=1e-4)


def test_blocks_do_not_change_a_bit(xp, rng, monkeypatch):
    descriptors = xp.asarray(rng.random((3, 17, 40), dtype="f4"))
    expected = to_host(rmac.merge_scales(descriptors, p=3))
    monkeypatch.setattr(scales, "_BLOCK", 200)
    assert to_host(rmac.merge_scales(descriptors, p=3)).tobytes() == expected.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("p", [1, 3])
def test_memory_does_not_grow_with_the_number_of_images(p):
    """Beside the result."""
    peaks = []
    for images in (40_000, 160_000):
        descriptors = np.ones((2, images, 64), np.float16)
        peak = peak_memory(lambda d=descriptors: rmac.merge_scales(d, p=p))
        peaks.append(peak - images * 64 * 4)
    assert peaks[1] < peaks[0] * 1.1


def test_any_strides_and_input_is_not_written(xp, rng):
    descriptors = rng.random((17, 40, 3), dtype="f4")
    before = descriptors.copy()
    result = rmac.merge_scales(xp.asarray(descriptors).transpose(2, 0, 1))
    np.testing.assert_array_equal(descriptors, before)
    expected = rmac.merge_scales([xp.asarray(before[..., i].copy()) for i in range(3)])
    assert to_host(result).tobytes() == to_host(expected).tobytes()


@pytest.mark.usefixtures("elsewhere")
def test_arrays_of_other_libraries(rng):
    descriptors = rng.random((3, 8, 40), dtype="f4")
    expected = rmac.merge_scales(descriptors, p=2)
    for tensors in (Tensor(descriptors), [Tensor(d) for d in descriptors]):
        result = rmac.merge_scales(tensors, p=2)
        assert type(result) is Tensor
        np.testing.assert_array_equal(result._array, expected)


D = np.ones((4, 7), np.float32)


@pytest.mark.parametrize(
    ("descriptors", "p", "error", "message"),
    [
        ([], 1, ValueError, "descriptors: expected at least one array, got none"),
        (D, 1, ValueError, "descriptors: expected shape (S, N, D), or a list of arrays (N, D), go"),
        ([D, D[0]], 1, ValueError, "descriptors[1]: expected shape (N, D), got (7,)"),
        ([D, D[:3]], 1, ValueError, "descriptors[1]: expected shape (4, 7), got (3, 7)"),
        ([D, D.astype("f8")], 1, TypeError, "descriptors[1]: expected dtype float32, got float64"),
        ([D, D.astype("i4")], 1, TypeError, "descriptors[1]: expected float16, bfloat16, float32"),
        ([D, None], 1, TypeError, f"descriptors[1]: expected a {ARRAYS}, got "),
        (None, 1, TypeError, f"descriptors: expected a {ARRAYS}, got NoneType"),
        ([D], 0, ValueError, "p: expected a number with 0.001 <= p, got 0"),
        ([D], -np.inf, ValueError, "p: expected a number with 0.001 <= p, got -inf"),
        ([D], np.nan, ValueError, "p: expected a number with 0.001 <= p, got nan"),
        ([D], "2", TypeError, "p: expected a number, got '2'"),
    ],
)
def test_errors(descriptors, p, error, message):
    with raises_line(error, message):
        rmac.merge_scales(descriptors, p=p)
