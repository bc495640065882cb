"""Calls of the functions of feature maps, with what they must give."""

import numpy as np
import reference

import rmac
from fuzz.calls import (
    DTYPES,
    LAYOUTS,
    Call,
    chance,
    close_values,
    draw_map_shape,
    draw_out,
    draw_values,
    draw_workers,
    pick,
    result_dtype,
    same_values,
    stored,
)
from rmac import _dtypes, _options

_GRID_KINDS = {"levels": "int", "overlap": "float", "preset": "word"}
_POOL_KINDS = {
    "pool": "word",
    "p": "float",
    "zero_point": "small int",
    "layout": "word",
    "workers": "int",
    "out": "out",
}


def grid_options(rng):
    return {
        "levels": int(rng.integers(1, 6)),
        "overlap": pick(rng, (0.0, 0.2, 0.4, 0.9)),
        "preset": pick(rng, _options.PRESETS),
    }


def pool_options(rng, dtype, *, keeps_maxima=False):
    pool = pick(rng, ("max", *_options.POOLS))
    options = {"pool": pool, "p": pick(rng, (0.5, 1, 2.0, 2.92, 3.0, 4, 7.5)), "zero_point": 0}
    ends = _dtypes.DTYPES[dtype].zero_points
    if ends != (0, 0) and not (keeps_maxima and pool == "max"):
        options["zero_point"] = pick(rng, (0, *ends, 3))
    return options


def draw_boxes(rng, memory, height, width):
    """Return boxes (R, 4), and the same in one of the forms that users have."""
    count = pick(rng, (0, 1, 2, 3, 5, 20, 70))
    xs, ys = (np.sort(rng.integers(0, side, (count, 2)), axis=1) for side in (width, height))
    boxes = np.stack([xs[:, 0], ys[:, 0], xs[:, 1], ys[:, 1]], axis=1)
    form = pick(rng, ("list", "i8", "i4", "u8", "u1", "turned"))
    if form == "list":
        return boxes, boxes.tolist() if count else boxes
    if form == "turned":
        return boxes, memory.input(np.ascontiguousarray(boxes.T)).T
    return boxes, memory.input(boxes.astype(form))


def _draw_maps(rng, memory, layout, special=0.0):
    shape, dtype = list(draw_map_shape(rng)), pick(rng, DTYPES)
    if layout in ("NCT", "NTC"):
        shape[2] = 1
    x = draw_values(rng, shape, dtype, special)
    view = stored(rng, memory, x)
    if layout in ("NCT", "NTC"):
        view = view[:, :, 0]
    return x, view.transpose(LAYOUTS[layout])


def _default_boxes(shape, grid, layout):
    if layout in ("NCT", "NTC"):
        options = {name: value for name, value in grid.items() if name != "overlap"}
        return rmac.sequence_grid(shape[3], **options).boxes
    return rmac.region_grid(*shape[2:], **grid).boxes


def _regions(x, boxes, pool):
    """Return the values of regions, how far others may be from them, and their dtype."""
    dtype = x.dtype if pool["pool"] == "max" else result_dtype(x.dtype)
    if not x.size:
        return np.empty((x.shape[0], len(boxes), x.shape[1]), dtype), None, dtype
    if pool["pool"] == "max":
        return reference.region_pool(x, boxes), None, dtype
    return *reference.region_mean(x, boxes, dtype, **pool), dtype


def _check_regions(expected, allowed, dtype):
    def check(result):
        if allowed is None:
            same_values(result, expected)
        else:
            close_values(result, expected, allowed, dtype)

    return check


def region_pool(rng, memory):
    layout = pick(rng, ("NCHW", "NCHW", "NHWC", "NCT", "NTC"))
    x, view = _draw_maps(rng, memory, layout, pick(rng, (0.0, 0.0, 0.01, 0.5)))
    grid, pool = grid_options(rng), pool_options(rng, x.dtype.name, keeps_maxima=True)
    options = grid | pool | {"layout": layout, "workers": draw_workers(rng)}
    boxes = _default_boxes(x.shape, grid, layout)
    kinds = {"x": "maps", "regions": "boxes"} | _GRID_KINDS | _POOL_KINDS
    if chance(rng, 0.4):
        boxes, options["regions"] = draw_boxes(rng, memory, *x.shape[2:])
    expected, allowed, dtype = _regions(x, boxes, pool)
    options["out"] = draw_out(rng, memory, expected.shape, dtype)
    check = _check_regions(expected, allowed, dtype)
    return Call(rmac.region_pool, view, options, check, kinds, output=options["out"])


def region_pool_list(rng, memory):
    layout = pick(rng, ("NCHW", "NHWC"))
    channels, dtype = pick(rng, (1, 3, 16, 65)), pick(rng, DTYPES)
    grid, pool = grid_options(rng), pool_options(rng, np.dtype(dtype).name, keeps_maxima=True)
    maps, expected = [], []
    for _ in range(int(rng.integers(1, 5))):
        sides = (int(side) for side in rng.integers(1, 12, 2))
        x = draw_values(rng, (1, channels, *sides), dtype, 0.01)
        maps.append(stored(rng, memory, x).transpose(LAYOUTS[layout])[0])
        expected.append(_regions(x, _default_boxes(x.shape, grid, layout), pool))

    def check(result):
        assert type(result) is list
        assert len(result) == len(expected)
        for one, wanted in zip(result, expected, strict=True):
            _check_regions(*wanted)(one[None])

    options = grid | pool | {"layout": layout, "workers": draw_workers(rng)}
    kinds = {"x": "list"} | _GRID_KINDS | _POOL_KINDS
    return Call(rmac.region_pool, maps, options, check, kinds)


def rmac_options(rng):
    return {
        "normalize_regions": chance(rng, 0.8),
        "aggregate": pick(rng, ("sum", *_options.AGGREGATES)),
        "normalize": chance(rng, 0.8),
        "eps": pick(rng, (0.0, 0.0, 1e-6, 0.5)),
    }


def check_descriptors(vectors, dtype, options):
    if not vectors.size:
        images, regions, channels = vectors.shape
        shape = {"none": vectors.shape, "concat": (images, regions * channels)}
        expected = np.empty(shape.get(options["aggregate"], (images, channels)))
        return expected, lambda result: close_values(result, expected, expected, dtype)
    expected = reference.rmac(vectors, **options)
    allowed = reference.rmac_error(vectors, dtype, **options)
    return expected, lambda result: close_values(result, expected, allowed, dtype)


def _vectors(x, view, boxes, pool, layout):
    """Return regional vectors; of means, rmac's own, which calls of region_pool check.

    The order of a sum depends on strides, so that they are those of the same view.
    """
    if pool["pool"] == "max":
        maxima = reference.region_pool(x, boxes)
        return maxima - np.int32(pool["zero_point"]) if pool["zero_point"] else maxima
    return rmac.region_pool(view, boxes, layout=layout, **pool)


def rmac_(rng, memory):
    layout = pick(rng, ("NCHW", "NCHW", "NHWC", "NCT", "NTC"))
    x, view = _draw_maps(rng, memory, layout)
    grid, pool, own = grid_options(rng), pool_options(rng, x.dtype.name), rmac_options(rng)
    vectors = _vectors(x, view, _default_boxes(x.shape, grid, layout), pool, layout)
    dtype = result_dtype(x.dtype)
    expected, check = check_descriptors(vectors, dtype, own)
    out = draw_out(rng, memory, expected.shape, dtype)
    options = grid | pool | own | {"layout": layout, "workers": draw_workers(rng), "out": out}
    return Call(rmac.rmac, view, options, check, RMAC_KINDS, output=out)


RMAC_KINDS = {
    "x": "maps",
    "normalize_regions": "flag",
    "aggregate": "word",
    "normalize": "flag",
    "eps": "float",
    "whitening": "whitening",
    **_GRID_KINDS,
    **_POOL_KINDS,
}


def rmac_list(rng, memory):
    channels, dtype = pick(rng, (1, 3, 16, 65)), pick(rng, DTYPES)
    grid, own = grid_options(rng), rmac_options(rng)
    pool = pool_options(rng, np.dtype(dtype).name)
    own["aggregate"] = pick(rng, ("sum", "mean"))
    maps, expected, checks = [], [], []
    for _ in range(int(rng.integers(1, 6))):
        sides = (int(side) for side in rng.integers(1, 12, 2))
        x = draw_values(rng, (1, channels, *sides), dtype)
        view = stored(rng, memory, x)
        maps.append(view[0])
        vectors = _vectors(x, view, _default_boxes(x.shape, grid, "NCHW"), pool, "NCHW")
        one, check = check_descriptors(vectors, result_dtype(dtype), own)
        expected.append(one)
        checks.append(check)

    def check_all(result):
        assert len(result) == len(maps)
        for i, check in enumerate(checks):
            check(result[i : i + 1])

    shape = (len(maps), channels)
    out = draw_out(rng, memory, shape, result_dtype(dtype))
    options = grid | pool | own | {"workers": draw_workers(rng), "out": out}
    kinds = RMAC_KINDS | {"x": "list"}
    return Call(rmac.rmac, maps, options, check_all, kinds, output=out)


def rmac_whitened(rng, memory):
    """Whitened descriptors; the whitening is a rotation, so that errors stay small."""
    x, view = _draw_maps(rng, memory, "NCHW")
    if not x.size:
        x = draw_values(rng, (1, 1, *x.shape[2:]), x.dtype)
        view = memory.input(x)
    channels = x.shape[1]
    dim = int(rng.integers(1, channels + 1))
    rows = np.linalg.qr(rng.standard_normal((channels, channels)))[0][:dim]
    mean = rng.standard_normal(channels) * 0.01
    grid, own = grid_options(rng), rmac_options(rng)
    vectors = reference.region_pool(x, _default_boxes(x.shape, grid, "NCHW")).astype(np.float64)
    if own["normalize_regions"]:
        vectors = reference.l2(vectors, own["eps"])
    vectors = (vectors - mean) @ rows.T
    expected = reference.rmac(vectors, **own)
    lengths = np.linalg.norm(vectors, axis=2, keepdims=True) + own["eps"]
    scale = abs(vectors).max(initial=1.0) if not own["normalize_regions"] else 1.0
    if own["normalize_regions"]:
        scale = scale / max(lengths.min(initial=1.0), 1e-30)
    plain = reference.rmac(vectors, **(own | {"normalize": False}))
    if own["normalize"] and own["aggregate"] != "none":
        scale = (
            scale * vectors.shape[1] / max(np.linalg.norm(plain, axis=-1).min(initial=1.0), 1e-30)
        )
    dtype = result_dtype(x.dtype)
    allowed = np.full(expected.shape, scale * (1e-12 if dtype == np.float64 else 1e-4))

    def check(result):
        close_values(result, expected, allowed, dtype)

    out = draw_out(rng, memory, expected.shape, dtype)
    options = grid | own | {"whitening": rmac.Whitening.from_projection(mean, rows), "out": out}
    return Call(rmac.rmac, view, options, check, RMAC_KINDS, output=out)


def roi_pool(rng, memory):
    layout = pick(rng, ("NCHW", "NHWC"))
    x, view = _draw_maps(rng, memory, layout, pick(rng, (0.0, 0.05)))
    count = int(rng.integers(0, 6)) if len(x) else 0
    rois = np.empty((count, 5))
    rois[:, 0] = rng.integers(0, max(1, len(x)), count)
    rois[:, 1:] = rng.uniform(-40, 300, (count, 4)) * pick(rng, (0.05, 0.3, 1.0, 1e6))
    rois = rois.astype(pick(rng, ("f4", "f8", "i8")))
    scale = pick(rng, (1.0, 0.25, 1 / 16, 3.7))
    size = pick(rng, (1, 2, (3, 2), [1, 7], np.array([2, 2])))
    both = (size, size) if isinstance(size, int) else tuple(int(side) for side in size)
    expected = reference.roi_pool(x, rois, both, scale)
    out = draw_out(rng, memory, expected.shape, x.dtype)
    options = {"rois": memory.input(rois), "output_size": size, "spatial_scale": scale}
    options |= {"layout": layout, "workers": draw_workers(rng), "out": out}
    kinds = {"x": "maps", "rois": "rois", "output_size": "int", "spatial_scale": "float"}
    kinds |= {"layout": "word", "workers": "int", "out": "out"}
    return Call(rmac.roi_pool, view, options, lambda r: same_values(r, expected), kinds, output=out)


def rmac_regions(rng, memory):
    x, view = _draw_maps(rng, memory, "NCHW")
    scales, overlap = int(rng.integers(1, 6)), pick(rng, (0.0, 0.4, 0.7))
    boxes = rmac.region_grid(*x.shape[2:], levels=scales, overlap=overlap).boxes
    images = len(x) if x.size else 0
    expected = np.empty((images, len(boxes), 5), np.float32)
    expected[..., 0], expected[..., 1:] = np.arange(images)[:, None], boxes
    expected = expected.reshape(-1, 5)
    options = {"scales": scales, "overlap": overlap}
    kinds = {"x": "any_maps", "scales": "int", "overlap": "float"}
    return Call(rmac.rmac_regions, view, options, lambda r: same_values(r, expected), kinds)
