"""Regions cut a map into tiles, and each of its axes into segments, at their edges."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def covered_cells(boxes: npt.NDArray[np.int64]) -> int:
    """Return how many cells lie in at least one box.

    The edges of boxes cut the map into tiles. Each box adds 1 or -1 at its four corners, such that
    the running sums along both axes are the number of boxes over each tile.
    """
    edges = boxes + np.array([0, 0, 1, 1])
    xs, (left, right) = _ranked(edges[:, ::2])
    ys, (top, bottom) = _ranked(edges[:, 1::2])
    top, bottom = top * len(xs), bottom * len(xs)
    steps = np.zeros(len(xs) * len(ys), np.int64)
    for corner, step in ((left, 1), (right, -1)):
        steps += step * np.bincount(top + corner, minlength=len(steps))
        steps -= step * np.bincount(bottom + corner, minlength=len(steps))
    counts = steps.reshape(len(ys), len(xs)).cumsum(axis=0).cumsum(axis=1)
    return int(np.diff(ys) @ (counts[:-1, :-1] > 0) @ np.diff(xs))


def elementary_segments(intervals: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Cut an axis at every edge of half-open `intervals` (I, 2).

    Returns the start and stop of each segment that lies in some interval, in order.
    """
    edges, (starts, stops) = _ranked(intervals)
    begun = np.bincount(starts, minlength=len(edges)) - np.bincount(stops, minlength=len(edges))
    used = np.flatnonzero(begun.cumsum() > 0)  # never the last edge, where all have ended
    return np.stack([edges[used], edges[used + 1]], axis=1)


def _ranked(
    intervals: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.intp]]:
    """Return the sorted edges of `intervals` (I, 2), and the places of their ends there (2, I)."""
    edges, ranks = np.unique(intervals, return_inverse=True)
    return edges, ranks.reshape(-1, 2).T
