"""The grid's own properties; its agreement with other implementations is in test_recorded.py."""

import copy
import itertools
import pickle
import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
from helpers import GRID_OPTIONS, raises_line
from hypothesis import given

import rmac
from rmac import _windows, regions

SIZE = st.integers(1, 120)


@given(height=SIZE, width=SIZE, options=GRID_OPTIONS)
def test_every_window_is_a_square_inside_the_map(height, width, options):
    grid = rmac.region_grid(height, width, **options)
    windows = grid.boxes[grid.level > 0]
    sides = 2 * min(height, width) // (grid.level[grid.level > 0] + 1)
    np.testing.assert_array_equal(windows[:, 2] - windows[:, 0] + 1, sides)
    np.testing.assert_array_equal(windows[:, 3] - windows[:, 1] + 1, sides)
    assert (grid.boxes[:, :2] >= 0).all()
    assert (grid.boxes[:, 2:] < (width, height)).all()


@given(height=SIZE, width=SIZE, options=GRID_OPTIONS)
def test_windows_of_a_level_span_the_map(height, width, options):
    """From edge to edge, or a cell less at the far one where the arithmetic rounds down."""
    grid = rmac.region_grid(height, width, **options)
    for level in range(2, options["levels"] + 1):
        windows = grid.boxes[grid.level == level]
        if len(windows):
            assert (windows.min(axis=0)[:2] == 0).all()
            assert (windows.max(axis=0)[2:] >= (width - 2, height - 2)).all()
            extra = len(windows) // level - level
            assert extra == 0 if height == width else 1 <= extra <= 6


@pytest.mark.parametrize("preset", regions.PRESETS)
def test_the_whole_map_comes_first_or_not_at_all(preset):
    grid = rmac.region_grid(5, 9, preset=preset)
    has_whole_map = regions.PRESETS[preset].whole_map
    assert (grid.level == 0).sum() == has_whole_map
    assert (grid.level[0] == 0) == has_whole_map
    assert (grid.boxes[0].tolist() == [0, 0, 8, 4]) == has_whole_map


def test_cirtorch_alone_has_the_whole_map():
    """As the documentation of RegionGrid says."""
    assert [name for name, rules in regions.PRESETS.items() if rules.whole_map] == ["cirtorch"]


def test_order_within_a_level():
    caffe2 = rmac.region_grid(24, 32)
    matlab = rmac.region_grid(24, 32, preset="matlab")
    assert caffe2.boxes[2:5, :2].tolist() == [[0, 0], [0, 8], [8, 0]]
    assert matlab.boxes[2:5, :2].tolist() == [[0, 0], [8, 0], [16, 0]]


def test_matlab_rounds_at_the_centre_of_a_window():
    """Where that makes a difference, which the recorded sizes are too small for."""
    grid = rmac.region_grid(15, 71, preset="matlab")
    starts = np.unique(grid.boxes[grid.level == 2][:, 0])
    stride, centre = 61 / 7, 4
    assert starts.tolist() == [int(centre + i * stride) - centre for i in range(8)]
    assert starts.tolist() != [int(i * stride) for i in range(8)]


def test_attributes_and_repr():
    grid = rmac.region_grid(24, 32, levels=2, overlap=0.3)
    assert (grid.height, grid.width, grid.levels, grid.overlap) == (24, 32, 2, 0.3)
    assert grid.preset == "caffe2"
    assert len(grid) == len(grid.boxes) == len(grid.level) == 8
    assert grid.boxes.dtype == grid.level.dtype == np.int64
    assert repr(grid) == (
        "<RegionGrid: 8 regions on 24x32 cells, levels=2, overlap=0.3, preset='caffe2'>"
    )


def test_grids_are_immutable_and_shared():
    grid = rmac.region_grid(6, 9)
    assert rmac.region_grid(np.int32(6), np.uint8(9), overlap=np.float64(0.4)) == grid
    assert rmac.region_grid(6, 9) is rmac.region_grid(6, 9)
    with pytest.raises(AttributeError, match="immutable"):
        grid.boxes = None
    with pytest.raises(AttributeError, match="immutable"):
        del grid.boxes
    for array in (grid.boxes, grid.level):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        with pytest.raises(ValueError, match="cannot set WRITEABLE"):
            array.flags.writeable = True
    with pytest.raises(TypeError, match=r"made by rmac\.region_grid"):
        rmac.RegionGrid()


def test_grids_are_equal_if_made_alike():
    grid = rmac.region_grid(6, 9)
    again = pickle.loads(pickle.dumps(grid))
    assert grid == again
    assert hash(grid) == hash(again)
    assert grid != rmac.region_grid(6, 9, levels=2)
    assert grid != grid.boxes.tolist()


def test_grids_survive_pickle_and_copy():
    grid = rmac.region_grid(6, 9, levels=2, preset="matlab")
    for other in (pickle.loads(pickle.dumps(grid)), copy.deepcopy(grid)):
        assert repr(other) == repr(grid)
        np.testing.assert_array_equal(other.boxes, grid.boxes)


def test_coverage():
    assert rmac.region_grid(24, 32).coverage == 1
    assert rmac.region_grid(2, 32).coverage == 48 / 64
    assert rmac.region_grid(2, 32, preset="cirtorch").coverage == 1
    assert rmac.region_grid(10**8, 10**9).coverage < 1


@given(height=st.integers(1, 60), width=st.integers(1, 60), options=GRID_OPTIONS)
def test_coverage_counts_cells(height, width, options):
    grid = rmac.region_grid(height, width, **options)
    covered = np.zeros((height, width), bool)
    for x1, y1, x2, y2 in grid.boxes:
        covered[y1 : y2 + 1, x1 : x2 + 1] = True
    assert grid.coverage == covered.sum() / (height * width)


def test_gaps_are_warned_of_once(monkeypatch):
    monkeypatch.setattr(_windows, "_warned_of_gaps", False)
    x = np.ones((1, 1, 3, 997), np.float32)  # of a size that no other test makes a grid of
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rmac.region_grid(19, 31)
        rmac.sequence_grid(997)
        assert not caught
        for length in (997, 997, 991):
            rmac.rmac(x[..., :length])
    (warning,) = caught
    assert warning.category is UserWarning
    assert warning.filename == __file__
    gaps = 2991 - round(2991 * rmac.region_grid(3, 997).coverage)
    assert str(warning.message).startswith(f"{gaps} of the 2991 cells of a 3x997 map are in no ")
    assert "preset='cirtorch'" in str(warning.message)


def test_code_without_the_name_of_a_module_is_warned(monkeypatch):
    monkeypatch.setattr(_windows, "_warned_of_gaps", False)
    with pytest.warns(UserWarning, match="in no R-MAC region"):
        exec("make(3, 983, 3, 0.4, 'caffe2')", {"make": regions.make_grid})


@pytest.mark.parametrize("overlap", [0.0, 0.4, 0.9])
@pytest.mark.parametrize("preset", regions.PRESETS)
def test_every_grid_with_gaps_is_warned_of(monkeypatch, overlap, preset):
    for height, width in itertools.product(range(1, 9), [*range(1, 70), 500]):
        monkeypatch.setattr(_windows, "_warned_of_gaps", False)
        _windows.cached_windows.cache.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            grid = regions.make_grid(height, width, 2, overlap, preset)
        assert _windows._warned_of_gaps == (grid.coverage < 1)


@pytest.mark.parametrize("preset", _windows.PRESETS)
def test_regions_lie_on_maps_whose_size_float32_rounds(preset):
    """Beyond 2**24 cells, the last start rounds to one outside; this size is an example."""
    height, width = 101_774_078, 305_322_234
    boxes = rmac.region_grid(height, width, preset=preset).boxes
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] < (width, height)).all()


def test_maps_too_large_for_a_grid():
    side = 1 << 31
    high, long = np.broadcast_to(np.uint8(0), (1, 1, side, 1)), np.broadcast_to(0.0, (1, side, 1))
    for run in (rmac.rmac, rmac.region_pool):
        with pytest.raises(ValueError, match=r"^height: expected an integer less than 2\*\*31"):
            run(high)
        with pytest.raises(ValueError, match=r"^width: expected an integer less than 2\*\*31"):
            run(long, layout="NTC")


def test_to_image():
    grid = rmac.region_grid(24, 32, preset="cirtorch")
    boxes = grid.to_image(384, 512)
    assert boxes.dtype == np.float64
    np.testing.assert_array_equal(boxes[0], [0, 0, 512, 384])
    np.testing.assert_array_equal(boxes[1], [0, 0, 384, 384])
    np.testing.assert_array_equal(
        boxes[:, 2] - boxes[:, 0], 16 * (np.diff(grid.boxes[:, ::2])[:, 0] + 1)
    )
    for size in (0, -1, np.inf, np.nan):
        with pytest.raises(ValueError, match="image_width: expected"):
            grid.to_image(384, size)


def test_to_image_scales_each_axis_by_its_own_factor():
    """Cells of 30 x 10 pixels: two windows of 4 x 4 cells, the second at column 2."""
    grid = rmac.region_grid(4, 6, levels=1)
    np.testing.assert_array_equal(grid.boxes, [[0, 0, 3, 3], [2, 0, 5, 3]])
    boxes = grid.to_image(image_height=40, image_width=180)
    np.testing.assert_array_equal(boxes, [[0, 0, 120, 40], [60, 0, 180, 40]])
    np.testing.assert_array_equal(grid.to_image(40, 180), boxes)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"height": 0}, ValueError, "height: expected an integer of at least 1, got 0"),
        ({"width": -3}, ValueError, "width: expected an integer of at least 1, got -3"),
        ({"width": 2**70}, ValueError, "width: expected an integer less than 2**31"),
        ({"width": 3.0}, TypeError, "width: expected an integer, got float"),
        ({"levels": 0}, ValueError, "levels: expected an integer of at least 1, got 0"),
        ({"levels": "3"}, TypeError, "levels: expected an integer, got str"),
        ({"levels": True}, TypeError, "levels: expected an integer, got True"),
        ({"overlap": 2}, ValueError, "overlap: expected a number with 0 <= overlap < 1, got 2"),
        ({"overlap": -0.1}, ValueError, "overlap: expected a number with 0 <= overlap < 1"),
        ({"overlap": float("nan")}, ValueError, "overlap: expected a number with 0 <="),
        ({"overlap": "0.4"}, TypeError, "overlap: expected a number, got '0.4'"),
        (
            {"overlap": None},
            TypeError,
            "overlap: expected a number with 0 <= overlap < 1, got NoneType",
        ),
        ({"preset": "vissl"}, ValueError, "preset: expected one of 'caffe2', 'matlab', 'cirtorch'"),
        ({"preset": 3}, TypeError, "preset: expected a string, got int"),
    ],
)
def test_errors(change, error, message):
    with raises_line(error, message):
        rmac.region_grid(**{"height": 7, "width": 7, **change})
