"""Faults that are planted in the GPU kernels, and that the shim must find."""

import math
import re

import numpy as np
import pytest
import reference
from helpers import (
    DTYPES,
    LAYOUTS,
    assert_same_values,
    forget_kernels,
    random_map,
    to_host,
)

import rmac
from rmac import cuda
from rmac._options import Aggregate, AggregationOptions
from rmac.cuda import launches, plan, route, source


def test_a_deleted_barrier_is_found(gpu, rng, monkeypatch, many_images):
    """If any one of the barriers is missing, the shim gives another result or an error.

    The barrier before a block counts itself is an exception: the shim runs blocks in turn. So are
    those of rois.cu: without them, a block may run for hours.
    """
    if gpu.__name__ != "shim":
        pytest.skip("a device runs threads in an order of its own")
    code, barrier = source.kernel_source(), "__syncthreads();"
    maps = random_map(rng, (1, 300, 9, 12), DTYPES["float32"])
    small = gpu.asarray(random_map(rng, (1, 64, 7, 7), DTYPES["float32"]))
    inputs = gpu.asarray(maps), gpu.asarray(maps.transpose(0, 2, 3, 1).copy()), small
    vectors = rng.random((1, 20, 300), np.float32)
    many_images(1)

    def results():
        forget_kernels()
        out = gpu.empty((1, 300), np.float32)
        try:
            cuda.describe(
                gpu.asarray(vectors.copy()), out, AggregationOptions(True, Aggregate.SUM, True, 0.0)
            )
            return [to_host(out).tobytes()] + [
                to_host(rmac.rmac(x, layout=layout, pool=pool)).tobytes()
                for x, layout in zip(inputs, ("NCHW", "NHWC", "NCHW"), strict=True)
                for pool in ("max", "mean")
            ]
        except RuntimeError:  # some threads wait for others that have finished
            return None
        finally:
            forget_kernels()

    expected = results()
    stop = code.index('#line 1 "rois.cu"')  # tests/test_cuda_search.py tries those after it
    places = [match.start() for match in re.finditer(re.escape(barrier), code[:stop])]
    assert len(places) == 13
    for place in places:
        if code[place:].startswith(f"{barrier}\n    if (thread_of_block() == 0) {{"):
            continue
        mutated = code[:place] + code[place + len(barrier) :]
        with monkeypatch.context() as patch:
            patch.setattr(source, "kernel_source", lambda code=mutated: code)
            assert results() != expected, code[:place].rpartition("__global__")[2][:60]
    assert results() == expected


@pytest.mark.parametrize(
    ("right", "wrong", "shape", "layout"),
    [
        (
            "const int TILE_PITCH = CHANNEL_BLOCK + 1;",
            "const int TILE_PITCH = 1;",
            (24, 9, 12),
            "NCHW",
        ),
        ("partial += line.pitch;", "partial += line.pitch - 1;", (24, 9, 12), "NHWC"),
        ("at <= last; at =", "at + 7 <= last; at =", (24, 9, 12), "NCHW"),
        ("at <= last; at =", "at + 7 <= last; at =", (24, 9, 12), "NHWC"),
        ("for (int i = copies * count", "for (int i = elements", (3, 7, 7), "NCHW"),
    ],
    ids=["pitch of rows", "pitch of channels", "last rows", "last pixels", "last elements"],
)
def test_a_planted_fault_is_found(gpu, monkeypatch, right, wrong, shape, layout):
    """A wrong pitch; loads at the end that are left out."""
    if gpu.__name__ != "shim":
        pytest.skip("a fault may end the context of a device")
    x = np.arange(math.prod(shape), dtype=np.float32).reshape(1, *shape)  # the last are largest
    stored = gpu.asarray(np.ascontiguousarray(x.transpose(LAYOUTS[layout])))
    expected = reference.region_pool(x, rmac.region_grid(*shape[1:]).boxes)
    code = source.kernel_source()
    assert code.count(right) == 1
    with monkeypatch.context() as patch:
        patch.setattr(source, "kernel_source", lambda: code.replace(right, wrong))
        forget_kernels()
        result = to_host(rmac.region_pool(stored, layout=layout))
        forget_kernels()
    assert (result != expected).any()
    assert_same_values(to_host(rmac.region_pool(stored, layout=layout)), expected)


@pytest.mark.parametrize(
    ("right", "wrong", "shape", "layout"),
    [
        ("partials[offset[k - 1]] = sum;", "", (24, 9, 12), "NCHW"),
        ("if (offset[k] != offset[k - 1]) {", "if (k % 2 == 0) {", (24, 9, 12), "NCHW"),
        ("if (!Operation::in_order || x % chunk == 0) {", "{", (24, 9, 300), "NCHW"),
        ("data, along, down, task.batch->chunk_width", "data, along, down, 1", (24, 9, 12), "NHWC"),
        ("min(chunk, stop - first)", "min(chunk, stop - 1 - first)", (24, 9, 12), "NHWC"),
        ("line < stop_line;", "line + 1 < stop_line;", (3, 7, 7), "NCHW"),
    ],
    ids=[
        "tile of a column",
        "start of a tile",
        "chunk of rows",
        "chunk",
        "last column",
        "last line",
    ],
)
def test_a_fault_planted_in_sums_is_found(gpu, monkeypatch, right, wrong, shape, layout):
    """Among them chunks that are not those of the plan, so that two threads add to one tile."""
    if gpu.__name__ != "shim":
        pytest.skip("a fault may end the context of a device")
    x = np.random.default_rng(1).random((1, *shape), np.float32)
    stored = gpu.asarray(np.ascontiguousarray(x.transpose(LAYOUTS[layout])))
    code = source.kernel_source()
    assert code.count(right) == 1

    def pooled():
        return to_host(rmac.region_pool(stored, layout=layout, pool="mean")).tobytes()

    expected = pooled()
    with monkeypatch.context() as patch:
        patch.setattr(source, "kernel_source", lambda: code.replace(right, wrong))
        forget_kernels()
        results = {pooled() for _ in range(3)}
        forget_kernels()
    assert results != {expected}
    assert {pooled() for _ in range(3)} == {expected}


def test_segments_that_are_not_cut_are_found(gpu, rng, monkeypatch):
    """Then several threads add to a tile, in any order."""
    if gpu.__name__ != "shim":
        pytest.skip("a device runs threads in an order of its own")
    x = gpu.asarray(random_map(rng, (1, 16, 9, 40), DTYPES["float32"]))
    expected = to_host(rmac.region_pool(x, pool="mean")).tobytes()
    monkeypatch.setattr(plan, "_LEAST_CHUNK", 64)
    for cache in (plan.region_plans, route.region_routes, launches._pooling_call):
        cache.cache.clear()
    monkeypatch.setattr(launches, "chunk_width", lambda _: 4)
    monkeypatch.setattr(route, "chunk_width", lambda _: 4)
    results = {to_host(rmac.region_pool(x, pool="mean")).tobytes() for _ in range(5)}
    monkeypatch.undo()
    for cache in (plan.region_plans, route.region_routes, launches._pooling_call):
        cache.cache.clear()
    assert results != {expected}
    assert to_host(rmac.region_pool(x, pool="mean")).tobytes() == expected


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("k < count ? values[k]", "k + 1 < count ? values[k]"),
        ("region) * groups_of(channels);", "region) * (groups_of(channels) - 1);"),
        ("i + j * WARP < n ? values", "i + WARP < n ? values"),
        ("if (i + j < count)", "if (i + j + 1 < count)"),
        ("channel < image.channels; channel", "channel + 1 < image.channels; channel"),
    ],
    ids=["last of four", "pitch of groups", "last groups", "last region", "last channel"],
)
def test_a_fault_planted_in_descriptors_is_found(gpu, rng, monkeypatch, many_images, right, wrong):
    if gpu.__name__ != "shim":
        pytest.skip("a fault may end the context of a device")
    x = gpu.asarray(random_map(rng, (2, 301, 5, 7), DTYPES["float32"]))

    def described(count):
        many_images(count)
        return to_host(rmac.rmac(x)).tobytes()

    expected, code = described(1), source.kernel_source()
    assert code.count(right) == 1
    with monkeypatch.context() as patch:
        patch.setattr(source, "kernel_source", lambda: code.replace(right, wrong))
        forget_kernels()
        results = described(1), described(1000)
        forget_kernels()
    assert expected not in results
    assert described(1) == described(1000) == expected
