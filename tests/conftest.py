"""Backends under test: ``RMAC_TEST_BACKENDS=numpy,cupy``, by default NumPy alone.

``shim`` is the GPU backend with its kernels run on the CPU, in the place of CuPy.
"""

import importlib
import os
import sys
from types import ModuleType

import hypothesis
import numpy as np
import pytest
from helpers import COMMANDS, Tensor, forget_kernels

from rmac import Whitening
from rmac.cli import files, main
from rmac.cpu import route
from rmac.cuda import launches

BACKENDS = os.environ.get("RMAC_TEST_BACKENDS", "numpy").split(",")

hypothesis.settings.register_profile("rmac", deadline=None, print_blob=True)
hypothesis.settings.load_profile("rmac")


@pytest.fixture(scope="session", params=BACKENDS)
def xp(request):
    """The array namespace of a backend; one that was asked for and is missing is an error."""
    namespace = importlib.import_module(request.param)
    if request.param == "shim":
        assert "cupy" not in BACKENDS
        sys.modules["cupy"] = namespace
    if request.param == "cupy":
        namespace.cuda.runtime.getDeviceCount()
    return namespace


@pytest.fixture
def gpu(xp):
    """The namespace of a GPU backend under test."""
    if xp.__name__ not in ("cupy", "shim"):
        pytest.skip("for arrays on a GPU; RMAC_TEST_BACKENDS names the backends")
    return xp


@pytest.fixture
def many_images(monkeypatch):
    """A function: from so many images on, the last block that pools an image describes it."""

    def change(count):
        monkeypatch.setattr(launches, "MANY_IMAGES", count)
        launches._descriptors_call.cache.clear()

    yield change
    launches._descriptors_call.cache.clear()


@pytest.fixture
def planted_kernels(monkeypatch):
    """A function: `plant` gets each kernel and its device, and returns what is launched instead."""
    compiled = launches.kernel

    def change(plant):
        monkeypatch.setattr(
            launches, "kernel", lambda name, device: plant(compiled(name, device), device)
        )
        forget_kernels()

    yield change
    forget_kernels()


@pytest.fixture
def rng():
    return np.random.default_rng(20161)


@pytest.fixture
def shared_small_maps(monkeypatch):
    """Small maps are shared among all workers, although that gains nothing."""
    monkeypatch.setattr(route, "_SMALL_TASK", 1)


@pytest.fixture(params=["shared_small_maps", None])
def both_ways_to_share(request):
    """Small maps are shared among all workers, and then among as few as in a release."""
    if request.param:
        if "xp" in request.fixturenames and request.getfixturevalue("xp") is not np:
            pytest.skip("workers are of the host")
        request.getfixturevalue(request.param)


@pytest.fixture
def elsewhere(monkeypatch):
    """The library that `Tensor` is of."""
    library = ModuleType("elsewhere")
    library.from_dlpack = lambda array: Tensor(np.from_dlpack(array))
    monkeypatch.setitem(sys.modules, "elsewhere", library)


@pytest.fixture
def features(tmp_path, rng):
    path = tmp_path / "features.npy"
    np.save(path, rng.standard_normal((5, 8, 9, 12)).astype("float32"))
    return path


@pytest.fixture
def vectors(tmp_path, rng):
    path = tmp_path / "vectors.npy"
    np.save(path, rng.standard_normal((40, 3, 8)).astype("float32"))
    return path


@pytest.fixture
def whitening_file(tmp_path_factory, rng):
    path = tmp_path_factory.mktemp("whitening") / "w.npz"
    Whitening(dim=4).fit(rng.standard_normal((40, 8))).save(path)
    return path


@pytest.fixture
def beside(tmp_path_factory):
    """Write an array to a folder of its own, under the name of the features."""

    def write(array):
        path = tmp_path_factory.mktemp("beside") / "features.npy"
        np.save(path, array)
        return path

    return write


@pytest.fixture
def query_file(beside, rng):
    return beside(rng.random((2, 8, 4, 5)).astype("float32"))


@pytest.fixture
def ranks_file(beside):
    return beside(np.array([[4, 0, 2], [1, 3, -1]]))


@pytest.fixture
def maps(rng):
    """Feature maps of 40 images by their names: of several sizes, some of them rare."""
    sides = [(9, 7), (9, 8), (9, 7), (5, 12), (9, 7)] * 7 + [
        (6, 6),
        (3, 20),
        (9, 8),
        (1, 9),
        (9, 7),
    ]
    return {
        f"photo {i:02d}": rng.standard_normal((8, *side)).astype("float32")
        for i, side in enumerate(sides)
    }


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command on inputs, in small batches; return its exit status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "_TILE", 9000)
    monkeypatch.setattr(files, "_BATCH", 40_000)

    def call(command, *inputs, output="o.npz"):
        return main([command, *map(str, inputs), "-o", output])

    return call


@pytest.fixture(params=COMMANDS)
def command(request):
    """A command that writes a file, and the files that it reads.

    The last has a name as that in the test's folder.
    """
    _, sources = COMMANDS[request.param]
    return [request.param, *(str(request.getfixturevalue(one)) for one in sources)]


@pytest.fixture
def suffix(command):
    """How the names of its outputs end."""
    suffixes, _ = COMMANDS[command[0]]
    return suffixes[0]
