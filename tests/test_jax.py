"""rmac inside JAX programs."""

import numpy as np
import pytest
from helpers import DTYPES, optional_module, random_map

import rmac

jax = optional_module("jax")
from rmac import jax as rmac_jax  # noqa: E402

MAPS = random_map(np.random.default_rng(1), (3, 16, 9, 12), DTYPES["float32"])
ROIS = np.array([[0, 0, 0, 5, 5], [2, 1, 2, 11, 8]], np.float32)
WHITENING = rmac.Whitening(4).fit(rmac.rmac(MAPS, aggregate="none"))

CASES = [
    ("rmac", {}),
    ("rmac", {"pool": "gem", "aggregate": "none", "levels": 2}),
    ("rmac", {"whitening": WHITENING, "aggregate": "concat"}),
    ("rmac", {"regions": rmac.region_grid(9, 12, preset="matlab"), "aggregate": "none"}),
    ("region_pool", {}),
    ("region_pool", {"regions": [[0, 0, 3, 3]], "pool": "mean"}),
    ("region_pool", {"layout": "NHWC"}),
    ("roi_pool", {"output_size": (2, 3), "spatial_scale": 0.5}),
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_functions_in_a_compiled_program(name, options):
    others = [ROIS] if name == "roi_pool" else []
    expected = getattr(rmac, name)(np.maximum(MAPS, 0), *others, **options)

    def program(x):
        return getattr(rmac_jax, name)(jax.nn.relu(x), *others, **options)

    for function in (program, jax.jit(program)):
        result = function(MAPS)
        assert isinstance(result, jax.Array)
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(np.asarray(result), expected)
    result = jax.jit(jax.vmap(program))(np.stack([MAPS, MAPS[::-1]]))
    np.testing.assert_array_equal(np.asarray(result[0]), expected)


def test_dtypes():
    for dtype in ("bfloat16", "float16", "uint8"):
        x = (np.abs(MAPS) * 9).astype(DTYPES[dtype])
        for pool in ("max", "mean"):
            result = jax.jit(lambda x, pool=pool: rmac_jax.region_pool(x, pool=pool))(x)
            expected = rmac.region_pool(x, pool=pool)
            assert result.dtype == expected.dtype
            np.testing.assert_array_equal(np.asarray(result), expected)


def test_a_whitening_is_as_it_was_when_the_program_was_traced():
    whitening = rmac.Whitening(4).fit(rmac.rmac(MAPS, aggregate="none"))
    program = jax.jit(lambda x: rmac_jax.rmac(x, whitening=whitening))
    expected = np.asarray(program(MAPS))
    whitening.fit(np.random.default_rng(0).random((99, 16)))
    np.testing.assert_array_equal(np.asarray(program(MAPS)), expected)


def test_there_is_no_gradient():
    with pytest.raises(ValueError, match="do not support JVP"):
        jax.grad(lambda x: rmac_jax.rmac(x).sum())(MAPS)


@pytest.mark.parametrize("trace", [jax.jit, jax.vmap, jax.grad], ids=["jit", "vmap", "grad"])
def test_the_functions_of_rmac_refuse_tracers(trace):
    for call in (
        lambda x: rmac.rmac(x),
        lambda x: rmac.rmac([x, x]),
        lambda x: rmac.region_pool(x),
        lambda x: rmac.roi_pool(MAPS, x),
        lambda x: rmac.merge_scales([x, x]),
        lambda x: WHITENING.apply(x),
        lambda x: rmac.Whitening().fit(x),
    ):
        with pytest.raises(TypeError, match=r"Tracer of a trace; .* call it from rmac\.jax"):
            trace(call)(MAPS)


def test_errors_come_when_the_program_is_traced():
    with pytest.raises(ValueError, match=r"x\[None\] adds the axis N"):
        jax.jit(rmac_jax.rmac)(MAPS[0])
    with pytest.raises(ValueError, match="layout: expected one of"):
        jax.jit(lambda x: rmac_jax.region_pool(x, layout="CHW"))(MAPS)
