# cython: language_level=3, boundscheck=False, wraparound=False
# cython: freethreading_compatible=True
"""The objects that Python prepares for the kernels. They are checked here, before any work.

Each is made by `__cinit__`, so that none is half made, and `__init__` changes none.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcmp

cdef extern from "lines.h":
    enum: LINE

cdef extern from "reads.h" nogil:
    void rmac_make_crc32_table()
    uint32_t rmac_crc32(uint32_t crc, const unsigned char* data, size_t size)
    Py_ssize_t rmac_read_rows(
        int descriptor, const int64_t* offsets, unsigned char* rows, Py_ssize_t count, size_t size,
        uint32_t* crcs,
    )

cdef extern from "floats.h" nogil:
    uint64_t set_default_floats()
    void restore_floats(uint64_t before)

LINE_BYTES = LINE


cdef class DefaultFloats:
    """A context in which this thread has the default floating-point mode, see floats.h."""

    cdef uint64_t _before

    def __enter__(self):
        self._before = set_default_floats()

    def __exit__(self, *error):
        restore_floats(self._before)


rmac_make_crc32_table()


def crc32(const unsigned char[::1] data not None, uint32_t crc=0):
    """Return the CRC-32 of data that follow others of this one."""
    cdef size_t size = data.shape[0]
    if size:
        with nogil:
            crc = rmac_crc32(crc, &data[0], size)
    return crc


def read_rows(
    int descriptor, const int64_t[::1] offsets not None, unsigned char[:, ::1] rows not None,
    uint32_t[::1] crcs=None,
):
    """Fill rows with the bytes of a file from an offset each; add them to the CRC-32 of each.

    Return how many of the first rows were read and added. It ends at the first read that fails or
    is short; it does nothing where files have no `pread`.
    """
    cdef Py_ssize_t done = 0, count = rows.shape[0]
    cdef uint32_t* sums = NULL
    if offsets.shape[0] != count or (crcs is not None and crcs.shape[0] != count):
        raise ValueError(f"expected as many offsets and crcs as rows, {count}")
    if count:
        if crcs is not None:
            sums = &crcs[0]
        with nogil:
            done = rmac_read_rows(
                descriptor, &offsets[0], &rows[0, 0], count, rows.shape[1], sums
            )
    return done


def record_ends(
    const unsigned char[::1] data not None, Py_ssize_t fixed, Py_ssize_t sizes_at,
    int64_t[::1] ends not None,
):
    """Write where records end that lie one after the other; return whether they are all of `data`.

    A record has `fixed` bytes and three parts more. Their sizes are numbers of 16 bits, the low
    byte first, from the byte `sizes_at` on.
    """
    cdef Py_ssize_t at = 0, first, i, k
    if sizes_at < 0 or fixed < sizes_at + 6:
        raise ValueError("expected the sizes in the fixed bytes")
    for i in range(ends.shape[0]):
        if at > data.shape[0] - fixed:
            return False
        first = at + sizes_at
        at += fixed
        for k in range(first, first + 6, 2):
            at += data[k] + 256 * data[k + 1]
        ends[i] = at
    return at == data.shape[0]


def are_equal(
    const unsigned char[::1] a not None, const int64_t[::1] starts_of_a not None,
    const unsigned char[::1] b not None, const int64_t[::1] starts_of_b not None,
    const int64_t[::1] sizes not None, unsigned char[::1] equal not None,
):
    """Write for each piece of `a` whether it is inside, and a piece inside `b` has the same bytes.

    Pieces of no bytes are equal.
    """
    cdef Py_ssize_t i, count = sizes.shape[0]
    if starts_of_a.shape[0] != count or starts_of_b.shape[0] != count or equal.shape[0] != count:
        raise ValueError(f"expected as many starts and results as sizes, {count}")
    for i in range(count):
        equal[i] = sizes[i] == 0 or (
            sizes[i] > 0
            and 0 <= starts_of_a[i] <= a.shape[0] - sizes[i]
            and 0 <= starts_of_b[i] <= b.shape[0] - sizes[i]
            and memcmp(&a[starts_of_a[i]], &b[starts_of_b[i]], sizes[i]) == 0
        )


cdef class Plan:
    """How the regions of maps of one size are reached, from `rmac.cpu.plan.PlanTables`."""

    def __cinit__(self, plan):
        cdef PlanTables* tables = &self.tables
        self._arrays = []
        tables.height, tables.width = plan.height, plan.width
        tables.n_regions, tables.bins = len(plan.out_rows), plan.bins
        tables.rows = self._program(plan.rows)
        tables.columns = self._program(plan.columns)
        tables.row_spans = <const RegionSpan*>self._table(plan.row_spans)
        tables.band_spans = <const RegionSpan*>self._table(plan.band_spans)
        tables.out_rows = self._table(plan.out_rows)
        tables.out_bins = self._table(plan.out_bins)
        tables.cells = self._table(plan.cells)

    @property
    def n_regions(self):
        return self.tables.n_regions

    @property
    def n_band_vectors(self):
        """The number of (band, interval of columns)."""
        return self.tables.rows.n_segments * self.tables.columns.n_intervals

    @property
    def nbytes(self):
        """The bytes of the tables."""
        return sum(table.nbytes for table in self._arrays)

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
    """How the maps of a batch are read.

    Attributes
    ----------
    plan : how their regions are reached
    path : a `Path`
    lanes : channels of a task, a multiple of the keys in a line
    keep_bands : whether the paths CHANNELS and GATHER keep the intervals of all bands, and combine
        regions at the end; else each band is combined into the regions at once
    prefetch : bytes between what is read and what is prefetched
    """

    def __cinit__(
        self, Plan plan not None, int path, Py_ssize_t lanes, *, bint keep_bands,
        Py_ssize_t prefetch,
    ):
        if path not in (Path.CHANNELS, Path.ROWS, Path.PLANES, Path.GATHER):
            raise ValueError(f"path: expected a Path, got {path}")
        self.plan = plan
        self.table.plan, self.table.path, self.table.lanes = &plan.tables, path, lanes
        self.table.keep_bands, self.table.prefetch = keep_bands, prefetch

    @property
    def path(self):
        return self.table.path

    @property
    def lanes(self):
        return self.table.lanes

    @property
    def keep_bands(self):
        return self.table.keep_bands

    @property
    def prefetch(self):
        return self.table.prefetch


cdef class KernelSpec:
    """How the kernels pool the values of a dtype.

    Attributes
    ----------
    value_bytes : bytes of a value
    kind : the `Kind` of the values
    sums : whether values are summed; else their maxima are taken
    p : the power of the values that is summed, 0 for the values themselves
    zero_point : of integers, the value that stands for 0
    shift : subtracted from keys, see keys.pxd
    itemsize : bytes of a key, or of a number that is summed
    line : keys in a line
    """

    def __cinit__(
        self, Py_ssize_t value_bytes, int kind, *, bint sums, double p, int zero_point,
        int64_t shift, Py_ssize_t itemsize,
    ):
        if kind not in list(Kind):
            raise ValueError(f"kind: expected a Kind, got {kind}")
        if itemsize not in (4, 8) if sums else itemsize != value_bytes:
            raise ValueError(f"itemsize: got {itemsize} for values of {value_bytes} bytes")
        self.value_bytes, self.kind, self.sums, self.p = value_bytes, kind, sums, p
        self.zero_point = zero_point
        self.shift, self.itemsize, self.line = shift, itemsize, LINE // itemsize
