"""The floating-point mode of threads: no kernel's result depends on it."""

from pathlib import Path

import numpy as np
import pytest
from fuzz.floats import CAN_CHANGE, subnormals_as_zero
from helpers import DTYPES, run_python

import rmac
from rmac import cpu
from rmac._options import POOLS, Aggregate, AggregationOptions

pytestmark = pytest.mark.skipif(not CAN_CHANGE, reason="changes the mode by x86's instruction")
FLOATS = sorted(name for name in DTYPES if "float" in name)


def subnormals(rng, dtype):
    """Positive values (8, 64, 24, 32), most of them subnormal, and the others close to that."""
    least = np.finfo(dtype).tiny if dtype.name != "bfloat16" else 2.0**-126
    return (rng.random((8, 64, 24, 32)) * 1.5 * float(least)).astype(dtype)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_results_are_those_of_the_default_mode(rng, dtype, pool, workers):
    x = subnormals(rng, DTYPES[dtype])
    calls = [
        lambda: rmac.region_pool(x, pool=pool, workers=workers),
        lambda: rmac.rmac(x, pool=pool, workers=workers),
        lambda: rmac.rmac(x[:1], pool=pool, workers=workers, aggregate="none"),
        lambda: rmac.rmac(list(x), pool=pool, workers=workers, normalize=False, eps=0.5),
    ]
    expected = [call().tobytes() for call in calls]
    with subnormals_as_zero():
        results = [call().tobytes() for call in calls]
    assert results == expected
    assert calls[0]().any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("aggregate", list(Aggregate))
def test_descriptors_of_whitened_vectors_are_those_of_the_default_mode(rng, dtype, aggregate):
    vectors = subnormals(rng, np.dtype(dtype)).reshape(8, 64, -1)
    options = AggregationOptions(True, aggregate, True, 0.0)
    results = []
    for flush in (False, True):
        given = vectors.copy()
        in_place = aggregate in (Aggregate.NONE, Aggregate.CONCAT)
        out = given.reshape(8, -1) if in_place else np.empty((8, given.shape[2]), dtype)
        if flush:
            with subnormals_as_zero():
                cpu.describe(given, out, options)
        else:
            cpu.describe(given, out, options)
        results.append(out.tobytes())
    assert results[0] == results[1]


def numpy_calls(rng, dtype, scale):
    """Calls that compute with NumPy and its BLAS, of values of about this size."""
    vectors = (rng.random((40, 8)) * scale).astype(dtype)
    x = (rng.random((3, 8, 9, 7)) * scale).astype(dtype)
    kernel = np.eye(8, dtype=dtype)[:, :, None, None]
    found = np.arange(80).reshape(40, 2) % 40
    given = rmac.Whitening.from_projection(np.zeros(8), np.eye(8) * 0.7)
    return {
        "merge_scales": lambda: rmac.merge_scales([vectors, vectors[::-1]], p=3),
        "branch_pool": lambda: rmac.branch_pool(x, [kernel], [None]),
        "expand": lambda: rmac.expand(vectors, vectors, found, alpha=0.5, normalize=False),
        "quantize": lambda: rmac.quantize(x),
        "localize": lambda: rmac.localize(x, vectors[0]).scores,
        "rerank": lambda: rmac.rerank(vectors[0], x, [[0, 0, 3, 3]] * 3).scores,
        "roi_pool": lambda: rmac.roi_pool(x, np.array([[0, 1e-40, 0, 3, 3]]), spatial_scale=1e-40),
        "fit": lambda: rmac.Whitening(4).fit(vectors).variances,
        "fit of few": lambda: rmac.Whitening(3).fit(vectors[:5]).mean,
        "merge": lambda: (
            rmac.Whitening().fit(vectors[:9]).merge(rmac.Whitening().fit(vectors)).mean
        ),
        "apply": lambda: given.apply(vectors),
        "from_projection": lambda: (
            rmac.Whitening.from_projection(vectors[0], kernel[..., 0, 0]).mean
        ),
        "rmac": lambda: rmac.rmac(x, whitening=given, normalize_regions=False, normalize=False),
    }


NUMPY_CALLS = sorted(numpy_calls(np.random.default_rng(0), "f4", 1.0))


@pytest.mark.filterwarnings("ignore:.* variances are zero to rounding")
@pytest.mark.parametrize("call", NUMPY_CALLS)
@pytest.mark.parametrize(("dtype", "scale"), [("f2", 3e-6), ("f4", 1e-39), ("f8", 1e-309)])
def test_what_numpy_computes_is_that_of_the_default_mode(rng, call, dtype, scale):
    function = numpy_calls(rng, dtype, scale)[call]
    expected = function().tobytes()
    with subnormals_as_zero():
        assert function().tobytes() == expected


@pytest.mark.filterwarnings("ignore:.* variances are zero to rounding")
@pytest.mark.parametrize("call", NUMPY_CALLS)
@pytest.mark.parametrize("scale", [1e-310, 1e-160, 1.0, 1e150])
def test_errors_that_the_caller_wants_of_numpy_are_not_those_of_a_call(rng, call, scale):
    function = numpy_calls(rng, "f8", scale)[call]
    expected = function().tobytes()
    with np.errstate(all="raise"):
        assert function().tobytes() == expected


def test_threads_that_started_in_another_mode_compute_in_the_default_mode():
    code = """if True:
    import numpy as np

    import rmac
    from fuzz.floats import subnormals_as_zero

    x = (np.random.default_rng(0).random((8, 64, 24, 32)) * 1e-38).astype("f4")
    with subnormals_as_zero():
        rmac.rmac(x, workers=4)  # its threads get the mode of this one, and keep it
    results = [rmac.rmac(x, pool="mean", workers=n).tobytes() for n in (1, 4)]
    print(results[0] == results[1])
"""
    assert run_python(code, PYTHONPATH=str(Path(__file__).parent)).stdout == "True\n"


def test_the_mode_of_the_caller_stays(rng):
    x = subnormals(rng, np.dtype(np.float32))
    with subnormals_as_zero():
        rmac.rmac(x, workers=1)
        flushed = np.float32(1e-38) * np.float32(0.5)
    assert flushed == 0
    assert np.float32(1e-38) * np.float32(0.5) > 0
