"""Every function takes arrays of every library, with the real packages, and shares their memory."""

import importlib

import numpy as np
import pytest
from helpers import DTYPES, optional_module, random_map, to_host

import rmac
from rmac import _dlpack

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:importlib"),
]
rng = np.random.default_rng(1)
MAPS = random_map(rng, (3, 16, 9, 12), DTYPES["float32"])
ROIS = np.array([[0, 0, 0, 5, 5], [2, 1, 2, 11, 8]], np.float32)
BOXES = [ROIS[:1, 1:], ROIS[:0, 1:], ROIS[1:, 1:]]
WEIGHTS = [random_map(rng, (4, 16, 3, 3), DTYPES["float32"])]
VECTORS = random_map(rng, (40, 16), DTYPES["float32"])
WHITENING = rmac.Whitening(4).fit(VECTORS)
CORNERS = np.tile([0, 0, 4, 3], (3, 1))  # a box in each map

# Each function, as it is called with arrays that `make` makes.
CALLS = {
    "rmac": lambda make: rmac.rmac(make(MAPS)),
    "rmac of a list": lambda make: rmac.rmac([make(MAPS[0]), make(MAPS[1, :, :7])]),
    "rmac, whitened": lambda make: rmac.rmac(make(MAPS), whitening=WHITENING),
    "region_pool": lambda make: rmac.region_pool(make(MAPS), pool="mean"),
    "region_pool of a list": lambda make: rmac.region_pool([make(MAPS[0])])[0],
    "roi_pool": lambda make: rmac.roi_pool(make(MAPS), make(ROIS)),
    "roi_pool of a list": lambda make: rmac.roi_pool(make(MAPS), [make(one) for one in BOXES]),
    "rmac_regions": lambda make: rmac.rmac_regions(make(MAPS)),
    "branch_pool": lambda make: rmac.branch_pool(make(MAPS), [make(WEIGHTS[0])], [None]),
    "merge_scales": lambda make: rmac.merge_scales([make(VECTORS), make(VECTORS[::-1].copy())]),
    "Whitening.fit": lambda make: rmac.Whitening(4).fit(make(VECTORS)).projection,
    "Whitening.apply": lambda make: WHITENING.apply(make(VECTORS)),
    "from_projection": lambda make: (
        rmac.Whitening.from_projection(
            make(WHITENING.mean.astype(np.float32)), make(WHITENING.projection.astype(np.float32))
        ).projection
    ),
    "localize": lambda make: rmac.localize(make(MAPS), make(VECTORS[:2])).scores,
    "localize in a list": lambda make: (
        rmac.localize([make(MAPS[0]), make(MAPS[1, :, :7])], make(VECTORS[0]), search="grid").scores
    ),
    "quantize": lambda make: rmac.quantize(make(MAPS)),
    "quantize of a number": lambda make: rmac.quantize(make(MAPS[0, 0, 0, :1].reshape(()))),
    "rerank": lambda make: rmac.rerank(make(VECTORS[0]), make(MAPS), CORNERS).scores,
    "expand": lambda make: rmac.expand(
        make(VECTORS[:2]), make(VECTORS[2:]), make(np.array([[0, 3], [5, 1]]))
    ),
    "average_precision": lambda make: rmac.average_precision(
        make(np.array([[2, 0, 1], [1, 2, 0]])), [make(np.array([0, 2])), make(np.array([1]))]
    ),
    "run_on_device": lambda make: rmac.operators.run_on_device("RMAC", make(MAPS), "cpu"),
}
ON_THE_HOST = {"rmac, whitened", "Whitening.apply", "run_on_device"}
HOST_RESULTS = {"Whitening.fit", "from_projection", "average_precision"}  # read-only NumPy arrays


def light(name):
    """A package that `RMAC_TEST_RECIPES` asks for."""
    return optional_module(name)


def heavy(name):
    """A package that is tested where it is installed, and not asked for."""
    return pytest.importorskip(name)


def torch_subclass():
    torch = light("torch")
    kind = type("Features", (torch.Tensor,), {})
    return lambda array: torch.from_numpy(array).as_subclass(kind), torch.Tensor


def torch_tensor():
    torch = light("torch")
    return torch.from_numpy, torch.Tensor


def jax_array():
    jax = light("jax")
    return jax.numpy.asarray, jax.Array


def array_api_strict():
    strict = light("array_api_strict")
    return strict.asarray, type(strict.asarray(0))


def onnxruntime_value():
    return light("onnxruntime").OrtValue.ortvalue_from_numpy, np.ndarray


def arrow_tensor():
    return light("pyarrow").Tensor.from_numpy, np.ndarray


def tensorflow_tensor():
    return heavy("tensorflow").constant, np.ndarray


def keras_tensor():
    keras = heavy("keras")
    example = keras.ops.convert_to_tensor(MAPS)
    back = np.ndarray if keras.backend.backend() == "tensorflow" else type(example)
    return keras.ops.convert_to_tensor, back


def mlx_array():
    mlx = heavy("mlx.core")
    return mlx.array, mlx.array


def openvino_result():
    """The output of a model, which OpenVINO gives as a NumPy array."""
    openvino = heavy("openvino")

    def make(array):
        ops = openvino.opset13
        given = ops.parameter(array.shape, array.dtype.type)
        model = openvino.Model([ops.negative(ops.negative(given))], [given])
        return openvino.compile_model(model, "CPU")(array)[0]

    return make, np.ndarray


LIBRARIES = {
    "PyTorch": torch_tensor,
    "a subclass of PyTorch's": torch_subclass,
    "JAX": jax_array,
    "TensorFlow": tensorflow_tensor,
    "Keras": keras_tensor,
    "ONNX Runtime": onnxruntime_value,
    "OpenVINO": openvino_result,
    "Arrow": arrow_tensor,
    "MLX": mlx_array,
    "array-api-strict": array_api_strict,
}


@pytest.fixture(scope="module", params=LIBRARIES)
def library(request):
    """The name of a library, how it makes an array, and the type of results for it."""
    return request.param, *LIBRARIES[request.param]()


@pytest.mark.parametrize("name", CALLS)
def test_a_function_takes_arrays_of_a_backend(xp, name):
    if xp is not np and name in ON_THE_HOST:
        pytest.skip("the whitening, or the device that is named, is on the host")
    result = CALLS[name](xp.asarray)
    assert type(result) is xp.ndarray
    np.testing.assert_allclose(to_host(result), CALLS[name](np.asarray), atol=1e-4)


@pytest.mark.parametrize("name", CALLS)
def test_a_function_takes_arrays_of_a_library(library, name):
    _, make, result_type = library
    expected = CALLS[name](np.asarray)
    result = CALLS[name](make)
    assert isinstance(result, np.ndarray if name in HOST_RESULTS else result_type)
    found = np.asarray(result)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_memory_is_shared(library):
    _, make, _ = library
    x = make(MAPS)
    first, second = (_dlpack.from_foreign(x) for _ in range(2))
    assert type(first) is type(second) is np.ndarray
    assert np.shares_memory(first, second)


def test_a_result_can_be_used_after_its_source_is_gone(library):
    _, make, _ = library
    results = [np.asarray(rmac.region_pool(make(MAPS), pool="max")) for _ in range(3)]
    for result in results:
        np.testing.assert_array_equal(result, rmac.region_pool(MAPS))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "uint8", "int8"])
def test_dtypes(library, dtype):
    kind, make, result_type = library
    if kind in ("OpenVINO", "array-api-strict") or (
        (dtype == "bfloat16" and kind in NO_BFLOAT16) or (dtype == "float64" and kind in NO_FLOAT64)
    ):
        pytest.skip("not a dtype of this library")
    x = (np.abs(MAPS) * 9).astype(DTYPES[dtype])
    if kind in ("PyTorch", "a subclass of PyTorch's") and dtype == "bfloat16":
        torch = importlib.import_module("torch")
        array = make(x.astype(np.float32)).to(torch.bfloat16)
    else:
        array = make(x)
    result = rmac.region_pool(array)
    assert isinstance(result, result_type)
    if dtype == "bfloat16" and kind != "JAX":
        assert str(result.dtype).endswith("bfloat16")
        return
    np.testing.assert_array_equal(np.asarray(result), rmac.region_pool(x))


NO_BFLOAT16 = {"Arrow", "ONNX Runtime", "TensorFlow", "Keras", "MLX"}
NO_FLOAT64 = {"JAX", "MLX"}


def test_an_openvino_tensor_says_where_its_array_is():
    openvino = heavy("openvino")
    tensor = openvino.Tensor(MAPS)
    with pytest.raises(TypeError, match=r"^x: .* got openvino.*\.Tensor; pass x\.data if"):
        rmac.rmac(tensor)
    np.testing.assert_array_equal(rmac.rmac(tensor.data), rmac.rmac(MAPS))


def test_tensorflow_says_where_it_cannot():
    tensorflow = heavy("tensorflow")
    with pytest.raises(TypeError, match=r"np\.asarray\(x\) makes an array of it"):
        rmac.rmac(tensorflow.Variable(MAPS))
    with pytest.raises(TypeError, match=r"^x: .* Unsupported dtype"):
        rmac.rmac(tensorflow.cast(MAPS, tensorflow.bfloat16))
    with pytest.raises(TypeError, match=r"^x: .* wrap the call in tf\.numpy_function"):
        tensorflow.autograph.experimental.do_not_convert(
            tensorflow.function(lambda x: rmac.rmac(x), autograph=False)
        )(MAPS)

    @tensorflow.function(autograph=False)
    def describe(x):
        return tensorflow.numpy_function(rmac.rmac, [x], tensorflow.float32)

    np.testing.assert_array_equal(describe(MAPS).numpy(), rmac.rmac(MAPS))


def test_keras_says_where_it_cannot():
    keras = heavy("keras")
    with pytest.raises(TypeError, match=r"^x: .* wrap the call in tf\.numpy_function"):
        rmac.rmac(keras.Input((16, 9, 12)))
