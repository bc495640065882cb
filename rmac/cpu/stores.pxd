# cython: language_level=3, cdivision=True
"""From keys to results: bits of the dtype, or numbers.

Accumulation: the vectors of a region are combined here for the last time; a mean is its sum divided
    by its number of cells.
NaN: the largest key is a NaN again.
Memory: results of one region and one channel block, `step` bytes from channel to channel.
Threads: none; each caller owns what it writes.
"""

from cython cimport floating
from libc.stdint cimport int8_t, int16_t, int32_t
from libc.string cimport memcpy

from rmac.cpu.keys cimport (
    LINE, Line, Vectors, bits_t, combined_vectors, decode_line, divide_line, hide_source, lanes_of,
    store_line,
)
from rmac.cpu.tables cimport Kind
from rmac.cpu.values cimport apply_root, widen

cdef enum:
    MEANS = LINE  # whole lines of float32 and of float64

cdef struct Results:
    # Where the results of one region and one channel block go, and what they are.
    char* data
    Py_ssize_t n         # channels
    Py_ssize_t itemsize  # bytes of a result
    Py_ssize_t step      # bytes from one result to the next
    int kind             # of the values of the map
    int zero_point       # of integers, the value that stands for 0
    bint to_float32      # whether maxima are widened to float32; else they keep their dtype
    Py_ssize_t cells     # of the region
    double p             # the power that was summed, 0 for the values themselves


cdef inline int kind_of_size(int kind, bits_t like) noexcept nogil:
    """Return `kind`, so that the compiler knows that it is one of the two of this size."""
    if bits_t is int8_t:
        return Kind.UINT8 if kind == Kind.UINT8 else Kind.INT8
    elif bits_t is int16_t:
        return Kind.FLOAT16 if kind == Kind.FLOAT16 else Kind.BFLOAT16
    elif bits_t is int32_t:
        return Kind.FLOAT32
    else:
        return Kind.FLOAT64


cdef inline Py_ssize_t store_lines(
    const Vectors* keys, bits_t shift, const Results* results
) noexcept nogil:
    """Store contiguous maxima, as many as fill lines; return their number."""
    cdef bits_t bits[LINE]
    cdef Py_ssize_t at = 0, lanes = lanes_of(shift)
    cdef char* out = results.data
    cdef Line line
    while at + lanes <= results.n:
        line = decode_line(combined_vectors(keys, at, shift), shift)
        if results.to_float32:
            store_line(bits, line)
            hide_source(bits)
            widen(
                <const char*>bits, kind_of_size(results.kind, shift), results.zero_point,
                <float*>out, lanes,
            )
            out += lanes * sizeof(float)
        else:
            store_line(out, line)
            out += LINE
        at += lanes
    return at


cdef inline void store_spaced(
    const Vectors* keys, bits_t shift, Py_ssize_t at, const Results* results
) noexcept nogil:
    """Store maxima one by one, from channel `at`."""
    cdef bits_t bits[LINE]
    cdef Py_ssize_t i, lanes = lanes_of(shift), step = results.step
    cdef char* out = results.data + at * step
    while at < results.n:
        store_line(bits, decode_line(combined_vectors(keys, at, shift), shift))
        for i in range(min(lanes, results.n - at)):
            if results.to_float32:
                widen(
                    <const char*>(bits + i), kind_of_size(results.kind, shift),
                    results.zero_point, <float*>(out + i * step), 1,
                )
            else:
                memcpy(out + i * step, bits + i, sizeof(bits_t))
        at += lanes
        out += lanes * step


cdef inline void store_maxima(
    const Vectors* keys, bits_t shift, const Results* results
) noexcept nogil:
    cdef Py_ssize_t at = 0
    if results.step == results.itemsize:
        at = store_lines(keys, shift, results)
    if at < results.n:
        store_spaced(keys, shift, at, results)


cdef inline void store_means(
    const Vectors* sums, floating like, const Results* results
) noexcept nogil:
    """Store contiguous means, a few lines at a time: the longer a loop, the faster a root.

    Roots are taken elsewhere: another thread may store the same means, so all are stored once.
    """
    cdef floating room[MEANS]
    cdef floating* means
    cdef floating cells = <floating>results.cells
    cdef Py_ssize_t i, n, at = 0, lanes = lanes_of(like)
    cdef char* out = results.data
    while at < results.n:
        n = min(results.n - at, MEANS)
        means = room
        if results.p == 0 and results.itemsize == sizeof(floating) and n % lanes == 0:
            means = <floating*>out + at
        for i in range((n + lanes - 1) // lanes):
            store_line(
                means + i * lanes,
                divide_line(combined_vectors(sums, at + i * lanes, like), cells),
            )
        apply_root(means, n, results.p)
        if means == room:
            for i in range(n):
                if results.itemsize == sizeof(float):
                    (<float*>out)[at + i] = <float>means[i]
                else:
                    (<double*>out)[at + i] = means[i]
        at += n
