"""What a search of boxes gives to the kernels of the CPU."""

import numpy as np

from rmac.cpu import search

LANES = 32


def test_digits_are_the_elements_of_queries(rng):
    """Three signed bytes of each, rounded to a multiple of the scale. Only some CPUs use them."""
    units = rng.standard_normal((60, 70)) * 0.5 ** rng.integers(0, 30, (60, 1))
    units[0] = np.eye(70)[3]
    units[1], units[2], units[3] = -units[0], 0, 127 / 128
    numbers = search.digits(units, LANES).view(np.int8)  # (tile, query, byte)
    digits = numbers[..., : 3 * LANES].reshape(*numbers.shape[:2], 3, LANES).astype(np.int64)
    whole = (digits * np.array([1 << 16, 1 << 8, 1])[:, None]).sum(axis=2)
    scales = numbers[..., 3 * LANES :][..., :4].copy().view(np.float32)
    padded = np.zeros((60, 3 * LANES))
    padded[:, :70] = units
    elements = padded.reshape(60, 3, LANES).swapaxes(0, 1)
    assert (abs(whole * scales - elements) <= scales / 2).all()
    largest = abs(whole).max(axis=(0, 2))
    assert (largest[units.any(axis=1)] >= 1 << 21).all()


def test_a_query_that_is_not_finite_has_no_scale():
    units = np.array([[1.0, np.nan], [np.inf, 0.0], [0.0, 0.0]])
    numbers = search.digits(units, LANES).view(np.int8)
    scales = numbers[..., 3 * LANES :][..., :4].copy().view(np.float32)
    np.testing.assert_array_equal(np.isnan(scales.ravel()), [True, True, False])
