"""Pictures of grids: every region where it belongs, told apart, numbered and named."""

import itertools
import re
import sys
from math import dist

import numpy as np
import pytest

import rmac

mpl = pytest.importorskip("matplotlib")
mpl.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def outlines(ax):
    """x1, y1, x2, y2 of what is drawn for each region, in data coordinates."""
    paths = (patch.get_path().get_extents(patch.get_patch_transform()) for patch in ax.patches)
    return np.array([path.extents for path in paths])


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


IMAGES = [None, np.zeros((90, 120)), np.zeros((60, 50, 3), np.uint8)]


@pytest.mark.parametrize("image", IMAGES, ids=["cells", "grey", "colour"])
@pytest.mark.parametrize("preset", ["caffe2", "cirtorch"])
def test_regions_of_a_map_are_drawn_inside_their_edges(image, preset):
    grid = rmac.region_grid(24, 32, preset=preset)
    ax = grid.plot(image)
    height, width = (24, 32) if image is None else image.shape[:2]
    assert ax.get_xlim() == (0, width)
    assert ax.get_ylim() == (height, 0)
    drawn, boxes = outlines(ax), grid.to_image(height, width)
    assert drawn.shape == boxes.shape
    inset = (drawn - boxes) * [1, 1, -1, -1]
    assert (inset > 0).all()
    assert (inset < 0.1 * min(height, width)).all()
    for i, j in itertools.combinations(range(len(grid)), 2):
        overlap = np.minimum(boxes[i, 2:], boxes[j, 2:]) - np.maximum(boxes[i, :2], boxes[j, :2])
        if overlap.min() > 0:
            coincide = boxes[i] == boxes[j]
            assert (np.abs(drawn[i] - drawn[j])[coincide] > 0.005 * min(height, width)).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 32), (7, 7), (40, 20)])
def test_windows_never_vanish(size):
    grid = rmac.region_grid(*size, levels=6)
    drawn = outlines(grid.plot())
    sides = grid.boxes[:, 2:] - grid.boxes[:, :2] + 1
    assert (drawn[:, 2:] - drawn[:, :2] > 0.5 * sides).all()


def test_levels_have_their_own_colours_and_neighbours_their_own_shade():
    grid = rmac.region_grid(24, 32, preset="cirtorch")
    ax = grid.plot()
    assert legend(ax) == [
        "whole map",
        "level 1: 2 windows of 24×24",
        "level 2: 6 windows of 16×16",
        "level 3: 12 windows of 12×12",
    ]
    colours = [patch.get_edgecolor() for patch in ax.patches]
    of_level = [{colours[i] for i in np.flatnonzero(grid.level == level)} for level in range(4)]
    assert [len(shades) for shades in of_level] == [1, 2, 2, 2]
    assert len(set.union(*of_level)) == 7
    for i, j in itertools.combinations(np.flatnonzero(grid.level == 3), 2):
        apart = np.abs(grid.boxes[i] - grid.boxes[j])[:2]
        if apart.min() == 0 and apart.max() <= 7:  # next to each other in a row or column
            assert colours[i] != colours[j]
    handles = ax.get_legend().legend_handles
    assert [handle.get_edgecolor() for handle in handles] == [colours[i] for i in (0, 1, 3, 9)]


@pytest.mark.parametrize("size", [(24, 32), (13, 20), (40, 20), (19, 16), (7, 7)])
def test_numbers_are_at_corners_of_their_windows_and_apart(size):
    grid = rmac.region_grid(*size)
    ax = grid.plot()
    assert [text.get_text() for text in ax.texts] == [str(i) for i in range(len(grid))]
    places = [text.get_position() for text in ax.texts]
    for place, (x1, y1, x2, y2) in zip(places, outlines(ax), strict=True):
        assert min(dist(place, corner) for corner in itertools.product((x1, x2), (y1, y2))) < 1e-6
    nearest = min(dist(a, b) for a, b in itertools.combinations(places, 2))
    assert nearest > 0.035 * max(size)


def test_too_many_numbers_are_left_out():
    assert not rmac.region_grid(24, 32, levels=4).plot().texts


def test_regions_of_a_sequence_are_bars():
    grid = rmac.sequence_grid(50, preset="cirtorch")
    for image, scale in ((None, 1), (np.zeros((8, 100)), 2)):
        ax = grid.plot(image)
        drawn = outlines(ax)
        np.testing.assert_allclose(drawn[:, 0], scale * grid.boxes[:, 0])
        np.testing.assert_allclose(drawn[:, 2], scale * (grid.boxes[:, 2] + 1))
        np.testing.assert_allclose(drawn[:, 1::2].mean(axis=1), range(7))
        assert (drawn[1:, 1] > drawn[:-1, 3]).all()
        assert ax.get_xlim() == (0, 50 * scale)
        assert ax.get_ylim() == (6.5, -0.5)
        assert legend(ax) == [
            "whole sequence",
            "level 1: 1 window of 50",
            "level 2: 2 windows of 33",
            "level 3: 3 windows of 25",
        ]


def test_axes_are_the_users_or_new():
    _, ax = plt.subplots()
    assert rmac.region_grid(5, 6).plot(ax=ax) is ax
    assert rmac.region_grid(5, 6).plot().figure is not ax.figure


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"image": np.zeros(5)}, ValueError, "image: expected shape .*, got (5,)"),
        ({"image": np.zeros((3, 24, 32))}, ValueError, "image: expected shape .*, got (3, 24, 32)"),
        ({"image": np.zeros((0, 0))}, ValueError, "image: expected shape .*, got (0, 0)"),
        ({"image": "cat.jpg"}, ValueError, "image: expected shape .*, got ()"),
        ({"image": [["a"]]}, TypeError, "image: expected real numbers, got str32"),
        ({"image": [[1], [1, 2]]}, TypeError, "image: expected an array on the host, got "),
        ({"ax": 3}, TypeError, "ax: expected a matplotlib.axes.Axes, got int"),
    ],
)
def test_errors_leave_no_figure(arguments, error, message):
    parts = map(re.escape, message.split(".*"))
    with pytest.raises(error, match="^" + ".*".join(parts)):
        rmac.region_grid(5, 6).plot(**arguments)
    assert not plt.get_fignums()


@pytest.mark.parametrize("size", [(3, 100), (100, 3)])
def test_thin_maps_have_room(size):
    ax = rmac.region_grid(*size).plot()
    ax.figure.canvas.draw()
    room = ax.get_window_extent()
    assert min(room.width, room.height) > 100


def test_the_whole_map_has_a_colour_of_its_own():
    grid = rmac.region_grid(24, 32, levels=8, preset="cirtorch")
    colours = [patch.get_edgecolor() for patch in grid.plot().patches]
    assert colours.count(colours[0]) == 1


def test_everything_fits_the_figure():
    for grid in (rmac.region_grid(24, 32), rmac.region_grid(40, 20), rmac.sequence_grid(50)):
        figure = grid.plot().figure
        figure.canvas.draw()
        tight = figure.get_tightbbox()
        assert tight.x0 >= 0
        assert tight.y0 >= 0
        assert tight.x1 <= figure.get_figwidth()
        assert tight.y1 <= figure.get_figheight()


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"RegionGrid\.plot needs matplotlib: pip"):
        rmac.region_grid(5, 6).plot()
