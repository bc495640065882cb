"""Comparisons, the inputs that tests draw, and what only some machines have."""

import importlib
import os
import subprocess
import sys
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import zarr

import rmac
from rmac import _backend, _dtypes, _options
from rmac.cpu import isa
from rmac.cuda import launches, source
from rmac.localization import Localization

DTYPES = {
    name: np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name) for name in _dtypes.DTYPES
}
LAYOUTS = {"NCHW": (0, 1, 2, 3), "NHWC": (0, 2, 3, 1)}
# The types of arrays that error messages expect.
ARRAYS = " or ".join(backend.ARRAY for backend in _backend.BACKENDS.values())
# The commands that write a file: how its name may end, and the fixtures with what they read.
COMMANDS = {
    "describe": ([".npy", ".npz"], ["features"]),
    "whiten": ([".npz"], ["vectors"]),
    "apply": ([".npy", ".npz"], ["whitening_file", "vectors"]),
    "locate": ([".npy"], ["features", "query_file"]),
    "rerank": ([".npy"], ["features", "query_file", "ranks_file"]),
}
SPECIAL = (np.nan, -np.nan, -np.inf, np.inf, 0.0, -0.0)


def examples(count):
    """How many inputs a test draws: fewer where a thread of a GPU is a function call."""
    return count // 10 if "shim" in os.environ.get("RMAC_TEST_BACKENDS", "") else count


@contextmanager
def raises_line(error, message):
    """The block must raise an error of one line, with this text in it."""
    with pytest.raises(error) as raised:
        yield
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def optional_module(name):
    """Import a module or skip the test; with RMAC_TEST_RECIPES=1, one missing is an error."""
    if os.environ.get("RMAC_TEST_RECIPES", "0") != "0":
        return importlib.import_module(name)
    return pytest.importorskip(name)


def readme_parts():
    """What stands under each heading of the README."""
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    parts = [part.partition("\n") for part in text.split("\n## ")]
    return {heading: content for heading, _, content in parts}


def outputs_of_isas(code, data):
    """Return what a program writes with each instruction set of this machine, given `data`."""
    return [
        subprocess.run(
            [sys.executable, "-c", code],
            input=data,
            env={**os.environ, "RMAC_ISA": name},
            capture_output=True,
            cwd="/",
            check=True,
        ).stdout
        for name in isa.available_isas()
    ]


def run_python(code, **environment):
    """Run code in a process of its own; a variable of the environment that is None is removed."""
    environment = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={name: value for name, value in environment.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=600,
        cwd="/",
        check=False,
    )


def peak_memory(function):
    """Return the most bytes that Python and NumPy held at once for a call."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def moved(whitening, xp):
    """The same whitening for vectors of a namespace, by the method that is named after it."""
    library = "cupy" if xp.__name__ == "shim" else xp.__name__
    return getattr(whitening, f"to_{library}")()


def to_host(array):
    return array if isinstance(array, np.ndarray) else array.get()


def check_array(result, xp, shape, dtype):
    """Namespace, dtype, shape and device, before any value."""
    assert type(result) is xp.ndarray
    assert result.dtype == dtype
    assert result.shape == tuple(shape)
    return to_host(result)


def assert_same_values(actual, expected):
    """Compare bit for bit. All NaNs are equal."""
    nan = np.isnan(expected) if expected.dtype.kind not in "iu" else np.zeros(expected.shape, bool)
    np.testing.assert_array_equal(np.isnan(actual) if nan.any() else nan, nan)
    bits = f"u{expected.dtype.itemsize}"
    np.testing.assert_array_equal(actual.view(bits)[~nan], expected.view(bits)[~nan])


def assert_within(actual, expected, allowed):
    """Within so much of it, or the same where it is not finite."""
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(actual[~finite], expected[~finite])
    assert (np.abs(actual[finite] - expected[finite]) <= allowed[finite]).all()


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
    """Return an array equal to x (N, C, H, W) whose memory lies in another way.

    With step 0 an axis is broadcast, and x is made equal along it.
    """
    order, step = memory
    axes = [order.index(axis) for axis in "NCHW"]
    room = [max(1, n * abs(s) + (s > 1)) for n, s in zip(x.shape, step, strict=True)]
    base = random_map(rng, [room["NCHW".index(axis)] for axis in order], x.dtype)
    slices = [
        slice(None, n * s or 1, s or 1) if s >= 0 else slice(n * -s - 1, None, s)
        for n, s in zip(x.shape, step, strict=True)
    ]
    view = base.transpose(axes)[tuple(slices)]
    one = tuple(slice(n if s else 1) for n, s in zip(x.shape, step, strict=True))
    view[...] = x[one]
    x[...] = x[one]
    return np.broadcast_to(view, x.shape)


class Capsule:
    """An array of a library of its own, which knows nothing but `__dlpack__`."""

    __module__ = "elsewhere"

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)


class Tensor(Capsule):
    """An array of that library, which knows DLPack and nothing else."""

    __module__ = "elsewhere"

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


def mixed(rng, count, channels):
    """Vectors whose principal components are nothing special, far from 0."""
    mix = rng.standard_normal((channels, channels)) * 0.7 ** np.arange(channels)
    return rng.standard_normal((count, channels)) @ mix.T + 3


VECTORS = mixed(np.random.default_rng(7), 150, 6)


def assert_same_whitening(actual, expected, tolerance=1e-6):
    for name in ("mean", "projection", "variances"):
        a, e = (to_host(getattr(w, name)) for w in (actual, expected))
        assert a.dtype == e.dtype == np.float64
        assert a.shape == e.shape
        assert np.abs(a - e).max() <= tolerance * np.abs(e).max(), name
    assert actual.count == expected.count


def error_of(capsys, command):
    """Return what a command said in its one line."""
    start, line = f"rmac {command}: error: ", capsys.readouterr().err
    assert line.startswith(start)
    assert line.count("\n") == 1
    return line.removeprefix(start).removesuffix("\n")


def write_zarr(path, x):
    group = zarr.create_group(path)
    group.create_array("x", shape=x.shape, dtype=x.dtype, chunks=(2, 4, 5, 12))[...] = x


def forget_kernels():
    """Compile the GPU's kernels again at their next use. Calls that are kept have kernels too."""
    source.kernel.cache_clear()
    for call in (launches._pooling_call, launches._descriptors_call, launches._description_call):
        call.cache.clear()


# Channels around a line of every dtype; plain memory as often as odd strides.
CHANNELS = st.one_of(st.integers(1, 70), st.sampled_from([8, 16, 32, 64, 65]))
MEMORY = st.tuples(
    st.sampled_from(["NCHW", "NCHW", "NHWC", "NWCH", "HWCN"]),
    st.one_of(st.just((1, 1, 1, 1)), st.tuples(*[st.sampled_from([1, 1, 1, 2, -1, 0])] * 4)),
)
# What the property tests of maps draw: a batch of maps and the way that it lies in memory.
MAPS = {
    "images": st.integers(1, 3),
    "channels": CHANNELS,
    "size": st.tuples(st.integers(1, 40), st.integers(1, 40)),
    "dtype": st.sampled_from(sorted(DTYPES)),
    "layout": st.sampled_from(sorted(LAYOUTS)),
    "memory": MEMORY,
    "workers": st.integers(1, 4),
    "seed": st.integers(0, 2**32),
}
POWERS = st.sampled_from([0.3, 1, 1.5, 2, 2.92, 3, 4, 5, 6, 7, 8.5])
MEANS = st.sampled_from([pool for pool in _options.POOLS if pool != "max"]).flatmap(
    lambda pool: st.fixed_dictionaries(
        {"pool": st.just(pool)} | ({"p": POWERS} if pool == "gem" else {})
    )
)
GRID_OPTIONS = st.fixed_dictionaries(
    {
        "levels": st.integers(1, 6),
        "overlap": st.sampled_from([0.0, 0.2, 0.4, 0.6]),
        "preset": st.sampled_from(_options.PRESETS),
    }
)


def localize(xp, x, queries, workers=None, **options):
    """What a backend finds, on the host; workers are for the host alone."""
    maps = [xp.asarray(one) for one in x] if isinstance(x, list) else xp.asarray(x)
    threads = {"workers": workers} if xp is np else {}
    found = rmac.localize(maps, xp.asarray(queries), **options, **threads)
    return Localization(to_host(found.boxes), to_host(found.scores))
