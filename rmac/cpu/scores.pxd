# cython: language_level=3, cdivision=True
"""The scores of boxes: their sums over each tile of channels, and which box is best.

Accumulation
    The squares and products of a box are summed in float32 over the channels of a tile, in an order
    that is the same for every box; tiles are summed in float64. Maps of float64, and those with
    values whose squares may overflow or underflow in float32, are summed in float64 throughout.
    Where squares may overflow or underflow in float64 too, a tile has all channels, and the maxima
    of each box are scaled by a power of 2 first.
NaN
    A box with a NaN or infinite maximum has no score.
Memory
    A tile is packed for all cells of a map, so that a line holds one cell of as many channels. It
    doubles the rows and columns that each cell stands for as boxes grow: a box is the maximum of
    four cells. Cells of 8 and 16 bits become floats a row at a time. The sums of a box are kept for
    each tile until all tiles are done.
Threads
    None; each caller owns what it writes. No sum depends on jobs or threads.
"""

from cython cimport floating
from libc.math cimport INFINITY
from libc.stdint cimport int8_t, int16_t

from rmac.cpu.candidates cimport Batch, Candidates, Found, Height, Job, Run, compare_boxes
from rmac.cpu.tables cimport Kind
from rmac.cpu.tiles cimport pack_tile
from rmac.cpu.values cimport Map

cdef extern from "scores.h" nogil:
    enum:
        MOST_LINES   # of numbers in a cell
        DIGIT_LINES  # of keys in a cell, if queries are digits
    ctypedef struct Parts:
        const char* first
        const char* second
        Py_ssize_t step
    ctypedef struct Cells:
        # What the cells of a table hold, and the functions for it. The first returns whether
        # squares of n packed numbers may overflow.
        bint (*make_ready)(void* cells, Py_ssize_t n) noexcept nogil
        void (*combine)(char* out, const char* a, const char* b, Py_ssize_t size) noexcept nogil
        void (*widen)(char* out, const char* a, const char* b, Py_ssize_t size) noexcept nogil
        void (*combine_row)(char* out, const char* a, const char* b, Py_ssize_t size) noexcept nogil
        void (*score)(
            Parts parts, Py_ssize_t n, const char* queries, Py_ssize_t n_queries, void* out,
            int lines,
        ) noexcept nogil
    bint rmac_has_byte_products()
    const Cells cells_of_floats, cells_of_wide_doubles, cells_of_digits
    const Cells* cells_of_kind
    void find_lengths(double* squares, Py_ssize_t n)
    double find_scores(const double* lengths, double* products, Py_ssize_t n, bint rounded)
    # Sums have the type of the last argument.
    void total_sums(
        double* totals, const void* sums, Py_ssize_t stride, Py_ssize_t tiles, Py_ssize_t n,
        double like,
    )

cdef struct Call:
    const char* queries  # (tile, query, lane), of length 1; or digits of lanes
    Py_ssize_t query     # bytes of a query, in a tile
    Py_ssize_t n_queries
    int lines            # of numbers in a cell; of keys if queries are digits
    Py_ssize_t lanes
    Py_ssize_t tiles
    const Cells* cells
    int kind             # of what cells hold
    Py_ssize_t cell      # bytes of a cell
    Py_ssize_t row_cell  # bytes of a cell in a row whose boxes are scored
    bint rounded         # whether scores are rounded to float32
    bint small_first     # whether fewer cells are better at equal scores
    int workers
    char* workspace
    Py_ssize_t workspace_size


cdef inline bint pack_cells(
    const Call* call, const Job* job, Py_ssize_t tile, char* cells, char* row
) noexcept nogil:
    """Copy a tile of all cells of a map; return whether squares of its numbers may overflow."""
    cdef const Map* x = &job.batch.x
    cdef Py_ssize_t lanes = call.lanes, first = tile * call.lanes
    if call.kind == Kind.FLOAT64:  # of the cells: maps of another dtype may be widened to it
        pack_tile(x, job.image, first, <double*>cells, lanes, <double*>row)
    elif x.itemsize == 1:
        pack_tile(x, job.image, first, <int8_t*>cells, lanes, <int8_t*>row)
    elif x.itemsize == 2:
        pack_tile(x, job.image, first, <int16_t*>cells, lanes, <int16_t*>row)
    else:
        pack_tile(x, job.image, first, <float*>cells, lanes, <float*>row)
    return call.cells.make_ready(cells, x.height * x.width * lanes)


cdef inline void grow_table(
    const Call* call, const Map* x, const Height* height, char* cells, Py_ssize_t* spans
) noexcept nogil:
    """Double the rows and columns that each cell stands for, as far as boxes of a height need."""
    while 2 * spans[0] <= height.height:
        call.cells.combine(
            cells, cells, cells + spans[0] * x.width * call.cell,
            (x.height - 2 * spans[0] + 1) * x.width * call.cell,
        )
        spans[0] *= 2
    while 2 * spans[1] <= height.span:
        call.cells.combine(
            cells, cells, cells + spans[1] * call.cell,
            ((x.height - spans[0] + 1) * x.width - spans[1]) * call.cell,
        )
        spans[1] *= 2


cdef inline void sum_strip(
    const Call* call, const Batch* batch, const Height* height, const char* row,
    Py_ssize_t span, const char* queries, char* workspace, floating* sums,
) noexcept nogil:
    """Write the sums of all boxes of a height that start in one row of cells.

    In `row` a cell stands for the whole height, and for a span of columns.
    """
    cdef const Run* run
    cdef Py_ssize_t i
    cdef Parts parts
    parts.step = batch.candidates.step * call.row_cell
    for i in range(height.first_run, height.stop_run):
        run = batch.candidates.runs + i
        while 2 * span <= run.width:
            call.cells.combine_row(
                workspace, row, row + span * call.row_cell,
                (batch.x.width - 2 * span + 1) * call.row_cell,
            )
            row = workspace
            span *= 2
        parts.first, parts.second = row, row + (run.width - span) * call.row_cell
        call.cells.score(
            parts, run.columns, queries + run.first_query * call.query, run.queries, sums,
            call.lines,
        )
        sums += run.columns * (1 + run.queries)


cdef inline bint sum_tile(
    const Call* call, const Job* job, Py_ssize_t tile, char* cells, floating like
) noexcept nogil:
    """Write the sums of the boxes of a job over one tile; return whether they may overflow."""
    cdef const Batch* batch = job.batch
    cdef Py_ssize_t step = batch.x.width * call.cell
    cdef floating* sums = <floating*>job.memory + tile * job.sums
    cdef const char* queries = call.queries + tile * call.n_queries * call.query
    cdef char* workspace = cells + batch.x.height * step  # of a row
    cdef const char* row
    cdef void (*join)(char*, const char*, const char*, Py_ssize_t) noexcept nogil
    join = call.cells.widen if call.cells.widen else call.cells.combine
    cdef Py_ssize_t[2] spans
    cdef Py_ssize_t i, strip
    cdef const Height* height
    if pack_cells(call, job, tile, cells, workspace):
        return True
    spans[0] = spans[1] = 1
    for i in range(batch.candidates.n_heights):
        height = batch.candidates.heights + i
        if height.first_strip + height.rows <= job.first:
            continue
        if height.first_strip >= job.stop:
            break
        grow_table(call, &batch.x, height, cells, spans)
        for strip in range(
            max(job.first, height.first_strip), min(job.stop, height.first_strip + height.rows)
        ):
            row = cells + (strip - height.first_strip) * batch.candidates.step * step
            if height.height > spans[0] or call.cells.widen:
                join(
                    workspace, row, row + (height.height - spans[0]) * step,
                    step - (spans[1] - 1) * call.cell,
                )
                row = workspace
            sum_strip(call, batch, height, row, spans[1], queries, workspace, sums)
            sums += height.sums
    return False


cdef inline void compare_run(
    const Call* call, const Height* height, const Run* run, Py_ssize_t y, Py_ssize_t step,
    double* sums, Found* found,
) noexcept nogil:
    """Compare the boxes of a run with the best so far of each query; `sums` are overwritten."""
    cdef double* scores = sums
    cdef Py_ssize_t query
    cdef Found one
    one.cells, one.box.x1 = height.height * run.width, 0
    one.box.y1, one.box.y2 = y, y + height.height - 1
    find_lengths(sums, run.columns)
    for query in range(run.first_query, run.first_query + run.queries):
        scores += run.columns
        if find_scores(sums, scores, run.columns, call.rounded) >= found[query].score:
            compare_boxes(
                scores, run.columns, &one, run.width, step, call.small_first, found + query
            )


cdef inline void compare_strips(
    const Call* call, const Job* job, Py_ssize_t part, Py_ssize_t parts, const char* overflows,
    double* totals, floating like, Found* found,
) noexcept nogil:
    """Write the best box of each query in a part of the strips of a job.

    Nothing is found if a tile overflows, since it has no sums.
    """
    cdef const Candidates* candidates = &job.batch.candidates
    cdef Py_ssize_t size = job.stop - job.first
    cdef Py_ssize_t first = job.first + size * part // parts
    cdef Py_ssize_t stop = job.first + size * (part + 1) // parts
    cdef Py_ssize_t i, j, strip, y, place
    cdef const floating* sums
    cdef const Height* height
    cdef const Run* run
    for i in range(call.n_queries):
        found[i].score = -INFINITY
    for i in range(call.tiles):
        if overflows[i]:
            return
    for i in range(candidates.n_heights):
        height = candidates.heights + i
        for strip in range(
            max(first, height.first_strip), min(stop, height.first_strip + height.rows)
        ):
            y = strip - height.first_strip
            sums = <const floating*>job.memory + (
                height.first_sum + y * height.sums - job.first_sum
            )
            total_sums(totals, sums, job.sums, call.tiles, height.sums, like)
            place = 0
            for j in range(height.first_run, height.stop_run):
                run = candidates.runs + j
                compare_run(
                    call, height, run, y * candidates.step, candidates.step, totals + place, found
                )
                place += run.columns * (1 + run.queries)
