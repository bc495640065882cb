"""Agreement with what the implementations in use compute."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from helpers import check_array, to_host

import rmac
from rmac._options import PRESETS

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def recorded():
    return {path.stem: dict(np.load(path).items()) for path in sorted(DATA.glob("*.npz"))}


RECORDED = {"caffe2": 2240, "matlab": 1280, "cirtorch": 1280}  # grids of each preset


@pytest.mark.parametrize("preset", PRESETS)
def test_grids(recorded, preset):
    grids = recorded["grids"]
    differing = []
    ends = np.cumsum(grids[f"{preset}_counts"])
    arguments = grids[f"{preset}_args"]
    for args, boxes in zip(arguments, np.split(grids[f"{preset}_boxes"], ends[:-1]), strict=True):
        height, width, levels = args[:3].astype(int)
        grid = rmac.region_grid(height, width, levels=levels, overlap=args[3], preset=preset)
        if not np.array_equal(grid.boxes, boxes):
            differing.append(tuple(args))
    assert differing == []
    assert len(arguments) == RECORDED[preset]


@pytest.mark.parametrize(("height", "width"), [(24, 32), (7, 7), (5, 9), (2, 32), (1, 1)])
def test_rmac_regions(recorded, xp, height, width):
    grids = recorded["grids"]
    args = grids["caffe2_args"]
    for case in np.flatnonzero((args[:, 0] == height) & (args[:, 1] == width)):
        begin = grids["caffe2_counts"][:case].sum()
        boxes = grids["caffe2_boxes"][begin : begin + grids["caffe2_counts"][case]]
        x = xp.zeros((3, 2, height, width), dtype="float32")
        rois = rmac.rmac_regions(x, scales=int(args[case, 2]), overlap=args[case, 3])
        expected = np.concatenate(
            [np.column_stack([np.full(len(boxes), n), boxes]) for n in range(3)]
        )
        rois = check_array(rois, xp, expected.shape, "float32")
        np.testing.assert_array_equal(rois, expected.astype("float32"))


@pytest.mark.parametrize("case", range(6))
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_roi_pool(recorded, xp, case, layout):
    data = recorded["roi_pool"]
    x, rois, expected = (data[f"{name}{case}"] for name in ("x", "rois", "out"))
    ph, pw, scale = data[f"arg{case}"].tolist()
    if layout == "NHWC":
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    pooled = rmac.roi_pool(
        xp.asarray(x),
        xp.asarray(rois),
        output_size=(int(ph), int(pw)),
        spatial_scale=scale,
        layout=layout,
    )
    pooled = check_array(pooled, xp, expected.shape, "float32")
    assert pooled.tobytes() == expected.tobytes()


@pytest.mark.parametrize("case", range(8))
def test_descriptors(recorded, xp, case):
    data = recorded["descriptors"]
    x, levels = xp.asarray(data[f"x{case}"][None]), int(data[f"levels{case}"])

    def error(expected, **options):
        """Relative to the largest element, since cirtorch's are not normalised."""
        result = rmac.rmac(x, levels=levels, **options)
        result = check_array(result, xp, (1, *expected.shape), "float32")[0]
        return np.abs(result - expected).max() / expected.max()

    assert error(data[f"matlab{case}"], preset="matlab") <= 1e-6
    assert error(data[f"vissl_regions{case}"], preset="matlab", aggregate="none") <= 1e-6
    assert error(data[f"cirtorch{case}"], preset="cirtorch", eps=1e-6, normalize=False) <= 1e-6


def test_levels(recorded):
    data = recorded["retrieval"]
    levels = rmac.quantize(data["quantise_in"])
    assert levels.dtype == np.uint8
    np.testing.assert_array_equal(levels, data["quantise_out"])


def test_presets_place_windows_differently():
    """No preset is an alias of another, in its windows and their order.

    The last size is one where it matters whether centres or starts of windows are rounded.
    """
    sizes = [(5, 9), (20, 36), (2, 32), (24, 32), (61, 97), (15, 71)]
    for one, other in itertools.combinations(PRESETS, 2):
        grids = [
            [rmac.region_grid(*size, preset=preset).boxes.tolist() for size in sizes]
            for preset in (one, other)
        ]
        assert grids[0] != grids[1], (one, other)


def test_photographs_rank_as_recorded():
    from rmac.cli.demo import feature_maps

    maps = feature_maps()
    assert len(maps) == 20
    descriptors = np.concatenate([to_host(rmac.rmac(x[None])) for x in maps.values()])
    similarity = descriptors @ descriptors.T
    np.fill_diagonal(similarity, -1)
    names = list(maps)
    first = {name: names[similarity[i].argmax()] for i, name in enumerate(names)}
    assert first["box"] == "box_in_scene"
    assert first["graf1"] == "graf3"
    assert first["leuvenA"] == "leuvenB"
