"""What is kept from call to call: right for each key, bounded in bytes, safe for threads."""

import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

import rmac
from rmac import _arrays, _caches, _windows, regions
from rmac._caches import cached
from rmac.cpu import plan, route
from rmac.cuda import arrays as cuda_arrays
from rmac.cuda import plan as cuda_plan

X = np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)
FUNCTIONS = [
    route.region_route,
    plan.region_plan,
    regions._cached_grid,
    _windows.cached_windows,
    _arrays._boxes_inside,
    cuda_plan.region_plans,
]


def random_boxes(rng, count):
    xs, ys = (np.sort(rng.integers(0, 64, (count, 2)), axis=1) for _ in "xy")
    return np.stack([xs[:, 0], ys[:, 0], xs[:, 1], ys[:, 1]], axis=1)


def counting():
    """Return a cached function of a size, and the list of the sizes that it computed."""
    computed = []

    @cached(len)
    def compute(size, _other=None):
        computed.append(size)
        return bytes(size)

    return compute, computed


def test_a_result_is_computed_once():
    compute, computed = counting()
    assert compute(7) is compute(7)
    assert compute(7, "other") is not compute(7)
    assert computed == [7, 7]


def test_the_first_results_are_dropped(monkeypatch):
    monkeypatch.setattr(_caches, "MOST_BYTES", 5 * (_caches._OBJECT_BYTES + 100))
    compute, computed = counting()
    for size in range(100, 90, -1):
        compute(size)
        assert compute.cache.bytes <= _caches.MOST_BYTES
    assert [size for (size,) in compute.cache.results] == [95, 94, 93, 92, 91]
    assert compute.cache.bytes == sum(_caches._OBJECT_BYTES + size for size in range(91, 96))
    compute(100)
    assert computed[-1] == 100


def test_entries_are_bounded(monkeypatch):
    monkeypatch.setattr(_caches, "MOST_ENTRIES", 3)
    compute, _ = counting()
    for size in range(5):
        compute(size)
    assert [size for (size,) in compute.cache.results] == [2, 3, 4]


def test_a_result_that_is_too_large_is_not_kept(monkeypatch):
    monkeypatch.setattr(_caches, "MOST_BYTES", 1 << 20)
    compute, computed = counting()
    compute(5)
    assert len(compute(1 << 20)) == 1 << 20
    assert list(compute.cache.results) == [(5,)]
    compute(1 << 20)
    assert computed == [5, 1 << 20, 1 << 20]


def test_an_error_is_not_kept():
    fails = True

    @cached(len)
    def compute(size):
        if fails:
            raise ValueError("mine")
        return bytes(size)

    with pytest.raises(ValueError, match="mine"):
        compute(3)
    fails = False
    assert compute(3) == bytes(3)


def test_bytes_of_the_key_count():
    @cached(lambda _result: 0)
    def compute(key):
        return key[:0]

    compute(bytes(10_000))
    assert compute.cache.bytes == _caches._OBJECT_BYTES + 10_000


def test_many_threads_keep_the_count_of_bytes(monkeypatch):
    monkeypatch.setattr(_caches, "MOST_BYTES", 20 * (_caches._OBJECT_BYTES + 50))
    compute, _ = counting()
    wrong = []

    def work(seed):
        sizes = np.random.default_rng(seed).integers(0, 100, 500).tolist()
        wrong.extend(size for size in sizes if len(compute(size)) != size)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
    cache = compute.cache
    assert cache.bytes == sum(_caches._OBJECT_BYTES + size for (size,) in cache.results)
    assert cache.bytes <= _caches.MOST_BYTES


def test_boxes_of_users_keep_little(rng):
    for _ in range(100):
        rmac.region_pool(X, random_boxes(rng, 2000), workers=1)
        cuda_plan.region_plans(random_boxes(rng, 200).tobytes(), 768, 0)
    for function in FUNCTIONS:
        cache = function.cache
        kept = sum(
            _caches._OBJECT_BYTES + _caches._bytes_in(args) + cache._nbytes(result)
            for args, result in cache.results.items()
        )
        assert kept == cache.bytes <= _caches.MOST_BYTES


def test_the_bytes_of_a_plan_are_those_of_its_tables(rng):
    boxes = random_boxes(rng, 2000)
    found = plan.make_plan(boxes, 64, 64, np.arange(2000), 1)
    of_regions = 9 * 8 * 2000  # two spans of 3 numbers, the row, the bin, and the cells of each
    assert of_regions < found.nbytes < 3 * of_regions


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_keys_are_plain(function, rng):
    """A key that can change, or is equal to others, would give the result of another call."""
    plain = {int, float, str, bytes, bool, type(None)}
    rmac.region_pool(X, random_boxes(rng, 3))
    rmac.rmac(X, levels=np.int8(2), overlap=np.float32(0.25), preset=np.str_("matlab"))
    cuda_plan.region_plans(random_boxes(rng, 3).tobytes(), 768, 0)
    for args in function.cache.results:
        parts = [part for arg in args for part in (arg if type(arg) is tuple else [arg])]
        assert {type(part) for part in parts} <= plain | {route.KernelSpec}


def test_temporary_arrays_of_graphs_are_bounded(monkeypatch):
    stream = SimpleNamespace(is_capturing=lambda: True)
    cuda = SimpleNamespace(get_current_stream=lambda: stream)
    monkeypatch.setattr(cuda_arrays, "namespace", lambda: SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(cuda_arrays, "_MOST_FOR_GRAPHS", 3000)
    monkeypatch.setattr(cuda_arrays, "_bytes_for_graphs", 0)
    kept = []
    monkeypatch.setattr(cuda_arrays, "_kept_for_graphs", kept)
    arrays = [np.empty(2000, np.uint8), np.empty(1, np.uint8)]
    assert [cuda_arrays.keep_for_graph(array) for array in arrays] == arrays
    with pytest.raises(MemoryError, match="captured graphs keep 2512 bytes"):
        cuda_arrays.keep_for_graph(np.empty(600, np.uint8))
    assert len(kept) == 2
