"""The README's recipes, run exactly as printed, with the packages that they are for."""

import functools
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import optional_module, readme_parts

import rmac

pytestmark = pytest.mark.slow  # most of them learn, build an index or start a cluster

RECIPES = {
    part.partition("\n")[0]: "".join(re.findall(r"```python\n(.*?)```", part, re.DOTALL))
    for part in readme_parts()["Recipes"].split("\n### ")[1:]
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder of its own for each recipe, the current one."""
    monkeypatch.chdir(tmp_path)


def written(name):
    path = Path("recipe.py").resolve()
    path.write_text(RECIPES[name], encoding="utf-8")
    return str(path)


def run(name):
    """Run a recipe in this process, and return its variables."""
    return runpy.run_path(written(name), run_name="__main__")


def run_as_a_program(name):
    """Run a recipe in a process of its own, with BLAS on one thread and warnings as errors."""
    # Two clusters may be on one machine; only the first has its status page at the usual port.
    port = "ignore:Port 8787 is already in use:UserWarning"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-W", port, written(name)]
    subprocess.run(command, env=environment, check=True, timeout=100)


def test_every_recipe_is_tested():
    titles = ["PyTorch", "PyTorch, compiled", "JAX", "ONNX Runtime", "FAISS", "Dask"]
    assert list(RECIPES) == titles


def test_pytorch():
    torch = optional_module("torch")
    names = run("PyTorch")
    descriptors, images = names["descriptors"], names["images"]
    assert type(descriptors) is torch.Tensor
    with torch.inference_mode():
        maps = torch.cat([names["backbone"](batch) for batch in images.split(8)])
    assert maps.is_contiguous(memory_format=torch.channels_last)
    assert not names["backbone"]._forward_hooks
    assert np.ptp(maps.numpy()) > 0
    np.testing.assert_array_equal(descriptors.numpy(), rmac.rmac(maps.numpy()))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_pytorch_compiled():
    torch = optional_module("torch")
    names = run("PyTorch, compiled")
    with torch.no_grad():
        maps = names["backbone"](names["images"])
    expected = rmac.rmac(maps, pool="gem", levels=2)
    torch.testing.assert_close(names["descriptors"], expected, atol=1e-5, rtol=0)
    exported = names["program"].module()(names["images"])
    torch.testing.assert_close(exported, expected, atol=1e-5, rtol=0)


def test_jax():
    jax = optional_module("jax")
    names = run("JAX")
    images = jax.random.uniform(jax.random.key(1), (8, 3, 224, 320))
    maps = jax.nn.relu(jax.lax.conv(images, names["kernel"], (4, 4), "VALID"))
    np.testing.assert_allclose(names["descriptors"], rmac.rmac(maps), atol=1e-5)


def write_model(onnx, path):
    """Write a classifier of images of any size, whose feature map is no output."""
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    weights = np.random.default_rng(1).standard_normal((16, 3, 3, 3)).astype(np.float32)
    kernel = onnx.numpy_helper.from_array(weights, "kernel")
    nodes = [
        node("Conv", ["image", "kernel"], ["sums"], strides=[16, 16]),
        node("Relu", ["sums"], ["features"]),
        node("GlobalAveragePool", ["features"], ["means"]),
        node("Flatten", ["means"], ["scores"]),
    ]
    image = value("image", onnx.TensorProto.FLOAT, ["n", 3, "h", "w"])
    scores = value("scores", onnx.TensorProto.FLOAT, ["n", 16])
    graph = onnx.helper.make_graph(nodes, "classifier", [image], [scores], [kernel])
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    onnx.save(model, path)
    return weights


def test_onnx_runtime():
    onnx = optional_module("onnx")
    optional_module("onnxruntime")
    kernel = write_model(onnx, "model.onnx")
    names = run("ONNX Runtime")
    maps = names["maps"]
    assert [x.shape for x in maps] == [(16, 14, 20), (16, 20, 14), (16, 16, 16)]
    for x, image in zip(maps, names["images"], strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), (1, 2))[:, ::16, ::16]
        expected = np.maximum(np.einsum("ocij,chwij->ohw", kernel, windows), 0)
        np.testing.assert_allclose(x, expected, atol=1e-5)
    expected = np.concatenate([rmac.rmac(x[None]) for x in maps])
    np.testing.assert_array_equal(names["descriptors"], expected)


def test_faiss():
    faiss = optional_module("faiss")
    names = run("FAISS")
    whitening = rmac.Whitening(dim=32).fit(rmac.rmac(names["training"], aggregate="none"))
    expected = rmac.rmac(names["maps"], whitening=whitening)
    np.testing.assert_array_equal(names["descriptors"], expected)
    similarity = expected[:5].astype(np.float64) @ expected.T
    nearest = -np.sort(-similarity, axis=1)[:, :10]
    np.testing.assert_allclose(names["similarities"], nearest, atol=1e-6)
    found = np.take_along_axis(similarity, names["images"], axis=1)
    np.testing.assert_allclose(found, nearest, atol=1e-6)
    index = faiss.read_index("images.faiss")
    np.testing.assert_array_equal(index.reconstruct_n(0, index.ntotal), expected)


MAPS, TRAINING = np.random.default_rng(2).standard_normal((2, 150, 136, 5, 6), dtype=np.float32)


def in_chunks(maps):
    return maps[:64], maps[64:128], maps[128:]


def test_dask():
    optional_module("dask.distributed")
    zarr = optional_module("zarr")
    threads = optional_module("threadpoolctl")
    chunks = (10, 136, 5, 6)
    for name, maps in (("features", MAPS), ("training", TRAINING)):
        file = zarr.create_array(f"{name}.zarr", shape=maps.shape, chunks=chunks, dtype="float32")
        file[...] = maps
    run_as_a_program("Dask")

    with threads.threadpool_limits(1):
        regions = [rmac.rmac(x, aggregate="none") for x in in_chunks(TRAINING)]
        parts = [rmac.Whitening(128).fit(x) for x in regions]
        whitening = functools.reduce(rmac.Whitening.merge, parts)
        expected = np.concatenate([rmac.rmac(x, whitening=whitening) for x in in_chunks(MAPS)])
    learned = rmac.Whitening.load("whitening.npz")
    assert learned.count == whitening.count
    for name in ("mean", "projection", "variances"):
        np.testing.assert_array_equal(getattr(learned, name), getattr(whitening, name))
    np.testing.assert_array_equal(zarr.open_array("descriptors.zarr", mode="r")[...], expected)


@pytest.mark.parametrize("size", [1, 7, 64, 150])
def test_dask_in_any_chunks(size):
    da = optional_module("dask.array")
    maps = da.from_array(MAPS, chunks=(size, -1, -1, -1))
    options = {"drop_axis": [2, 3], "meta": np.empty((0, 0), np.float32)}
    descriptors = maps.map_blocks(rmac.rmac, chunks=(maps.chunks[0], 136), **options)
    assert descriptors.shape == (150, 136)
    result = descriptors.compute(scheduler="threads")
    np.testing.assert_array_equal(result, rmac.rmac(MAPS))
