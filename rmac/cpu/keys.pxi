# Running maxima over keys, and running sums: what every path through the kernels is made of.
#
# A line at a time, so that it stays in a register. The loops around it run at least once.

cdef struct Run:
    # Vectors to combine; distances in bytes.
    Py_ssize_t count, stride
    Py_ssize_t ahead  # how far after a vector lies the one that is to be prefetched


cdef inline key_t nothing(key_t like) noexcept nogil:
    """Return what changes nothing that it is combined with."""
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
    """Keys in a line, a constant to the compiler."""
    return LINE // <Py_ssize_t>sizeof(key_t)


cdef inline Py_ssize_t next_line(Py_ssize_t at, Py_ssize_t n, Py_ssize_t lanes) noexcept nogil:
    """Where the line after the one at `at` begins: the last overlaps, so that none goes past n."""
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


cdef inline Line combined_run(
    const key_t* run, Py_ssize_t stride, Py_ssize_t count
) noexcept nogil:
    """Combine `count` lines, `stride` keys apart."""
    cdef Line line = load_line(run)
    cdef Py_ssize_t k
    for k in range(1, count):
        line = combined_lines(line, load_line(run + k * stride), run[0])
    return line


cdef inline Line pool_line(const char* values, const Run* run, key_t shift) noexcept nogil:
    cdef Line line = keys_of(load_line(values), shift)
    cdef Py_ssize_t k
    if key_t not in floating:  # what is summed was copied just now
        prefetch_line(values + run.ahead)
    for k in range(1, run.count):
        values += run.stride
        if key_t not in floating:
            prefetch_line(values + run.ahead)
        line = combined_lines(line, keys_of(load_line(values), shift), shift)
    return line


cdef void pool_few(
    key_t* out, const char* values, const Run* run, key_t shift, Py_ssize_t n, bint fresh
) noexcept nogil:
    """As `pool_run`, of less than a line."""
    cdef Py_ssize_t at, k
    if fresh:
        for at in range(n):
            out[at] = nothing(shift)
    for k in range(run.count):
        for at in range(n):
            out[at] = combined(out[at], key_of((<const key_t*>values)[at], shift))
        values += run.stride


cdef inline void pool_run(
    key_t* out, const char* values, const Run* run, key_t shift, Py_ssize_t n, bint fresh
) noexcept nogil:
    """Take vectors of n values, a line or more, into the keys at `out`, or start those if `fresh`.

    What is summed and not fresh comes in whole lines: those that overlap would count twice.
    """
    cdef Py_ssize_t at = 0
    cdef Line line
    while at < n:
        line = pool_line(values + at * sizeof(key_t), run, shift)
        if not fresh:
            line = combined_lines(line, load_line(out + at), shift)
        store_line(out + at, line)
        at = next_line(at, n, lanes_of(shift))
