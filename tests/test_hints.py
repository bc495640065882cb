"""Plausible mistakes, and the advice that the error gives for each."""

import pickle
from pathlib import Path

import numpy as np
import pytest

import rmac
from rmac import _hints, _windows

X = np.random.default_rng(0).random((2, 128, 9, 12), dtype=np.float32)
LAST = X.transpose(0, 2, 3, 1)  # (2, 9, 12, 128)
TOKENS = np.ones((8, 197, 768), np.float32)
WHITENING = rmac.Whitening(4).fit(rmac.rmac(X, aggregate="none"))
GRID = rmac.region_grid(9, 12)
ROIS = np.zeros((1, 5))


class Tensor:
    """An array of a library without DLPack."""

    def __array__(self, *_args, **_options):
        return X


class Holder:
    """A tensor that holds an array, as OpenVINO's does."""

    data = X


class PCA:
    """Another whitening."""

    __module__ = "sklearn.decomposition._pca"


class Transform:
    """Another whitening."""

    __module__ = "faiss.swigfaiss"


# What a user calls, and the end of the message.
MISTAKES = {
    "one map": (lambda: rmac.rmac(X[0]), "; x[None] adds the axis N to one map"),
    "maps with an axis N in a list": (
        lambda: rmac.rmac([X[:1], X[1:]]),
        "; the maps of a list have no axis N: x[0][0] removes it",
    ),
    "batches in a list": (
        lambda: rmac.region_pool([X, X]),
        "; the maps of a list have no axis N: call the function for each batch",
    ),
    "tokens behind a class token": (
        lambda: rmac.rmac(TOKENS),
        'layout="NHWC" as x[:, 1:].reshape(8, 14, 14, 768), or layout="NTC"',
    ),
    "tokens alone": (
        lambda: rmac.region_pool(TOKENS[:, 1:]),
        'layout="NHWC" as x.reshape(8, 14, 14, 768), or layout="NTC"',
    ),
    "tokens of patches in no square": (
        lambda: rmac.rmac(np.ones((4, 301, 384), np.float32)),
        'layout="NTC" takes them, and layout="NHWC" those of patches as x.reshape(4, H, W, 384)',
    ),
    "one sequence": (
        lambda: rmac.rmac(TOKENS[0], layout="NTC"),
        "; x[None] adds the axis N to one sequence",
    ),
    "pooled vectors": (
        lambda: rmac.rmac(X[:, :, 0, 0]),
        "; one channel of one map is x[None, None], and vectors are pooled already",
    ),
    "channels last, whitened": (
        lambda: rmac.rmac(LAST, whitening=WHITENING),
        '; the last axis has 128: layout="NHWC" is for channels that come last',
    ),
    "channels last, in a list": (
        lambda: rmac.rmac([LAST[0], LAST[1, :8]]),
        '; the last axis has 128: layout="NHWC" is for channels that come last',
    ),
    "channels last, with a grid": (
        lambda: rmac.region_pool(LAST, GRID),
        '; layout="NHWC" is for channels that come last',
    ),
    "a grid of width and height": (
        lambda: rmac.rmac(X, regions=rmac.region_grid(12, 9)),
        "; a grid is made of a height and a width",
    ),
    "boxes in pixels": (
        lambda: rmac.region_pool(X, [[0, 0, 383, 287], [64, 32, 128, 96]]),
        "; boxes are in cells: divide pixels by the stride of the network",
    ),
    "exclusive boxes": (
        lambda: rmac.region_pool(X, [[0, 0, 12, 9], [3, 3, 6, 7]]),
        "; x2 and y2 are inclusive: subtract 1 from those of boxes that exclude them",
    ),
    "boxes with a width and height": (
        lambda: rmac.region_pool(X, [[6, 5, 4, 3]]),
        "; boxes are x1, y1, x2, y2, and not x, y, width, height",
    ),
    "y before x": (
        lambda: rmac.region_pool(X, [[0, 1, 8, 11]]),
        "; x comes before y: boxes[:, [1, 0, 3, 2]] swaps them",
    ),
    "shares of the map": (
        lambda: rmac.region_pool(X, [[0.0, 0.0, 0.5, 1.0]]),
        "; boxes are in cells: multiply shares of the map by its width and height",
    ),
    "boxes that are not integers": (
        lambda: rmac.region_pool(X, [[0.0, 0.0, 7.0, 5.0]]),
        "; round them to cells, as with np.rint(boxes).astype(int)",
    ),
    "one box": (lambda: rmac.region_pool(X, [0, 0, 1, 1]), "; one box is [[x1, y1, x2, y2]]"),
    "RoIs as regions": (
        lambda: rmac.region_pool(X, ROIS.astype(int)),
        "; roi_pool takes boxes with a batch index",
    ),
    "boxes as RoIs": (
        lambda: rmac.roi_pool(X, np.zeros((3, 4))),
        "; put the batch index first, or pass a list of boxes (L, 4) for each image",
    ),
    "RoIs as numbers": (
        lambda: rmac.roi_pool(X, [[0, 0, 0, 3, 3]]),
        "; np.array(rois) makes an array of numbers",
    ),
    "numbers": (lambda: rmac.rmac([[1.0]]), "; np.array(x[0]) makes an array of numbers"),
    "int64": (
        lambda: rmac.rmac(X.astype(np.int64)),
        "; x.astype(np.float32) converts it",
    ),
    "a path": (lambda: rmac.rmac("maps.npy"), "; load the file first, as with np.load"),
    "a path object": (lambda: rmac.rmac(Path("x.npy")), "; load the file first, as with np.load"),
    "a dictionary of outputs": (
        lambda: rmac.rmac({"features": X}),
        "; take one of its values, as with x['key']",
    ),
    "an array without DLPack": (
        lambda: rmac.rmac(Tensor()),
        "; np.asarray(x) makes an array of it",
    ),
    "a holder of an array": (
        lambda: rmac.rmac(Holder()),
        "; pass x.data if that is an array",
    ),
    "the module": (lambda: rmac(X), "; rmac.rmac(x) calls the function"),
    "the dim of fit": (lambda: rmac.Whitening().fit(X[0, 0], 3), "; dim=3 is meant"),
    "a whitening's file": (
        lambda: rmac.rmac(X, whitening="w.npz"),
        "; Whitening.load reads a file",
    ),
    "a whitening's arrays": (
        lambda: rmac.rmac(X, whitening=(WHITENING.mean, WHITENING.projection)),
        "; Whitening.from_projection(mean, projection) takes arrays",
    ),
    "scikit-learn's PCA": (
        lambda: rmac.rmac(X, whitening=PCA()),
        "; Whitening.from_sklearn takes a PCA",
    ),
    "a transform of FAISS": (
        lambda: rmac.rmac(X, whitening=Transform()),
        "; Whitening.from_faiss takes a transform",
    ),
    "a layout in small letters": (lambda: rmac.rmac(X, layout="nhwc"), "; 'NHWC' is meant"),
    "Keras's layout": (lambda: rmac.rmac(X, layout="channels_last"), "; 'NHWC' is meant"),
    "the paper's preset": (lambda: rmac.rmac(X, preset="VISSL"), "; 'matlab' is meant"),
    "an average": (lambda: rmac.rmac(X, pool="avg"), "; 'mean' is meant"),
}


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_mistakes(mistake):
    call, advice = MISTAKES[mistake]
    with pytest.raises((TypeError, ValueError)) as raised:
        call()
    assert str(raised.value).endswith(advice)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


def test_the_advice_works():
    expected = rmac.rmac(X)
    np.testing.assert_array_equal(rmac.rmac(X[0][None])[0], expected[0])
    np.testing.assert_array_equal(rmac.rmac(LAST, layout="NHWC"), expected)
    maps = TOKENS[:, 1:].reshape(8, 14, 14, 768)
    assert rmac.rmac(maps, layout="NHWC").shape == rmac.rmac(TOKENS, layout="NTC").shape
    tokens = np.ones((4, 301, 384), np.float32)  # a class token and 15x20 patches
    maps = tokens[:, 1:].reshape(4, 15, 20, 384)
    assert rmac.rmac(maps, layout="NHWC").shape == rmac.rmac(tokens, layout="NTC").shape
    inclusive = np.array([[0, 0, 12, 9], [3, 3, 6, 7]]) - [0, 0, 1, 1]
    assert rmac.region_pool(X, inclusive).shape == (2, 2, 128)
    assert rmac.region_pool(X, np.array([[0, 1, 8, 11]])[:, [1, 0, 3, 2]]).shape == (2, 1, 128)
    boxes = [np.zeros((3, 4)), np.zeros((2, 4))]
    assert rmac.roi_pool(X, boxes).shape == (5, 128, 1, 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: rmac.rmac(X[0, 0, 0]),
        lambda: rmac.region_pool(X, [[0, 0, 13, 8]]),
        lambda: rmac.region_pool(X, [[-1, 0, 1, 1]]),
        lambda: rmac.region_pool(X, [[11, 0, -1, 1]]),
        lambda: rmac.region_pool(X, [[0, np.nan, 1, 1]]),
        lambda: rmac.region_pool(X, rmac.region_grid(5, 6)),
        lambda: rmac.rmac(X[:, :7], whitening=WHITENING),
        lambda: rmac.rmac([X[0], X[1, :7]]),
        lambda: rmac.rmac(X, layout="HWC"),
        lambda: rmac.rmac(X, whitening=3),
        lambda: rmac.rmac(object()),
        lambda: rmac.rmac(np.zeros((2, 3, 4, 5), "datetime64[s]")),
        lambda: rmac.roi_pool(X, ROIS[:, :3]),
        lambda: rmac.roi_pool(X, [np.zeros((3, 4))]),
    ],
)
def test_other_mistakes_have_no_advice(call):
    with pytest.raises((TypeError, ValueError)) as raised:
        call()
    assert ";" not in str(raised.value)


@pytest.mark.parametrize(
    ("shape", "is_tokens"),
    [
        ((8, 197, 768), True),
        ((8, 201, 1024), True),
        ((1, 257, 1280), True),
        ((64, 49, 768), True),
        ((512, 24, 32), False),
        ((2048, 7, 7), False),
        ((256, 38, 50), False),
        ((2, 301, 384), True),
        ((1, 8, 768), False),
        ((512, 12, 400), False),
    ],
)
def test_which_shapes_are_taken_for_tokens(shape, is_tokens):
    hint = _hints.for_axes(shape, "NCHW", "x")
    assert hint.startswith("; x[None] adds the axis N to one map")
    assert ("tokens" in hint) == is_tokens


def test_a_map_that_is_as_long_as_it_has_channels(monkeypatch):
    monkeypatch.setattr(_windows, "_warned_of_gaps", False)
    with pytest.warns(UserWarning, match='If 2048 is the number of channels, layout="NHWC"'):
        rmac.rmac(np.zeros((1, 7, 11, 2048), np.float32))
    monkeypatch.setattr(_windows, "_warned_of_gaps", False)
    with pytest.warns(UserWarning, match=r"in no R-MAC region .* sizes of map\.$"):
        rmac.region_grid(7, 2047)


def test_the_module_can_be_sent_to_other_processes():
    assert pickle.loads(pickle.dumps(rmac)) is rmac
