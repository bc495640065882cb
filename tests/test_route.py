"""The choice of path, channel blocks and threads: each constant of rmac/cpu/route.py decides it.

A quarter or four times of any constant changes some choice here. bench/constants.py measures what
that costs.
"""

import numpy as np
import pytest

import rmac
from rmac._options import MAX_POOLING
from rmac.cpu import route
from rmac.cpu.isa import second_level_cache
from rmac.cpu.tables import Path

CACHE = 768 << 10  # the share of a second-level cache of 1 MiB


@pytest.mark.parametrize(
    ("shape", "layout", "boxes", "threads", "expected"),
    [
        ((8, 2048, 24, 32), "NCHW", 0, 1, (Path.ROWS, 64, True)),
        ((4, 512, 48, 64), "NCHW", 0, 1, (Path.ROWS, 48, True)),
        ((16, 2048, 14, 14), "NCHW", 0, 1, (Path.ROWS, 64, True)),
        ((16, 2048, 8, 14), "NCHW", 0, 1, (Path.PLANES, 48, True)),
        ((16, 2048, 13, 13), "NCHW", 0, 1, (Path.PLANES, 32, True)),
        ((16, 1024, 60, 12), "NCHW", 0, 1, (Path.ROWS, 48, True)),
        ((8, 1024, 80, 7), "NCHW", 0, 1, (Path.PLANES, 16, True)),
        ((16, 2048, 20, 12), "NCHW", 0, 1, (Path.PLANES, 32, True)),
        ((64, 2048, 7, 7), "NCHW", 0, 1, (Path.PLANES, 64, True)),
        ((2, 512, 1000, 6), "NCHW", 0, 1, (Path.PLANES, 16, True)),
        ((1, 256, 4000, 6), "NCHW", 0, 1, (Path.ROWS, 16, True)),
        ((64, 8, 24, 32), "NHWC", 0, 1, (Path.CHANNELS, 16, True)),
        ((64, 14, 24, 32), "NHWC", 0, 1, (Path.GATHER, 16, True)),
        ((1, 2048, 24, 32), "NHWC", 0, 2, (Path.CHANNELS, 512, True)),
        ((1, 2048, 48, 64), "NHWC", 40, 1, (Path.CHANNELS, 688, True)),
        ((1, 512, 48, 64), "NHWC", 200, 1, (Path.CHANNELS, 256, False)),
        ((1, 512, 48, 64), "NCHW", 300, 1, (Path.ROWS, 16, False)),
        ((1, 512, 48, 64), "NCHW", 2000, 1, (Path.GATHER, 16, False)),
    ],
)
def test_choices(monkeypatch, shape, layout, boxes, threads, expected):
    monkeypatch.setattr(route, "_CACHE", CACHE)
    images, channels, height, width = shape
    if layout == "NCHW":
        x = np.empty(shape, np.float32)
    else:
        x = np.empty((images, height, width, channels), np.float32).transpose(0, 3, 1, 2)
    chosen = chosen_for(x, boxes_of(height, width, boxes), threads)
    assert (chosen.path, chosen.lanes, chosen.keep_bands) == expected


def test_the_cache_is_most_of_the_second_level():
    assert 1 / 2 <= route._CACHE / second_level_cache() <= 1


def test_rows_of_a_view():
    """Rows of a quarter of a line are read as whole lines, those of an eighth are gathered."""
    x = np.empty((8, 512, 24, 32), np.float32)
    for columns, path in ((2, Path.GATHER), (4, Path.ROWS), (8, Path.ROWS)):
        view = x[..., :columns]
        assert chosen_for(view, boxes_of(24, columns, 0), 1).path == path


def test_some_planes_are_prefetched():
    """Several of 24x32 float32, and little of what a second-level cache holds."""
    x = np.empty((8, 2048, 24, 32), np.float32)
    ahead = chosen_for(x, boxes_of(24, 32, 0), 1).prefetch
    assert 16 * 24 * 32 * 4 <= ahead <= CACHE // 8


def test_threads_are_for_large_maps():
    threads = [route.threads_for(2, channels * 7 * 7 * 4) for channels in (128, 512, 1024)]
    assert threads == [1, 1, 2]


@pytest.mark.parametrize(("size", "expected"), [(25 << 20, 1), (100 << 20, None)])
def test_threads_before_a_product_are_for_larger_maps(monkeypatch, size, expected):
    monkeypatch.setattr(route, "default_workers", lambda: 2)
    assert route.workers_before_product(None, size) == expected


def boxes_of(height, width, count):
    """Of a grid, or so many random ones."""
    if not count:
        return rmac.region_grid(height, width).boxes
    corners = np.random.default_rng(0).integers(0, (width, height), (2, count, 2))
    return np.concatenate([corners.min(axis=0), corners.max(axis=0)], axis=1)


def chosen_for(x, boxes, threads):
    spec = route.kernel_spec(x.dtype, MAX_POOLING)
    return route.region_route.__wrapped__(boxes.tobytes(), x.shape, x.strides, spec, threads)
