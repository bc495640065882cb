# Running maxima over keys: what every path through the kernels is made of.
#
# A line at a time, so that its maximum stays in a register. The loops around it run at least once.

cdef struct Run:
    # Vectors to take the maximum of; distances in bytes.
    Py_ssize_t count, stride
    Py_ssize_t ahead  # how far after a vector lies the one that is to be prefetched


cdef inline key_t least_key(key_t like) noexcept nogil:
    return <key_t>((<int64_t>-1) << (8 * sizeof(key_t) - 1))


cdef inline Py_ssize_t lanes_of(key_t like) noexcept nogil:
    """Keys in a line, a constant to the compiler."""
    return LINE // <Py_ssize_t>sizeof(key_t)


cdef inline Py_ssize_t next_line(Py_ssize_t at, Py_ssize_t n, Py_ssize_t lanes) noexcept nogil:
    """Where the line after the one at `at` begins: the last overlaps, so that none goes past n."""
    at += lanes
    return at if at >= n or at + lanes <= n else n - lanes


cdef inline void maximum(
    key_t* out, const key_t* a, const key_t* b, Py_ssize_t n
) noexcept nogil:
    """Take the maximum of two vectors of whole lines."""
    cdef Py_ssize_t at = 0
    while at < n:
        store_line(out + at, larger(load_line(a + at), load_line(b + at), a[0]))
        at += lanes_of(a[0])


cdef inline Line maximum_of_run(
    const key_t* run, Py_ssize_t stride, Py_ssize_t count
) noexcept nogil:
    """Take the maximum of `count` lines, `stride` keys apart."""
    cdef Line line = load_line(run)
    cdef Py_ssize_t k
    for k in range(1, count):
        line = larger(line, load_line(run + k * stride), run[0])
    return line


cdef inline Line pool_line(const char* values, const Run* run, key_t shift) noexcept nogil:
    cdef Line line = encode_line(load_line(values), shift)
    cdef Py_ssize_t k
    prefetch_line(values + run.ahead)
    for k in range(1, run.count):
        values += run.stride
        prefetch_line(values + run.ahead)
        line = larger(line, encode_line(load_line(values), shift), shift)
    return line


cdef inline void pool_few(
    key_t* out, const char* values, const Run* run, key_t shift, Py_ssize_t n, bint fresh
) noexcept nogil:
    """As `pool_run`, of less than a line."""
    cdef Py_ssize_t at, k
    cdef key_t key
    if fresh:
        for at in range(n):
            out[at] = least_key(shift)
    for k in range(run.count):
        for at in range(n):
            key = encode((<const key_t*>values)[at], shift)
            out[at] = key if key > out[at] else out[at]
        values += run.stride


cdef inline void pool_run(
    key_t* out, const char* values, const Run* run, key_t shift, Py_ssize_t n, bint fresh
) noexcept nogil:
    """Encode vectors of n values and take them into `out`, or start it if `fresh`."""
    cdef Py_ssize_t at = 0
    cdef Line line
    if n < lanes_of(shift):
        pool_few(out, values, run, shift, n, fresh)
        return
    while at < n:
        line = pool_line(values + at * sizeof(key_t), run, shift)
        if not fresh:
            line = larger(line, load_line(out + at), shift)
        store_line(out + at, line)
        at = next_line(at, n, lanes_of(shift))
