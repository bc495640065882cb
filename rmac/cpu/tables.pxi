# What every task of a call shares: the map, how to reach its regions, and where results go.

cdef struct Segment:
    Py_ssize_t start, stop, slot

cdef struct Program:
    Py_ssize_t n_segments, n_steps, n_intervals, n_slots
    const Segment* segments
    const Py_ssize_t* steps

cdef struct Reach:
    # The lines of which a region is the maximum, among those that a block was reduced to.
    Py_ssize_t first, step, count

cdef struct Map:
    # A batch of feature maps in memory; strides in bytes.
    const char* data
    Py_ssize_t images, channels, height, width
    Py_ssize_t image_stride, channel_stride, row_stride, pixel_stride
    Py_ssize_t itemsize
    int kind
    double p  # the power of them that is summed, 0 for themselves

cdef struct Tables:
    # A plan: how to reach every region of maps of one size, see `rmac.cpu.plan`.
    Py_ssize_t width, height, n_regions, bins
    Program rows
    Program columns
    bint keep_bands
    const Reach* of_rows
    const Reach* of_bands
    const Py_ssize_t* row
    const Py_ssize_t* bin
    const Py_ssize_t* cells  # of each region

cdef struct Job:
    # How a call reads a batch of maps; what every task of it shares.
    Map x
    const Tables* plan
    int path
    Py_ssize_t lanes, blocks
    uintptr_t scratch
    Py_ssize_t scratch_size

cdef struct Target:
    # Where an image's regional vectors go: (region, channel, bin) of `channels`, see `Tables`.
    char* data
    Py_ssize_t itemsize, channels
    int kind  # what maxima are, if they are to be widened to float32

cdef struct Recipe:
    # What becomes of regional vectors, as in `rmac.rmac`.
    int aggregate
    bint normalize_regions
    bint normalize
    double eps


cdef class Plan:
    """The tables of `rmac.cpu.plan`, as the kernels read them."""

    cdef Tables tables
    cdef list _arrays

    def __init__(
        self, height, width, rows, columns, keep_bands, of_rows, of_bands, row, bin_, bins,
        cells,
    ):
        cdef Tables* tables = &self.tables
        self._arrays = []
        tables.height, tables.width = height, width
        tables.n_regions, tables.bins = len(row), bins
        tables.rows = self._program(rows)
        tables.columns = self._program(columns)
        tables.keep_bands = keep_bands
        tables.of_rows = <const Reach*>self._table(of_rows)
        tables.of_bands = <const Reach*>self._table(of_bands)
        tables.row = self._table(row)
        tables.bin = self._table(bin_)
        tables.cells = self._table(cells)

    @property
    def n_regions(self):
        return self.tables.n_regions

    cdef const Py_ssize_t* _table(self, table) except? NULL:
        cdef const Py_ssize_t[::1] flat = table.ravel()
        self._arrays.append(flat)
        return &flat[0] if flat.shape[0] else NULL

    cdef Program _program(self, program) except *:
        cdef Program out
        out.n_segments = len(program.segments)
        out.n_steps = len(program.steps)
        out.n_intervals = program.intervals
        out.n_slots = program.slots
        out.segments = <const Segment*>self._table(program.segments)
        out.steps = self._table(program.steps)
        return out


cdef class Route:
    """How to go through a batch: its plan, a `Path`, and the channels of a task, whole lines."""

    cdef readonly Plan plan
    cdef readonly int path
    cdef readonly Py_ssize_t lanes

    def __init__(self, plan, path, lanes):
        self.plan, self.path, self.lanes = plan, path, lanes
