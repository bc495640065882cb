"""Comparisons, and the inputs that tests draw."""

import hypothesis.strategies as st
import ml_dtypes
import numpy as np

DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "uint8": np.dtype(np.uint8),
    "int8": np.dtype(np.int8),
}
LAYOUTS = {"NCHW": (0, 1, 2, 3), "NHWC": (0, 2, 3, 1)}
SPECIAL = (np.nan, -np.nan, -np.inf, np.inf, 0.0, -0.0)


def to_host(array):
    return array if isinstance(array, np.ndarray) else array.get()


def check_array(result, xp, shape, dtype):
    """Namespace, dtype, shape and device, before any value."""
    assert type(result) is xp.ndarray
    assert result.dtype == dtype
    assert result.shape == tuple(shape)
    return to_host(result)


def assert_same_values(actual, expected):
    """Equal to the last bit, but for the bits of a NaN."""
    nan = np.isnan(expected) if expected.dtype.kind not in "iu" else np.zeros(expected.shape, bool)
    np.testing.assert_array_equal(np.isnan(actual) if nan.any() else nan, nan)
    bits = f"u{expected.dtype.itemsize}"
    np.testing.assert_array_equal(actual.view(bits)[~nan], expected.view(bits)[~nan])


def random_map(rng, shape, dtype, special=0.0):
    """Values of either sign; a share `special` of them NaN, infinite or zero, if the dtype can."""
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    values = rng.standard_normal(shape).astype(dtype)
    where = rng.random(shape) < special
    values[where] = rng.choice(np.array(SPECIAL, dtype), int(where.sum()))
    return values


def stored_as(x, memory, rng):
    """Return an array equal to x (N, C, H, W) whose memory lies in another way."""
    order, step = memory
    axes = {"NCHW": (0, 1, 2, 3), "NHWC": (0, 2, 3, 1), "NWCH": (0, 3, 1, 2), "HWCN": (2, 3, 1, 0)}
    axes = axes[order]
    room = [n * abs(s) + (s != 1) for n, s in zip(x.shape, step, strict=True)]
    base = random_map(rng, [room[axis] for axis in axes], x.dtype)
    view = base.transpose(np.argsort(axes))
    slices = tuple(
        slice(None, n * s, s) if s > 0 else slice(n * -s - 1, None, s)
        for n, s in zip(x.shape, step, strict=True)
    )
    view = view[slices][tuple(slice(n) for n in x.shape)]
    view[...] = x
    return view


MEMORY = st.tuples(
    st.sampled_from(["NCHW", "NHWC", "NWCH", "HWCN"]),
    st.tuples(*[st.sampled_from([1, 1, 1, 2, -1])] * 4),
)
GRID_OPTIONS = st.fixed_dictionaries(
    {
        "levels": st.integers(1, 6),
        "overlap": st.sampled_from([0.0, 0.2, 0.4, 0.6]),
        "preset": st.sampled_from(["caffe2", "matlab", "cirtorch"]),
    }
)
