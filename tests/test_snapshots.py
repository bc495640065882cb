"""What was checked is what is used: objects that change, lie or are shared do no harm."""

import numpy as np
import pytest

import rmac
from rmac import _arrays

X = np.random.default_rng(0).random((2, 16, 9, 12), dtype=np.float32)


@pytest.mark.filterwarnings("ignore:Setting the shape:DeprecationWarning")  # NumPy 2.5
@pytest.mark.parametrize("name", ["boxes", "level"])
def test_a_view_of_a_grid_whose_shape_changes_leaves_the_grid_as_it_is(name):
    grid = rmac.region_grid(9, 12)
    expected = rmac.region_pool(X)
    view = getattr(grid, name)
    before = view.shape
    view.shape = (-1, 2)
    assert getattr(grid, name).shape == before
    assert len(grid) == expected.shape[1]
    np.testing.assert_array_equal(rmac.region_pool(X), expected)


class Changing:
    """A number that has another value later, like a parameter of a network."""

    def __init__(self, value):
        self.value = value

    def __float__(self):
        return float(self.value)

    def __index__(self):
        return int(self.value)


@pytest.mark.parametrize(
    ("call", "option", "values"),
    [
        (lambda p: rmac.rmac(X, pool="gem", p=p), "p", (3.0, 1.0)),
        (lambda p: rmac.region_pool(X, pool="gem", p=p), "p", (3.0, 1.0)),
        (lambda z: rmac.rmac(X.astype("int8"), zero_point=z), "zero_point", (0, 3)),
        (lambda n: rmac.rmac(X, levels=n), "levels", (3, 2)),
        (lambda n: rmac.region_grid(9, 12, levels=n).boxes, "levels", (3, 4)),
        (lambda n: rmac.sequence_grid(12, levels=n).boxes, "levels", (3, 4)),
        (lambda n: rmac.region_grid(n, 12).boxes, "height", (9, 10)),
        (lambda n: rmac.rmac_regions(X, scales=n), "scales", (3, 4)),
        (lambda e: rmac.rmac(X, eps=e), "eps", (0.0, 1.0)),
        (lambda o: rmac.rmac(X[..., :5], overlap=o), "overlap", (0.0, 0.9)),
    ],
)
def test_an_option_that_changes_is_read_at_each_call(call, option, values):
    first, second = values
    number = Changing(first)
    np.testing.assert_array_equal(call(number), call(first), option)
    number.value = second
    np.testing.assert_array_equal(call(number), call(second), option)


def test_boxes_are_checked_in_a_copy():
    boxes = np.zeros((3, 4), np.int64)
    checked = _arrays.region_boxes(boxes, 9, 12, sequence=False)
    assert not np.shares_memory(checked, boxes)


class Lying(np.ndarray):
    """An array that tells another shape, dtype and layout than it has."""

    shape = property(lambda _self: (1, 20, 64))
    dtype = property(lambda _self: np.dtype(np.float32))
    size = property(lambda _self: 1280)
    flags = property(lambda _self: np.zeros(1).flags)


def test_what_a_subclass_tells_of_itself_is_not_asked():
    x = np.zeros((1, 64, 24, 32), np.float32)
    for out in (np.zeros((1, 1, 4), np.float32), np.zeros((1, 20, 64))):
        with pytest.raises((TypeError, ValueError), match="out: expected"):
            rmac.region_pool(x, out=out.view(Lying))
    with pytest.raises(ValueError, match=r"x: expected 4 axes .* got shape \(9, 12\)"):
        rmac.rmac(X[0, 0].view(Lying))
    np.testing.assert_array_equal(rmac.rmac(X.view(Lying)), rmac.rmac(X))


class OddGrid(rmac.RegionGrid):
    __slots__ = ()


def test_boxes_of_a_subclass_of_grids_are_checked():
    boxes, level = np.array([[0, 0, 3999, 3999]]), np.array([1])
    grid = OddGrid._of(boxes=boxes, level=level, height=9, width=12)
    with pytest.raises(ValueError, match="regions: expected 0 <= x1 <= x2 < 12"):
        rmac.region_pool(X, grid)


class Masked:
    """An object that is asked for its array."""

    def __array__(self, dtype=None, copy=None):
        return np.ma.zeros((1, 4), int)


@pytest.mark.parametrize(
    "call",
    [
        lambda masked: rmac.rmac(masked),
        lambda masked: rmac.rmac([masked[0], X[0]]),
        lambda masked: rmac.rmac_regions(masked),
        lambda masked: rmac.roi_pool(masked, np.zeros((1, 5))),
        lambda _masked: rmac.roi_pool(X, np.ma.zeros((1, 5))),
        lambda _masked: rmac.region_pool(X, np.ma.zeros((1, 4), int)),
        lambda _masked: rmac.region_pool(X, [np.zeros(4, int), np.ma.zeros(4, int)]),
        lambda _masked: rmac.region_pool(X, Masked()),
        lambda _masked: rmac.rmac(X, out=np.ma.zeros((2, 16), np.float32)),
        lambda masked: rmac.merge_scales([masked[:, :, 0, 0], masked[:, :, 1, 1]]),
        lambda masked: rmac.merge_scales(masked[:, :, :, 0]),
        lambda masked: rmac.branch_pool(masked, [X[:, :, :1, :1]], [None]),
        lambda masked: rmac.branch_pool(X, [masked[:, :, :1, :1]], [None]),
        lambda masked: rmac.Whitening().fit(masked[:, :, 0, 0]),
    ],
)
def test_masked_arrays_are_refused_everywhere(call):
    with pytest.raises(TypeError, match="expected an array without a mask, got a MaskedArray"):
        call(np.ma.masked_greater(X, 0.5))


@pytest.mark.parametrize(
    "value",
    ["x" * 300_000, 10**300_000, list(range(100_000))],
    ids=["text", "integer", "list"],
)
@pytest.mark.parametrize(
    "option", ["pool", "p", "zero_point", "levels", "overlap", "preset", "layout", "workers"]
)
def test_errors_are_short(option, value):
    with pytest.raises((TypeError, ValueError), match=f"^{option}: expected") as raised:
        rmac.rmac(X, **{option: value})
    assert len(str(raised.value)) < 300
