"""How the CPU kernels reach every region in one pass over the map.

Region edges cut each axis into elementary segments; those of rows are bands. The kernels read the
map once, into running maxima or sums, in one of two ways: each band over all intervals of columns,
or each column over all intervals of rows. A region is then made of a few of these. A `Program` says
in which order segments are combined, so that wide intervals are built from narrower ones that are
needed anyway.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from rmac.cpu.isa import kernels
from rmac.regions import elementary_segments

if TYPE_CHECKING:
    from collections.abc import Sequence

Index = npt.NDArray[np.intp]

_MOST_KEPT = 4096  # lines of all bands; user's boxes may need many more


class Program(NamedTuple):
    """Intervals of one axis, combined from its segments.

    A slot holds one running maximum or sum; the first `intervals` slots are those of the intervals.
    """

    segments: Index  # (S, 3) start, stop and slot of each segment that lies in some interval
    steps: Index  # (K, 3) slot written, and the two slots that are combined there
    intervals: int
    slots: int


@lru_cache(maxsize=256)
def region_plan(boxes: bytes, height: int, width: int, *, overlapping: bool) -> kernels.Plan:
    """Return the plan for the regions of (R, 4) int64 `boxes`, one output row each."""
    table = np.frombuffer(boxes, dtype=np.int64).reshape(-1, 4)
    targets = np.arange(len(table), dtype=np.intp)
    return make_plan(table, height, width, targets, 1, overlapping=overlapping)


def make_plan(
    boxes: npt.NDArray[np.int64],
    height: int,
    width: int,
    target: Index,
    bins: int,
    *,
    overlapping: bool = True,
) -> kernels.Plan:
    """Return the plan for inclusive (R, 4) `boxes`.

    What channel c has in box i goes to element ``target[i] % bins`` of the run of `bins` elements
    that belongs to row ``target[i] // bins`` and channel c of the output. Maxima may be combined
    from parts that overlap, sums may not.
    """
    starts, stops = boxes[:, :2], boxes[:, 2:] + 1
    columns, column_of = _unique_intervals(starts[:, 0], stops[:, 0])
    rows, row_of = _unique_intervals(starts[:, 1], stops[:, 1])
    across, down = _program(columns, overlapping), _program(rows, overlapping)
    first_band = np.searchsorted(down.segments[:, 0], starts[:, 1])
    last_band = np.searchsorted(down.segments[:, 1], stops[:, 1])  # the one that stops there
    return kernels.Plan(
        height,
        width,
        down,
        across,
        len(down.segments) * across.intervals <= _MOST_KEPT,
        _reach(row_of * width + starts[:, 0], 1, stops[:, 0] - starts[:, 0]),
        _reach(
            first_band * across.intervals + column_of,
            across.intervals,
            last_band - first_band + 1,
        ),
        target // bins,
        target % bins,
        bins,
        np.prod(stops - starts, axis=1).astype(np.intp),
    )


def _reach(first: Index, step: int, count: Index) -> Index:
    """Return the lines (R, 3) that each region is made of: first, step and number."""
    return np.stack([first, np.full_like(first, step), count], axis=1).astype(np.intp)


def _unique_intervals(starts: Index, stops: Index) -> tuple[Index, Index]:
    """Return the different intervals (I, 2), by start and stop, and which each one is."""
    # As complex numbers, which are exact here and ordered by real part, then by imaginary part.
    pairs, which = np.unique(starts + 1j * stops, return_inverse=True)
    return np.stack([pairs.real, pairs.imag], axis=1).astype(np.intp), which


def _program(intervals: Index, overlapping: bool) -> Program:
    """Return a short program for half-open `intervals`: the last first, of those the narrowest.

    An interval is extended from its start, so that what it is extended by is there already.
    """
    segments = elementary_segments(intervals)
    builder = _ProgramBuilder(segments, overlapping)
    pairs = intervals.tolist()
    values = {}
    for start, stop in sorted(pairs, key=lambda pair: (-pair[0], pair[1])):
        values[start, stop] = builder.build(start, stop)
    found = [values[start, stop] for start, stop in pairs]

    steps, place = _share_slots(len(segments), builder.steps, set(found))
    slots = int(steps.max(initial=len(segments) - 1)) + 1
    kept = place[np.array(found, dtype=np.intp)]
    renumbered = np.argsort(np.concatenate([kept, np.delete(np.arange(slots), kept)]))
    with_slots = np.column_stack([segments, renumbered[: len(segments)]])
    return Program(with_slots, renumbered[steps], len(intervals), slots)


def _share_slots(
    segments: int, steps: Sequence[tuple[int, int, int]], kept: set[int]
) -> tuple[Index, Index]:
    """Let values that are not used at the same time share a slot, so that all fit the cache.

    Segments come first among values, each with a slot of its own; `kept` are used to the end.
    Returns the steps by slots, and the slot of each value.
    """
    last_use = {value: i for i, step in enumerate(steps) for value in step[1:]}
    place = list(range(segments))
    free: list[int] = []
    used = segments
    for i, (_, *parts) in enumerate(steps):  # a step may write where it reads
        free += [place[value] for value in set(parts) - kept if last_use[value] == i]
        if not free:
            free.append(used)
            used += 1
        place.append(free.pop())
    slot_of = np.array(place, dtype=np.intp)
    return slot_of[np.array(steps, dtype=np.intp).reshape(-1, 3)], slot_of


class _ProgramBuilder:
    """Composes intervals from those already there, with few steps; numbers each as a value."""

    def __init__(self, segments: Index, overlapping: bool) -> None:
        self.steps: list[tuple[int, int, int]] = []
        self._values = 0
        self._overlapping = overlapping
        self._value_of: dict[tuple[int, int], int] = {}
        self._stops: dict[int, list[int]] = {}  # of the intervals with this start
        self._starts: dict[int, list[int]] = {}  # of the intervals with this stop
        for start, stop in segments.tolist():
            self._add(start, stop)

    def build(self, start: int, stop: int) -> int:
        """Return the value of an interval, extending its longest known head until it is whole."""
        head = self._longest_head(start, stop)
        while head < stop:
            tail = min(begin for begin in self._starts[stop] if begin >= start)
            if tail == head or (tail < head and self._overlapping):
                piece, reach = (tail, stop), stop
            else:
                reach = self._longest_head(head, stop)
                piece = (head, reach)
            left, right = self._value_of[start, head], self._value_of[piece]
            self.steps.append((self._add(start, reach), left, right))
            head = reach
        return self._value_of[start, stop]

    def _longest_head(self, start: int, stop: int) -> int:
        return max(end for end in self._stops[start] if end <= stop)

    def _add(self, start: int, stop: int) -> int:
        value = self._values
        self._values += 1
        self._value_of[start, stop] = value
        self._stops.setdefault(start, []).append(stop)
        self._starts.setdefault(stop, []).append(start)
        return value
