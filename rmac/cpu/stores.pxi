# From keys to what was asked for: the values' bits, or numbers.

cdef inline int kind_of_size(int kind, bits_t like) noexcept nogil:
    """Return `kind`, one of two at most to the compiler."""
    if bits_t is int8_t:
        return Kind.UINT8 if kind == Kind.UINT8 else Kind.INT8
    elif bits_t is int16_t:
        return Kind.FLOAT16 if kind == Kind.FLOAT16 else Kind.BFLOAT16
    elif bits_t is int32_t:
        return Kind.FLOAT32
    else:
        return Kind.FLOAT64


cdef inline void store_bits(const bits_t* bits, int kind, char* out) noexcept nogil:
    if kind:
        widen(<const char*>bits, kind_of_size(kind, bits[0]), <float*>out, 1)
    else:
        memcpy(out, bits, sizeof(bits_t))


cdef inline char* place_of(
    const Tables* plan, const Target* target, Py_ssize_t region, Py_ssize_t channel
) noexcept nogil:
    return target.data + target.itemsize * (
        (plan.row[region] * target.channels + channel) * plan.bins + plan.bin[region]
    )


cdef Py_ssize_t store_lines(
    const bits_t* run, Py_ssize_t stride, Py_ssize_t count, bits_t shift, int kind, char* out,
    Py_ssize_t n,
) noexcept nogil:
    """Decode the maxima of a run of vectors of n keys, side by side; return how many fill lines."""
    cdef bits_t bits[LINE]
    cdef Py_ssize_t at = 0, lanes = lanes_of(shift)
    cdef Line line
    while at + lanes <= n:
        line = decode_line(combined_run(run + at, stride, count), shift)
        if kind:
            store_line(bits, line)
            widen(<const char*>bits, kind_of_size(kind, shift), <float*>out, lanes)
            out += lanes * sizeof(float)
        else:
            store_line(out, line)
            out += LINE
        at += lanes
    return at


cdef void store_maxima(
    const bits_t* run, Py_ssize_t stride, Py_ssize_t count, bits_t shift, int kind, char* out,
    Py_ssize_t step, Py_ssize_t n,
) noexcept nogil:
    """Decode the maxima of a run of vectors of n keys to places `step` bytes apart."""
    cdef bits_t bits[LINE]
    cdef Py_ssize_t i, at = 0, lanes = lanes_of(shift)
    while at < n:
        store_line(bits, decode_line(combined_run(run + at, stride, count), shift))
        for i in range(min(lanes, n - at)):
            store_bits(bits + i, kind, out + i * step)
        at += lanes
        out += lanes * step


cdef void store_means(
    const floating* run, Py_ssize_t stride, Py_ssize_t count, double cells, double p,
    Py_ssize_t itemsize, char* out, Py_ssize_t step, Py_ssize_t n,
) noexcept nogil:
    """Store the sums of a run of vectors of n, over `cells` cells, as means, `step` bytes apart."""
    cdef floating means[LINE]
    cdef Py_ssize_t i, at = 0, lanes = lanes_of(run[0])
    while at < n:
        store_line(means, combined_run(run + at, stride, count))
        for i in range(lanes):
            means[i] = <floating>(means[i] / cells)
        take_roots(means, lanes, p)
        for i in range(min(lanes, n - at)):
            if itemsize == sizeof(float):
                (<float*>(out + i * step))[0] = <float>means[i]
            else:
                (<double*>(out + i * step))[0] = means[i]
        at += lanes
        out += lanes * step
