"""What public functions must give, where tests/reference.py does not say: slow and plain."""

import numpy as np
from reference import l2

_TYPES = {"caffe2": np.float32, "matlab": np.float64, "cirtorch": np.float32}  # of each preset


def grid(height, width, levels, overlap, preset):
    """Boxes (R, 4), one window after the other; a sequence has no overlap, but None."""
    real, sequence = _TYPES[preset], overlap is None
    boxes = [(0, 0, width - 1, height - 1)] if preset == "cirtorch" else []
    extra = 0 if sequence else _extra(height, width, overlap, real)
    for level in range(1, levels + 1):
        side = 2 * (width if sequence else min(height, width)) // (level + 1)
        if side == 0:
            break
        xs = _starts(width, side, level + (extra if width > height else 0), preset)
        tall, rows = (1, 1) if sequence else (side, level + (extra if height > width else 0))
        ys = _starts(height, tall, rows, preset)
        places = [(x, y) for x in xs for y in ys]
        if preset != "caffe2":
            places = [(x, y) for y in ys for x in xs]
        boxes += [(x, y, x + side - 1, y + tall - 1) for x, y in places]
    return np.array(boxes, np.int64).reshape(-1, 4)


def _extra(height, width, overlap, real):
    short, long = min(height, width), max(height, width)
    if short == long:
        return 0
    errors = []
    for k in range(1, 7):
        shift = real(short) * (real(long - short) / real(k))
        errors.append(abs((real(short * short) - shift) / real(short * short) - real(overlap)))
    return 1 + errors.index(min(errors))


def _starts(length, side, count, preset):
    real, starts = _TYPES[preset], []
    for i in range(count):
        if count == 1:
            return [0]
        step = real(length - side) / real(count - 1)
        if preset == "caffe2":
            start = int(real(i) * step)
        else:
            centre = real((side - 2) // 2)
            start = int(np.floor(centre + real(i) * step) - centre)
        starts.append(min(start, length - side))
    return starts


def merge_scales(scales, p):
    scales = np.asarray([scale.astype(np.float64) for scale in scales])
    if p == np.inf:
        return l2(scales.max(axis=0))
    if p == 1:
        return l2(scales.mean(axis=0))
    peak = scales.max(axis=(0, 2), keepdims=True)
    peak = np.where(peak == 0, 1, peak)
    return l2(((scales / peak) ** p).mean(axis=0) ** (1 / p))


def branch_pool(x, weights, windows):
    """The result, and a bound of the sums of magnitudes that its errors are relative to."""
    view = np.lib.stride_tricks.sliding_window_view
    total = bound = 0
    for weight, window in zip(weights, windows, strict=True):
        kernel = weight.astype(np.float64)
        parts = view(x.astype(np.float64), kernel.shape[2:], axis=(2, 3))
        sums = np.einsum("nchwij,dcij->ndhw", parts, kernel)
        sizes = np.einsum("nchwij,dcij->ndhw", abs(parts), abs(kernel))
        side = sums.shape[2:] if window is None else window
        sums, sizes = (view(part, side, axis=(2, 3)).max(axis=(4, 5)) for part in (sums, sizes))
        total, bound = total + np.maximum(sums, 0), bound + sizes
    if windows[0] is None:
        total, bound = total[:, :, 0, 0], bound[:, :, 0, 0]
    return total / len(weights), bound / len(weights)
