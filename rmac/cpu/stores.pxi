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


cdef inline void store_bits(
    const bits_t* bits, int kind, char* out, Py_ssize_t n
) noexcept nogil:
    if kind:
        widen(<const char*>bits, kind_of_size(kind, bits[0]), <float*>out, n)
    else:
        memcpy(out, bits, n * sizeof(bits_t))


cdef inline char* place_of(
    const Tables* plan, const Target* target, Py_ssize_t region, Py_ssize_t channel
) noexcept nogil:
    return target.data + target.itemsize * (
        (plan.row[region] * target.channels + channel) * plan.bins + plan.bin[region]
    )


cdef inline void store_maxima(
    Line keys, bits_t shift, int kind, char* out, Py_ssize_t step, Py_ssize_t n
) noexcept nogil:
    """Decode a line of maxima, of which n count, to places `step` bytes apart."""
    cdef bits_t bits[LINE]
    cdef Py_ssize_t i
    keys = decode_line(keys, shift)
    if n == lanes_of(shift) and step == <Py_ssize_t>sizeof(bits_t) and not kind:
        store_line(out, keys)
        return
    store_line(bits, keys)
    if n == lanes_of(shift) and step == <Py_ssize_t>sizeof(float) and kind:
        widen(<const char*>bits, kind_of_size(kind, shift), <float*>out, lanes_of(shift))
        return
    for i in range(n):
        store_bits(bits + i, kind, out + i * step, 1)


cdef inline void store_means(
    Line sums, floating like, double cells, double p, const Target* target, char* out,
    Py_ssize_t step, Py_ssize_t n,
) noexcept nogil:
    """Store a line of sums over `cells` cells as means, of which n count, `step` bytes apart."""
    cdef floating means[LINE]
    cdef Py_ssize_t i
    store_line(means, sums)
    for i in range(lanes_of(like)):
        means[i] = <floating>(means[i] / cells)
    take_roots(means, lanes_of(like), p)
    for i in range(n):
        if target.itemsize == sizeof(float):
            (<float*>(out + i * step))[0] = <float>means[i]
        else:
            (<double*>(out + i * step))[0] = means[i]
