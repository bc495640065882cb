# cython: language_level=3, cdivision=True
"""Boxes that are compared with queries, and the best of them so far.

Accumulation, NaN: none here; a box without a score has -inf.
Memory: tables of `rmac._candidates.Candidates`.
Threads: none; each caller owns what it writes.
"""

from libc.math cimport INFINITY, NAN
from libc.stdint cimport int64_t

from rmac.cpu.buffers cimport map_of
from rmac.cpu.tables cimport KernelSpec
from rmac.cpu.values cimport Map

cdef struct Box:
    Py_ssize_t x1, y1, x2, y2

cdef struct Height:
    # All strips of one height: the boxes of that height that start in one row.
    Py_ssize_t height, span, rows, first_strip, first_sum, sums, first_run, stop_run

cdef struct Run:
    # The boxes of a strip that have one width, and the queries that they are compared with.
    Py_ssize_t width, columns, first_query, queries

cdef struct Candidates:
    const Height* heights
    Py_ssize_t n_heights
    const Run* runs
    Py_ssize_t strips
    Py_ssize_t sums  # of all boxes: one of squares, and one of products for each query
    Py_ssize_t step  # cells between boxes

cdef struct Batch:
    Map x
    Candidates candidates

cdef struct Job:
    # An image, or some of its strips.
    const Batch* batch
    const char* image
    Py_ssize_t index  # of the image, among those of all batches
    Py_ssize_t first, stop
    Py_ssize_t first_sum, sums
    char* memory      # the sums of each tile

cdef struct Found:
    # The best box so far, and what decides between equal scores.
    double score
    Py_ssize_t cells
    Box box

# The score of a box in some context; -inf if it has none.
ctypedef double (*ScoreBox)(const void* context, const Box* box) noexcept nogil


cdef inline bint is_better(const Found* one, const Found* other, bint small_first) noexcept nogil:
    if one.score != other.score:
        return one.score > other.score
    if small_first and one.cells != other.cells:
        return one.cells < other.cells
    if one.box.y1 != other.box.y1:
        return one.box.y1 < other.box.y1
    if one.box.y2 != other.box.y2:
        return one.box.y2 < other.box.y2
    if one.box.x1 != other.box.x1:
        return one.box.x1 < other.box.x1
    return one.box.x2 < other.box.x2


cdef inline void compare_boxes(
    const double* scores, Py_ssize_t n, Found* one, Py_ssize_t width, Py_ssize_t step,
    bint small_first, Found* best,
) noexcept nogil:
    """Compare boxes along a row with the best so far. The first of them is `one`."""
    cdef Py_ssize_t i, x1 = one.box.x1
    for i in range(n):
        if scores[i] >= best.score and scores[i] > -INFINITY:
            one.score, one.box.x1 = scores[i], x1 + i * step
            one.box.x2 = one.box.x1 + width - 1
            if is_better(one, best, small_first):
                best[0] = one[0]
    one.box.x1 = x1


cdef inline Box whole_map(const Map* x) noexcept nogil:
    cdef Box box
    box.x1 = box.y1 = 0
    box.x2, box.y2 = x.width - 1, x.height - 1
    return box


cdef inline bint move_edge(const Map* x, Box* box, int edge, Py_ssize_t step) noexcept nogil:
    """Move an edge. Return whether the box is on the map, at least two cells high or wide."""
    cdef Py_ssize_t by = step if edge % 2 else -step
    if edge < 2:
        box.y1 += by
    elif edge < 4:
        box.y2 += by
    elif edge < 6:
        box.x1 += by
    else:
        box.x2 += by
    if edge < 4:
        return box.y1 >= 0 and box.y2 < x.height and box.y2 > box.y1
    return box.x1 >= 0 and box.x2 < x.width and box.x2 > box.x1


cdef inline void refine(
    const Map* x, ScoreBox score, const void* context, Py_ssize_t steps, Py_ssize_t sweeps,
    Found* found,
) noexcept nogil:
    """Move the edges of a box as long as that makes it better."""
    cdef Py_ssize_t step, _
    cdef double before, value
    cdef int edge
    cdef Box box
    for step in range(min(steps, max(x.height, x.width) - 1), 0, -1):
        for _ in range(sweeps):
            before = found.score
            for edge in range(8):
                box = found.box
                if move_edge(x, &box, edge, step):
                    value = score(context, &box)
                    if value > found.score:
                        found.box, found.score = box, value
            if found.score == before:
                break


cdef inline Batch batch_of(x, table, KernelSpec spec) except *:
    """Return a batch of maps and `rmac._candidates.Candidates`, which the caller keeps."""
    cdef const Py_ssize_t[:, ::1] heights = table.heights, runs = table.runs
    cdef Batch out
    out.x = map_of(x, spec)
    out.candidates.n_heights = heights.shape[0]
    out.candidates.heights = <const Height*>&heights[0, 0] if heights.shape[0] else NULL
    out.candidates.runs = <const Run*>&runs[0, 0] if heights.shape[0] else NULL
    out.candidates.strips, out.candidates.sums = table.strips, table.sums
    out.candidates.step = table.step
    return out


cdef inline void write_found(
    const Job* job, const Found* found, int64_t[:, :, ::1] boxes, double[:, ::1] scores,
    Py_ssize_t query,
) noexcept:
    """Write what was found; the whole map with score NaN if that is no box."""
    cdef Box box = found.box
    cdef double value = found.score
    if value == -INFINITY:
        box, value = whole_map(&job.batch.x), NAN
    scores[job.index, query] = value
    boxes[job.index, query, 0], boxes[job.index, query, 1] = box.x1, box.y1
    boxes[job.index, query, 2], boxes[job.index, query, 3] = box.x2, box.y2


cdef inline Py_ssize_t most_sums(const Candidates* candidates) noexcept:
    """Return the most sums of a strip."""
    cdef Py_ssize_t i, most = 0
    for i in range(candidates.n_heights):
        most = max(most, candidates.heights[i].sums)
    return most
