"""The registry is the one way from a name and a device to code."""

import inspect
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import rmac
from rmac import operators
from rmac.cuda import arrays

X = np.arange(2 * 3 * 5 * 6, dtype=np.float32).reshape(2, 3, 5, 6)
ROIS = np.array([[1, 0, 0, 3, 3]], np.float32)
NAMES = ("RMACRegions", "RegionPool", "RoIPool", "RMAC")


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.setattr(operators, "_factories", dict(operators._factories))
    monkeypatch.setattr(operators, "_without_gradient", set(operators._without_gradient))


class CupyArray:
    """All that the front end asks of a CuPy array before the GPU backend has its turn."""

    dtype = np.dtype(np.float32)
    shape = (2, 3, 5, 6)
    strides = (360, 120, 24, 4)
    size = 180
    itemsize = 4
    ndim = 4
    data = SimpleNamespace(ptr=512, device_id=0)

    def transpose(self, *_axes):
        return self


CupyArray.__module__ = "cupy"


def test_operators_by_name_are_the_public_functions():
    same = [
        ("RMACRegions", rmac.rmac_regions, {"scales": 2}),
        ("RegionPool", rmac.region_pool, {"levels": 2}),
        ("RegionPool", rmac.region_pool, {"regions": [[0, 0, 2, 2]]}),
        ("RoIPool", rmac.roi_pool, {"rois": ROIS, "output_size": 2}),
        ("RMAC", rmac.rmac, {"preset": "cirtorch", "aggregate": "concat"}),
    ]
    for name, function, args in same:
        expected = function(X, **args)
        for device in (None, "cpu"):
            result = operators.run_on_device(name, X, device, **args)
            assert result.tobytes() == expected.tobytes()


def test_regions_operator_as_an_object():
    op = operators.RMACRegionsOp(scales=2, overlap=0.3)
    expected = rmac.rmac_regions(X, scales=2, overlap=0.3)
    np.testing.assert_array_equal(op(X), expected)
    np.testing.assert_array_equal(operators.run_on_device(op, X, "cpu"), expected)
    assert repr(op) == "RMACRegionsOp(scales=2, overlap=0.3)"
    with pytest.raises(ValueError, match="scales: expected"):
        operators.RMACRegionsOp(0)
    with pytest.raises(ValueError, match="overlap: expected"):
        operators.RMACRegionsOp(3, 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_public_functions_dispatch_through_the_registry(name):
    function = {
        "RMACRegions": rmac.rmac_regions,
        "RegionPool": rmac.region_pool,
        "RoIPool": rmac.roi_pool,
        "RMAC": rmac.rmac,
    }[name]
    seen = []

    def factory(**options):
        seen.append(options)
        return lambda x: ("ran", x)

    operators.register_cpu_operator(name, factory, replace=True)
    arguments = (ROIS,) if name == "RoIPool" else ()
    ran, x = function(X, *arguments)
    assert ran == "ran"
    assert x is X
    assert list(seen[0]) == (["rois"] if arguments else [])


def test_users_register_their_own():
    operators.register_cpu_operator("Scale", lambda by=2: lambda x: by * x)
    np.testing.assert_array_equal(operators.run_on_device("Scale", X, by=3), 3 * X)
    with pytest.raises(
        ValueError, match=r"name: expected one not yet registered for cpu, got 'Scale'"
    ):
        operators.register_cpu_operator("Scale", lambda: abs)
    operators.register_cpu_operator("Scale", lambda: abs, replace=True)
    np.testing.assert_array_equal(operators.run_on_device("Scale", X), X)
    operators.register_cuda_operator("Scale", lambda: abs)
    with pytest.raises(ValueError, match="registered for cuda"):
        operators.register_cuda_operator("Scale", lambda: abs)


def test_errors_of_the_registry():
    with pytest.raises(
        ValueError, match=r"operator: expected one registered for cpu \(.*RMAC.*\), got 'x'"
    ):
        operators.run_on_device("x", X)
    with pytest.raises(TypeError, match="operator: expected a name or a callable, got int"):
        operators.run_on_device(3, X)
    with pytest.raises(TypeError, match="args: an operator instance has its own, got levels"):
        operators.run_on_device(operators.RMACRegionsOp(), X, levels=2)
    with pytest.raises(TypeError, match=r"x\[0\]: expected a numpy\.ndarray"):
        operators.run_on_device("RMAC", [1])
    for device in ("gpu", "cpu:0", "cuda:", "cuda:x", ""):
        with pytest.raises(ValueError, match="device: expected"):
            operators.run_on_device("RMAC", X, device)
    with pytest.raises(TypeError, match="device: expected a string, got int"):
        operators.run_on_device("RMAC", X, 0)
    with pytest.raises(TypeError, match="name: expected a string"):
        operators.register_cpu_operator(3, abs)
    with pytest.raises(TypeError, match="factory: expected a callable"):
        operators.register_cpu_operator("New", None)


@pytest.mark.parametrize("name", NAMES)
def test_no_operator_has_a_gradient(name):
    with pytest.raises(operators.GradientNotDefinedError, match=name):
        operators.gradient(name)


def test_gradient_is_a_declaration():
    operators.register_cpu_operator("Scale", lambda: abs)
    assert operators.gradient("Scale") is None
    operators.should_not_do_gradient("Scale")
    with pytest.raises(operators.GradientNotDefinedError):
        operators.gradient("Scale")
    for function in (operators.gradient, operators.should_not_do_gradient):
        with pytest.raises(ValueError, match="name: expected one of"):
            function("Unknown")


def test_a_cupy_array_reaches_the_gpu_backend(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # importing it fails
    arrays.namespace.cache_clear()
    x = CupyArray()
    for call in (
        lambda: rmac.rmac(x),
        lambda: rmac.region_pool(x),
        lambda: rmac.rmac_regions(x),
        lambda: operators.run_on_device("RMAC", X, "cuda:0"),
        lambda: operators.run_on_device("RMAC", x, "cpu"),
    ):
        with pytest.raises(ImportError, match="arrays on the GPU need CuPy: pip install"):
            call()


def test_mixing_devices_is_an_error():
    with pytest.raises(TypeError, match=r"out: expected an array where x is, got cupy\."):
        rmac.rmac(X, out=CupyArray())
    with pytest.raises(TypeError, match=r"rois: expected an array where x is, got cupy\."):
        rmac.roi_pool(X, CupyArray())
    with pytest.raises(TypeError, match="regions: expected integers on the host, got cupy"):
        rmac.region_pool(X, CupyArray())
    for maps in ([X[0], CupyArray()], [CupyArray(), X[0]]):
        with pytest.raises(TypeError, match="x: expected arrays on one device, got cpu and cuda"):
            rmac.rmac(maps)


def test_signatures_are_those_of_the_documentation():
    assert list(inspect.signature(rmac.rmac).parameters)[:2] == ["x", "pool"]
    for function in (rmac.rmac, rmac.region_pool, rmac.roi_pool, rmac.rmac_regions):
        kinds = [p.kind for p in inspect.signature(function).parameters.values()]
        assert kinds[0] is inspect.Parameter.POSITIONAL_ONLY
        assert inspect.Parameter.KEYWORD_ONLY in kinds
