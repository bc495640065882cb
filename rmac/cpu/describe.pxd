# cython: language_level=3, cdivision=True
"""From the regional vectors of an image to its descriptor.

Accumulation: norms in double, in an order that no instruction set changes; sums of vectors in the
    dtype of the descriptor.
NaN: a vector with a NaN has the norm NaN, and its descriptor is NaN.
Memory: regional vectors (R, C), C-ordered, overwritten.
Threads: each image is described on one thread.
"""

from cython cimport floating
from libc.math cimport INFINITY, fabs, fma, fmaf, sqrt

from rmac.cpu.keys cimport Line, add_lines, add_squares, hide_target, load_line, store_line
from rmac.cpu.tables cimport Aggregate

cdef extern from *:
    """
    #if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    #define HAS_FMA 1
    #else
    #define HAS_FMA 0
    #endif
    """
    const bint HAS_FMA

cdef struct Aggregation:
    # As `rmac._options.AggregationOptions`.
    bint normalize_regions
    int aggregate
    bint normalize
    double eps


cdef inline Aggregation aggregation_of(options) except *:
    """Return `rmac._options.AggregationOptions` as a struct."""
    cdef Aggregation out
    out.aggregate = options.aggregate
    if out.aggregate not in (Aggregate.NONE, Aggregate.SUM, Aggregate.MEAN, Aggregate.CONCAT):
        raise ValueError(f"aggregate: expected an Aggregate, got {options.aggregate}")
    out.normalize_regions, out.normalize = options.normalize_regions, options.normalize
    out.eps = options.eps
    return out


cdef inline double sum_of_squares(const floating* values, Py_ssize_t n) noexcept nogil:
    """Sum in 16 interleaved parts, so that the order does not depend on the width of registers."""
    cdef floating[16] rest
    cdef double[8] parts
    cdef Py_ssize_t i, part, whole = n // 16 * 16
    for part in range(8):
        parts[part] = rest[part] = rest[part + 8] = 0
    cdef Line first = load_line(parts), second = first
    for i in range(0, whole, 16):
        first, second = add_squares(first, values + i), add_squares(second, values + i + 8)
    if whole < n:
        for part in range(n - whole):
            rest[part] = values[whole + part]
        first = add_squares(first, <const floating*>rest)
        second = add_squares(second, <const floating*>(rest + 8))
    store_line(parts, add_lines(first, second, 0.0))
    for part in range(4):
        parts[part] = parts[part] + parts[part + 4]
    return (parts[0] + parts[2]) + (parts[1] + parts[3])


cdef inline double call_sum_of_squares(const floating* values, Py_ssize_t n) noexcept nogil:
    cdef double (*call)(const floating*, Py_ssize_t) noexcept nogil
    call = sum_of_squares
    hide_target(call)
    return call(values, n)


cdef inline floating quotient(floating value, floating norm, floating inverse) noexcept nogil:
    """Divide a finite value by a norm, given the inverse of the norm.

    With fused multiplication, two corrections make this as exact as a division and several times as
    fast. Only the last bit of the least subnormal numbers may differ. A lone value becomes exactly
    1.
    """
    cdef floating guess
    if not HAS_FMA:
        return value / norm
    guess = value * inverse
    if floating is float:
        return fmaf(fmaf(-guess, norm, value), inverse, guess)
    else:
        return fma(fma(-guess, norm, value), inverse, guess)


cdef inline bint is_in_range(double squares, double eps) noexcept nogil:
    """Return whether norm plus eps, its square and its inverse neither overflow nor underflow."""
    return 1e-60 < squares < 1e60 and eps < 1e30


cdef inline void normalize_scaled(
    floating* values, Py_ssize_t n, double eps
) noexcept nogil:
    """Divide a vector by its norm plus eps, whatever its values; scale by the largest first."""
    cdef double peak = 0, squares = 0, norm
    cdef Py_ssize_t i
    for i in range(n):
        peak = max(peak, fabs(<double>values[i]))
    if peak == 0 or peak == INFINITY:
        peak = 1
    for i in range(n):
        norm = values[i] / peak
        squares += norm * norm
    norm = sqrt(squares) + eps / peak
    if norm == 0:
        norm = 1
    for i in range(n):
        values[i] = <floating>(values[i] / peak / norm)


cdef inline void divide(floating* values, Py_ssize_t n, floating norm) noexcept nogil:
    cdef floating inverse = 1 / norm
    cdef Py_ssize_t i
    if norm == 1:  # a division would make +0 of -0
        return
    for i in range(n):
        values[i] = quotient(values[i], norm, inverse)


cdef inline void normalize(floating* values, Py_ssize_t n, double eps) noexcept nogil:
    """Divide a vector by its norm plus eps; with eps 0 a zero vector stays zero."""
    cdef double squares = call_sum_of_squares(values, n)
    if is_in_range(squares, eps):
        divide(values, n, <floating>(sqrt(squares) + eps))
    else:
        normalize_scaled(values, n, eps)


cdef inline void add(floating* out, const floating* values, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = out[i] + values[i]


cdef inline void add_quotients(
    floating* out, const floating* values, Py_ssize_t n, floating norm
) noexcept nogil:
    cdef floating inverse = 1 / norm
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = out[i] + quotient(values[i], norm, inverse)


cdef inline void add_normalized(
    floating* out, floating* values, Py_ssize_t n, double eps
) noexcept nogil:
    """Add a vector, divided by its norm plus eps; the vector itself may be overwritten."""
    cdef double squares = call_sum_of_squares(values, n)
    if is_in_range(squares, eps):
        add_quotients(out, values, n, <floating>(sqrt(squares) + eps))
    else:
        normalize_scaled(values, n, eps)
        add(out, values, n)


cdef inline void normalize_each(
    floating* vectors, Py_ssize_t regions, Py_ssize_t n, double eps
) noexcept nogil:
    cdef Py_ssize_t region
    for region in range(regions):
        normalize(vectors + region * n, n, eps)


cdef inline void sum_regions(
    floating* vectors, Py_ssize_t regions, Py_ssize_t n, const Aggregation* options, floating* out
) noexcept nogil:
    """Write the sum of the regional vectors, each normalised first if that is asked for."""
    cdef Py_ssize_t region, i
    for i in range(n):
        out[i] = 0
    for region in range(regions):
        if options.normalize_regions:
            add_normalized(out, vectors + region * n, n, options.eps)
        else:
            add(out, vectors + region * n, n)
