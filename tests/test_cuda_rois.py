"""RoIs on the GPU, of every size and on maps of any strides."""

import numpy as np
import pytest
import reference
from helpers import (
    DTYPES,
    LAYOUTS,
    assert_same_values,
    check_array,
    random_map,
    stored_as,
    to_host,
)

import rmac
from rmac.cuda import rois as cuda_rois

ROIS_ON_MAPS = np.array(
    [
        [0, 0, 0, 1, 1],  # in fractions of the sides: the whole map
        [1, 0.3, 0.4, 0.3, 0.4],  # one cell
        [2, -0.5, -0.4, 0.6, 0.7],  # over the edges
        [1, 0.45, -3, 0.55, 4],
        [0, 0.2, 0.1, 0.9, 0.95],
        [2, 1.5, 0.1, 1.8, 0.9],  # beyond them
        [1, 0.7, 0.9, 0.1, 0.2],  # which ends before it starts
        [0, -0.02, 0.35, 1.1, 0.4],
    ]
)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_rois_of_every_size(gpu, rng, monkeypatch, layout, dtype):
    """Bins of a part of a cell to many warps of cells; few channels, and many groups of them."""
    for channels, height, width, output_size, most_blocks, few_blocks in (
        (1, 40, 45, (1, 1), 99, 0),
        (3, 24, 32, (7, 7), 99, 0),
        (7, 3, 70, (14, 14), 2, 528),
        (8, 60, 2, (7, 3), 99, 0),
        (9, 5, 5, (9, 8), 1, 0),
        (20, 30, 30, (2, 2), 3, 0),
        (33, 1, 150, (1, 40), 99, 528),
        (45, 24, 32, (7, 7), 99, 528),
        (64, 14, 14, (14, 14), 99, 0),
        (161, 6, 8, (2, 3), 5, 0),
        (300, 5, 4, (3, 3), 99, 0),
    ):
        monkeypatch.setattr(cuda_rois, "MOST_BLOCKS", most_blocks)
        monkeypatch.setattr(cuda_rois, "_FEW_ROI_BLOCKS", few_blocks or 1)
        x = random_map(rng, (3, channels, height, width), DTYPES[dtype], 0.001)
        rois = (ROIS_ON_MAPS * [1, width, height, width, height]).astype(np.float32)
        expected = reference.roi_pool(x, rois, output_size, 1.0)
        stored = gpu.asarray(np.ascontiguousarray(x.transpose(LAYOUTS[layout])))
        pooled = rmac.roi_pool(stored, gpu.asarray(rois), output_size=output_size, layout=layout)
        assert_same_values(check_array(pooled, gpu, expected.shape, x.dtype), expected)


@pytest.mark.parametrize("order", ["NCHW", "NHWC", "HCNW"])
def test_rois_of_maps_of_any_strides(gpu, rng, order):
    rois = (ROIS_ON_MAPS * [1, 12, 9, 12, 9]).astype(np.float32)
    for step in ((1, 1, -1, -2), (-1, -1, -1, -1), (1, 0, 1, 1), (0, 1, 0, 1), (1, 3, 2, 0)):
        for channels in (2, 40):
            x = random_map(rng, (3, channels, 9, 12), DTYPES["float32"], 0.01)
            stored = gpu.asarray(stored_as(x, (order, step), rng))
            expected = reference.roi_pool(x, rois, (3, 4), 1.0)
            pooled = rmac.roi_pool(stored, gpu.asarray(rois), output_size=(3, 4))
            assert_same_values(to_host(pooled), expected)


def test_rois_that_are_on_no_map_have_empty_bins(gpu, rng):
    """They cannot be an error, because the host does not wait for the device."""
    x = gpu.asarray(random_map(rng, (2, 3, 6, 5), DTYPES["float32"]))
    rois = np.array([[0, 0, 0, 4, 4]] * 5, np.float32)
    rois[1:, 0] = -1, 2, np.nan, 1
    rois[4, 3] = np.inf
    for layout, output_size in (("NCHW", 1), ("NCHW", 7), ("NHWC", 2)):
        some = x if layout == "NCHW" else gpu.ones((2, 6, 5, 8), np.float32)
        pooled = to_host(
            rmac.roi_pool(some, gpu.asarray(rois), output_size=output_size, layout=layout)
        )
        assert pooled[0].all()
        assert not pooled[1:].any()


def test_rois_are_not_copied_without_need(gpu, rng, monkeypatch):
    x = gpu.asarray(random_map(rng, (2, 3, 9, 9), DTYPES["float32"]))
    rois = gpu.asarray(np.array([[0, 1, 1, 5, 5], [1, 0, 2, 7, 8]], np.float32))
    seen = []
    monkeypatch.setattr(
        cuda_rois, "keep_for_graph", lambda array: seen.append(array.data.ptr) or array
    )
    expected = to_host(rmac.roi_pool(x, rois, output_size=1))
    assert seen == [rois.data.ptr]
    out = rois.reshape(-1)[:6].reshape(2, 3, 1, 1)  # in the memory of the RoIs
    assert_same_values(to_host(rmac.roi_pool(x, rois, output_size=1, out=out)), expected)
