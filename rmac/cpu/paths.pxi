# One block of channels of one image: from the map to the maxima of every region.

cdef void run_program(const Program* program, key_t* slots, Py_ssize_t n) noexcept nogil:
    """Combine the segments' slots, each of n keys, into those of the intervals."""
    cdef Py_ssize_t i
    cdef const Py_ssize_t* step
    for i in range(program.n_steps):
        step = program.steps + 3 * i
        maximum(slots + step[0] * n, slots + step[1] * n, slots + step[2] * n, n)


cdef void pool_row(
    const Program* columns, const char* row, Py_ssize_t pixel_stride, Py_ssize_t next_row,
    key_t flip, key_t shift, key_t* slots, Py_ssize_t n, bint fresh,
) noexcept nogil:
    """Take one row of pixels into a band's maxima, one per segment of columns.

    `next_row` is how far the row that comes after it lies, to be prefetched; 0 if it is not there.
    """
    cdef Py_ssize_t segment, start, x
    for segment in range(columns.n_segments):
        start = columns.segments[2 * segment]
        if next_row:
            for x in range(start, columns.segments[2 * segment + 1]):
                prefetch(row + next_row + x * pixel_stride, n * sizeof(key_t))
        pool_run(
            slots + segment * n, row + start * pixel_stride, pixel_stride,
            columns.segments[2 * segment + 1] - start, flip, shift, n, fresh,
        )


cdef void close_band(
    const Cells* cells, Py_ssize_t band, key_t* slots, key_t* regions, Py_ssize_t n
) noexcept nogil:
    """Combine a band's segments of columns, and take them into the regions that cross it."""
    cdef Py_ssize_t i, begin = cells.band_end[band - 1] if band else 0
    cdef key_t* region
    run_program(&cells.columns, slots, n)
    for i in range(begin, cells.band_end[band]):
        region = regions + cells.region[i] * n
        maximum(region, region, slots + cells.slot[i] * n, n)


cdef void pool_bands(
    const Map* x, const Tables* plan, int path, const char* block, Py_ssize_t lanes,
    key_t flip, key_t shift, key_t* scratch, Py_ssize_t n,
) noexcept nogil:
    """Maxima of every region, a band of rows after the other: (region, n).

    A band has one running maximum per segment of columns, of pixels that are vectors of channels:
    in place, or each row collected first.
    """
    cdef const Cells* cells = &plan.cells
    cdef key_t* slots = scratch + plan.n_regions * n
    cdef key_t* gathered = slots + cells.columns.n_slots * n
    cdef Py_ssize_t band, y, top, pixel_stride = x.pixel_stride, next_row = x.row_stride
    cdef const char* row
    fill(scratch, least_key(flip), plan.n_regions * n)
    if path == Path.GATHER:
        pixel_stride, next_row = n * sizeof(key_t), 0
    for band in range(cells.n_bands):
        top = cells.bands[2 * band]
        for y in range(top, cells.bands[2 * band + 1]):
            row = block + y * x.row_stride
            if path == Path.GATHER:
                gather_row(x, row, lanes, gathered, n)
                row = <const char*>gathered
            pool_row(
                &cells.columns, row, pixel_stride, next_row, flip, shift, slots, n, y == top
            )
        close_band(cells, band, slots, scratch, n)


cdef void pool_rows(
    const Map* x, const Tables* plan, const char* block, Py_ssize_t lanes,
    key_t flip, key_t shift, key_t* out, key_t* scratch,
) noexcept nogil:
    """Maxima of planes stored row by row over the intervals of rows: (interval, column, lane).

    Plane after plane in vectors along the row, then transposed.
    """
    cdef Py_ssize_t width = x.width, size = lanes_of(flip) * width
    cdef Py_ssize_t lane, segment, top, interval
    cdef key_t* slots = scratch + size
    cdef const char* plane
    for lane in range(lanes):
        plane = block + lane * x.channel_stride
        if x.row_stride * x.height * lanes <= FAR and x.row_stride >= 0:
            prefetch(plane + lanes * x.channel_stride, x.height * x.row_stride)
        for segment in range(plan.rows.n_segments):
            top = plan.rows.segments[2 * segment]
            pool_run(
                slots + segment * size + lane * width, plane + top * x.row_stride, x.row_stride,
                plan.rows.segments[2 * segment + 1] - top, flip, shift, width, True,
            )
    run_program(&plan.rows, slots, size)
    for interval in range(plan.rows.n_results):
        transpose(
            slots + plan.rows.result[interval] * size, out + interval * size, scratch, width
        )


cdef void pool_planes(
    const Map* x, const Tables* plan, const char* block, key_t flip, key_t shift,
    key_t* out, key_t* scratch,
) noexcept nogil:
    """Maxima of small planes over all slots of the program of rows: (slot, column, lane).

    A line of whole planes is transposed, then reduced in vectors along the row of pixels.
    """
    cdef Py_ssize_t segment, top, size = lanes_of(flip) * x.width
    cdef key_t* pixels = scratch
    prefetch(block + size * x.height * sizeof(key_t), size * x.height * sizeof(key_t))
    transpose(<const key_t*>block, pixels, pixels + size * x.height, x.width * x.height)
    for segment in range(plan.rows.n_segments):
        top = plan.rows.segments[2 * segment]
        pool_run(
            out + segment * size, <const char*>(pixels + top * size), size * sizeof(key_t),
            plan.rows.segments[2 * segment + 1] - top, flip, shift, size, True,
        )
    run_program(&plan.rows, out, size)


cdef Py_ssize_t scratch_keys(const Tables* plan, int path, Py_ssize_t n) noexcept nogil:
    """Keys of scratch memory that `pool_block` needs for n channels; the last n are for a line."""
    if path == Path.ROWS:
        return n * (plan.width * (plan.rows.n_results + 1 + plan.rows.n_slots) + 1)
    if path == Path.PLANES:
        return n * (plan.width * (plan.rows.n_slots + 2 * plan.height) + 1)
    return n * (plan.n_regions + plan.cells.columns.n_slots + plan.width)


cdef void pool_block(
    const Map* x, const Tables* plan, int path, Py_ssize_t image, Py_ssize_t first,
    Py_ssize_t lanes,
    key_t flip, key_t shift, key_t* scratch, key_t* out, Py_ssize_t n,
) noexcept nogil:
    """Write the maxima of `lanes` channels of one image in every region."""
    cdef const char* block = x.data + image * x.image_stride + first * x.channel_stride
    cdef Py_ssize_t region, interval, size = n * x.width, step = plan.bins
    cdef key_t* place
    cdef key_t* line = scratch + scratch_keys(plan, path, n) - n
    if path == Path.ROWS:
        pool_rows(
            x, plan, block, lanes, flip, shift, scratch, scratch + plan.rows.n_results * size
        )
    elif path == Path.PLANES:
        pool_planes(
            x, plan, block, flip, shift, scratch, scratch + plan.rows.n_slots * size
        )
    else:
        pool_bands(x, plan, path, block, lanes, flip, shift, scratch, n)
    for region in range(plan.n_regions):
        place = out + (plan.row[region] * x.channels + first) * step + plan.bin[region]
        if path == Path.CHANNELS or path == Path.GATHER:
            store(scratch + region * n, flip, shift, place, step, lanes)
            continue
        interval = plan.row_interval[region]
        if path == Path.PLANES:
            interval = plan.rows.result[interval]
        maximum_of_run(
            line, scratch + interval * size + plan.columns[2 * region] * n,
            plan.columns[2 * region + 1] - plan.columns[2 * region],
        )
        store(line, flip, shift, place, step, lanes)
