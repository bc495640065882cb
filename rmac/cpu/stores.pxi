# From keys to what was asked for: the values' bits, or the same values in float32.

cdef inline float float16_value(uint16_t bits) noexcept nogil:
    """Widen a float16 exactly: shift its fields into a float32, whose exponent is 112 more."""
    cdef uint32_t magnitude = <uint32_t>(bits & 0x7FFF) << 13
    cdef uint32_t sign = <uint32_t>(bits & 0x8000) << 16
    cdef float value
    memcpy(&value, &magnitude, 4)
    value = value * <float>5.192296858534828e33  # 2**112
    memcpy(&magnitude, &value, 4)
    if magnitude >= 0x47800000:  # 2**16, where float16 has inf and NaN
        magnitude |= 0x7F800000
    magnitude |= sign
    memcpy(&value, &magnitude, 4)
    return value


cdef inline float bfloat16_value(uint16_t bits) noexcept nogil:
    cdef uint32_t wide = <uint32_t>bits << 16
    cdef float value
    memcpy(&value, &wide, 4)
    return value


cdef inline void widen(
    const key_t* bits, int widening, float* out, Py_ssize_t n
) noexcept nogil:
    """Convert values of 8 or 16 bits exactly."""
    cdef Py_ssize_t i
    if key_t is int8_t:
        if widening == Widening.UINT8:
            for i in range(n):
                out[i] = <uint8_t>bits[i]
        else:
            for i in range(n):
                out[i] = bits[i]
    elif key_t is int16_t:
        if widening == Widening.FLOAT16:
            for i in range(n):
                out[i] = float16_value(<uint16_t>bits[i])
        else:
            for i in range(n):
                out[i] = bfloat16_value(<uint16_t>bits[i])


cdef inline void store_bits(
    const key_t* bits, int widening, char* out, Py_ssize_t n
) noexcept nogil:
    if widening:
        widen(bits, widening, <float*>out, n)
    else:
        memcpy(out, bits, n * sizeof(key_t))


cdef inline char* place_of(
    const Tables* plan, const Target* target, Py_ssize_t region, Py_ssize_t channel
) noexcept nogil:
    return target.data + target.itemsize * (
        (plan.row[region] * target.channels + channel) * plan.bins + plan.bin[region]
    )


cdef inline void store_maxima(
    Line keys, key_t shift, int widening, char* out, Py_ssize_t step, Py_ssize_t n
) noexcept nogil:
    """Decode a line of maxima, of which n count, to places `step` bytes apart."""
    cdef key_t bits[LINE]
    cdef Py_ssize_t i
    keys = decode_line(keys, shift)
    if n == lanes_of(shift) and step == <Py_ssize_t>sizeof(key_t) and not widening:
        store_line(out, keys)
        return
    store_line(bits, keys)
    if n == lanes_of(shift) and step == <Py_ssize_t>sizeof(float) and widening:
        widen(bits, widening, <float*>out, lanes_of(shift))
        return
    for i in range(n):
        store_bits(bits + i, widening, out + i * step, 1)
