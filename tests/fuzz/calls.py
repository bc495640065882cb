"""What a call is, and how its arrays are drawn."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fuzz.memory import Memory, far_apart
from rmac import _dtypes

DTYPES = [_dtypes.bfloat16() if name == "bfloat16" else np.dtype(name) for name in _dtypes.DTYPES]
LAYOUTS = {"NCHW": (0, 1, 2, 3), "NHWC": (0, 2, 3, 1), "NCT": (0, 1, 2), "NTC": (0, 2, 1)}
_ORDERS = [(0, 1, 2, 3)] * 3 + [(0, 2, 3, 1)] * 2 + [(0, 3, 2, 1), (2, 3, 1, 0), (3, 2, 1, 0)]
_SPECIAL = (np.nan, -np.nan, -np.inf, np.inf, 0.0, -0.0)


@dataclass
class Call:
    """A call that must succeed.

    `kinds` tells for each argument what it is, so that a hostile value can take its place.
    """

    function: Callable[..., Any]
    first: Any  # the argument that has no keyword
    options: dict[str, Any]
    check: Callable[[Any], None]  # raises AssertionError unless the result is right
    kinds: dict[str, str]  # of `options`; that of the first argument stands under its own name
    name: str = "x"  # of the first argument
    output: Any = None
    notes: list[str] = field(default_factory=list)

    def run(self):
        return self.function(self.first, **self.options)


def pick(rng, choices):
    return choices[int(rng.integers(len(choices)))]


def chance(rng, share):
    return bool(rng.random() < share)


def draw_values(rng, shape, dtype, special=0.0):
    """Values of either sign; a share `special` of them NaN, infinite or zero, if the dtype can."""
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    values = np.asarray(rng.standard_normal(shape)).astype(dtype)
    if special:
        where = rng.random(shape) < special
        values[where] = rng.choice(np.array(_SPECIAL, dtype), int(where.sum()))
    return values


def stored(rng, memory, values):
    """Return an equal array (N, C, H, W) in guarded memory: in any order, with any steps."""
    if len(values) == 2 and values.size and chance(rng, 0.02):
        return far_apart(values)
    order = pick(rng, _ORDERS)
    steps = [pick(rng, (1, 1, 1, 2, 3, -1, -2, 0)) for _ in range(4)]
    if chance(rng, 0.5):
        steps = [1] * 4
    sides = [n * abs(s) if s else min(n, 1) for n, s in zip(values.shape, steps, strict=True)]
    once = tuple(slice(n if s else 1) for n, s in zip(values.shape, steps, strict=True))
    base = np.zeros([sides[axis] for axis in order], values.dtype)
    every = tuple(slice(None, None, step or 1) for step in steps)
    view = base.transpose(np.argsort(order))[every]
    view[...] = values[once]
    view = memory.input(base).transpose(np.argsort(order))[every]
    values[...] = np.broadcast_to(values[once], values.shape)
    view = np.broadcast_to(view, values.shape)
    if chance(rng, 0.1):  # an axis of one element may have any stride
        strides = [
            pick(rng, (0, -8, 2**40)) if n == 1 else s
            for n, s in zip(view.shape, view.strides, strict=True)
        ]
        view = np.lib.stride_tricks.as_strided(view, view.shape, strides)
    return view


def draw_map_shape(rng):
    """A small shape (N, C, H, W); sometimes long or empty."""
    images = pick(rng, (1, 1, 1, 2, 2, 3, 0))
    channels = pick(rng, (1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 64, 65, 70, 0))
    height, width = (int(side) for side in rng.integers(1, 14, 2))
    if chance(rng, 0.1):
        width = int(rng.integers(14, 130))
    if chance(rng, 0.1):
        height, width = width, height
    if chance(rng, 0.03):  # large enough to be shared by threads
        images, channels, height, width = 2, 130, 18, 31
    return images, channels, height, width


def draw_workers(rng):
    return pick(rng, (None, 1, 1, 2, 3, 4, 1000))


def draw_out(rng, memory, shape, dtype):
    """Return None, an array of guarded memory or a view of one that is not C-ordered."""
    form = pick(rng, ("none", "none", "plain", "plain", "strided", "turned"))
    if form == "none":
        return None
    if form == "strided" and len(shape):
        return memory.output((*shape[:-1], shape[-1] * 2), dtype)[..., ::2]
    if form == "turned":
        return memory.output(shape[::-1], dtype).transpose()
    return memory.output(shape, dtype)


def same_values(actual, expected):
    """Equal to the last bit, but for the bits of a NaN."""
    assert type(actual) is np.ndarray, type(actual)
    assert actual.dtype == expected.dtype, (actual.dtype, expected.dtype)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    bits = f"u{expected.dtype.itemsize}"
    a, e = (np.ascontiguousarray(part).view(bits) for part in (actual, expected))
    if expected.dtype.kind not in "iu":
        nan = np.isnan(expected)
        assert (np.isnan(actual) == nan).all(), "other NaNs than expected"
        a, e = a[~nan], e[~nan]
    assert (a == e).all(), f"{(a != e).sum()} of {a.size} elements differ"


def close_values(actual, expected, allowed, dtype):
    """Within so much of it, or the same where it is not finite."""
    assert type(actual) is np.ndarray, type(actual)
    assert actual.dtype == dtype, actual.dtype
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    actual = actual.astype(np.float64)
    finite = np.isfinite(expected)
    with np.errstate(invalid="ignore"):
        error = abs(actual - expected)
    good = np.where(finite, error <= allowed, (actual == expected) | np.isnan(expected))
    good &= np.isnan(actual) == np.isnan(expected)
    assert good.all(), f"{(~good).sum()} of {good.size} elements differ, by {error[~good].max()}"


def result_dtype(dtype):
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def new_memory(rng):
    return Memory(rng)
