"""Arrays of other libraries, through DLPack."""

import ctypes
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from helpers import DTYPES, Capsule, Tensor, optional_module, peak_memory, random_map

import rmac


class Foreign(Tensor):
    """A tensor that can be reshaped and divided into the tensors of its first axis."""

    __module__ = "elsewhere"

    def __iter__(self):
        return map(Foreign, self._array)

    def reshape(self, *shape):
        return Foreign(self._array.reshape(*shape))


@pytest.mark.usefixtures("elsewhere")
def test_the_kind_of_array_comes_back_out(rng):
    x = random_map(rng, (2, 20, 7, 9), DTYPES["float32"])
    rois = np.array([[1, 0, 0, 5, 5]], np.float32)
    for result, expected in (
        (rmac.rmac(Tensor(x)), rmac.rmac(x)),
        (rmac.rmac([Tensor(x[0]), Tensor(x[1])]), rmac.rmac(x)),
        (rmac.region_pool([Tensor(x[0])])[0], rmac.region_pool(x)[0]),
        (rmac.roi_pool(Tensor(x), Tensor(rois)), rmac.roi_pool(x, rois)),
        (rmac.operators.run_on_device("RMACRegions", Tensor(x)), rmac.rmac_regions(x)),
    ):
        assert type(result) is Tensor
        np.testing.assert_array_equal(result._array, expected)
    assert type(rmac.operators.run_on_device("RMAC", Tensor(x), "cpu")) is Tensor


@pytest.mark.usefixtures("elsewhere")
def test_out_is_what_comes_back(rng):
    x = random_map(rng, (2, 20, 7, 9), DTYPES["float32"])
    out = np.empty((2, 20), np.float32)
    assert rmac.rmac(Tensor(x), out=out) is out
    np.testing.assert_array_equal(out, rmac.rmac(x))
    of_another_kind = Tensor(np.zeros_like(out))
    if np.from_dlpack(of_another_kind).flags.writeable:  # as since NumPy 2.2
        assert rmac.rmac(x, out=of_another_kind) is of_another_kind
        np.testing.assert_array_equal(of_another_kind._array, out)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("kind", [tuple, list])
def test_operators_of_users_get_and_give_such_arrays(kind):
    def factory(**options):
        return lambda x: kind([x + options["by"], "text", None])

    rmac.operators.register_cpu_operator("Add", factory, replace=True)
    result = rmac.operators.run_on_device("Add", Tensor(np.ones(3)), by=Tensor(np.arange(3.0)))
    assert type(result) is kind
    assert type(result[0]) is Tensor
    np.testing.assert_array_equal(result[0]._array, [1, 2, 3])
    assert list(result[1:]) == ["text", None]


@pytest.mark.usefixtures("elsewhere")
def test_an_option_of_a_user_named_out_is_theirs():
    rmac.operators.register_cpu_operator(
        "Rounded", lambda out: lambda x: x.round(out), replace=True
    )
    result = rmac.operators.run_on_device("Rounded", Tensor(np.full(3, 0.57)), out=1)
    np.testing.assert_array_equal(result._array, [0.6, 0.6, 0.6])


class Standard(Tensor):
    """An array that has the namespace of the array API standard."""

    __module__ = "elsewhere._private"

    def __array_namespace__(self):
        return SimpleNamespace(from_dlpack=lambda array: Standard(np.from_dlpack(array)))


def test_the_array_api_standard_tells_the_library(rng):
    x = random_map(rng, (2, 20, 7, 9), DTYPES["float32"])
    result = rmac.rmac(Standard(x))
    assert type(result) is Standard
    np.testing.assert_array_equal(result._array, rmac.rmac(x))


class Afar(Tensor):
    """An array on a device that is not known here."""

    __module__ = "elsewhere"

    def __dlpack_device__(self):
        return (8, 0)


@pytest.mark.usefixtures("elsewhere")
def test_an_array_that_cannot_be_passed():
    x = np.zeros((2, 3, 4, 5), np.float32)
    message = r"expected an array that DLPack can pass, got elsewhere\.Tensor"
    with pytest.raises(TypeError, match=rf"^x: {message}"):
        rmac.rmac(Tensor(x.astype("datetime64[s]")))
    with pytest.raises(TypeError, match=rf"^x\[1\]: {message}"):
        rmac.rmac([Tensor(x[0]), Tensor(x[0].astype("datetime64[s]"))])
    with pytest.raises(TypeError, match=rf"^out: {message}"):
        rmac.rmac(x, out=Tensor(x.astype("datetime64[s]")))
    with pytest.raises(TypeError, match=r"^x: .* it is on a device of type 8"):
        rmac.rmac(Afar(x))


def test_results_of_a_library_without_a_way_back_are_numpy_arrays(monkeypatch, rng):
    monkeypatch.setitem(sys.modules, "elsewhere", ModuleType("elsewhere"))
    x = random_map(rng, (2, 20, 7, 9), DTYPES["float32"])
    for result, expected in (
        (rmac.rmac(Tensor(x)), rmac.rmac(x)),
        (rmac.region_pool([Tensor(x[0])])[0], rmac.region_pool(x)[0]),
        (rmac.merge_scales([Tensor(x[:, :, 0, 0])]), rmac.merge_scales([x[:, :, 0, 0]])),
        (WHITENING.apply(Tensor(np.ones((2, 1024)))), WHITENING.apply(np.ones((2, 1024)))),
    ):
        assert type(result) is np.ndarray
        np.testing.assert_array_equal(result, expected)


class Subclass(Tensor):
    """A tensor of a class that a user made."""

    __module__ = "somewhere"


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("kind", [Subclass, Capsule])
def test_the_protocol_is_enough(kind, rng):
    x = random_map(rng, (2, 20, 7, 9), DTYPES["float32"])
    result = rmac.rmac(kind(x))
    assert type(result) is Tensor
    np.testing.assert_array_equal(result._array, rmac.rmac(x))
    out = np.empty((2, 20), np.float32)
    assert rmac.rmac([kind(x[0]), kind(x[1])], out=out) is out
    np.testing.assert_array_equal(out, rmac.rmac(x))


class Empty(Tensor):
    """An array that exports a shape and no memory, as PyTorch's fake tensors do."""

    __module__ = "elsewhere"

    def __dlpack__(self, **_options):
        capsule = self._array.__dlpack__()
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        ctypes.c_void_p.from_address(get(capsule, b"dltensor")).value = None
        return capsule


@pytest.mark.usefixtures("elsewhere")
def test_an_array_without_memory_is_refused():
    with pytest.raises(TypeError, match=r"^x: .* it has no memory"):
        rmac.rmac(Empty(np.zeros((2, 3, 4, 5), np.float32)))


@pytest.mark.usefixtures("elsewhere")
def test_memory_is_shared(rng):
    x = random_map(rng, (2, 20, 7, 9), DTYPES["float32"])
    out = Tensor(np.zeros((2, 20), np.float32))
    if not np.from_dlpack(out).flags.writeable:
        pytest.skip("this NumPy takes in all such memory as read-only")
    assert rmac.rmac(Tensor(x), out=out) is out
    np.testing.assert_array_equal(out._array, rmac.rmac(x))


@pytest.fixture(scope="module")
def large():
    """Feature maps of 64 MB."""
    return np.ones((16, 1024, 32, 32), np.float32)


WHITENING = rmac.Whitening.from_projection(np.zeros(1024), np.eye(2, 1024))


@pytest.mark.slow
@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    "call",
    [
        lambda x: rmac.rmac(x),
        lambda x: rmac.rmac(list(x)),
        lambda x: rmac.region_pool(x),
        lambda x: rmac.region_pool(tuple(x)),
        lambda x: rmac.rmac_regions(x),
        lambda x: rmac.roi_pool(x, np.zeros((1, 5))),
        lambda x: rmac.branch_pool(x, [np.ones((1, 1024, 1, 1), np.float32)], [None]),
        lambda x: rmac.merge_scales(x.reshape(16, 1024, 1024)),
        lambda x: rmac.merge_scales(list(x.reshape(16, 1024, 1024))),
        lambda x: WHITENING.apply(x.reshape(-1, 1024)),
        lambda x: rmac.Whitening().fit(x.reshape(-1, 1024)),
        lambda x: rmac.operators.run_on_device("RMAC", x, "cpu"),
    ],
    ids=[
        "rmac",
        "rmac of a list",
        "region_pool",
        "region_pool of a list",
        "rmac_regions",
        "roi_pool",
        "branch_pool",
        "merge_scales",
        "merge_scales of a list",
        "Whitening.apply",
        "Whitening.fit",
        "run_on_device",
    ],
)
def test_input_of_another_library_is_not_copied(call, large):
    """A call takes as much memory as with NumPy's array, and no more."""
    plain, foreign = peak_memory(lambda: call(large)), peak_memory(lambda: call(Foreign(large)))
    assert foreign < plain + large.nbytes / 8


@pytest.mark.usefixtures("elsewhere")
def test_whitening(rng):
    vectors = random_map(rng, (30, 5), DTYPES["float32"])
    expected = rmac.Whitening(3).fit(vectors)
    whitening = rmac.Whitening(3).fit(Tensor(vectors[:20])).partial_fit(Tensor(vectors[20:]))
    np.testing.assert_allclose(whitening.projection, expected.projection)
    result = expected.apply(Tensor(vectors))
    assert type(result) is Tensor
    np.testing.assert_array_equal(result._array, expected.apply(vectors))
    mean, projection = Tensor(expected.mean.copy()), Tensor(expected.projection.copy())
    made = rmac.Whitening.from_projection(mean, projection)
    np.testing.assert_array_equal(made.apply(vectors), expected.apply(vectors))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "uint8"])
def test_torch_tensors(dtype):
    torch = optional_module("torch")
    x = (torch.rand(2, 20, 9, 12) * 99).to(getattr(torch, dtype))
    last = x.to(memory_format=torch.channels_last)
    bits = torch.int16 if dtype == "bfloat16" else x.dtype
    plain = x.view(bits).numpy().view(DTYPES[dtype])
    for tensor in (x, last):
        pooled = rmac.region_pool(tensor)
        assert type(pooled) is torch.Tensor
        assert pooled.dtype == x.dtype
        expected = rmac.region_pool(plain)
        np.testing.assert_array_equal(pooled.view(bits).numpy().view(DTYPES[dtype]), expected)
        np.testing.assert_array_equal(rmac.rmac(tensor).numpy(), rmac.rmac(plain))
    if dtype == "float32":
        with pytest.raises(TypeError, match=r"x: got a torch\.Tensor that requires grad"):
            rmac.rmac(x.requires_grad_())


def test_torch_tensors_that_cannot_be_passed():
    torch = optional_module("torch")
    for tensor in (
        torch.zeros(2, 3, 4, 5, device="meta"),
        torch.zeros(2, 3, 4, 5).to_sparse(),
        torch.zeros(2, 3, 4, 5).to(torch.float8_e4m3fn),
    ):
        with pytest.raises(TypeError, match=r"^x: expected .* got (torch\.Tensor|float8)"):
            rmac.rmac(tensor)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_jax_arrays(dtype):
    jax = pytest.importorskip("jax")
    x = (np.arange(2 * 3 * 9 * 12).reshape(2, 3, 9, 12) * 17 % 101).astype(DTYPES[dtype])
    arrays = jax.numpy.asarray(x)
    for result, expected in (
        (rmac.rmac(arrays), rmac.rmac(x)),
        (rmac.region_pool(arrays), rmac.region_pool(x)),
    ):
        assert isinstance(result, jax.Array)
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(np.asarray(result), expected)
