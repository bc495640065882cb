"""Sizes that overflow: maps without memory, of stride 0 and up to 2**62 cells wide."""

from types import SimpleNamespace

import numpy as np
import pytest

import rmac
from rmac._options import POOLS, PRESETS
from rmac.cpu import plan
from rmac.cuda import launches


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


@pytest.mark.parametrize("axis", ["channels", "rows", "columns"])
def test_the_gpu_refuses_sides_beyond_int(axis):
    shape = [1, 1, 1, 1]
    shape[("images", "channels", "rows", "columns").index(axis)] = 2**31
    with pytest.raises(ValueError, match=rf"^x: expected fewer than 2\*\*31 {axis} on the GPU"):
        launches._require_32_bits(SimpleNamespace(shape=tuple(shape)))


def test_the_gpu_describes_more_images_than_one_launch_has_blocks(monkeypatch):
    monkeypatch.setattr(launches, "MOST_BLOCKS", 3)
    options = rmac._options.aggregation_options(True, "sum", True, 0.0)
    found = [
        (int(launch["first_image"]), images)
        for launch, images in launches._describe_launches((8, 5, 4), [5], options)
    ]
    assert found == [(0, 3), (3, 3), (6, 2)]
