"""What rmac must compute, written for reading: one region after the other, in float64."""

import numpy as np


def region_pool(x, boxes):
    """Maxima (N, R, C) of x (N, C, H, W), NaN if there is one, +0 above -0."""
    out = np.empty((x.shape[0], len(boxes), x.shape[1]), x.dtype)
    for r, (x1, y1, x2, y2) in enumerate(boxes):
        out[:, r] = window_maximum(x[:, :, y1 : y2 + 1, x1 : x2 + 1])
    return out


def window_maximum(window):
    with np.errstate(invalid="ignore"):  # ml_dtypes warns of NaN
        highest = window.max(axis=(2, 3))
    if window.dtype.kind in "iu":
        return highest
    has_positive_zero = ((window == 0) & ~np.signbit(window)).any(axis=(2, 3))
    return np.where((highest == 0) & has_positive_zero, np.zeros_like(highest), highest)


def region_mean(x, boxes, dtype, *, pool, p=3, zero_point=0):
    """Means (N, R, C) by `pool`, and bounds on their errors.

    The bounds are for sums in `dtype`. A window of n cells rounds at the power (by p eps, or by 4
    units in the last place on a GPU), at n additions and at the division. The root divides the
    relative error by p, and rounds itself.
    """
    means = np.empty((x.shape[0], len(boxes), x.shape[1]))
    errors = np.empty_like(means)
    with np.errstate(invalid="ignore"):  # NaN, and inf - inf
        for r, (x1, y1, x2, y2) in enumerate(boxes):
            window = x[:, :, y1 : y2 + 1, x1 : x2 + 1].astype(np.float64) - zero_point
            roundings = window[0, 0].size + 6
            if pool == "mean":
                means[:, r] = window.mean(axis=(2, 3))
                errors[:, r] = roundings * np.abs(window).mean(axis=(2, 3))
            else:
                assert pool == "gem", "the oracle does not know this pool"
                roundings += p
                powers = np.where(window < 1e-6, 1e-6, window) ** p
                means[:, r] = powers.mean(axis=(2, 3)) ** (1 / p)
                errors[:, r] = (roundings / p + 5) * means[:, r]
    return means, errors * np.finfo(dtype).eps


def roi_pool(x, rois, output_size, spatial_scale):
    """Caffe2's RoIPool, but that NaN propagates."""
    one = np.float32
    height, width = x.shape[2:]
    ph, pw = output_size
    out = np.zeros((len(rois), x.shape[1], ph, pw), x.dtype)
    for k, (index, *corners) in enumerate(rois.astype(np.float32)):
        scaled = (float(one(corner) * one(spatial_scale)) for corner in corners)
        x1, y1, x2, y2 = (int(np.copysign(np.floor(abs(c) + 0.5), c)) for c in scaled)
        step_y = one(max(y2 - y1 + 1, 1)) / one(ph)
        step_x = one(max(x2 - x1 + 1, 1)) / one(pw)
        for i in range(ph):
            for j in range(pw):
                top = np.clip(int(np.floor(one(i) * step_y)) + y1, 0, height)
                bottom = np.clip(int(np.ceil(one(i + 1) * step_y)) + y1, 0, height)
                left = np.clip(int(np.floor(one(j) * step_x)) + x1, 0, width)
                right = np.clip(int(np.ceil(one(j + 1) * step_x)) + x1, 0, width)
                if top < bottom and left < right:
                    window = x[int(index) : int(index) + 1, :, top:bottom, left:right]
                    out[k, :, i, j] = window_maximum(window)[0]
    return out


def branch_pool(x, weights, windows):
    """The mean of the branches, and the size that its rounding errors are relative to.

    A window is a pair; None is the whole map, and then all are None.
    """
    view = np.lib.stride_tricks.sliding_window_view
    total = size = 0
    for weight, window in zip(weights, windows, strict=True):
        kernel = weight.astype(np.float64)
        cells = view(x.astype(np.float64), kernel.shape[2:], axis=(2, 3))
        sums = np.einsum("nchwij,ocij->nohw", cells, kernel)
        sizes = np.einsum("nchwij,ocij->nohw", np.abs(cells), np.abs(kernel))
        sides = sums.shape[2:] if window is None else window
        sums, sizes = (view(part, sides, axis=(2, 3)).max(axis=(4, 5)) for part in (sums, sizes))
        total, size = total + np.maximum(sums, 0), size + sizes
    if windows[0] is None:
        total, size = total[:, :, 0, 0], size[:, :, 0, 0]
    return total / len(weights), size / len(weights)


def merge_scales(scales, p):
    """The generalised mean of descriptors (S, N, D) over scales, then L2."""
    scales = np.asarray([scale.astype(np.float64) for scale in scales])
    return l2(scales.max(axis=0) if p == np.inf else (scales**p).mean(axis=0) ** (1 / p))


def l2(vectors, eps=0.0):
    norm = np.sqrt((vectors**2).sum(axis=-1, keepdims=True)) + eps
    return vectors / np.where(norm == 0, 1, norm)


def rmac(vectors, *, normalize_regions=True, aggregate="sum", normalize=True, eps=0.0):
    """Descriptors of regional vectors (N, R, C), in float64."""
    vectors = vectors.astype(np.float64)
    if normalize_regions:
        vectors = l2(vectors, eps)
    if aggregate == "none":
        return vectors
    if aggregate == "concat":
        result = vectors.reshape(len(vectors), -1)
    else:
        result = vectors.sum(axis=1)
        if aggregate == "mean":
            result = result / vectors.shape[1]
    return l2(result, eps) if normalize else result


def rmac_error(vectors, dtype, **options):
    """Bound on the rounding error of each element of a descriptor computed in `dtype`.

    An element rounds when it is normalised, at each of the R additions, when it is divided by R and
    when it is normalised again; the error of a sum is relative to its terms' absolute values, and
    the final norm brings them to scale. Norms are summed in float64 and add one more.
    """
    regions, vectors = vectors.shape[1], vectors.astype(np.float64)
    if options.get("normalize_regions", True):
        vectors = l2(vectors, options.get("eps", 0.0))
    roundings = regions + 6
    if options.get("aggregate", "sum") in ("none", "concat"):
        size, result = np.abs(vectors), vectors
    else:
        size, result = np.abs(vectors).sum(axis=1), vectors.sum(axis=1)
        if options.get("aggregate") == "mean":
            size, result = size / regions, result / regions
    if options.get("aggregate") != "none":
        size, result = size.reshape(len(size), -1), result.reshape(len(result), -1)
        if options.get("normalize", True):
            norm = np.linalg.norm(result, axis=-1, keepdims=True) + options.get("eps", 0.0)
            spread = np.linalg.norm(size, axis=-1, keepdims=True)
            # regions that cancel to rounding noise leave a vector whose direction means nothing
            noise = (norm > 0) | (spread > 0)
            noise &= 2 * roundings * np.finfo(dtype).eps * spread >= norm
            norm = np.where(norm == 0, 1, norm)
            # an error of the whole vector changes its norm, and so every element
            size = size / norm + np.abs(result) / norm * spread / norm
            size = np.where(noise, np.inf, size)
    return roundings * np.finfo(dtype).eps * size + np.finfo(dtype).tiny


def rerank(query, maps, boxes, describe):
    """The order, scores and vectors of maps (C, H, W), each cut to its box and described."""
    crops = [
        x[:, y1 : y2 + 1, x1 : x2 + 1] for x, (x1, y1, x2, y2) in zip(maps, boxes, strict=True)
    ]
    vectors = np.array([describe(crop) for crop in crops]).reshape(-1, len(query))
    scores = vectors.astype(np.float64) @ query.astype(np.float64)
    return sorted(range(len(maps)), key=lambda i: -scores[i]), scores, vectors


def expand(queries, descriptors, neighbours, alpha):
    """The sums of queries and their neighbours, and bounds of their errors relative to float64."""
    sums, sizes = queries.astype(np.float64), abs(queries.astype(np.float64))
    for i, row in enumerate(neighbours):
        for k in row:
            if k >= 0:
                found = descriptors[k].astype(np.float64)
                similarity = max(queries[i].astype(np.float64) @ found, 0)
                sums[i] += similarity**alpha * found
                sizes[i] += similarity**alpha * abs(found)
    return sums, sizes


def evaluate(row, positives, junk, at):
    """The average precision and the precisions of one list, by walking down the list."""
    if not positives:
        return np.nan, [np.nan] * len(at)
    kept = [image for image in row if image >= 0 and image not in junk]
    hits = [image in positives for image in kept]
    area, precision = 0.0, 1.0
    for place, hit in enumerate(hits):
        before, precision = precision, sum(hits[: place + 1]) / (place + 1)
        area += hit * (before + precision) / 2 / len(positives)
    last = max([place + 1 for place, hit in enumerate(hits) if hit], default=0)
    lengths = [min(k, last) for k in at]
    return area, [sum(hits[:k]) / k if k else np.nan for k in lengths]
