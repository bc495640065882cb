"""Objects of the user that fail: an error that names the argument and has theirs as its cause."""

from collections.abc import Sequence

import numpy as np
import pytest
from fuzz.values import Equal, NoHash

import rmac
from rmac import _checks

X = np.random.default_rng(0).random((2, 3, 5, 6), dtype=np.float32)
WEIGHTS = [np.ones((1, 3, 1, 1), np.float32)]
ROIS = np.zeros((1, 5))
WHITENING = rmac.Whitening().fit(X[:, :, 0].transpose(0, 2, 1))
ERRORS = [AttributeError, IndexError, KeyError, OverflowError, RuntimeError, ValueError, TypeError]


class Raising:
    """An object whose methods all raise."""

    def __init__(self, error):
        self._error = error("mine")

    def fail(self, *_args, **_options):
        raise self._error

    __index__ = __float__ = __repr__ = __hash__ = __eq__ = __array__ = fail


class RaisingArray(Raising):
    """An array of another library, which cannot be passed."""

    def __array_namespace__(self):
        return np

    __dlpack__ = __dlpack_device__ = Raising.fail


class RaisingSequence(Raising, Sequence):
    __len__ = __getitem__ = Raising.fail


class RaisingList(list):
    def __iter__(self):
        raise KeyError("mine")


class RaisingClass:
    @property
    def __class__(self):
        raise KeyError("mine")


# Each argument of the public functions, by its name in the error.
CALLS = [
    ("x", lambda v: rmac.rmac(v)),
    ("x[1]", lambda v: rmac.rmac([X[0], v])),
    ("x", lambda v: rmac.region_pool(v)),
    ("x", lambda v: rmac.rmac_regions(v)),
    ("x", lambda v: rmac.operators.run_on_device("RMAC", v, "cpu")),
    ("regions", lambda v: rmac.region_pool(X, v)),
    ("rois", lambda v: rmac.roi_pool(X, v)),
    ("output_size", lambda v: rmac.roi_pool(X, ROIS, output_size=v)),
    ("output_size", lambda v: rmac.roi_pool(X, ROIS, output_size=(1, v))),
    ("spatial_scale", lambda v: rmac.roi_pool(X, ROIS, spatial_scale=v)),
    ("out", lambda v: rmac.rmac(X, out=v)),
    ("whitening", lambda v: rmac.rmac(X, whitening=v)),
    *(
        (name, lambda v, name=name: rmac.rmac(X, **{name: v}))
        for name in ("pool", "p", "levels", "overlap", "preset", "layout", "aggregate", "eps")
    ),
    ("normalize", lambda v: rmac.rmac(X, normalize=v)),
    ("workers", lambda v: rmac.rmac(X, workers=v)),
    ("scales", lambda v: rmac.rmac_regions(X, scales=v)),
    ("height", lambda v: rmac.region_grid(v, 3)),
    ("length", lambda v: rmac.sequence_grid(v)),
    ("image_width", lambda v: rmac.region_grid(3, 3).to_image(2, v)),
    ("descriptors", lambda v: rmac.merge_scales(v)),
    ("descriptors[1]", lambda v: rmac.merge_scales([X[0, 0], v])),
    ("p", lambda v: rmac.merge_scales(X[0], p=v)),
    ("weights", lambda v: rmac.branch_pool(X, v, [None])),
    ("weights[0]", lambda v: rmac.branch_pool(X, [v], [None])),
    ("kernel_sizes", lambda v: rmac.branch_pool(X, WEIGHTS, v)),
    ("kernel_sizes[0]", lambda v: rmac.branch_pool(X, WEIGHTS, [v])),
    ("dim", lambda v: rmac.Whitening(v)),
    ("eps", lambda v: rmac.Whitening(eps=v)),
    ("kind", lambda v: rmac.Whitening(kind=v)),
    ("vectors", lambda v: rmac.Whitening().fit(v)),
    ("vectors", lambda v: WHITENING.apply(v)),
    ("other", lambda v: WHITENING.merge(v)),
    ("mean", lambda v: rmac.Whitening.from_projection(v, np.eye(2))),
    ("projection", lambda v: rmac.Whitening.from_projection(np.ones(2), v)),
    ("pca", lambda v: rmac.Whitening.from_sklearn(v)),
    ("operator", lambda v: rmac.operators.run_on_device(v, X)),
    ("device", lambda v: rmac.operators.run_on_device("RMAC", X, v)),
    ("name", lambda v: rmac.operators.gradient(v)),
    ("mode", lambda v: rmac.show_config(v)),
]
NAMES = [name for name, _ in CALLS]


def error_of(call, value):
    """Return the error of a call, which is documented, short and on one line."""
    with pytest.raises((TypeError, ValueError)) as raised:
        call(value)
    text = str(raised.value)
    assert len(text) < 300
    assert "\n" not in text
    return raised.value, text


@pytest.mark.parametrize(("name", "call"), CALLS, ids=NAMES)
def test_an_object_that_raises_is_an_error_of_its_argument(name, call):
    for error in ERRORS:
        for kind in (Raising, RaisingArray, RaisingSequence):
            _, text = error_of(call, kind(error))
            assert text.startswith((f"{name}: expected", f"{name}[0]: expected"))
    for value in (RaisingList(X), RaisingClass(), NoHash("zzz"), Equal("zzz")):
        _, text = error_of(call, value)
        assert text.startswith((f"{name}: expected", f"{name}[0]: expected"))


@pytest.mark.parametrize(
    ("name", "call"),
    [one for one in CALLS if one[0] in ("p", "levels", "overlap", "eps", "workers", "dim")],
)
@pytest.mark.parametrize("error", ERRORS)
def test_the_error_of_a_number_is_the_cause(name, call, error):
    raised, _ = error_of(call, Raising(error))
    assert type(raised.__cause__) is error, name


@pytest.mark.parametrize("error", ERRORS)
def test_the_error_of_a_foreign_array_is_the_cause(error):
    raised, text = error_of(rmac.rmac, RaisingArray(error))
    assert type(raised.__cause__) is error
    assert "mine" in text


def test_running_out_of_memory_says_so():
    with pytest.raises(MemoryError, match=r"^mine"):
        rmac.rmac(X, levels=Raising(MemoryError))

    class Empty:
        def __index__(self):
            raise MemoryError

    with pytest.raises(MemoryError, match=r"^levels: there is not enough memory"):
        rmac.rmac(X, levels=Empty())

    def factory():
        return Empty.__index__

    rmac.operators.register_cpu_operator("Empty", factory, replace=True)
    with pytest.raises(MemoryError, match=r"^x: there is not enough memory"):
        rmac.operators.run_on_device("Empty", X)


@pytest.mark.parametrize(("name", "call"), CALLS, ids=NAMES)
def test_errors_are_short_and_name_their_argument(name, call):
    cycle = []
    cycle.append(cycle)
    huge = type("T" * 300_000, (), {})()
    fields = np.zeros(3, [(f"field{i}", "f4") for i in range(3000)])
    for value in (cycle, huge, fields, "x" * 300_000, [0] * 100_000, b"ab", bytearray(b"ab")):
        with pytest.raises((TypeError, ValueError)) as raised:
            call(value)
        assert len(str(raised.value)) < 400
        assert str(raised.value).startswith((f"{name}:", f"{name}[0]:"))


@pytest.mark.parametrize("value", [10**400, -(10**400), 10**5000], ids=["large", "small", "long"])
@pytest.mark.parametrize(
    ("name", "call"), [one for one in CALLS if one[0] in ("p", "levels", "overlap", "eps", "dim")]
)
def test_numbers_that_no_float_holds_are_refused(name, call, value):
    _, text = error_of(call, value)
    assert text.startswith(f"{name}: expected")


def test_words_are_plain_text():
    for kind in (NoHash, Equal, np.str_):
        assert rmac.region_grid(5, 6, preset=kind("matlab")).preset == "matlab"
        options = {"layout": kind("NHWC"), "pool": kind("mean"), "aggregate": kind("mean")}
        expected = rmac.rmac(X, layout="NHWC", pool="mean", aggregate="mean")
        np.testing.assert_array_equal(rmac.rmac(X, **options), expected)
        result = rmac.operators.run_on_device(kind("RMAC"), X, kind("cpu"))
        np.testing.assert_array_equal(result, rmac.rmac(X))
    assert type(rmac.region_grid(5, 6, preset=NoHash("matlab")).preset) is str


def test_an_integer_may_be_an_array_without_axes():
    expected = rmac.roi_pool(X, ROIS, output_size=2)
    for size in (np.array(2), np.array([2, 2]), [np.int8(2), 2]):
        np.testing.assert_array_equal(rmac.roi_pool(X, ROIS, output_size=size), expected)


def test_a_list_is_read_once():
    class Emptied(list):
        """A list that is empty after it is read, as another thread may make it."""

        def __iter__(self):
            found = list(super().__iter__())
            self.clear()
            return iter(found)

    np.testing.assert_array_equal(rmac.rmac(Emptied(X)), rmac.rmac(X))
    merged = rmac.merge_scales(Emptied(X[0]))
    np.testing.assert_array_equal(merged, rmac.merge_scales(X[0]))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "'a'"),
        (np.zeros((2, 2)), "array([[0., 0.], [0., 0.]])"),
        (Raising(KeyError), f"an object of type {__name__}.Raising"),
        pytest.param(10**5000, "an object of type int", id="long"),
    ],
)
def test_shown_is_one_short_line(value, text):
    assert _checks.shown(value) == text
    assert len(_checks.shown([0] * 100_000)) <= 80
