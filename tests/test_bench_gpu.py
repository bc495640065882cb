"""What bench/gpu.py times, without a device."""

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest


@pytest.fixture
def benchmark(monkeypatch):
    """The module bench/gpu.py with a CuPy that only writes down what is called."""
    folder = Path(__file__).parents[1] / "bench"
    if not folder.is_dir():
        pytest.skip("needs the repository")
    called = []

    class Event:
        record = synchronize = lambda self: called.append(self)

    class Busy:
        def __imul__(self, _factor):
            called.append("busy")
            return self

    cuda_functions = SimpleNamespace(
        Event=Event,
        Device=lambda: SimpleNamespace(synchronize=lambda: called.append("wait")),
        get_elapsed_time=lambda _start, _stop: 1.0,
        runtime=SimpleNamespace(getDeviceProperties=lambda _device: {"name": b"none"}),
    )
    cupy = ModuleType("cupy")
    cupy.cuda, cupy.float32, cupy.ones = cuda_functions, np.float32, lambda *_: Busy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.syspath_prepend(str(folder))
    for name in ("gpu", "run", "peers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("gpu"), called
    for name in ("gpu", "run", "peers"):
        sys.modules.pop(name, None)


def test_the_benchmark_times_the_device_alone(benchmark):
    """Calls that wait for the host between two events would count as the time of kernels."""
    gpu, called = benchmark
    inputs = ["a", "b", "c"]
    gpu.milliseconds(called.append, inputs, gpu.CALLS)
    waited = called.index("wait")
    start, stop = (i for i, one in enumerate(called[:-1]) if isinstance(one, gpu.cp.cuda.Event))
    assert called[waited + 1 : start] == ["busy"] * gpu.HEAD_START
    timed = called[start + 1 : stop]
    assert len(timed) >= 50
    assert timed[:4] == ["a", "b", "c", "a"]
    assert called[stop + 1 :] == [called[stop]]


def test_the_benchmark_compiles_peers_for_two_shapes(benchmark, monkeypatch):
    """Each compilation takes most of a minute of a device that is there for ten."""
    gpu, _ = benchmark
    measured, peers = [], []
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(gpu, "inputs_for", lambda *case: [case])
    monkeypatch.setattr(gpu, "candidates_for", lambda *_: {})
    monkeypatch.setattr(gpu, "peers_for", lambda inputs, _options: peers.append(inputs[0]))
    monkeypatch.setattr(gpu, "measure", lambda _inputs, case, *_: measured.append(case))
    gpu.main()
    assert len(measured) > 10
    assert peers == measured[-2:]
    assert len(set(peers)) == 2 == len(gpu.PEER_SHAPES)


def test_the_rois_of_the_benchmark_are_on_their_maps(benchmark, monkeypatch):
    gpu, _ = benchmark
    monkeypatch.setattr(gpu.cp, "asarray", lambda x: x, raising=False)
    maps = np.zeros((3, 2, 9, 7), np.float32)
    for x, layout in ((maps, "NCHW"), (maps.transpose(0, 2, 3, 1), "NHWC")):
        assert gpu.whole_maps(x, layout).tolist() == [[i, 0, 0, 6, 8] for i in range(3)]
    rois = gpu.small_rois(maps)
    assert np.bincount(rois[:, 0].astype(int)).tolist() == [gpu.SMALL_ROIS] * 3
    assert (rois[:, 3:] - rois[:, 1:3] == 6).all()  # with 7 x 7 bins, of one cell each
    assert (rois[:, 1:] >= 0).all()
    assert (rois[:, 3:] <= [6, 8]).all()
