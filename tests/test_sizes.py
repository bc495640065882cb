"""Sizes that overflow: maps without memory, of stride 0 and up to 2**62 cells wide."""

import re

import numpy as np
import pytest
from helpers import peak_memory

import rmac
from rmac._options import POOLS, PRESETS
from rmac.cpu import plan, rois
from rmac.cuda import launches
from rmac.cuda.structs import DESCRIBE_LAUNCH

TRUTH = {"easy": [1], "hard": [], "junk": []}


def wide(*shape, dtype="f4"):
    return np.broadcast_to(np.ones((), dtype), shape)


@pytest.mark.parametrize("exponent", [40, 45, 57, 59, 60])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("dtype", ["u1", "f2", "f4"])
def test_a_workspace_beyond_all_memory_is_an_error(exponent, pool, dtype):
    x = wide(1, 1, 1, 2**exponent, dtype=dtype)
    with pytest.raises(MemoryError, match=r"^x: maps of this shape need [0-9]+ bytes of workspace"):
        rmac.region_pool(x, [[0, 0, 0, 0]], pool=pool)


def test_rows_of_endless_maps_are_pooled():
    x = wide(1, 1, 2**60, 1)
    assert rmac.region_pool(x, [[0, 2**59, 0, 2**59 + 3]]).tolist() == [[[1]]]


def test_intervals_are_exact_beyond_the_integers_of_float64():
    starts, stops = np.array([2**53, 2**53 + 1, 2**53, 5]), np.array([2**60 + 1, 2**60, 2**60, 6])
    intervals, which = plan._unique_intervals(starts, stops)
    assert intervals[which].tolist() == np.stack([starts, stops], axis=1).tolist()
    assert len(intervals) == 4
    assert intervals.tolist() == sorted(intervals.tolist())


def test_a_roi_far_out_on_an_endless_map_is_pooled():
    x = wide(1, 1, 2**60, 1)
    rois = np.array([[0, 0, 2**50, 0, 2**50]])
    assert rmac.roi_pool(x, rois).tolist() == [[[[1]]]]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_grid_of_too_many_regions_is_an_error(preset):
    with pytest.raises(ValueError, match=r"^levels: expected a grid of at most 16777216 regions"):
        rmac.region_grid(2**20, 2**21, levels=2**31 - 1, preset=preset)
    with pytest.raises(ValueError, match=r"^levels: expected a grid of at most 16777216 regions"):
        rmac.sequence_grid(2**20, levels=6000, preset=preset)
    assert len(rmac.sequence_grid(2**20, levels=100, preset="caffe2")) == 5050
    assert len(rmac.region_grid(3, 3, levels=2**31 - 1)) == 55


def test_no_rois_need_no_bins():
    assert rmac.roi_pool(wide(1, 0, 4, 4), np.zeros((3, 5)), output_size=2**20).size == 0


BOX, ROI = [[0, 0, 0, 0]], np.zeros((3, 5))
WHITENING = rmac.Whitening.from_projection(np.zeros(2), np.ones((2, 2)))
BEYOND_MEMORY = {
    "rmac_regions": ("x", lambda: rmac.rmac_regions(wide(2**60, 1, 1, 1))),
    "rmac_regions of levels": (
        "x",
        lambda: rmac.rmac_regions(wide(2**50, 1, 30, 30, dtype="u1"), scales=40),
    ),
    "region_pool": ("x", lambda: rmac.region_pool(wide(2**60, 1, 1, 1), BOX)),
    "region_pool of boxes": (
        "x",
        lambda: rmac.region_pool(wide(2**62, 1, 1, 1, dtype="u1"), BOX * 4),
    ),
    "region_pool of a list": (
        "x",
        lambda: rmac.region_pool([wide(2**59, 9, 1, dtype="u1")] * 2, pool="mean"),
    ),
    "roi_pool": ("x", lambda: rmac.roi_pool(wide(1, 4, 4, 4), ROI, output_size=2**31 - 1)),
    "roi_pool of many": ("x", lambda: rmac.roi_pool(wide(1, 4, 4, 4), wide(2**58, 5))),
    "roi_pool of channels": ("x", lambda: rmac.roi_pool(wide(1, 2**60, 4, 1, dtype="u1"), ROI)),
    "rmac": ("x", lambda: rmac.rmac(wide(2**62, 1, 1, 1, dtype="u1"))),
    "rmac of a list": ("x", lambda: rmac.rmac([wide(2**62, 1, 1, dtype="u1")] * 2)),
    "rmac of regions": (
        "x",
        lambda: rmac.rmac(wide(2**40, 2**10, 9, 9, dtype="u1"), aggregate="none"),
    ),
    "rmac of all regions": (
        "x",
        lambda: rmac.rmac(wide(1, 2**59, 9, 1, dtype="u1"), aggregate="concat"),
    ),
    "rmac whitened": (
        "x",
        lambda: rmac.rmac(wide(2**61, 2, 1, 1, dtype="u1"), whitening=WHITENING),
    ),
    "Whitening.apply": ("vectors", lambda: WHITENING.apply(wide(2**61, 2, dtype="u1"))),
    "Whitening.fit": ("vectors", lambda: rmac.Whitening().fit(wide(3, 2**60, dtype="u1"))),
    "merge_scales": ("descriptors", lambda: rmac.merge_scales(wide(2, 2**60, 2, dtype="u1"))),
    "branch_pool": (
        "x",
        lambda: rmac.branch_pool(wide(2**60, 1, 1, 1), [np.ones((1, 1, 1, 1), "f4")], [None]),
    ),
    "quantize": ("x", lambda: rmac.quantize(wide(2**62, dtype="u1"))),
    "expand": (
        "queries",
        lambda: rmac.expand(
            wide(1, 2**60, dtype="u1"), wide(3, 2**60, dtype="u1"), np.zeros((1, 1), int)
        ),
    ),
    "average_precision": (
        "ranks",
        lambda: rmac.average_precision(wide(1, 2**60, dtype="i1"), [[1]]),
    ),
    "localize": ("x", lambda: rmac.localize(wide(1, 2**58, 2, 2), wide(2**58))),
    "rerank": ("x", lambda: rmac.rerank(wide(2**60), wide(1, 2**60, 1, 1), BOX)),
}


@pytest.mark.parametrize("call", BEYOND_MEMORY)
def test_a_result_beyond_all_memory_names_the_argument(call):
    argument, function = BEYOND_MEMORY[call]
    with pytest.raises(MemoryError, match=f"^{argument}: "):
        function()


def test_many_bins_take_little_memory(monkeypatch):
    monkeypatch.setattr(rois, "_BLOCK", 1 << 12)
    x = wide(1, 1, 4, 4, dtype="u1")
    assert peak_memory(lambda: rmac.roi_pool(x, ROI[:1], output_size=1000)) < 6_000_000
    assert peak_memory(lambda: rmac.roi_pool(x, ROI[:1], output_size=(1, 1 << 20))) < 6_000_000


@pytest.mark.parametrize("block", [1, 2, 5, 6, 7, 24, 100, 1000])
def test_bins_do_not_depend_on_how_many_are_pooled_at_a_time(rng, monkeypatch, block):
    x = rng.random((3, 5, 9, 12), dtype=np.float32)
    corners = rng.random((20, 2, 2)) * (16, 12) - 2
    some = np.concatenate([rng.integers(0, 3, (20, 1)), np.sort(corners, 1).reshape(20, 4)], 1)
    expected = rmac.roi_pool(x, some, output_size=(4, 6))
    monkeypatch.setattr(rois, "_BLOCK", block)
    np.testing.assert_array_equal(rmac.roi_pool(x, some, output_size=(4, 6)), expected)


@pytest.mark.parametrize("axis", ["channels", "rows", "columns"])
def test_the_gpu_refuses_sides_beyond_int(axis):
    shape = [1, 1, 1, 1]
    place = ("images", "channels", "rows", "columns").index(axis)
    shape[place] = 2**31 - 8192
    launches.require_32_bits(tuple(shape))
    shape[place] += 1
    with pytest.raises(ValueError, match=rf"^x: expected at most {2**31 - 8192} {axis} on the GPU"):
        launches.require_32_bits(tuple(shape))


def test_the_gpu_describes_more_images_than_one_launch_has_blocks(monkeypatch):
    monkeypatch.setattr(launches, "MOST_BLOCKS", 3)
    options = rmac._options.aggregation_options(True, "sum", True, 0.0)
    call = launches._description_call.__wrapped__((8, 5, 4), 4, options)
    found = [
        (int(launch.words[:-1].view(DESCRIBE_LAUNCH)["first_image"][0]), *launch.grid)
        for launch in call.launches
    ]
    assert found == [(0, 3), (3, 3), (6, 2)]


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("at", lambda many: rmac.evaluate([[1]], [TRUTH], at=many)),
        ("ranks", lambda many: rmac.average_precision([many], [[1]])),
        ("positives[0]", lambda many: rmac.average_precision([[1]], [many])),
        ("regions", lambda many: rmac.region_pool(np.ones((1, 2, 3, 4)), many)),
    ],
)
@pytest.mark.parametrize("count", [10**10, 2**62, 10**30])
def test_a_range_of_very_many_numbers_is_refused(name, call, count):
    with pytest.raises((TypeError, ValueError), match=re.escape(f"{name}: expected")):
        call(range(1, count))
