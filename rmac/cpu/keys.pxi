# Keys, and the running maxima over them: what every path through the kernels is made of.
#
# Loops go over one line of LINE bytes, a constant number of keys, in local arrays: compilers then
# keep it in vector registers, without checks for overlap or loops over remainders.

cdef inline key_t encode(key_t bits, key_t flip, key_t shift) noexcept nogil:
    return <key_t>((bits ^ ((bits >> (8 * sizeof(key_t) - 1)) & flip)) - shift)


cdef inline key_t decode(key_t key, key_t flip, key_t shift) noexcept nogil:
    cdef key_t bits = <key_t>(key + shift)
    return <key_t>(bits ^ ((bits >> (8 * sizeof(key_t) - 1)) & flip))


cdef inline key_t least_key(key_t like) noexcept nogil:
    return <key_t>((<int64_t>-1) << (8 * sizeof(key_t) - 1))


cdef inline Py_ssize_t lanes_of(key_t like) noexcept nogil:
    """Keys in a line, a constant to the compiler."""
    return LINE // <Py_ssize_t>sizeof(key_t)


cdef inline void fill(key_t* out, key_t value, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = value


cdef inline Py_ssize_t next_line(Py_ssize_t at, Py_ssize_t n, Py_ssize_t lanes) noexcept nogil:
    """Where the line after the one at `at` begins: the last overlaps, so that none goes past n."""
    at += lanes
    return at if at >= n or at + lanes <= n else n - lanes


cdef inline void maximum_line(key_t* out, const key_t* a, const key_t* b) noexcept nogil:
    cdef key_t line[LINE]
    cdef Py_ssize_t i
    for i in range(lanes_of(a[0])):
        line[i] = a[i]
    for i in range(lanes_of(a[0])):
        line[i] = b[i] if b[i] > line[i] else line[i]
    for i in range(lanes_of(a[0])):
        out[i] = line[i]


cdef inline void maximum(
    key_t* out, const key_t* a, const key_t* b, Py_ssize_t n
) noexcept nogil:
    cdef Py_ssize_t at = 0, i
    if n < lanes_of(a[0]):
        for i in range(n):
            out[i] = a[i] if a[i] > b[i] else b[i]
        return
    while at < n:
        maximum_line(out + at, a + at, b + at)
        at = next_line(at, n, lanes_of(a[0]))


cdef inline void pool_line(
    key_t* out, const char* run, Py_ssize_t stride, Py_ssize_t count,
    key_t flip, key_t shift, bint fresh,
) noexcept nogil:
    cdef key_t line[LINE]
    cdef key_t key
    cdef Py_ssize_t i, k
    cdef const key_t* values = <const key_t*>run
    if fresh:
        for i in range(lanes_of(flip)):
            line[i] = encode(values[i], flip, shift)
    else:
        for i in range(lanes_of(flip)):
            line[i] = out[i]
    for k in range(1 if fresh else 0, count):
        values = <const key_t*>(run + k * stride)
        for i in range(lanes_of(flip)):
            key = encode(values[i], flip, shift)
            line[i] = key if key > line[i] else line[i]
    for i in range(lanes_of(flip)):
        out[i] = line[i]


cdef inline void pool_run(
    key_t* out, const char* run, Py_ssize_t stride, Py_ssize_t count,
    key_t flip, key_t shift, Py_ssize_t n, bint fresh,
) noexcept nogil:
    """Encode `count` vectors of n values and take them into `out`, or start it if `fresh`.

    A line of all of them at a time, so that its running maximum stays in registers.
    """
    cdef Py_ssize_t at = 0, k
    cdef const key_t* values
    cdef key_t key
    if n < lanes_of(flip):
        if fresh:
            fill(out, least_key(flip), n)
        for k in range(count):
            values = <const key_t*>(run + k * stride)
            for at in range(n):
                key = encode(values[at], flip, shift)
                out[at] = key if key > out[at] else out[at]
        return
    while at < n:
        pool_line(out + at, run + at * sizeof(key_t), stride, count, flip, shift, fresh)
        at = next_line(at, n, lanes_of(flip))


cdef inline void maximum_of_run(key_t* out, const key_t* run, Py_ssize_t count) noexcept nogil:
    """Take the maximum of `count` lines that follow each other."""
    cdef key_t line[LINE]
    cdef Py_ssize_t i, k
    for i in range(lanes_of(run[0])):
        line[i] = run[i]
    for k in range(1, count):
        run += lanes_of(run[0])
        for i in range(lanes_of(run[0])):
            line[i] = run[i] if run[i] > line[i] else line[i]
    for i in range(lanes_of(run[0])):
        out[i] = line[i]


cdef inline void store_line(
    const key_t* keys, key_t flip, key_t shift, key_t* out
) noexcept nogil:
    cdef key_t line[LINE]
    cdef Py_ssize_t i
    for i in range(lanes_of(flip)):
        line[i] = decode(keys[i], flip, shift)
    for i in range(lanes_of(flip)):
        out[i] = line[i]


cdef inline void store(
    const key_t* keys, key_t flip, key_t shift, key_t* out, Py_ssize_t step, Py_ssize_t n
) noexcept nogil:
    """Decode maxima to their places in the output, `step` apart."""
    cdef Py_ssize_t at = 0
    if step != 1 or n < lanes_of(flip):
        for at in range(n):
            out[at * step] = decode(keys[at], flip, shift)
        return
    while at < n:
        store_line(keys + at, flip, shift, out + at)
        at = next_line(at, n, lanes_of(flip))
