"""What was checked is what is used: objects that change, lie or are shared do no harm."""

import copy
import pickle

import numpy as np
import pytest
from helpers import VECTORS

import rmac
from rmac import _arrays
from rmac.cpu import rois, tables

X = np.random.default_rng(0).random((2, 16, 9, 12), dtype=np.float32)
WHITENING = rmac.Whitening(4).fit(np.random.default_rng(1).random((40, 16)))


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


@pytest.mark.parametrize(
    ("option", "value", "equal"),
    [("levels", 2, 2.0), ("levels", 1, True), ("workers", 1, True), ("zero_point", 0, False)],
)
@pytest.mark.parametrize("call", [rmac.rmac, rmac.region_pool])
def test_options_that_equal_others_are_checked(call, option, value, equal):
    """Also after a call with the others, whose checks are cached."""
    call(X, **{option: value})
    with pytest.raises(TypeError, match=f"^{option}: expected an integer"):
        call(X, **{option: equal})


def test_boxes_are_checked_in_a_copy():
    boxes = np.zeros((3, 4), np.int64)
    read = _arrays._regions_read_once(boxes, sequence=False)
    boxes[:] = 100
    assert read.numbers == bytes(boxes.nbytes)


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


FORCED = {
    "other boxes": ("_boxes", np.array([[0, 0, 3999, 3999]] * 20)),
    "boxes outside": ("_boxes", np.array([[-5, 0, 3, 3]])),
    "boxes of another shape": ("_boxes", np.zeros(7, np.int64)),
    "boxes of another dtype": ("_boxes", np.zeros((20, 4), np.int32)),
    "no array": ("_boxes", [[0, 0, 1, 1]]),
    "another height": ("height", 4000),
    "another width": ("width", "12"),
}


@pytest.mark.parametrize("case", FORCED)
def test_a_grid_that_was_changed_by_force_is_refused(case):
    """And what is laid over maps by default stays as it was."""
    expected = rmac.region_pool(X, preset="matlab")
    grid = pickle.loads(pickle.dumps(rmac.region_grid(9, 12, preset="matlab")))
    shared = rmac.region_grid(9, 12, preset="matlab")
    for one in (grid, shared):
        before = getattr(one, FORCED[case][0])
        object.__setattr__(one, *FORCED[case])
        with pytest.raises((TypeError, ValueError), match="regions: expected "):
            rmac.region_pool(X, one)
        with pytest.raises((TypeError, ValueError), match="regions: expected "):
            rmac.rmac(X, regions=one)
        np.testing.assert_array_equal(rmac.region_pool(X, preset="matlab"), expected)
        object.__setattr__(one, FORCED[case][0], before)


@pytest.mark.parametrize(
    "call",
    [
        lambda x, regions: rmac.rmac(x, regions=regions),
        lambda x, regions: rmac.rmac(x, regions=regions, whitening=WHITENING),
        rmac.region_pool,
    ],
)
def test_regions_are_read_once_for_all_maps(call):
    class Boxes:
        reads = 0

        def __array__(self, dtype=None, copy=None):
            self.reads += 1
            return np.array([[0, 0, 4, 4]] * (self.reads % 2), np.int64).reshape(-1, 4)

    boxes = Boxes()
    found = call([X[0], X[0], X[0]], boxes)
    assert boxes.reads == 1
    np.testing.assert_array_equal(found, call([X[0]] * 3, [[0, 0, 4, 4]]))


@pytest.mark.filterwarnings("ignore:Setting the shape:DeprecationWarning")  # NumPy 2.5
def test_the_memory_of_a_grid_in_another_shape_is_refused():
    grid = pickle.loads(pickle.dumps(rmac.region_grid(9, 12)))
    grid._boxes.shape = (-1, 2)
    np.testing.assert_array_equal(rmac.region_pool(X, grid), rmac.region_pool(X))


@pytest.mark.filterwarnings("ignore:Setting the shape:DeprecationWarning")  # NumPy 2.5
@pytest.mark.parametrize("aggregate", ["sum", "concat"])
def test_a_projection_in_another_shape_writes_nowhere_else(aggregate):
    x = np.ones((2, 6, 9, 12), np.float64)
    whitening = rmac.Whitening(3).fit(VECTORS)
    whitening.projection.base.shape = (6, 3)
    with pytest.raises(ValueError, match="matmul"):
        rmac.rmac(x, whitening=whitening, aggregate=aggregate)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_out_whose_elements_share_memory_is_refused(axis):
    shape = [2, 20, 16]
    strides = list(np.zeros(shape, np.float32).strides)
    strides[axis] = 0
    out = np.lib.stride_tricks.as_strided(np.zeros(1000, np.float32), shape, strides)
    with pytest.raises(ValueError, match="out: expected an array whose elements do not share"):
        rmac.region_pool(X, out=out)


@pytest.mark.parametrize("strides", [(16, 4), (-16, 4), (34, 2), (4, 4), (16, 8), (32, 3)])
def test_an_out_whose_rows_overlap_is_refused(strides):
    memory = np.zeros(4000, np.uint8)[2000:]
    out = np.ndarray((2, 8), np.float32, memory.base, 2000, strides)
    vectors = np.ascontiguousarray(X[:, :8])
    with pytest.raises(ValueError, match="out: expected an array whose elements do not share"):
        rmac.rmac(vectors, out=out)
    assert not memory.any()


@pytest.mark.parametrize("strides", [(4, 8), (12, 8), (-4, 8), (8, -16), (36, 4), (4, 9)])
def test_an_out_whose_elements_lie_between_one_another_is_filled(strides):
    memory = np.zeros(4000, np.uint8)
    out = np.ndarray((2, 8), np.float32, memory, 2000, strides)
    vectors = np.ascontiguousarray(X[:, :8])
    np.testing.assert_array_equal(rmac.rmac(vectors, out=out), rmac.rmac(vectors))


def test_rois_are_checked_in_a_copy(monkeypatch):
    given, floor = np.zeros((3, 5)), np.floor

    def floor_of_changed(values):
        given[:] = 1e9
        return floor(values)

    monkeypatch.setattr(np, "floor", floor_of_changed)
    index, _ = rois.check_rois(given, 2)
    assert given[0, 0] == 1e9
    assert index.tolist() == [0, 0, 0]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_aspects_are_as_many_as_queries_whatever_their_list_says(count):
    class Odd(list):
        def __len__(self):
            return 3

        def __iter__(self):
            return iter([1.0])

    aspects = Odd([1.0] * count)
    if count < 3:
        with pytest.raises(TypeError, match="aspect: expected 3 numbers"):
            rmac.localize(X, X[0, :, 0, :3].T, aspect=aspects)
    else:
        result = rmac.localize(X, X[0, :, 0, :3].T, aspect=aspects)
        np.testing.assert_array_equal(
            result.boxes, rmac.localize(X, X[0, :, 0, :3].T, aspect=1).boxes
        )


class WithoutInit(rmac.Whitening):
    def __init__(self):
        pass


@pytest.mark.parametrize("kind", [rmac.Whitening, WithoutInit])
@pytest.mark.parametrize(
    "use",
    [
        repr,
        copy.copy,
        lambda w: w.fit(VECTORS),
        lambda w: w.partial_fit(VECTORS),
        lambda w: w.apply(VECTORS),
        lambda w: w.merge(rmac.Whitening()),
        lambda w: rmac.Whitening().merge(w),
        lambda w: w.save("/nonexistent/w.npz"),
        lambda w: w.to_cupy(),
        lambda w: w.set_params(dim=3),
        lambda w: w.dim,
        lambda w: rmac.rmac(X, whitening=w),
        lambda w: rmac.rerank(np.ones(16), X, [[0, 0, 1, 1]] * 2, whitening=w),
    ],
)
def test_a_whitening_that_was_never_made_says_so(kind, use):
    whitening = object.__new__(kind)
    with pytest.raises(
        TypeError, match=r"Whitening\(\) or its class methods made, got one without"
    ):
        use(whitening)
    assert not hasattr(whitening, "nonsense")


@pytest.mark.parametrize(
    "use",
    [
        len,
        repr,
        hash,
        pickle.dumps,
        lambda grid: grid == rmac.region_grid(9, 12),
        lambda grid: rmac.region_grid(9, 12) == grid,
        lambda grid: grid.boxes,
        lambda grid: grid.coverage,
        lambda grid: grid.to_image(90, 120),
    ],
)
def test_a_grid_that_was_never_made_says_so(use):
    grid = object.__new__(rmac.RegionGrid)
    with pytest.raises(TypeError, match="RegionGrid: expected one that region_grid or"):
        use(grid)
    with pytest.raises(TypeError, match="regions: expected a RegionGrid"):
        rmac.region_pool(X, grid)
    assert not hasattr(grid, "nonsense")


@pytest.mark.parametrize("name", ["Plan", "Route", "KernelSpec"])
def test_what_kernels_read_is_never_half_made(name):
    kind = getattr(tables, name)
    with pytest.raises(TypeError, match="argument"):
        kind.__new__(kind)


class Masked:
    """An object that is asked for its array."""

    def __array__(self, dtype=None, copy=None):
        return np.ma.zeros((1, 4), int)


NUMBER = np.ma.array(1)
TRUTH = {"easy": [1], "hard": [], "junk": []}
BOXES = [[0, 0, 1, 1]] * 2


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
        lambda _masked: rmac.region_pool(X, [[NUMBER, 0, 1, 1]]),
        lambda _masked: rmac.region_pool(X, [Masked()]),
        lambda _masked: rmac.rerank(X[0, :, 0, 0], X, [[NUMBER, 0, 1, 1], BOXES[0]]),
        lambda masked: rmac.rerank(masked[0, :, 0, 0], X, BOXES),
        lambda masked: rmac.rerank(X[0, :, 0, 0], masked, BOXES),
        lambda masked: rmac.localize(masked, X[0, :, 0, 0]),
        lambda masked: rmac.localize(X, masked[0, :, 0, 0]),
        lambda _masked: rmac.localize(X, X[0, :, 0, :1].T, aspect=np.ma.ones(1)),
        lambda _masked: rmac.localize(X, X[0, :, 0, 0], aspect=NUMBER),
        lambda masked: rmac.quantize(masked),
        lambda masked: rmac.expand(X[0, 0], masked[0, 0], np.zeros((9, 1), int)),
        lambda _masked: rmac.expand(X[0, 0], X[0, 0], np.ma.zeros((9, 1), int)),
        lambda _masked: rmac.average_precision([[NUMBER, 2]], [[1]]),
        lambda _masked: rmac.average_precision([[1, 2]], np.ma.ones((1, 1), int)),
        lambda _masked: rmac.average_precision([[1, 2]], [[1]], [[np.ma.array(2)]]),
        lambda _masked: rmac.evaluate([[1, 2]], [TRUTH | {"hard": [NUMBER]}]),
        lambda _masked: rmac.evaluate([[1, 2]], [TRUTH], at=np.ma.ones(1, int)),
        lambda _masked: rmac.evaluate([[1, 2]], [TRUTH], at=[NUMBER]),
        lambda _masked: rmac.rmac(X, levels=NUMBER),
        lambda _masked: rmac.rmac(X, eps=NUMBER),
        lambda _masked: rmac.roi_pool(X, np.zeros((1, 5)), output_size=np.ma.ones(2, int)),
        lambda _masked: rmac.branch_pool(X, [X[:, :, :1, :1]], np.ma.ones(1, int)),
        lambda _masked: rmac.Whitening(NUMBER),
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
