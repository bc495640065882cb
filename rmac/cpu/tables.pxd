"""What Python prepares and the kernels read: numbers of dtypes and options, plans, routes.

The classes are compiled once, in tables.pyx, for the kernels of every instruction set.
"""

from libc.stdint cimport int64_t

cpdef enum Kind:
    """The number of a dtype, as in `rmac._dtypes.Kind`."""
    UINT8 = 1
    INT8 = 2
    FLOAT16 = 3
    BFLOAT16 = 4
    FLOAT32 = 5
    FLOAT64 = 6

cpdef enum Aggregate:
    """How regional vectors become a descriptor, as in `rmac._options.Aggregate`."""
    NONE = 0
    SUM = 1
    MEAN = 2
    CONCAT = 3

cpdef enum Path:
    """How a task gets vectors that it can combine from the memory of a map."""
    CHANNELS = 0  # the channels of a pixel are contiguous: read them in place
    ROWS = 1      # rows are contiguous: combine the rows of each band, then transpose
    PLANES = 2    # whole planes are contiguous and small: transpose, then combine
    GATHER = 3    # any strides: copy one row of pixels after the other

cdef struct Segment:
    # Cells between neighbouring region edges of one axis, and the slot that they are combined in.
    Py_ssize_t start, stop, slot

cdef struct Program:
    # How the segments of one axis are combined to intervals, see `rmac.cpu.plan.Program`.
    Py_ssize_t n_segments, n_steps, n_intervals, n_slots
    const Segment* segments
    const Py_ssize_t* steps  # (K, 3): the slot written, and the two slots that are combined

cdef struct RegionSpan:
    # The vectors that are combined to a region: `count` of them, from `first`, `step` apart.
    Py_ssize_t first, step, count

cdef struct PlanTables:
    # See `rmac.cpu.plan.PlanTables`.
    Py_ssize_t height, width, n_regions, bins
    Program rows
    Program columns
    const RegionSpan* row_spans
    const RegionSpan* band_spans
    const Py_ssize_t* out_rows
    const Py_ssize_t* out_bins
    const Py_ssize_t* cells

cdef struct RouteTable:
    # See `Route`.
    const PlanTables* plan
    int path
    Py_ssize_t lanes
    bint keep_bands
    Py_ssize_t prefetch


cdef class Plan:
    cdef PlanTables tables
    cdef list _arrays

    cdef const Py_ssize_t* _table(self, table) except? NULL
    cdef Program _program(self, program) except *


cdef class Route:
    cdef readonly Plan plan
    cdef RouteTable table


cdef class KernelSpec:
    cdef readonly Py_ssize_t value_bytes
    cdef readonly int kind
    cdef readonly bint sums
    cdef readonly double p
    cdef readonly int zero_point
    cdef readonly int64_t shift
    cdef readonly Py_ssize_t itemsize
    cdef readonly Py_ssize_t line
