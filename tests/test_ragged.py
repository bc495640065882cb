"""Lists of feature maps of different sizes."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from helpers import (
    DTYPES,
    LAYOUTS,
    MEMORY,
    check_array,
    examples,
    raises_line,
    random_map,
    stored_as,
    to_host,
)
from hypothesis import given, settings

import rmac
from rmac import operators
from rmac._maps import MAP_AXES, arranged, view_of
from rmac._options import LAYOUTS as LAYOUT_NAMES
from rmac.cpu.isa import kernels


def random_maps(rng, sizes, channels, dtype, layout):
    maps = [random_map(rng, (1, channels, *size), DTYPES[dtype])[0] for size in sizes]
    axes = [axis - 1 for axis in LAYOUTS[layout][1:]]
    return [np.ascontiguousarray(x.transpose(axes)) for x in maps]


@pytest.mark.slow
@pytest.mark.usefixtures("shared_small_maps")
@settings(max_examples=examples(200))
@given(
    sizes=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=9),
    channels=st.integers(0, 40),
    dtype=st.sampled_from(sorted(DTYPES)),
    layout=st.sampled_from(sorted(LAYOUTS)),
    workers=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
def test_a_list_is_its_maps_one_by_one(xp, sizes, channels, dtype, layout, workers, seed):
    maps = random_maps(np.random.default_rng(seed), sizes, channels, dtype, layout)
    maps = [xp.asarray(x) for x in maps]
    threads = {"workers": workers} if xp is np else {}
    expected = np.concatenate([to_host(rmac.rmac(x[None], layout=layout)) for x in maps])
    result = rmac.rmac(maps, layout=layout, **threads)
    result = check_array(result, xp, (len(maps), channels), expected.dtype)
    assert result.tobytes() == expected.tobytes()

    pooled = rmac.region_pool(tuple(maps), layout=layout, **threads)
    assert type(pooled) is list
    for x, regions in zip(maps, pooled, strict=True):
        expected = to_host(rmac.region_pool(x[None], layout=layout))[0]
        assert check_array(regions, xp, expected.shape, x.dtype).tobytes() == expected.tobytes()


@pytest.mark.usefixtures("shared_small_maps")
def test_threads_take_the_largest_maps_first(rng, monkeypatch):
    """So that no thread begins a large map when the others are done."""
    maps = random_maps(rng, [(5, 5), (20, 30), (1, 1), (12, 12), (30, 20)], 7, "float32", "NCHW")
    kernel, orders = kernels.rmac, []

    def record(*args):
        orders.extend(a for a in args if isinstance(a, np.ndarray) and a.dtype == np.intp)
        return kernel(*args)

    monkeypatch.setattr(kernels, "rmac", record)
    rmac.rmac(maps, workers=2)
    (order,) = orders
    assert sorted(order) == [0, 1, 2, 3, 4]
    sizes = [maps[i].size for i in order]
    assert sizes == sorted(sizes, reverse=True)


def test_out(xp, rng):
    maps = [xp.asarray(x) for x in random_maps(rng, [(9, 9), (5, 12)], 7, "float32", "NCHW")]
    out = xp.zeros((2, 7), dtype="float32")
    assert rmac.rmac(maps, out=out) is out
    assert to_host(out).tobytes() == to_host(rmac.rmac(maps)).tobytes()


def test_unaggregated_where_maps_have_equally_many_regions(xp, rng):
    maps = [xp.asarray(x) for x in random_maps(rng, [(9, 9), (12, 12)], 7, "float32", "NCHW")]
    for aggregate in ("none", "concat"):
        expected = [to_host(rmac.rmac(x[None], aggregate=aggregate)) for x in maps]
        result = to_host(rmac.rmac(maps, aggregate=aggregate))
        assert result.tobytes() == np.concatenate(expected).tobytes()


def test_operators_take_lists(rng):
    maps = random_maps(rng, [(9, 9), (5, 12)], 7, "float32", "NCHW")
    result = operators.run_on_device("RMAC", maps, "cpu")
    assert result.tobytes() == rmac.rmac(maps).tobytes()


X = np.ones((3, 5, 6), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: rmac.rmac([]), ValueError, "x: expected at least one array, got none"),
        (
            lambda: rmac.rmac([X, X[0]]),
            ValueError,
            "x[1]: expected 3 axes (C, H, W), got shape (5, 6)",
        ),
        (lambda: rmac.rmac([X[None]]), ValueError, "x[0]: expected 3 axes (C, H, W), got"),
        (lambda: rmac.rmac([X, X.astype("f8")]), TypeError, "x[1]: expected dtype float32 as x[0]"),
        (lambda: rmac.rmac([X, X[:2]]), ValueError, "x[1]: expected 3 channels as x[0] has, got 2"),
        (
            lambda: rmac.rmac([X, X[:, :0]]),
            ValueError,
            "x[1]: expected at least one cell, got 0x6",
        ),
        (lambda: rmac.rmac([X, None]), TypeError, "x[1]: expected a numpy.ndarray"),
        (lambda: rmac.rmac([X, X.astype("i4")]), TypeError, "x[1]: expected float16, "),
        (
            lambda: rmac.rmac([X, X.repeat(3, 2)], aggregate="concat"),
            ValueError,
            'x: expected maps with equally many regions, as aggregate="concat" needs, got ',
        ),
        (lambda: rmac.region_pool([X], out=X), TypeError, "out: expected None with a list of maps"),
        (lambda: rmac.rmac_regions([X]), TypeError, "x: expected one array, got a list of them"),
        (
            lambda: rmac.roi_pool([X], np.zeros((1, 5))),
            TypeError,
            "x: expected one array, got a list of them",
        ),
    ],
)
def test_errors(call, error, message):
    with raises_line(error, message):
        call()


@given(memory=MEMORY, layout=st.sampled_from(LAYOUT_NAMES), seed=st.integers(0, 2**32))
def test_batches_are_what_views_would_be(memory, layout, seed):
    """On a GPU, shapes and strides are computed, and no views are made."""
    rng = np.random.default_rng(seed)
    x = stored_as(random_map(rng, (2, 8, 5, 6), DTYPES["float32"]), memory, rng)
    if "T" in layout:
        x = x[:, :, 0]
    x = x.transpose(np.argsort(MAP_AXES[layout]))
    for array, axes in [(x, layout), (x[0], layout[1:]), (x[:, :1, :1], layout)]:
        view = view_of(array, axes)
        shape, strides, alignment = arranged(array.shape, array.strides, axes)
        assert shape == view.shape
        along = [i for i, size in enumerate(shape) if size > 1]
        assert [strides[i] for i in along] == [view.strides[i] for i in along]
        assert alignment == math.gcd(*[view.strides[i] for i in along])


def test_a_list_on_a_gpu_is_read_once_and_without_views(gpu, rng, monkeypatch):
    """CuPy takes 0.3 us to tell a shape or strides, and 3.3 us to make a view.

    The shape is read again after the strides: another thread may set it.
    """
    maps = [gpu.asarray(x) for x in random_maps(rng, [(9, 9), (5, 12)], 7, "float32", "NHWC")]
    expected = to_host(rmac.rmac(maps, layout="NHWC"))
    kind, asked = type(maps[0]), []

    def count(name):
        known = getattr(kind, name)
        monkeypatch.setattr(kind, name, property(lambda x: asked.append(name) or known.__get__(x)))

    def refuse(*_):
        raise AssertionError("a view")

    count("shape")
    count("strides")
    for name in ("__getitem__", "transpose", "reshape", "view"):
        monkeypatch.setattr(kind, name, refuse)
    result = rmac.rmac(maps, layout="NHWC")
    assert asked == ["shape", "strides", "shape"] * len(maps)
    monkeypatch.undo()
    assert to_host(result).tobytes() == expected.tobytes()
