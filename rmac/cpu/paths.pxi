# One block of channels of one image: from the map to the maxima of every region.

cdef void run_program(
    const Program* program, key_t* slots, Py_ssize_t slot, Py_ssize_t n
) noexcept nogil:
    """Combine n keys of the segments' slots into those of the intervals, slots `slot` apart."""
    cdef Py_ssize_t i
    cdef const Py_ssize_t* step
    for i in range(program.n_steps):
        step = program.steps + 3 * i
        maximum(slots + step[0] * slot, slots + step[1] * slot, slots + step[2] * slot, n)


cdef void pool_segments(
    const Program* program, const char* vectors, Run run, key_t shift, Py_ssize_t n,
    key_t* slots, Py_ssize_t slot, bint fresh,
) noexcept nogil:
    """Take vectors of n values, `run.stride` apart, into one maximum per segment."""
    cdef const Segment* segment
    cdef Py_ssize_t i
    for i in range(program.n_segments):
        segment = program.segments + i
        run.count = segment.stop - segment.start
        pool_run(
            slots + segment.slot * slot, vectors + segment.start * run.stride, &run, shift, n, fresh
        )


cdef void take_band(
    const Tables* plan, Py_ssize_t band, const key_t* slots, key_t* regions, Py_ssize_t n
) noexcept nogil:
    """Take a band's maxima into those of the regions that cross it."""
    cdef const Reach* reach = plan.of_bands
    cdef key_t* region
    cdef Py_ssize_t i, first
    for i in range(plan.n_regions):
        first = reach[i].first // reach[i].step
        if first <= band < first + reach[i].count:
            region = regions + i * n
            maximum(region, region, slots + reach[i].first % reach[i].step * n, n)


cdef void pool_bands(
    const Map* x, const Tables* plan, int path, const char* block, Py_ssize_t lanes,
    key_t shift, key_t* out, key_t* gathered, Py_ssize_t n,
) noexcept nogil:
    """Maxima of every band of rows over the intervals of columns: (band, slot, n).

    Pixels are vectors of channels: in place, or each row of them collected first. Where that would
    be too much to keep, each band's are taken into the regions at once: (region, n).
    """
    cdef const Segment* band
    cdef Py_ssize_t i, y
    cdef key_t* slots = out
    cdef const char* row
    cdef Run run
    run.stride, run.ahead = x.pixel_stride, x.row_stride
    if path == Path.GATHER:
        run.stride, run.ahead, lanes = n * sizeof(key_t), 0, n
    if not plan.keep_bands:
        slots = out + plan.n_regions * n
        for i in range(plan.n_regions * n):
            out[i] = least_key(shift)
    for i in range(plan.rows.n_segments):
        band = plan.rows.segments + i
        for y in range(band.start, band.stop):
            row = block + y * x.row_stride
            if path == Path.GATHER:
                gather_row(x, row, min(lanes, x.channels), gathered, n)
                row = <const char*>gathered
            pool_segments(&plan.columns, row, run, shift, lanes, slots, n, y == band.start)
        run_program(&plan.columns, slots, n, n)
        if plan.keep_bands:
            slots += plan.columns.n_slots * n
        else:
            take_band(plan, i, slots, out, n)


cdef inline Py_ssize_t rows_slot(const Tables* plan, Py_ssize_t n) noexcept nogil:
    """Keys of a slot in `pool_rows`: n rows, and room for what a line has more than a row."""
    return n * plan.width + (n if plan.width < n else 0)


cdef void copy_plane(const Map* x, const char* plane, key_t* out) noexcept nogil:
    cdef Py_ssize_t y
    for y in range(x.height):
        memcpy(out + y * x.width, plane + y * x.row_stride, x.width * sizeof(key_t))


cdef void pool_rows(
    const Map* x, const Tables* plan, const char* block, Py_ssize_t lanes, bint last,
    key_t shift, key_t* out, key_t* scratch,
) noexcept nogil:
    """Maxima of planes stored row by row over the intervals of rows: (interval, column, lane).

    Plane after plane in vectors along the row, then transposed. A row shorter than a line is read
    as a line of which the end does not count; as nothing may follow the last channel's plane in
    memory, that one is copied first.
    """
    cdef Py_ssize_t size = lanes_of(shift) * x.width, slot = rows_slot(plan, lanes_of(shift))
    cdef Py_ssize_t lane, interval
    cdef key_t* slots = scratch + size
    cdef key_t* copied = slots + plan.rows.n_slots * slot
    cdef const char* plane
    cdef Run run
    run.stride, run.ahead = x.row_stride, lanes // 2 * x.channel_stride
    for lane in range(lanes):
        plane = block + lane * x.channel_stride
        if last and lane == lanes - 1 and x.width < lanes_of(shift):
            copy_plane(x, plane, copied)
            plane = <const char*>copied
            run.stride = x.width * sizeof(key_t)
        pool_segments(
            &plan.rows, plane, run, shift, max(x.width, lanes_of(shift)),
            slots + lane * x.width, slot, True,
        )
    run_program(&plan.rows, slots, slot, slot)
    for interval in range(plan.rows.n_intervals):
        transpose(slots + interval * slot, out + interval * size, scratch, x.width)


cdef void pool_planes(
    const Map* x, const Tables* plan, const char* block, key_t shift, key_t* out, key_t* scratch
) noexcept nogil:
    """Maxima of small planes over the intervals of rows: (slot, column, lane).

    A line of whole planes is transposed, then reduced in vectors along the row of pixels.
    """
    cdef Py_ssize_t size = lanes_of(shift) * x.width, cells = x.width * x.height
    cdef Run run
    run.stride, run.ahead = size * sizeof(key_t), 0
    prefetch(block + cells * LINE, cells * LINE)
    transpose(<const key_t*>block, scratch, scratch + cells * lanes_of(shift), cells)
    pool_segments(&plan.rows, <const char*>scratch, run, shift, size, out, size, True)
    run_program(&plan.rows, out, size, size)


cdef Py_ssize_t maxima_keys(const Tables* plan, int path, Py_ssize_t n) noexcept nogil:
    """Keys to which n channels are reduced, before regions are taken from them."""
    if path == Path.ROWS:
        return plan.rows.n_intervals * plan.width * n
    if path == Path.PLANES:
        return plan.rows.n_slots * plan.width * n
    if plan.keep_bands:
        return plan.rows.n_segments * plan.columns.n_slots * n
    return (plan.n_regions + plan.columns.n_slots) * n


cdef Py_ssize_t scratch_keys(const Tables* plan, int path, Py_ssize_t n) noexcept nogil:
    """Keys of scratch memory that `pool_block` needs for n channels, whole lines."""
    cdef Py_ssize_t keys = maxima_keys(plan, path, n), row = n * plan.width
    if path == Path.ROWS:
        keys += row + plan.rows.n_slots * rows_slot(plan, n)
        return keys + (plan.height * plan.width + n if plan.width < n else 0)
    if path == Path.PLANES:
        return keys + 2 * plan.height * row
    return keys + (row if path == Path.GATHER else n)


cdef void pool_block(
    const Map* x, const Tables* plan, int path, Py_ssize_t image, Py_ssize_t first,
    Py_ssize_t lanes, key_t shift, key_t* scratch, const Target* target, Py_ssize_t n,
) noexcept nogil:
    """Write the maxima of `lanes` channels of one image in every region."""
    cdef const char* block = x.data + image * x.image_stride + first * x.channel_stride
    cdef key_t* rest = scratch + maxima_keys(plan, path, n)
    cdef Py_ssize_t region, at, line = lanes_of(shift), step = plan.bins * target.itemsize
    cdef const Reach* reach = plan.of_bands
    cdef Reach own
    cdef char* place
    if path == Path.ROWS or path == Path.PLANES:
        reach = plan.of_rows
    if path == Path.ROWS:
        pool_rows(x, plan, block, lanes, first + lanes == x.channels, shift, scratch, rest)
    elif path == Path.PLANES:
        pool_planes(x, plan, block, shift, scratch, rest)
    else:
        pool_bands(x, plan, path, block, lanes, shift, scratch, rest, n)
    for region in range(plan.n_regions):
        own = reach[region]
        if reach == plan.of_bands and not plan.keep_bands:
            own.first, own.count = region, 1
        place = place_of(plan, target, region, first)
        at = 0
        while at < lanes:
            store_maxima(
                maximum_of_run(scratch + own.first * n + at, own.step * n, own.count),
                shift, target.widening, place + at * step, step, min(line, lanes - at),
            )
            at += line
