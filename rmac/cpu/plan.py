"""How the CPU kernels reach every region in one pass over the map.

edge
    A place on an axis where a region starts or stops.
segment
    The cells between neighbouring edges of one axis. A segment of rows is called a band.
interval
    The columns, or the rows, of a region: one or more neighbouring segments.
slot
    Room in the workspace for one running maximum or sum, a vector: of a segment, or of several.
program
    The steps that combine the segments of one axis to all intervals. Each step combines two slots.
    A wide interval is combined from narrower ones, which other regions need anyway.

The kernels read the map once, into the slots of segments. They do so in one of two ways: for each
band, they combine columns to intervals; or for each column, they combine rows to intervals. A
region is then combined from a few vectors: one for each band, or one for each column, of the
region.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from rmac._caches import cached
from rmac._cuts import elementary_segments
from rmac.cpu.tables import Plan

if TYPE_CHECKING:
    from collections.abc import Sequence

Index = npt.NDArray[np.intp]


class Program(NamedTuple):
    """How the segments of one axis are combined to its intervals."""

    segments: Index  # (S, 3) start, stop and slot of each segment that lies in some interval
    steps: Index  # (K, 3) the slot written, and the two slots that are combined
    intervals: int  # their number; at the end they are in the first slots, in order
    slots: int


class PlanTables(NamedTuple):
    """What a `Plan` is made from: tables for maps of one size."""

    height: int
    width: int
    rows: Program
    columns: Program
    row_spans: Index  # (R, 3) first, step and count, of vectors (interval of rows, column)
    band_spans: Index  # (R, 3) first, step and count, of vectors (band, interval of columns)
    out_rows: Index  # (R,) the row of the output that each region is written to
    out_bins: Index  # (R,) its element there, of `bins` elements for each channel
    bins: int
    cells: Index  # (R,)


@cached(lambda plan: plan.nbytes)
def region_plan(boxes: bytes, height: int, width: int, overlapping: bool) -> Plan:
    """Return the plan for the regions of (R, 4) int64 `boxes`, one output row each."""
    table = np.frombuffer(boxes, dtype=np.int64).reshape(-1, 4)
    targets = np.arange(len(table), dtype=np.intp)
    return make_plan(table, height, width, targets, 1, overlapping=overlapping, keep=True)


def make_plan(
    boxes: npt.NDArray[np.int64],
    height: int,
    width: int,
    target: Index,
    bins: int,
    *,
    overlapping: bool = True,
    keep: bool = False,
) -> Plan:
    """Return the plan for inclusive (R, 4) `boxes`.

    The result of box i and channel c goes to row ``target[i] // bins`` of the output, channel c,
    bin ``target[i] % bins``. Maxima may be combined from parts that overlap, sums may not. `keep`
    tells to keep the programs of both axes: maps of many sizes have few axes that differ.
    """
    starts, stops = boxes[:, :2], boxes[:, 2:] + 1
    columns, column_of = _unique_intervals(starts[:, 0], stops[:, 0])
    rows, row_of = _unique_intervals(starts[:, 1], stops[:, 1])
    program = _kept_program if keep else _program
    across, down = program(columns.tobytes(), overlapping), program(rows.tobytes(), overlapping)
    first_band = np.searchsorted(down.segments[:, 0], starts[:, 1])
    last_band = np.searchsorted(down.segments[:, 1], stops[:, 1])  # the one that stops there
    first = first_band * across.intervals + column_of
    tables = PlanTables(
        height=height,
        width=width,
        rows=down,
        columns=across,
        row_spans=_spans(row_of * width + starts[:, 0], 1, stops[:, 0] - starts[:, 0]),
        band_spans=_spans(first, across.intervals, last_band - first_band + 1),
        out_rows=target // bins,
        out_bins=target % bins,
        bins=bins,
        cells=np.prod(stops - starts, axis=1).astype(np.intp),
    )
    return Plan(tables)


def _spans(first: Index, step: int, count: Index) -> Index:
    """Return which vectors each region is combined from: (R, 3) first, step and count."""
    return np.stack([first, np.full_like(first, step), count], axis=1).astype(np.intp)


def _unique_intervals(starts: Index, stops: Index) -> tuple[Index, Index]:
    """Return the different intervals (I, 2), by start and stop, and which of them each one is."""
    order = np.lexsort((stops, starts))
    pairs = np.stack([starts, stops], axis=1).astype(np.intp)[order]
    is_first = np.ones(len(pairs), bool)
    is_first[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    which = np.empty(len(pairs), np.intp)
    which[order] = is_first.cumsum() - 1
    return pairs[is_first], which


def _program(axis: bytes, overlapping: bool) -> Program:
    """Return a short program for half-open intervals (I, 2) of an axis, from their bytes.

    Intervals are built from the last start to the first, the narrowest first. An interval is
    extended from its start, so that the piece which it lacks exists already.
    """
    intervals = np.frombuffer(axis, np.intp).reshape(-1, 2)
    segments = elementary_segments(intervals)
    builder = _ProgramBuilder(segments, overlapping)
    pairs = intervals.tolist()
    values = {}
    for start, stop in sorted(pairs, key=lambda pair: (-pair[0], pair[1])):
        values[start, stop] = builder.build(start, stop)
    found = [values[start, stop] for start, stop in pairs]

    steps, slot_of = _assign_slots(len(segments), builder.steps, set(found))
    slots = int(steps.max(initial=len(segments) - 1)) + 1
    # The slots of intervals come first, in the order of the intervals.
    kept = slot_of[np.array(found, dtype=np.intp)]
    renumbered = np.argsort(np.concatenate([kept, np.delete(np.arange(slots), kept)]))
    with_slots = np.column_stack([segments, renumbered[: len(segments)]])
    return Program(with_slots, renumbered[steps], len(intervals), slots)


_kept_program = cached(lambda program: program.segments.nbytes + program.steps.nbytes)(_program)


def _assign_slots(
    segments: int, steps: Sequence[tuple[int, int, int]], kept: set[int]
) -> tuple[Index, Index]:
    """Assign slots to values, so that values that are not used at the same time share one.

    The first values are those of the segments, each with a slot of its own. The values in `kept`
    are used to the end. Returns the steps in terms of slots, and the slot of each value.
    """
    last_use = {value: i for i, step in enumerate(steps) for value in step[1:]}
    slot_of = list(range(segments))
    free: list[int] = []
    used = segments
    for i, (_, *parts) in enumerate(steps):  # a step may write where it reads
        free += [slot_of[value] for value in set(parts) - kept if last_use[value] == i]
        if not free:
            free.append(used)
            used += 1
        slot_of.append(free.pop())
    slots = np.array(slot_of, dtype=np.intp)
    return slots[np.array(steps, dtype=np.intp).reshape(-1, 3)], slots


class _ProgramBuilder:
    """Builds intervals from those that exist already, in few steps; numbers each as a value."""

    def __init__(self, segments: Index, overlapping: bool) -> None:
        self.steps: list[tuple[int, int, int]] = []
        self._values = 0
        self._overlapping = overlapping
        self._value_of: dict[tuple[int, int], int] = {}
        self._stops: dict[int, list[int]] = {}  # of the intervals with this start, sorted
        self._starts: dict[int, list[int]] = {}  # of the intervals with this stop, sorted
        for start, stop in segments.tolist():
            self._add(start, stop)

    def build(self, start: int, stop: int) -> int:
        """Return the value of an interval: extend its longest existing head until it is whole."""
        head = self._longest_head(start, stop)
        while head < stop:
            tail = self._longest_tail(start, stop)
            if tail == head or (tail < head and self._overlapping):  # the two make it whole
                piece, end = (tail, stop), stop
            else:
                end = self._longest_head(head, stop)
                piece = (head, end)
            left, right = self._value_of[start, head], self._value_of[piece]
            self.steps.append((self._add(start, end), left, right))
            head = end
        return self._value_of[start, stop]

    def _longest_head(self, start: int, stop: int) -> int:
        """Return where the longest existing interval stops that begins at `start` and fits."""
        ends = self._stops[start]
        return ends[bisect_right(ends, stop) - 1]

    def _longest_tail(self, start: int, stop: int) -> int:
        """Return where the longest existing interval starts that stops at `stop` and fits."""
        begins = self._starts[stop]
        return begins[bisect_left(begins, start)]

    def _add(self, start: int, stop: int) -> int:
        """Give an interval the next number for its value, and return it."""
        value = self._values
        self._values += 1
        self._value_of[start, stop] = value
        insort(self._stops.setdefault(start, []), stop)
        insort(self._starts.setdefault(stop, []), start)
        return value
