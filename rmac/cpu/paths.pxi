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


cdef void close_band(
    const Cells* cells, Py_ssize_t band, key_t* slots, key_t* regions, Py_ssize_t n
) noexcept nogil:
    """Combine a band's segments of columns, and take them into the regions that cross it."""
    cdef Py_ssize_t i, begin = cells.band_end[band - 1] if band else 0
    cdef key_t* region
    run_program(&cells.columns, slots, n, n)
    for i in range(begin, cells.band_end[band]):
        region = regions + cells.region[i] * n
        maximum(region, region, slots + cells.slot[i] * n, n)


cdef void pool_strip(
    const Program* columns, const char* strip, Run run, key_t shift, Py_ssize_t lanes,
    key_t* slots, Py_ssize_t n, bint fresh,
) noexcept nogil:
    """Take some rows of pixels into a band's maxima, one per segment of columns."""
    cdef Py_ssize_t segment, start
    for segment in range(columns.n_segments):
        start = columns.segments[2 * segment]
        run.count = columns.segments[2 * segment + 1] - start
        pool_run(slots + segment * n, strip + start * run.stride, run, shift, lanes, fresh)


cdef void pool_bands(
    const Map* x, const Tables* plan, int path, const char* block, Py_ssize_t lanes,
    key_t shift, key_t* scratch, Py_ssize_t n,
) noexcept nogil:
    """Maxima of every region, a band of rows after the other: (region, n).

    A band has one running maximum per segment of columns, of pixels that are vectors of channels:
    in place, or each row collected first.
    """
    cdef const Cells* cells = &plan.cells
    cdef key_t* slots = scratch + plan.n_regions * n
    cdef key_t* gathered = slots + cells.columns.n_slots * n
    cdef Py_ssize_t band, y, top, bottom
    cdef const char* strip
    cdef Run run
    fill(scratch, least_key(shift), plan.n_regions * n)
    run.stride, run.row_stride = x.pixel_stride, x.row_stride
    if path == Path.GATHER:
        run.stride = n * sizeof(key_t)
    for band in range(cells.n_bands):
        top = y = cells.bands[2 * band]
        bottom = cells.bands[2 * band + 1]
        while y < bottom:
            strip = block + y * x.row_stride
            run.rows = min(STRIP, bottom - y)
            run.ahead = run.rows * x.row_stride
            if path == Path.GATHER:
                run.rows, run.ahead = 1, 0
                gather_row(x, strip, lanes, gathered, n)
                strip = <const char*>gathered
            pool_strip(&cells.columns, strip, run, shift, lanes, slots, n, y == top)
            y += run.rows
        close_band(cells, band, slots, scratch, n)


cdef inline Py_ssize_t rows_slot(const Tables* plan, Py_ssize_t n) noexcept nogil:
    """Keys of a slot in `pool_rows`: n rows, and room for what a line has more than a row."""
    return n * plan.width + (n if plan.width < n else 0)


cdef void pool_plane(
    const Program* rows, const char* plane, Run run, key_t shift, Py_ssize_t width,
    key_t* slots, Py_ssize_t slot,
) noexcept nogil:
    """Reduce one plane to a row for each segment of rows."""
    cdef Py_ssize_t segment, top
    for segment in range(rows.n_segments):
        top = rows.segments[2 * segment]
        run.count = rows.segments[2 * segment + 1] - top
        pool_run(
            slots + segment * slot, plane + top * run.stride, run, shift,
            max(width, lanes_of(shift)), True,
        )


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
    run.stride, run.row_stride, run.rows = x.row_stride, 0, 1
    run.ahead = lanes // 2 * x.channel_stride
    for lane in range(lanes):
        plane = block + lane * x.channel_stride
        if last and lane == lanes - 1 and x.width < lanes_of(shift):
            copy_plane(x, plane, copied)
            plane = <const char*>copied
            run.stride = x.width * sizeof(key_t)
        pool_plane(&plan.rows, plane, run, shift, x.width, slots + lane * x.width, slot)
    run_program(&plan.rows, slots, slot, slot)
    for interval in range(plan.rows.n_results):
        transpose(
            slots + plan.rows.result[interval] * slot, out + interval * size, scratch, x.width
        )


cdef void pool_planes(
    const Map* x, const Tables* plan, const char* block, key_t shift, key_t* out, key_t* scratch,
) noexcept nogil:
    """Maxima of small planes over all slots of the program of rows: (slot, column, lane).

    A line of whole planes is transposed, then reduced in vectors along the row of pixels.
    """
    cdef Py_ssize_t segment, top, size = lanes_of(shift) * x.width
    cdef key_t* pixels = scratch
    cdef Run run
    run.stride, run.row_stride, run.rows, run.ahead = size * sizeof(key_t), 0, 1, 0
    prefetch(block + size * x.height * sizeof(key_t), size * x.height * sizeof(key_t))
    transpose(<const key_t*>block, pixels, pixels + size * x.height, x.width * x.height)
    for segment in range(plan.rows.n_segments):
        top = plan.rows.segments[2 * segment]
        run.count = plan.rows.segments[2 * segment + 1] - top
        pool_run(out + segment * size, <const char*>(pixels + top * size), run, shift, size, True)
    run_program(&plan.rows, out, size, size)


cdef Py_ssize_t scratch_keys(const Tables* plan, int path, Py_ssize_t n) noexcept nogil:
    """Keys of scratch memory that `pool_block` needs for n channels, whole lines."""
    cdef Py_ssize_t keys = 0
    if path == Path.ROWS:
        keys += (plan.rows.n_results + 1) * n * plan.width + plan.rows.n_slots * rows_slot(plan, n)
        return keys + plan.height * plan.width + n
    if path == Path.PLANES:
        return keys + n * plan.width * (plan.rows.n_slots + 2 * plan.height)
    return keys + n * (plan.n_regions + plan.cells.columns.n_slots + plan.width)


cdef void pool_block(
    const Map* x, const Tables* plan, int path, Py_ssize_t image, Py_ssize_t first,
    Py_ssize_t lanes, key_t shift, key_t* scratch, const Target* target, Py_ssize_t n,
) noexcept nogil:
    """Write the maxima of `lanes` channels of one image in every region."""
    cdef const char* block = x.data + image * x.image_stride + first * x.channel_stride
    cdef Py_ssize_t region, interval, at, size = n * x.width, step = plan.bins * target.itemsize
    cdef key_t* run
    cdef char* place
    if path == Path.ROWS:
        pool_rows(
            x, plan, block, lanes, first + lanes == x.channels, shift, scratch,
            scratch + plan.rows.n_results * size,
        )
    elif path == Path.PLANES:
        pool_planes(x, plan, block, shift, scratch, scratch + plan.rows.n_slots * size)
    else:
        pool_bands(x, plan, path, block, lanes, shift, scratch, n)
    for region in range(plan.n_regions):
        place = place_of(plan, target, region, first)
        if path == Path.CHANNELS or path == Path.GATHER:
            at = 0
            while at < lanes:
                store_maxima(
                    load_line(scratch + region * n + at), shift, target.widening,
                    place + at * step, step, min(lanes_of(shift), lanes - at),
                )
                at += lanes_of(shift)
            continue
        interval = plan.row_interval[region]
        if path == Path.PLANES:
            interval = plan.rows.result[interval]
        run = scratch + interval * size + plan.columns[2 * region] * n
        store_maxima(
            maximum_of_run(run, plan.columns[2 * region + 1] - plan.columns[2 * region]), shift,
            target.widening, place, step, lanes,
        )
