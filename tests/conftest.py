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
from helpers import Tensor

import rmac.cpu

BACKENDS = os.environ.get("RMAC_TEST_BACKENDS", "numpy").split(",")

# So that the small maps of most tests are shared out to as many workers as they ask for.
rmac.cpu._SMALL_TASK = 1

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
def rng():
    return np.random.default_rng(20161)


@pytest.fixture
def elsewhere(monkeypatch):
    """The library that `Tensor` is of."""
    library = ModuleType("elsewhere")
    library.from_dlpack = lambda array: Tensor(np.from_dlpack(array))
    monkeypatch.setitem(sys.modules, "elsewhere", library)
