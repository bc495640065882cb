"""What `rmac.localize` must find, written for reading: each box by itself, in float64."""

import math

import numpy as np
from reference import window_maximum

LEVELS = 8
ROOTS = [(2 * k + 1) ** 10 for k in range(39)]
NEVER = -1e11  # the score of the whole map in the paper's code, which never scores it


def localize(x, query, search, aspect=None, tolerance=1.1, step=3, refine=3, sweeps=5):
    """The box of a map (C, H, W) and its score, rounded to float32 unless the map is float64."""
    score = paper_score(x, query) if search == "aml" else exact_score(x, query)
    size = x.shape[1:]
    whole = (0, 0, size[1] - 1, size[0] - 1)
    if search == "best":
        scored = [(score(box), box) for box in boxes(size, aspect, tolerance)]
        if not scored:
            return whole, score(whole)
        scored = [one for one in scored if not np.isnan(one[0])]
        return min(scored, key=best_first)[::-1] if scored else (whole, np.nan)
    box, best = whole, NEVER if search == "aml" else score(whole)
    first = -np.inf
    for one in candidates(size, aspect, tolerance, step, search):
        value = score(one)
        if value > first:
            box, best, first = one, value, value
    return refined(score, size, box, best, refine, sweeps)


def best_first(scored):
    score, (x1, y1, x2, y2) = scored
    return -score, (x2 - x1 + 1) * (y2 - y1 + 1), y1, y2, x1, x2


def boxes(size, aspect, tolerance):
    height, width = size
    return [
        (x1, y1, x2, y2)
        for y1 in range(height)
        for y2 in range(y1, height)
        for x1 in range(width)
        for x2 in range(x1, width)
        if has_aspect(x2 - x1 + 1, y2 - y1 + 1, aspect, tolerance)
    ]


def has_aspect(width, height, aspect, tolerance):
    return aspect is None or abs(np.log(aspect * width / height)) <= math.log(tolerance)


def candidates(size, aspect, tolerance, step, search):
    """The boxes of the paper's grid, in its order."""
    for y1 in range(0, size[0], step):
        for y2 in range(y1 + 1, size[0], step):
            for x1 in range(0, size[1], step):
                for x2 in range(x1 + 1, size[1], step):
                    h, w = y2 - y1 + 1, x2 - x1 + 1
                    if search == "aml" and aspect is not None:
                        if abs(math.log(aspect / (h / w))) > math.log(tolerance):
                            continue
                    elif not has_aspect(w, h, aspect, tolerance):
                        continue
                    yield x1, y1, x2, y2


def exact_score(x, query):
    query = query.astype(np.float64)
    rounded = np.float64 if x.dtype == np.float64 else np.float32

    @np.errstate(all="ignore")
    def score(box):
        x1, y1, x2, y2 = box
        maxima = window_maximum(x[None, :, y1 : y2 + 1, x1 : x2 + 1])[0].astype(np.float64)
        length = math.sqrt(maxima @ maxima) * math.sqrt(query @ query)
        value = maxima @ query / length if length else 0.0
        return rounded(value) if np.isfinite(maxima).all() else np.nan

    return score


def paper_score(x, query):
    """Sums of level^10 as aml.c has them; 1 for what is no level."""
    powers = np.where(x <= LEVELS, x.astype(np.int64) ** 10, 1)
    weights = query.tolist()
    norm = math.sqrt(sum(v * v for v in weights))

    def score(box):
        x1, y1, x2, y2 = box
        products = squares = 0.0
        for weight, channel in zip(weights, powers, strict=True):
            total = int(channel[y1 : y2 + 1, x1 : x2 + 1].sum())
            root = 2.0 * sum(total > power for power in ROOTS)
            products += weight * root
            squares += root * root
        if not squares or not norm:
            return np.nan
        return products / math.sqrt(squares) / norm

    return score


def refined(score, size, box, best, refine, sweeps):
    """Move the edges of a box as long as that makes it better."""
    for step in range(refine, 0, -1):
        for _ in range(sweeps):
            before = best
            for edge, sign in ((1, -1), (1, 1), (3, -1), (3, 1), (0, -1), (0, 1), (2, -1), (2, 1)):
                moved = list(box)
                moved[edge] += sign * step
                if can_move(moved, edge % 2, size) and (value := score(tuple(moved))) > best:
                    box, best = tuple(moved), value
            if best == before:
                break
    return box, best


def can_move(box, side, size):
    """Whether a box with a moved edge is inside the map and spans two cells there."""
    return box[side] >= 0 and box[side] < box[side + 2] < size[1 - side]
