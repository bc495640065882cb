# From an image's regional maxima to its descriptor.

cdef inline floating float16_value(uint16_t bits, floating like) noexcept nogil:
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


cdef inline floating bfloat16_value(uint16_t bits, floating like) noexcept nogil:
    cdef uint32_t wide = <uint32_t>bits << 16
    cdef float value
    memcpy(&value, &wide, 4)
    return value


cdef void widen(const key_t* bits, int kind, floating* out, Py_ssize_t n) noexcept nogil:
    """Convert values, given as bits, to the dtype of the descriptor."""
    cdef Py_ssize_t i
    if key_t is int8_t:
        if kind == Kind.UINT8:
            for i in range(n):
                out[i] = <uint8_t>bits[i]
        else:
            for i in range(n):
                out[i] = bits[i]
    elif key_t is int16_t:
        if kind == Kind.FLOAT16:
            for i in range(n):
                out[i] = float16_value(<uint16_t>bits[i], <floating>0)
        else:
            for i in range(n):
                out[i] = bfloat16_value(<uint16_t>bits[i], <floating>0)
    else:
        memcpy(out, bits, n * sizeof(key_t))


cdef double sum_of_squares(const floating* values, Py_ssize_t n) noexcept nogil:
    """Sum in 16 interleaved parts, an order that fills vectors and does not depend on them."""
    cdef double parts[16]
    cdef Py_ssize_t i, part, whole = n // 16 * 16
    cdef double value
    for part in range(16):
        parts[part] = 0
    for i in range(0, whole, 16):
        for part in range(16):
            value = values[i + part]
            parts[part] = parts[part] + value * value
    for part in range(n - whole):
        value = values[whole + part]
        parts[part] = parts[part] + value * value
    for part in range(8):
        parts[part] = parts[part] + parts[part + 8]
    for part in range(4):
        parts[part] = parts[part] + parts[part + 4]
    return (parts[0] + parts[2]) + (parts[1] + parts[3])


cdef floating norm_of(floating* values, Py_ssize_t n, double eps) noexcept nogil:
    """Return what a vector is to be divided by: its norm plus eps.

    Where that, or its square, could be out of range, the vector is divided here; 1 remains to do.
    """
    cdef double squares = sum_of_squares(values, n)
    if 1e-60 < squares < 1e60:
        return <floating>(sqrt(squares) + eps)
    l2_extreme(values, n, eps)
    return 1


cdef void l2(floating* values, Py_ssize_t n, double eps) noexcept nogil:
    """Divide by the norm plus eps; with eps 0 a zero vector stays zero."""
    cdef floating norm = norm_of(values, n, eps)
    cdef Py_ssize_t i
    for i in range(n):
        values[i] = values[i] / norm  # not times 1 / norm: a lone value must become exactly 1


cdef void l2_extreme(floating* values, Py_ssize_t n, double eps) noexcept nogil:
    """Divide a vector by its norm plus eps where squares of its values are out of range."""
    cdef double peak = 0, squares = 0, length
    cdef Py_ssize_t i
    for i in range(n):
        peak = max(peak, fabs(<double>values[i]))
    if peak == 0:
        peak = 1
    for i in range(n):
        length = values[i] / peak
        squares += length * length
    length = sqrt(squares) + eps / peak
    if length == 0:
        length = 1
    for i in range(n):
        values[i] = <floating>(values[i] / peak / length)


cdef void describe_image(
    const key_t* maxima, const Recipe* recipe, Py_ssize_t regions, Py_ssize_t channels,
    floating* row, floating* out,
) noexcept nogil:
    """Turn one image's regional maxima (R, C) into its descriptor."""
    cdef Py_ssize_t region, i, size = channels
    cdef floating* vector
    cdef floating norm
    if recipe.aggregate == Aggregate.CONCAT:
        size = regions * channels
    else:
        for i in range(channels):
            out[i] = 0
    for region in range(regions):
        if recipe.aggregate == Aggregate.CONCAT:
            vector = out + region * channels
            widen(maxima + region * channels, recipe.kind, vector, channels)
            if recipe.normalize_regions:
                l2(vector, channels, recipe.eps)
            continue
        widen(maxima + region * channels, recipe.kind, row, channels)
        norm = 1
        if recipe.normalize_regions:
            norm = norm_of(row, channels, recipe.eps)
        for i in range(channels):
            out[i] = out[i] + row[i] / norm
    if recipe.aggregate == Aggregate.MEAN:
        for i in range(channels):
            out[i] /= regions
    if recipe.normalize:
        l2(out, size, recipe.eps)
