# One block of channels of one image: from the map to the maxima of every region.

cdef enum:
    AHEAD = 1 << 16  # bytes between what is read and what is prefetched: those of wide segments


cdef inline Py_ssize_t steps_ahead(Py_ssize_t size) noexcept nogil:
    """Return how many pieces of `size` bytes ahead to prefetch."""
    return max(1, AHEAD // size)


cdef inline void prefetch(const char* data, Py_ssize_t size) noexcept nogil:
    """Begin to bring memory that is soon read into the second-level cache."""
    cdef Py_ssize_t at
    for at in range(size // LINE):
        prefetch_line(data + at * LINE)


cdef void run_program(
    const Program* program, key_t* slots, Py_ssize_t slot, Py_ssize_t n
) noexcept nogil:
    """Combine n keys of the segments' slots into those of the intervals, slots `slot` apart."""
    cdef Py_ssize_t i
    cdef const Py_ssize_t* step
    for i in range(program.n_steps):
        step = program.steps + 3 * i
        combine(slots + step[0] * slot, slots + step[1] * slot, slots + step[2] * slot, n)


cdef inline void pool_segments(
    const Program* program, const char* vectors, Run run, key_t shift, Py_ssize_t n,
    key_t* slots, Py_ssize_t slot, bint fresh,
) noexcept nogil:
    """Take vectors of n values, `run.stride` apart, into one maximum per segment.

    They are whole lines or more, but for pixels of few channels.
    """
    cdef const Segment* segment
    cdef const char* first
    cdef Py_ssize_t i
    for i in range(program.n_segments):
        segment = program.segments + i
        first = vectors + segment.start * run.stride
        run.count = segment.stop - segment.start
        if n < lanes_of(shift):
            pool_few(slots + segment.slot * slot, first, &run, shift, n, fresh)
        else:
            pool_run(slots + segment.slot * slot, first, &run, shift, n, fresh)


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
            combine(region, region, slots + reach[i].first % reach[i].step * n, n)


cdef void pool_bands(
    const Job* job, const char* block, Py_ssize_t lanes, bint last, key_t shift, key_t* out,
    key_t* copied,
) noexcept nogil:
    """Combine every band of rows over the intervals of columns: (band, interval, n).

    Pixels are vectors of channels: in place, or each row of them copied first. Where that would be
    too much to keep, each band's are taken into the regions at once: (region, n).
    """
    cdef const Map* x = &job.x
    cdef const Tables* plan = job.plan
    cdef const Segment* band
    cdef Py_ssize_t i, y, n = job.lanes
    cdef key_t* slots = out
    cdef const char* row
    cdef bint in_place = job.path == Path.CHANNELS and key_t not in floating
    cdef Run run
    run.stride, run.ahead = x.pixel_stride, steps_ahead(lanes * x.itemsize) * x.pixel_stride
    if not in_place:
        run.stride, run.ahead = n * sizeof(key_t), 0
    if not plan.keep_bands:
        slots = out + plan.n_regions * n
        for i in range(plan.n_regions * n):
            out[i] = nothing(shift)
    for i in range(plan.rows.n_segments):
        band = plan.rows.segments + i
        for y in range(band.start, band.stop):
            row = block + y * x.row_stride
            if not in_place:
                copy_row(x, row, min(lanes, x.channels), copied, n)
                row = <const char*>copied
            pool_segments(
                &plan.columns, row, run, shift, lanes if in_place else n, slots, n, y == band.start
            )
        run_program(&plan.columns, slots, n, n)
        if plan.keep_bands:
            slots += plan.columns.n_intervals * n  # the next band takes the place of other slots
        else:
            take_band(plan, i, slots, out, n)


cdef inline Py_ssize_t rows_of_line(const Tables* plan, Py_ssize_t line) noexcept nogil:
    """Keys of a line's worth of rows, and room for what a line has more than the last of them."""
    return (plan.width + 1) * line


cdef inline void pool_plane(
    const Tables* plan, const char* plane, Run run, key_t shift, key_t* row
) noexcept nogil:
    """Take a plane's rows into one per segment."""
    cdef const Segment* segment
    cdef Py_ssize_t i, line = lanes_of(shift)
    for i in range(plan.rows.n_segments):
        segment = plan.rows.segments + i
        run.count = segment.stop - segment.start
        pool_run(
            row + i * rows_of_line(plan, line), plane + segment.start * run.stride, &run, shift,
            max(plan.width, line), True,
        )


cdef void transpose_segments(
    const Tables* plan, const key_t* rows, key_t* out, Py_ssize_t n
) noexcept nogil:
    """Transpose each segment's rows, a line's worth, into its slot of n lanes."""
    cdef Py_ssize_t i, line = lanes_of(out[0])
    for i in range(plan.rows.n_segments):
        transpose(
            rows + i * rows_of_line(plan, line),
            out + plan.rows.segments[i].slot * plan.width * n, plan.width, n, out[0],
        )


cdef void pool_rows(
    const Job* job, const char* block, Py_ssize_t lanes, bint last, key_t shift, key_t* out,
    key_t* rows,
) noexcept nogil:
    """Combine planes stored row by row over the intervals of rows: (slot, column, lane).

    Plane after plane in vectors along the row, over segments; a line's worth of planes is then
    transposed. A row shorter than a line is read as a line of which the end does not count; as
    nothing may follow the last channel's plane in memory, that one is copied first. So is every
    plane that is to be summed.
    """
    cdef const Map* x = &job.x
    cdef const Tables* plan = job.plan
    cdef Py_ssize_t line = lanes_of(shift), row = x.width * job.lanes, lane, place
    cdef key_t* copied = rows + plan.rows.n_segments * rows_of_line(plan, line)
    cdef const char* plane
    cdef Run run
    run.stride = x.row_stride
    run.ahead = steps_ahead(x.height * x.width * x.itemsize) * x.channel_stride
    for lane in range(lanes):
        place = lane % line
        plane = block + lane * x.channel_stride
        if key_t in floating or (last and lane == lanes - 1 and x.width < line):
            copy_plane(x, plane, run.ahead, copied)
            plane = <const char*>copied
            run.stride = x.width * sizeof(key_t)
        pool_plane(plan, plane, run, shift, rows + place * x.width)
        if place == line - 1 or lane == lanes - 1:
            transpose_segments(plan, rows, out + lane - place, job.lanes)
    run_program(&plan.rows, out, row, row)


cdef void pool_planes(
    const Job* job, const char* block, Py_ssize_t lanes, bint last, key_t shift, key_t* out,
    key_t* scratch,
) noexcept nogil:
    """Combine small planes over the intervals of rows: (slot, column, lane).

    Whole planes are transposed, then reduced in vectors along the row of pixels.
    """
    cdef const Map* x = &job.x
    cdef const Tables* plan = job.plan
    cdef Py_ssize_t i, line = lanes_of(shift), cells = x.height * x.width
    cdef Py_ssize_t row = x.width * job.lanes, size = x.height * row
    cdef const key_t* planes = <const key_t*>block
    cdef const char* next_block = block + size * x.itemsize
    cdef Run run
    run.stride = row * sizeof(key_t)
    # With each line of these planes, transposed, one of the next block's is prefetched.
    run.ahead = <Py_ssize_t>(<uintptr_t>next_block - <uintptr_t>scratch)
    if key_t in floating:
        prefetch(next_block, size * x.itemsize)
        planes = scratch + size
        copy_values(x, block, <key_t*>planes, size)
        raise_values(<key_t*>planes, size, x.p)
    for i in range(job.lanes // line):
        transpose(planes + i * line * cells, scratch + i * line, cells, job.lanes, shift)
    pool_segments(&plan.rows, <const char*>scratch, run, shift, row, out, row, True)
    run_program(&plan.rows, out, row, row)


cdef Py_ssize_t combined_keys(const Tables* plan, int path, Py_ssize_t n) noexcept nogil:
    """Keys to which n channels are reduced, before regions are taken from them."""
    if path == Path.ROWS or path == Path.PLANES:
        return plan.rows.n_slots * plan.width * n
    if plan.keep_bands:
        return (
            (plan.rows.n_segments - 1) * plan.columns.n_intervals + plan.columns.n_slots
        ) * n
    return (plan.n_regions + plan.columns.n_slots) * n


cdef Py_ssize_t scratch_keys(
    const Tables* plan, int path, Py_ssize_t n, Py_ssize_t line, bint sums
) noexcept nogil:
    """Keys of scratch memory that `pool_block` needs for n channels, lines of `line`."""
    cdef Py_ssize_t keys = combined_keys(plan, path, n), row = n * plan.width
    if path == Path.ROWS:
        keys += plan.rows.n_segments * rows_of_line(plan, line)
        return keys + (plan.height * plan.width + line if plan.width < line or sums else 0)
    if path == Path.PLANES:
        return keys + plan.height * row * (2 if sums else 1)
    return keys + (row if path == Path.GATHER or sums else n)


cdef void pool_block(
    const Job* job, Py_ssize_t image, Py_ssize_t first, Py_ssize_t lanes, key_t shift,
    key_t* scratch, const Target* target,
) noexcept nogil:
    """Write what `lanes` channels of one image have in every region."""
    cdef const Map* x = &job.x
    cdef const Tables* plan = job.plan
    cdef const char* block = x.data + image * x.image_stride + first * x.channel_stride
    cdef key_t* rest = scratch + combined_keys(plan, job.path, job.lanes)
    cdef const Reach* reach
    cdef Py_ssize_t region
    cdef Reach own
    # Called by its address, for which they take the same, so that compilers keep each a function of
    # its own, with the registers that it needs.
    cdef void (*pool_path)(
        const Job*, const char*, Py_ssize_t, bint, key_t, key_t*, key_t*
    ) noexcept nogil
    if job.path == Path.ROWS:
        pool_path, reach = pool_rows, plan.of_rows
    elif job.path == Path.PLANES:
        pool_path, reach = pool_planes, plan.of_rows
    else:
        pool_path, reach = pool_bands, plan.of_bands
    pool_path(job, block, lanes, first + lanes == x.channels, shift, scratch, rest)
    for region in range(plan.n_regions):
        own = reach[region]
        if reach == plan.of_bands and not plan.keep_bands:
            own.first, own.count = region, 1
        store_region(job, region, first, lanes, shift, scratch, &own, target)


cdef inline void store_region(
    const Job* job, Py_ssize_t region, Py_ssize_t first, Py_ssize_t lanes, key_t shift,
    const key_t* reduced, const Reach* reach, const Target* target,
) noexcept nogil:
    """Combine the lines that a region is made of, and write what was asked for."""
    cdef const key_t* run = reduced + reach.first * job.lanes
    cdef Py_ssize_t stride = reach.step * job.lanes, step = job.plan.bins * target.itemsize, at = 0
    cdef char* place = place_of(job.plan, target, region, first)
    if key_t in floating:
        store_means(
            run, stride, reach.count, job.plan.cells[region], job.x.p, target.itemsize, place, step,
            lanes,
        )
    else:
        if job.plan.bins == 1:
            at = store_lines(run, stride, reach.count, shift, target.kind, place, lanes)
        if at < lanes:
            store_maxima(
                run + at, stride, reach.count, shift, target.kind, place + at * step, step,
                lanes - at,
            )
