# cython: language_level=3, cdivision=True
"""From the channels of one task to vectors of keys in slots, and from these to regions.

Accumulation: maxima are exact; sums are added in the type of their keys, float or double, in an
    order that depends on shape and strides alone.
NaN: as in keys.pxd.
Memory: the map is read once, in place. Rows that are gathered are copied first, and so are values
    that are not keys (see `are_keys`), and some that are summed. Slots and copies are in the
    workspace of the thread.
Threads: each task runs on one thread.

`rmac.cpu.plan` says what bands, segments, intervals and slots are.
"""

from cython cimport floating
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uintptr_t

from rmac.cpu.buffers cimport first_line, size_product, size_sum
from rmac.cpu.keys cimport (
    Vectors, call_pool_short_vectors, combine, hide_target, identity, key_t, lanes_of, pool_vectors
)
from rmac.cpu.stores cimport Results, store_maxima, store_means
from rmac.cpu.tables cimport Path, PlanTables, Program, RegionSpan, RouteTable, Segment
from rmac.cpu.values cimport Map, apply_power, are_keys, copy_plane, copy_row, copy_values, prefetch

cdef extern from "transpose.h" nogil:
    # Keys have the type of the last argument.
    void transpose(
        const void* rows, void* out, Py_ssize_t columns, Py_ssize_t stride, double like
    )

cdef struct Batch:
    # A batch of maps and how a call reads it; all its tasks share this.
    Map x
    RouteTable route
    Py_ssize_t blocks          # tasks of an image
    char* workspace
    Py_ssize_t workspace_size  # bytes of each thread
    Py_ssize_t pooling_size    # of these, what the pooling of a block needs

cdef struct Block:
    # A channel block: the channels of one task.
    const char* data
    Py_ssize_t first, lanes
    bint is_last

cdef struct Target:
    # Where the regional vectors of an image go: (region, channel, bin), see `PlanTables`.
    char* data
    Py_ssize_t itemsize
    bint to_float32  # whether maxima are widened to float32; else they keep their dtype


cdef inline void share_workspace(
    Batch* batches, Py_ssize_t n, bytes memory, Py_ssize_t size
) noexcept:
    """Give the batches memory that holds `size` bytes, whole lines, for each worker, and a line."""
    cdef Py_ssize_t i
    for i in range(n):
        batches[i].workspace = first_line(memory)
        batches[i].workspace_size = size


cdef inline Py_ssize_t prefetch_distance(
    const Batch* batch, Py_ssize_t size, Py_ssize_t stride
) noexcept nogil:
    """Return how far ahead to prefetch, in bytes: a number of pieces of `size`, at least one."""
    return max(1, batch.route.prefetch // size) * stride


cdef inline void run_program(
    const Program* program, key_t* slots, Py_ssize_t slot, Py_ssize_t n
) noexcept nogil:
    """Combine the segments to intervals, in slots that are `slot` keys apart."""
    cdef Py_ssize_t i
    cdef const Py_ssize_t* step
    for i in range(program.n_steps):
        step = program.steps + 3 * i
        combine(slots + step[0] * slot, slots + step[1] * slot, slots + step[2] * slot, n)


cdef inline void call_run_program(
    const Program* program, key_t* slots, Py_ssize_t slot, Py_ssize_t n
) noexcept nogil:
    cdef void (*call)(const Program*, key_t*, Py_ssize_t, Py_ssize_t) noexcept nogil
    call = run_program
    hide_target(call)
    call(program, slots, slot, n)


cdef inline void pool_segments(
    const Program* program, Vectors vectors, key_t shift, key_t* slots, Py_ssize_t slot,
    bint overwrite,
) noexcept nogil:
    """Combine the vectors of each segment into its slot.

    Vectors are a line or longer, but for pixels of few channels.
    """
    cdef const char* first = vectors.data
    cdef const Segment* segment
    cdef Py_ssize_t i
    for i in range(program.n_segments):
        segment = program.segments + i
        vectors.data = first + segment.start * vectors.stride
        vectors.count = segment.stop - segment.start
        if vectors.size < lanes_of(shift):
            call_pool_short_vectors(slots + segment.slot * slot, &vectors, shift, overwrite)
        else:
            pool_vectors(slots + segment.slot * slot, &vectors, shift, overwrite)


cdef inline void combine_band(
    const PlanTables* plan, Py_ssize_t band, const key_t* slots, key_t* regions, Py_ssize_t n
) noexcept nogil:
    """Combine the intervals of a band into the regions that the band crosses."""
    cdef const RegionSpan* span
    cdef key_t* region
    cdef Py_ssize_t i, first
    for i in range(plan.n_regions):
        span = plan.band_spans + i
        first = span.first // span.step
        if first <= band < first + span.count:
            region = regions + i * n
            combine(region, region, slots + span.first % span.step * n, n)


cdef inline void pool_bands(
    const Batch* batch, const Block* block, key_t shift, key_t* out, key_t* copied
) noexcept nogil:
    """Combine the pixels of each band over intervals of columns: (band, interval, lane).

    Pixels are vectors of channels: read in place, or copied row by row. If all bands need too much
    workspace, each is combined into the regions at once: (region, lane).
    """
    cdef const Map* x = &batch.x
    cdef const PlanTables* plan = batch.route.plan
    cdef const Segment* band
    cdef Py_ssize_t i, y, n = batch.route.lanes
    cdef bint in_place = batch.route.path == Path.CHANNELS and are_keys(x, shift)
    cdef key_t* slots = out
    cdef Vectors pixels
    pixels.size, pixels.stride = block.lanes, x.pixel_stride
    pixels.prefetch = prefetch_distance(batch, block.lanes * x.itemsize, x.pixel_stride)
    if key_t in floating:  # `pool_vectors` needs whole lines
        in_place = in_place and block.lanes % lanes_of(shift) == 0
    if not in_place:
        pixels.size, pixels.stride, pixels.prefetch = n, n * sizeof(key_t), 0
    if not batch.route.keep_bands:
        slots = out + plan.n_regions * n
        for i in range(plan.n_regions * n):
            out[i] = identity(shift)
    for i in range(plan.rows.n_segments):
        band = plan.rows.segments + i
        for y in range(band.start, band.stop):
            pixels.data = block.data + y * x.row_stride
            if not in_place:
                copy_row(x, pixels.data, min(block.lanes, x.channels), copied, n)
                pixels.data = <const char*>copied
            pool_segments(&plan.columns, pixels, shift, slots, n, y == band.start)
        call_run_program(&plan.columns, slots, n, n)
        if batch.route.keep_bands:
            slots += plan.columns.n_intervals * n  # the other slots are free for the next band
        else:
            combine_band(plan, i, slots, out, n)


cdef inline Py_ssize_t rows_of_line(const PlanTables* plan, Py_ssize_t line) noexcept nogil:
    """Return the keys of one row of each lane, and room for a line that passes the last row."""
    return (plan.width + 1) * line


cdef inline void pool_plane(
    const PlanTables* plan, Vectors rows, key_t shift, key_t* out
) noexcept nogil:
    """Combine the rows of each band of a plane."""
    cdef const char* plane = rows.data
    cdef const Segment* band
    cdef Py_ssize_t i, line = lanes_of(shift)
    for i in range(plan.rows.n_segments):
        band = plan.rows.segments + i
        rows.data = plane + band.start * rows.stride
        rows.count = band.stop - band.start
        pool_vectors(out + i * rows_of_line(plan, line), &rows, shift, True)


cdef inline void transpose_bands(
    const PlanTables* plan, const key_t* rows, key_t* out, Py_ssize_t n
) noexcept nogil:
    """Transpose the rows of a line's worth of planes into the slots of their bands, of n lanes."""
    cdef Py_ssize_t i, line = lanes_of(out[0])
    for i in range(plan.rows.n_segments):
        transpose(
            rows + i * rows_of_line(plan, line),
            out + plan.rows.segments[i].slot * plan.width * n, plan.width, n, out[0],
        )


cdef inline void call_transpose_bands(
    const PlanTables* plan, const key_t* rows, key_t* out, Py_ssize_t n
) noexcept nogil:
    cdef void (*call)(const PlanTables*, const key_t*, key_t*, Py_ssize_t) noexcept nogil
    call = transpose_bands
    hide_target(call)
    call(plan, rows, out, n)


cdef inline void pool_rows(
    const Batch* batch, const Block* block, key_t shift, key_t* out, key_t* rows
) noexcept nogil:
    """Combine planes over intervals of rows, in vectors along the row: (slot, column, lane).

    The rows of each band are combined first, plane after plane; then those of a line's worth of
    planes are transposed. A row shorter than a line is read as a whole line, whose end is ignored.
    Memory may end after the last plane of a map, so that one is copied first. So is each plane
    whose values are not keys (see `are_keys`), or are summed in such short rows.
    """
    cdef const Map* x = &batch.x
    cdef const PlanTables* plan = batch.route.plan
    cdef Py_ssize_t line = lanes_of(shift), row = x.width * batch.route.lanes, lane, place
    cdef key_t* copied = rows + plan.rows.n_segments * rows_of_line(plan, line)
    cdef Vectors vectors
    cdef bint copies = not are_keys(x, shift) or (key_t in floating and x.width < line)
    vectors.size, vectors.stride = max(x.width, line), x.row_stride
    cdef Py_ssize_t distance = prefetch_distance(
        batch, x.height * x.width * x.itemsize, x.channel_stride
    )
    vectors.prefetch = distance
    for lane in range(block.lanes):
        place = lane % line
        vectors.data = block.data + lane * x.channel_stride
        if copies or (block.is_last and lane == block.lanes - 1 and x.width < line):
            copy_plane(x, vectors.data, distance, copied)
            vectors.data, vectors.stride = <const char*>copied, x.width * sizeof(key_t)
            vectors.prefetch = 0
        pool_plane(plan, vectors, shift, rows + place * x.width)
        if place == line - 1 or lane == block.lanes - 1:
            call_transpose_bands(plan, rows, out + lane - place, batch.route.lanes)
    call_run_program(&plan.rows, out, row, row)


cdef inline void transpose_planes(
    const key_t* planes, key_t* out, Py_ssize_t cells, Py_ssize_t n
) noexcept nogil:
    """Transpose whole planes, of n lanes.

    Out of line: inside `pool_planes`, clang 14 keeps its registers in memory.
    """
    cdef Py_ssize_t i, line = lanes_of(out[0])
    for i in range(n // line):
        transpose(planes + i * line * cells, out + i * line, cells, n, out[0])


cdef inline void call_transpose_planes(
    const key_t* planes, key_t* out, Py_ssize_t cells, Py_ssize_t n
) noexcept nogil:
    cdef void (*call)(const key_t*, key_t*, Py_ssize_t, Py_ssize_t) noexcept nogil
    call = transpose_planes
    hide_target(call)
    call(planes, out, cells, n)


cdef inline void pool_planes(
    const Batch* batch, const Block* block, key_t shift, key_t* out, key_t* transposed
) noexcept nogil:
    """Combine small planes over intervals of rows, in vectors of lanes: (slot, column, lane).

    Whole planes are transposed first.
    """
    cdef const Map* x = &batch.x
    cdef const PlanTables* plan = batch.route.plan
    cdef Py_ssize_t cells = x.height * x.width
    cdef Py_ssize_t row = x.width * batch.route.lanes, size = x.height * row
    cdef const key_t* planes = <const key_t*>block.data
    cdef const char* next_block = block.data + size * x.itemsize
    cdef Vectors rows
    rows.data, rows.size, rows.stride = <const char*>transposed, row, row * sizeof(key_t)
    # With each line of this block, once transposed, a line of the next block is prefetched.
    rows.prefetch = <Py_ssize_t>(<uintptr_t>next_block - <uintptr_t>transposed)
    if not are_keys(x, shift):
        rows.prefetch = 0
        prefetch(next_block, size * x.itemsize)
        planes = transposed + size
        copy_values(x, block.data, <key_t*>planes, size)
        apply_power(<key_t*>planes, size, x.p)
    call_transpose_planes(planes, transposed, cells, batch.route.lanes)
    pool_segments(&plan.rows, rows, shift, out, row, True)
    call_run_program(&plan.rows, out, row, row)


cdef inline void store_region(
    const Batch* batch, const Block* block, Py_ssize_t region, key_t shift, const key_t* keys,
    const Target* target,
) noexcept nogil:
    """Combine the vectors of a region, and store the results."""
    cdef const RegionSpan* span = batch.route.plan.row_spans + region
    cdef Py_ssize_t first = span.first, step = span.step, bins = batch.route.plan.bins
    cdef Vectors vectors
    cdef Results results
    vectors.count = span.count
    if batch.route.path == Path.CHANNELS or batch.route.path == Path.GATHER:
        span = batch.route.plan.band_spans + region
        first, step, vectors.count = span.first, span.step, span.count
        if not batch.route.keep_bands:
            first, vectors.count = region, 1
    vectors.data = <const char*>(keys + first * batch.route.lanes)
    vectors.stride = step * batch.route.lanes * sizeof(key_t)
    results.n, results.itemsize, results.step = block.lanes, target.itemsize, bins * target.itemsize
    results.kind, results.zero_point = batch.x.kind, batch.x.zero_point
    results.to_float32 = target.to_float32
    results.cells, results.p = batch.route.plan.cells[region], batch.x.p
    results.data = target.data + target.itemsize * (
        (batch.route.plan.out_rows[region] * batch.x.channels + block.first) * bins
        + batch.route.plan.out_bins[region]
    )
    if key_t in floating:
        store_means(&vectors, shift, &results)
    else:
        store_maxima(&vectors, shift, &results)


cdef inline Py_ssize_t slot_keys(const RouteTable* route) noexcept nogil:
    """Return the keys of the slots that a path fills."""
    cdef const PlanTables* plan = route.plan
    cdef Py_ssize_t vectors
    if route.path == Path.ROWS or route.path == Path.PLANES:
        vectors = size_product(plan.rows.n_slots, plan.width)
    elif route.keep_bands:
        vectors = (plan.rows.n_segments - 1) * plan.columns.n_intervals + plan.columns.n_slots
    else:
        vectors = plan.n_regions + plan.columns.n_slots
    return size_product(vectors, route.lanes)


cdef inline Py_ssize_t workspace_keys(
    const RouteTable* route, Py_ssize_t line, bint sums
) noexcept nogil:
    """Return the keys of workspace that a channel block needs, with `line` keys in a line.

    It is the largest index if they are more.
    """
    cdef const PlanTables* plan = route.plan
    cdef Py_ssize_t keys = slot_keys(route), row = size_product(route.lanes, plan.width)
    if route.path == Path.ROWS:
        keys = size_sum(keys, size_product(
            plan.rows.n_segments, size_product(size_sum(plan.width, 1), line)
        ))
        if plan.width < line or sums:
            keys = size_sum(keys, size_sum(size_product(plan.height, plan.width), line))
        return keys
    if route.path == Path.PLANES:
        return size_sum(keys, size_product(plan.height, size_product(row, 2 if sums else 1)))
    return size_sum(keys, row if route.path == Path.GATHER or sums else route.lanes)
