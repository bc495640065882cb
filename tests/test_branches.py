"""Branches of convolution, ReLU and maximum agree with a naive float64 oracle."""

import hypothesis.strategies as st
import numpy as np
import pytest
import reference
from helpers import (
    DTYPES,
    MEMORY,
    Tensor,
    check_array,
    examples,
    optional_module,
    peak_memory,
    raises_line,
    random_map,
    stored_as,
    to_host,
)
from hypothesis import given, settings

import rmac
from rmac import branches, operators


@st.composite
def shapes(draw):
    """Sizes of maps, kernels and windows that leave every branch the same number of cells."""
    left = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    cut = draw(st.tuples(st.integers(0, 8), st.integers(0, 8)))
    kernels = draw(
        st.lists(
            st.tuples(st.integers(1, cut[0] + 1), st.integers(1, cut[1] + 1)),
            min_size=1,
            max_size=3,
        )
    )
    windows = [(cut[0] + 2 - kh, cut[1] + 2 - kw) for kh, kw in kernels]
    return (left[0] + cut[0], left[1] + cut[1]), kernels, windows


@settings(max_examples=examples(300))
@given(
    images=st.integers(0, 3),
    channels=st.integers(0, 12),
    filters=st.integers(0, 7),
    sizes=shapes(),
    whole=st.booleans(),
    dtype=st.sampled_from(sorted(DTYPES)),
    weights_dtype=st.sampled_from(sorted(DTYPES)),
    memory=MEMORY,
    seed=st.integers(0, 2**32),
)
def test_equals_the_oracle(
    xp, images, channels, filters, sizes, whole, dtype, weights_dtype, memory, seed
):
    rng = np.random.default_rng(seed)
    size, kernels, windows = sizes
    x = random_map(rng, (images, channels, *size), DTYPES[dtype])
    if x.size:
        x = stored_as(x, memory, rng)
    weights = [random_map(rng, (filters, channels, *k), DTYPES[weights_dtype]) for k in kernels]
    if whole:
        windows = [None] * len(kernels)
    result_dtype = np.dtype("float64" if dtype == "float64" else "float32")
    rounded = [w.astype(result_dtype) for w in weights]
    expected, size = reference.branch_pool(x, rounded, windows)
    info = np.finfo(result_dtype)
    # each of the products and sums of the largest convolution rounds, and a little more
    roundings = max(np.prod(w.shape[1:]) for w in weights) + len(weights) + 4
    allowed = roundings * info.eps * size + info.tiny
    result = rmac.branch_pool(xp.asarray(x), [xp.asarray(w) for w in weights], windows)
    result = check_array(result, xp, expected.shape, result_dtype)
    assert (np.abs(result - expected) <= allowed).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_reaches_the_windows_that_hold_it_and_no_other(xp, rng, value):
    """In particular not the sums that reach past the end of a row."""
    x = random_map(rng, (2, 3, 9, 8), DTYPES["float32"])
    x[0, 1, 4, 7] = value
    weights = [random_map(rng, (5, 3, 3, 2), DTYPES["float32"])]
    result = rmac.branch_pool(xp.asarray(x), [xp.asarray(w) for w in weights], [(2, 3)])
    expected, _ = reference.branch_pool(x, weights, [(2, 3)])
    assert 0 < (~np.isfinite(expected)).sum() < expected.size or value < 0
    np.testing.assert_allclose(to_host(result), expected, rtol=1e-4, atol=1e-5)


def test_a_branch_of_the_identity_is_the_maximum(xp, rng):
    x = np.abs(random_map(rng, (3, 40, 9, 12), DTYPES["float32"]))
    identity = xp.asarray(np.eye(40, dtype="f4")[:, :, None, None])
    expected = x.max(axis=(2, 3))
    result = rmac.branch_pool(xp.asarray(x), (identity, identity), (None, None))
    np.testing.assert_array_equal(to_host(result), expected)
    result = rmac.branch_pool(xp.asarray(x), [identity], [(9, 12)])
    np.testing.assert_array_equal(to_host(result), expected[:, :, None, None])


def test_blocks_of_images_do_not_change_a_bit(rng, monkeypatch):
    x = random_map(rng, (7, 20, 9, 12), DTYPES["float16"])
    weights = [random_map(rng, (30, 20, k, k), DTYPES["float32"]) for k in (1, 3)]
    expected = rmac.branch_pool(x, weights, [3, 1])
    for size, images in ((1, 1), (300_000, 3)):
        monkeypatch.setattr(branches, "_BLOCK", size)
        assert branches._images_at_once(x.shape, [np.zeros((3, 30, 3, 20), "f4")]) == images
        assert rmac.branch_pool(x, weights, [3, 1]).tobytes() == expected.tobytes()


def test_memory_is_that_of_a_block(rng, monkeypatch):
    monkeypatch.setattr(branches, "_BLOCK", 4 << 20)
    x = random_map(rng, (24, 32, 24, 32), DTYPES["uint8"])
    weights = [random_map(rng, (48, 32, k, k), DTYPES["float32"]) for k in (1, 3)]
    result = rmac.branch_pool(x, weights, [6, 4])
    peak = peak_memory(lambda: rmac.branch_pool(x, weights, [6, 4]))
    assert peak - result.nbytes < 5 << 20


def test_large_float16_products_do_not_overflow(xp):
    x = xp.asarray(np.full((1, 512, 3, 3), 2000, np.float16))
    weights = [xp.asarray(np.full((2, 512, 1, 1), 100, np.float16))]
    assert to_host(rmac.branch_pool(x, weights, [None])).tolist() == [[1.024e8] * 2]


def test_it_is_an_operator_without_a_gradient(rng):
    x = random_map(rng, (2, 3, 6, 7), DTYPES["float32"])
    weights = [random_map(rng, (4, 3, 2, 2), DTYPES["float32"])]
    expected = rmac.branch_pool(x, weights, [2])
    result = operators.run_on_device("BranchPool", x, "cpu", weights=weights, kernel_sizes=[2])
    assert result.tobytes() == expected.tobytes()
    with pytest.raises(operators.GradientNotDefinedError, match="BranchPool"):
        operators.gradient("BranchPool")


@pytest.mark.usefixtures("elsewhere")
def test_arrays_of_other_libraries(rng):
    x = random_map(rng, (2, 3, 6, 7), DTYPES["float32"])
    weights = [random_map(rng, (4, 3, 2, 2), DTYPES["float32"])]
    expected = rmac.branch_pool(x, weights, [2])
    result = rmac.branch_pool(Tensor(x), [Tensor(w) for w in weights], [2])
    assert type(result) is Tensor
    np.testing.assert_array_equal(result._array, expected)


def test_as_torch_computes_it():
    torch = optional_module("torch")
    functional = torch.nn.functional
    x = torch.rand(2, 16, 11, 13)
    layers = [torch.nn.Conv2d(16, 24, k, bias=False) for k in (1, 3, 5)]
    windows = [5, 3, 1]
    expected = 0
    for layer, window in zip(layers, windows, strict=True):
        pooled = functional.max_pool2d(functional.relu(layer(x)), window, stride=1)
        expected = expected + pooled.detach() / 3
    weights = [layer.weight.detach() for layer in layers]
    for tensor in (x, x.to(memory_format=torch.channels_last)):
        result = rmac.branch_pool(tensor, weights, windows)
        assert type(result) is torch.Tensor
        torch.testing.assert_close(result, expected)
    with pytest.raises(TypeError, match=r"weights\[0\]: got a .* requires grad.*with weights\[0\]"):
        rmac.branch_pool(x, [layers[0].weight], [5])


X = np.ones((2, 3, 5, 6), np.float32)
W = np.ones((4, 3, 3, 3), np.float32)


class OnDevice:
    """An array of CuPy, as far as it is looked at."""


OnDevice.__module__ = "cupy"


@pytest.mark.parametrize(
    ("x", "weights", "sizes", "error", "message"),
    [
        (X[0], [W], [1], ValueError, "x: expected 4 axes (N, C, H, W), got shape (3, 5, 6)"),
        ([X], [W], [1], TypeError, "x: expected one array, got a list of them"),
        (X.astype("i4"), [W], [1], TypeError, "x: expected float16, bfloat16, float32, float64"),
        (X, W, [1], TypeError, "weights: expected a list of arrays, got numpy.ndarray"),
        (X, [], [], ValueError, "weights: expected at least one array, got none"),
        (X, [W, None], [1, 1], TypeError, "weights[1]: expected a numpy.ndarray or cupy.ndarray"),
        (X, [W, OnDevice()], [1, 1], TypeError, "weights[1]: expected an array where x is, got cu"),
        (X, [W.astype("i4")], [1], TypeError, "weights[0]: expected float16, bfloat16, float32"),
        (X, [W[0]], [1], ValueError, "weights[0]: expected shape (C_out, C, kh, kw), got (3, 3, 3"),
        (X, [W[..., :0]], [1], ValueError, "weights[0]: expected shape (C_out, C, kh, kw), got (4"),
        (X, [W, W[:, :2]], [1, 1], ValueError, "weights[1]: expected 3 channels as x has, got 2"),
        (
            X,
            [W.repeat(2, axis=2)],
            [1],
            ValueError,
            "weights[0]: expected a kernel of at most the map's 5x6 cells, got 6x3",
        ),
        (
            X,
            [W, W],
            [1, (3, 5)],
            ValueError,
            "kernel_sizes[1]: expected a window of at most the 3x4 cells that the convolution lea",
        ),
        (
            X,
            [W, W, W[:, :, :1, :1]],
            [1, None, 2],
            ValueError,
            "kernel_sizes: expected branches of one shape, got (2, 4, 3, 4), (2, 4), (2, 4, 4, 5)",
        ),
        (X, [W, W[:2]], [None, None], ValueError, "branches of one shape, got (2, 4), (2, 2)"),
        (X, [W, W], [1], ValueError, "kernel_sizes: expected 2 as there are weights, got 1"),
        (X, [W], 3, TypeError, "kernel_sizes: expected a list of sizes, got int"),
        (X, [W], None, TypeError, "kernel_sizes: expected a list of sizes, got NoneType"),
        (X, [W], [0], ValueError, "kernel_sizes[0]: expected an integer of at least 1, got 0"),
        (X, [W], [1.5], TypeError, "kernel_sizes[0]: expected an integer, got float"),
        (X, [W], [(1, 2, 3)], ValueError, "kernel_sizes[0]: expected one or two integers, got"),
    ],
)
def test_errors(x, weights, sizes, error, message):
    with raises_line(error, message):
        rmac.branch_pool(x, weights, sizes)
