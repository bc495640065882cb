# cython: language_level=3, cdivision=True
"""Running maxima over keys, and running sums.

Accumulation: maxima are exact; sums are added in the type of their keys, float or double.
NaN: it has the largest key, so it is the maximum; a sum with a NaN is a NaN.
Memory: vectors of keys, a line (64 bytes) at a time, so that a line stays in a register.
Threads: none; each caller owns what it writes.

Maxima are taken over integer keys in the order of the values, so that one integer instruction is a
maximum, for every dtype. The key of the bits b of a value is ``(b ^ (b >> top & most)) - shift``,
wrapping; `top` is the number of the sign bit and `most` the largest key. The exclusive or puts
negative floats in order. The shift moves the keys of negative NaNs, which are below that of -inf,
around to the largest keys, so that NaNs of either sign are above +inf. Integers of 8 bits are only
shifted. Decoding is exact: the result is one of the inputs, bit for bit. A value that is summed is
its own key, in float32 or float64, so that the same code combines maxima and sums.
"""

from cython cimport floating
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t

cdef extern from "lines.h" nogil:
    enum: LINE  # bytes of a line, and of a cache line
    ctypedef struct Line:
        pass
    Line load_line(const void* keys)
    void store_line(void* keys, Line line)
    void prefetch_line(const void* data)
    void hide_target(...)  # of a pointer to a function, see there
    void hide_source(const void* keys)
    void hide_counter(Py_ssize_t i)
    # Keys and bits have the type of the last argument.
    int64_t encode(int64_t bits, int64_t shift)
    Line encode_line(Line bits, int64_t shift)
    Line decode_line(Line keys, int64_t shift)
    Line larger(Line a, Line b, int64_t like)
    Line add_lines(Line a, Line b, double like)
    Line divide_line(Line numbers, double by)
    Line add_squares(Line sums, ...)  # of as many floats or doubles as a line has doubles

ctypedef fused bits_t:
    int8_t
    int16_t
    int32_t
    int64_t

# Integers are keys of maxima; floats are keys of sums.
ctypedef fused key_t:
    int8_t
    int16_t
    int32_t
    int64_t
    float
    double

cdef struct Vectors:
    # `count` vectors of `size` values, `stride` bytes apart.
    const char* data
    Py_ssize_t count, stride, size
    # Distance in bytes from a vector that is read to what is prefetched. For sums, 0 if they were
    # copied just now: they are in the cache.
    Py_ssize_t prefetch


cdef inline key_t identity(key_t like) noexcept nogil:
    """Return the key that, combined with any other, gives the other."""
    if key_t in floating:
        return 0
    else:
        return <key_t>((<int64_t>-1) << (8 * sizeof(key_t) - 1))


cdef inline key_t key_of(key_t bits, key_t shift) noexcept nogil:
    if key_t in floating:
        return bits
    else:
        return encode(bits, shift)


cdef inline Line keys_of(Line bits, key_t shift) noexcept nogil:
    if key_t in floating:
        return bits
    else:
        return encode_line(bits, shift)


cdef inline key_t combined(key_t a, key_t b) noexcept nogil:
    if key_t in floating:
        return a + b
    else:
        return b if b > a else a


cdef inline Line combined_lines(Line a, Line b, key_t like) noexcept nogil:
    if key_t in floating:
        return add_lines(a, b, like)
    else:
        return larger(a, b, like)


cdef inline Py_ssize_t lanes_of(key_t like) noexcept nogil:
    """Return the keys in a line, a constant to the compiler."""
    return LINE // <Py_ssize_t>sizeof(key_t)


cdef inline Py_ssize_t next_line(Py_ssize_t at, Py_ssize_t n, Py_ssize_t lanes) noexcept nogil:
    """Return where the next line begins: the last line overlaps, so that none passes n."""
    at += lanes
    return at if at >= n or at + lanes <= n else n - lanes


cdef inline void combine(
    key_t* out, const key_t* a, const key_t* b, Py_ssize_t n
) noexcept nogil:
    """Combine two vectors of whole lines."""
    cdef Py_ssize_t at = 0
    while at < n:
        store_line(out + at, combined_lines(load_line(a + at), load_line(b + at), a[0]))
        at += lanes_of(a[0])


cdef inline Line combined_vectors(const Vectors* keys, Py_ssize_t at, key_t like) noexcept nogil:
    """Combine the lines of several vectors of keys that begin at their element `at`."""
    cdef const char* data = keys.data + at * sizeof(key_t)
    cdef Line line = load_line(data)
    cdef Py_ssize_t k = 1
    while k < keys.count:
        data += keys.stride
        line = combined_lines(line, load_line(data), like)
        k += 1
        hide_counter(k)
    return line


cdef inline Line pool_line(const Vectors* values, Py_ssize_t at, key_t shift) noexcept nogil:
    """Combine the lines of several vectors of values that begin at their element `at`."""
    cdef const char* data = values.data + at * sizeof(key_t)
    cdef Line line
    cdef Py_ssize_t k = 1
    if key_t in floating:
        if not values.prefetch:
            return combined_vectors(values, at, shift)
    line = keys_of(load_line(data), shift)
    prefetch_line(data + values.prefetch)
    while k < values.count:
        data += values.stride
        prefetch_line(data + values.prefetch)
        line = combined_lines(line, keys_of(load_line(data), shift), shift)
        k += 1
        hide_counter(k)
    return line


cdef inline void pool_short_vectors(
    key_t* out, const Vectors* values, key_t shift, bint overwrite
) noexcept nogil:
    """As `pool_vectors`, for vectors shorter than a line."""
    cdef Py_ssize_t at, _
    cdef const char* data = values.data
    if overwrite:
        for at in range(values.size):
            out[at] = identity(shift)
    for _ in range(values.count):
        for at in range(values.size):
            out[at] = combined(out[at], key_of((<const key_t*>data)[at], shift))
        data += values.stride


cdef inline void call_pool_short_vectors(
    key_t* out, const Vectors* values, key_t shift, bint overwrite
) noexcept nogil:
    cdef void (*call)(key_t*, const Vectors*, key_t, bint) noexcept nogil
    call = pool_short_vectors
    hide_target(call)
    call(out, values, shift, overwrite)


cdef inline void pool_vectors(
    key_t* out, const Vectors* values, key_t shift, bint overwrite
) noexcept nogil:
    """Combine vectors of a line or more, and the keys at `out` unless those are overwritten.

    Sums that are not overwritten need whole lines: lines that overlap would count twice.
    """
    cdef Py_ssize_t at = 0
    cdef Line line
    while at < values.size:
        line = pool_line(values, at, shift)
        if not overwrite:
            line = combined_lines(line, load_line(out + at), shift)
        store_line(out + at, line)
        at = next_line(at, values.size, lanes_of(shift))
