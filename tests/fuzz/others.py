"""Calls of grids, scales, branches, whitenings and operators, with what they must give."""

import os
import tempfile

import numpy as np
import reference

import rmac
from fuzz import maps, oracle
from fuzz.calls import (
    DTYPES,
    Call,
    chance,
    close_values,
    draw_values,
    pick,
    result_dtype,
    same_values,
    stored,
)
from rmac._options import PRESETS


def _side(rng):
    return (
        int(pick(rng, (1, 2, 3, 7, 24, 97, 500, 2**20, 2**31 - 1)))
        if chance(rng, 0.3)
        else int(rng.integers(1, 60))
    )


def _check_grid(height, width, levels, overlap, preset):
    expected = oracle.grid(height, width, levels, overlap, preset)

    def check(grid):
        assert type(grid) is rmac.RegionGrid
        same_values(grid.boxes, expected)
        assert (grid.height, grid.width, grid.levels) == (height, width, levels)
        assert len(grid.level) == len(expected)
        assert 0 < grid.coverage <= 1
        assert not grid.boxes.flags.writeable

    return check


def region_grid(rng, memory):
    del memory
    height, width = _side(rng), _side(rng)
    options = maps.grid_options(rng)
    check = _check_grid(height, width, *options.values())
    kinds = {"height": "int", "width": "int", "levels": "int", "overlap": "float", "preset": "word"}
    return Call(rmac.region_grid, height, {"width": width} | options, check, kinds, name="height")


def sequence_grid(rng, memory):
    del memory
    length, levels, preset = _side(rng), int(rng.integers(1, 6)), pick(rng, PRESETS)
    check = _check_grid(1, length, levels, None, preset)
    kinds = {"length": "int", "levels": "int", "preset": "word"}
    options = {"levels": levels, "preset": preset}
    return Call(rmac.sequence_grid, length, options, check, kinds, name="length")


def to_image(rng, memory):
    del memory
    grid = rmac.region_grid(_side(rng), _side(rng), **maps.grid_options(rng))
    height, width = float(rng.uniform(1, 2000)), pick(rng, (1, 640, 33.5))
    scale = np.array([width / grid.width, height / grid.height] * 2)
    expected = (grid.boxes + np.array([0, 0, 1, 1])) * scale
    kinds = {"image_height": "float", "image_width": "float"}

    def check(result):
        close_values(result, expected, 1e-12 * abs(expected), np.float64)

    return Call(grid.to_image, height, {"image_width": width}, check, kinds, name="image_height")


def merge_scales(rng, memory):
    shape, dtype = (int(rng.integers(0, 5)), pick(rng, (0, 1, 3, 16, 65))), pick(rng, DTYPES)
    p = pick(rng, (1.0, 1, 2.0, 3, 0.5, np.inf))
    scales = []
    for _ in range(int(rng.integers(1, 5))):
        values = draw_values(rng, shape, dtype)
        values = values if dtype.kind == "u" else np.maximum(values, np.zeros(1, dtype))
        scales.append(values)
    first = [stored(rng, memory, one[None, None])[0, 0] for one in scales]
    expected = reference.merge_scales(first, p)
    if chance(rng, 0.3):
        first = memory.input(np.stack(first))
    dtype = result_dtype(dtype)
    allowed = np.full(shape, 1e-12 if dtype == np.float64 else 1e-6)

    def check(result):
        close_values(result, expected, allowed, dtype)

    kinds = {"descriptors": "list" if isinstance(first, list) else "array", "p": "float"}
    return Call(rmac.merge_scales, first, {"p": p}, check, kinds, name="descriptors")


def branch_pool(rng, memory):
    channels, filters, dtype = pick(rng, (1, 2, 5)), pick(rng, (0, 1, 4)), pick(rng, DTYPES)
    height, width = (int(side) for side in rng.integers(1, 9, 2))
    x = draw_values(rng, (int(rng.integers(0, 4)), channels, height, width), dtype)
    view = stored(rng, memory, x)
    whole, branches = chance(rng, 0.5), int(rng.integers(1, 4))
    sides = height, width
    left = [int(rng.integers(1, side + 1)) for side in sides]
    weights, windows = [], []
    for _ in range(branches):
        kernel = [int(rng.integers(1, n - m + 2)) for n, m in zip(sides, left, strict=True)]
        window = [n - k - m + 2 for n, k, m in zip(sides, kernel, left, strict=True)]
        weight = draw_values(rng, (filters, channels, *kernel), pick(rng, DTYPES))
        weights.append(stored(rng, memory, weight))
        windows.append(None if whole else tuple(window))
    expected, size = reference.branch_pool(x, weights, windows)
    dtype = result_dtype(dtype)
    allowed = size * np.finfo(dtype).eps * (channels * height * width + 8)

    def check(result):
        close_values(result, expected, allowed, dtype)

    options = {"weights": weights, "kernel_sizes": windows}
    kinds = {"x": "maps", "weights": "weights", "kernel_sizes": "sizes"}
    return Call(rmac.branch_pool, view, options, check, kinds)


def _vectors(rng, memory, count=None):
    channels = pick(rng, (1, 2, 5, 8))
    count = int(rng.integers(3 * channels + 2, 60)) if count is None else count
    values = draw_values(rng, (count, channels), pick(rng, DTYPES))
    view = stored(rng, memory, values[None, None])[0, 0]
    return values, view


def _check_whitening(values, dim, eps):
    """The mean, and rows that turn the covariance into that of what is kept."""
    values = values.astype(np.float64)
    mean, covariance = (
        values.mean(axis=0),
        np.cov(values.T, bias=True).reshape([values.shape[1]] * 2),
    )
    variances = np.linalg.eigvalsh(covariance)[::-1][:dim]
    size = abs(values).max()

    def check(w):
        assert type(w) is rmac.Whitening
        assert w.count == len(values)
        assert w.channels == values.shape[1]
        assert abs(w.mean - mean).max() <= 1e-11 * size
        rows = len(w.projection)
        assert w.projection.shape == (rows, values.shape[1])
        assert rows <= len(variances)
        assert (variances[rows:] <= 1e-4 * size**2).all()  # the rounding of bfloat16 at most
        assert (abs(w.variances - variances[:rows]) <= 1e-9 * size**2).all()
        if rows and variances[rows - 1] > 1e-6 * size**2:
            kept = w.projection @ covariance @ w.projection.T
            expected = np.diag(variances[:rows] / np.maximum(variances[:rows], eps))
            assert abs(kept - expected).max() <= 1e-5

    return check


def whitening_fit(rng, memory):
    values, view = _vectors(rng, memory)
    values = np.array(view)
    dim = pick(rng, (None, 1, values.shape[1]))
    eps = pick(rng, (0.0, 1e-3))

    def whitening_fit(vectors, dim, eps):
        return rmac.Whitening().fit(vectors, dim=dim, eps=eps)

    kinds = {"vectors": "array", "dim": "int", "eps": "float"}
    check = _check_whitening(values, dim, eps)
    return Call(whitening_fit, view, {"dim": dim, "eps": eps}, check, kinds, name="vectors")


def whitening_parts(rng, memory):
    """Learned in parts, some of them merged, and sometimes saved and loaded in between."""
    _, view = _vectors(rng, memory)
    cuts = sorted(rng.integers(0, len(view), int(rng.integers(0, 4))).tolist())
    saved, merged = chance(rng, 0.3), chance(rng, 0.5)

    def whitening_parts(vectors):
        w, other = rmac.Whitening(), rmac.Whitening()
        for i, part in enumerate(np.split(vectors, cuts)):
            (other if merged and i % 2 else w).partial_fit(part)
        w = w.merge(other)
        return _reloaded(w) if saved else w

    check = _check_whitening(np.array(view), None, 0.0)
    return Call(whitening_parts, view, {}, check, {"vectors": "none"}, name="vectors")


def _reloaded(w):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "w.npz")
        w.save(path)
        return rmac.Whitening.load(path)


def whitening_apply(rng, memory):
    channels = pick(rng, (1, 2, 5, 8))
    dim = int(rng.integers(1, channels + 1))
    mean, rows = rng.standard_normal(channels), rng.standard_normal((dim, channels))
    shape = [int(side) for side in rng.integers(0, 6, int(rng.integers(0, 4)))] + [channels]
    values = draw_values(rng, shape, pick(rng, DTYPES))
    dtype = result_dtype(values.dtype)
    expected = (values.astype(np.float64) - mean) @ rows.T
    size = (abs(values.astype(np.float64)) + abs(mean)) @ abs(rows).T
    w = rmac.Whitening.from_projection(memory.input(mean), memory.input(rows))

    def whitening_apply(vectors):
        return w.apply(vectors)

    def check(result):
        close_values(result, expected, (channels + 6) * np.finfo(dtype).eps * size, dtype)

    kinds = {"vectors": "array"}
    return Call(whitening_apply, memory.input(values), {}, check, kinds, name="vectors")


def whitening_from_projection(rng, memory):
    channels = pick(rng, (1, 2, 5))
    mean, rows = rng.standard_normal(channels), rng.standard_normal((2, channels))

    def from_projection(mean, projection):
        return rmac.Whitening.from_projection(mean, projection)

    def check(w):
        same_values(np.array(w.mean), mean)
        same_values(np.array(w.projection), rows)

    return Call(
        from_projection,
        memory.input(mean),
        {"projection": memory.input(rows)},
        check,
        {"mean": "array", "projection": "array"},
        name="mean",
    )


def whitening_merge(rng, memory):
    _, view = _vectors(rng, memory)
    half = len(view) // 2
    a, b = rmac.Whitening().fit(view[:half]), rmac.Whitening().fit(view[half:])

    def whitening_merge(other):
        return a.merge(other)

    check = _check_whitening(np.array(view), None, 0.0)
    return Call(whitening_merge, b, {}, check, {"other": "whitening"}, name="other")


def whitening_load(rng, memory):
    """A file with a byte changed or bytes missing: an error, or what was saved."""
    _, view = _vectors(rng, memory)
    w = rmac.Whitening().fit(view)
    broken = chance(rng, 0.8)
    place, bit, cut = rng.random(), int(rng.integers(1, 256)), chance(rng, 0.3)

    def whitening_load(path):
        with tempfile.TemporaryDirectory() as folder:
            path = path or os.path.join(folder, "w.npz")
            w.save(os.path.join(folder, "w.npz"))
            if broken:
                _break(path, place, bit, cut)
            try:
                return rmac.Whitening.load(path)
            except ValueError as error:
                if broken and path in str(error):
                    return w
                raise AssertionError(
                    f"a good file, or a message without its path: {error}"
                ) from error

    def check(loaded):
        same_values(np.array(loaded.mean), np.array(w.mean))
        same_values(np.array(loaded.projection), np.array(w.projection))
        assert loaded.count == w.count

    return Call(whitening_load, "", {}, check, {"path": "none"}, name="path")


def _break(path, place, bit, cut):
    with open(path, "r+b") as file:
        content = bytearray(file.read())
        at = int(place * len(content))
        content[at] ^= bit
        file.seek(0)
        file.write(content[:at] if cut else content)
        if cut:
            file.truncate(at)


def run_on_device(rng, memory):
    """The same call through the registry gives the same, bit for bit."""
    name, draw = pick(
        rng,
        (
            ("RegionPool", maps.region_pool),
            ("RMAC", maps.rmac_),
            ("RoIPool", maps.roi_pool),
            ("RMACRegions", maps.rmac_regions),
            ("BranchPool", branch_pool),
        ),
    )
    call = draw(rng, memory)
    device = pick(rng, (None, "cpu"))

    def run_on_device(x, **options):
        return rmac.operators.run_on_device(name, x, device, **options)

    call.function = run_on_device
    return call


def operator_object(rng, memory):
    call = maps.rmac_regions(rng, memory)
    operator = rmac.operators.RMACRegionsOp(**call.options)
    call.function, call.options = operator, {}
    call.kinds = {"x": "any_maps"}
    return call
