"""The boxes of grids, one window after the other: slow and plain."""

import numpy as np

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
