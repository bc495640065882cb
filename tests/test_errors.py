"""Bad input: the right exception, which names the argument, what came and what was expected."""

import numpy as np
import pytest
from helpers import ARRAYS, raises_line

import rmac
from rmac import _dtypes, _options

X = np.ones((2, 3, 5, 6), np.float32)
ROIS = np.array([[0, 0, 0, 3, 3]], np.float64)


class FakeTensor:
    def __init__(self, requires_grad):
        self.requires_grad = requires_grad


MAPS = [
    ([[1.0]], TypeError, f"x[0]: expected a {ARRAYS}, got list"),
    (None, TypeError, f"x: expected a {ARRAYS}, got NoneType"),
    (FakeTensor(False), TypeError, "FakeTensor"),
    (
        FakeTensor(True),
        TypeError,
        "requires grad, and no gradient is defined here; pass its data with x.detach()",
    ),
    (np.ma.ones((1, 1, 2, 2)), TypeError, "x: expected an array without a mask"),
    (X[0], ValueError, "x: expected 4 axes (N, C, H, W), got shape (3, 5, 6)"),
    (
        X.astype(complex),
        TypeError,
        f"x: expected {_dtypes.DTYPE_NAMES}, got complex128",
    ),
    (X.astype(bool), TypeError, "got bool"),
    (X.astype(object), TypeError, "got object"),
    (X.astype(np.int32), TypeError, "got int32"),
    (X.astype(">f4"), TypeError, "x: expected native byte order, got byte-swapped float32"),
    (
        np.frombuffer(b"\0" * (X.nbytes + 1), np.uint8)[1:].view("f4").reshape(X.shape),
        TypeError,
        "got misaligned float32",
    ),
]


@pytest.mark.parametrize(("x", "error", "message"), MAPS, ids=[case[2][:40] for case in MAPS])
@pytest.mark.parametrize(
    "function",
    [rmac.region_pool, rmac.rmac, lambda x: rmac.roi_pool(x, ROIS)],
    ids=["region_pool", "rmac", "roi_pool"],
)
def test_feature_maps(function, x, error, message):
    with raises_line(error, message):
        function(x)


@pytest.mark.parametrize("shape", [(1, 2, 0, 3), (1, 2, 3, 0), (0, 2, 0, 0)])
@pytest.mark.parametrize("function", [rmac.region_pool, rmac.rmac])
def test_maps_without_cells(function, shape):
    with pytest.raises(
        ValueError, match=f"x: expected at least one cell, got {shape[2]}x{shape[3]}"
    ):
        function(np.ones(shape, np.float32))


READ_ONLY = np.empty((2, 3), np.float32)
READ_ONLY.flags.writeable = False

POOLS = ", ".join(map(repr, _options.POOLS))
OPTIONS = [
    (rmac.rmac, {"levels": 0}, ValueError, "levels: expected an integer of at least 1, got 0"),
    (rmac.rmac, {"overlap": 2}, ValueError, "overlap: expected"),
    (rmac.rmac, {"preset": "x"}, ValueError, "preset: expected"),
    (
        rmac.rmac,
        {"pool": "sum"},
        ValueError,
        f"pool: expected one of {POOLS}, got",
    ),
    (
        rmac.rmac,
        {"pool": "gem", "p": 0},
        ValueError,
        "p: expected a number with 0.001 <= p < 50, got 0",
    ),
    (rmac.region_pool, {"p": "3"}, TypeError, "p: expected a number, got '3'"),
    (rmac.rmac, {"layout": "CHWN"}, ValueError, "layout: expected one of 'NCHW', 'NHWC'"),
    (rmac.rmac, {"aggregate": "max"}, ValueError, "aggregate: expected one of 'sum', 'mean'"),
    (rmac.rmac, {"normalize": "yes"}, TypeError, "normalize: expected True or False, got 'yes'"),
    (rmac.rmac, {"normalize_regions": 2}, TypeError, "normalize_regions: expected True or"),
    (rmac.rmac, {"eps": -1}, ValueError, "eps: expected a number with 0 <= eps, finite, got -1"),
    (rmac.rmac, {"eps": np.inf}, ValueError, "eps: expected"),
    (rmac.rmac, {"workers": 0}, ValueError, "workers: expected an integer of at least 1, got 0"),
    (rmac.rmac, {"workers": 1.5}, TypeError, "workers: expected an integer, got float"),
    (
        rmac.rmac,
        {"out": np.empty((2, 4), "f4")},
        ValueError,
        "out: expected shape (2, 3), got (2, 4)",
    ),
    (rmac.rmac, {"out": np.empty((2, 3))}, TypeError, "out: expected dtype float32, got float64"),
    (rmac.rmac, {"out": READ_ONLY}, ValueError, "out: expected a writeable array"),
    (rmac.rmac, {"out": [0]}, TypeError, f"out: expected a {ARRAYS}, got list"),
    (
        rmac.rmac,
        {"out": np.empty((2, 3), ">f4")},
        TypeError,
        "out: expected dtype float32, got >f4",
    ),
    (
        rmac.rmac,
        {"overlap": 10**400},
        ValueError,
        "overlap: expected a number with 0 <= overlap < 1",
    ),
    (rmac.rmac, {"levels": 2**31}, ValueError, "levels: expected an integer less than 2**31"),
    (rmac.region_pool, {"regions": [[0, 0, 1, 1]], "levels": 0}, ValueError, "levels: expected"),
    (rmac.roi_pool, {"rois": ROIS * 1e300}, ValueError, "rois: expected finite float32 numbers"),
    (rmac.roi_pool, {"rois": ROIS, "spatial_scale": 1e300}, ValueError, "spatial_scale: expected"),
    (rmac.region_pool, {"pool": 3}, TypeError, "pool: expected a string, got int"),
    (rmac.region_pool, {"levels": 0}, ValueError, "levels: expected"),
    (rmac.region_pool, {"layout": None}, TypeError, "layout: expected a string, got NoneType"),
    (rmac.region_pool, {"workers": -1}, ValueError, "workers: expected"),
    (rmac.region_pool, {"out": np.empty((2, 26, 3))}, TypeError, "out: expected dtype float32"),
    (
        rmac.region_pool,
        {"regions": [0, 0, 1, 1]},
        ValueError,
        "regions: expected shape (R, 4), got (4,)",
    ),
    (
        rmac.region_pool,
        {"regions": [[0, 0, 1.5, 1]]},
        TypeError,
        "regions: expected integers, got float64",
    ),
    (rmac.region_pool, {"regions": [[0, 0], [1]]}, ValueError, "regions: expected shape (R, 4)"),
    (
        rmac.region_pool,
        {"regions": [[0, 0, 5, 4], [0, 0, 6, 4]]},
        ValueError,
        "regions: expected 0 <= x1 <= x2 < 6 and 0 <= y1 <= y2 < 5, got [0, 0, 6, 4] in row 1",
    ),
    (rmac.region_pool, {"regions": [[0, 3, 5, 2]]}, ValueError, "got [0, 3, 5, 2] in row 0"),
    (rmac.region_pool, {"regions": [[-1, 0, 1, 1]]}, ValueError, "got [-1, 0, 1, 1] in row 0"),
    (
        rmac.region_pool,
        {"regions": rmac.region_grid(6, 5)},
        ValueError,
        "regions: expected a grid for the map's 5x6 cells, got one for 6x5",
    ),
    (rmac.rmac_regions, {"scales": 0}, ValueError, "scales: expected an integer of at least 1"),
    (rmac.rmac_regions, {"overlap": 1}, ValueError, "overlap: expected"),
    (rmac.roi_pool, {"rois": ROIS[:, :4]}, ValueError, "rois: expected shape (K, 5), got (1, 4)"),
    (rmac.roi_pool, {"rois": [[0, 0, 0, 1, 1]]}, TypeError, "rois: expected a numpy.ndarray"),
    (rmac.roi_pool, {"rois": ROIS.astype(complex)}, TypeError, "rois: expected real numbers, got"),
    (
        rmac.roi_pool,
        {"rois": ROIS * np.nan},
        ValueError,
        "rois: expected finite float32 numbers, got",
    ),
    (
        rmac.roi_pool,
        {"rois": ROIS + 2},
        IndexError,
        "rois: expected a batch index in 0..1, got [2.0, 2.0, 2.0, 5.0, 5.0] in row 0",
    ),
    (rmac.roi_pool, {"rois": ROIS - 1}, IndexError, "got [-1.0, -1.0"),
    (
        rmac.roi_pool,
        {"rois": ROIS + 0.5},
        ValueError,
        "rois: expected a whole batch index, got [0.5",
    ),
    (rmac.roi_pool, {"rois": ROIS, "output_size": 0}, ValueError, "output_size: expected"),
    (rmac.roi_pool, {"rois": ROIS, "output_size": (1, 2, 3)}, ValueError, "output_size: expected"),
    (rmac.roi_pool, {"rois": ROIS, "output_size": 2.5}, TypeError, "output_size: expected"),
    (rmac.roi_pool, {"rois": ROIS, "spatial_scale": 0}, ValueError, "spatial_scale: expected"),
    (rmac.roi_pool, {"rois": ROIS, "spatial_scale": "1"}, TypeError, "spatial_scale: expected"),
    (
        rmac.roi_pool,
        {"rois": ROIS, "out": np.empty((1, 3, 1, 2), "f4")},
        ValueError,
        "out: expected",
    ),
]


@pytest.mark.parametrize(("function", "options", "error", "message"), OPTIONS)
def test_options(function, options, error, message):
    options = dict(options)
    arguments = [options.pop("rois")] if "rois" in options else []
    with raises_line(error, message):
        function(X, *arguments, **options)


def test_an_error_leaves_out_untouched():
    out = np.full((2, 3), 7, np.float32)
    for bad in ({"levels": 0}, {"eps": -1}, {"workers": 0}):
        with pytest.raises(ValueError, match="expected"):
            rmac.rmac(X, out=out, **bad)
    regions = np.full((2, 1, 3), 7, np.float32)
    for bad in ({"regions": [[0, 0, 6, 4]]}, {"regions": [[0, 0, 5, 4]], "workers": 0}):
        with pytest.raises(ValueError, match="expected"):
            rmac.region_pool(X, out=regions, **bad)
    assert (regions == 7).all()
    pooled = np.full((1, 3, 1, 1), 7, np.float32)
    with pytest.raises(IndexError):
        rmac.roi_pool(X, ROIS + 9, out=pooled)
    assert (out == 7).all()
    assert (pooled == 7).all()


def test_data_is_positional_and_options_are_named():
    with pytest.raises(TypeError):
        rmac.rmac(x=X)
    with pytest.raises(TypeError):
        rmac.rmac(X, "max")
    with pytest.raises(TypeError):
        rmac.region_grid(5, 6, 3)
    with pytest.raises(TypeError):
        rmac.region_pool(X, scales=3)
