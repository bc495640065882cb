# Values in memory: what they are as numbers, and copies of them to be summed.

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
    const char* values, int kind, floating* out, Py_ssize_t n
) noexcept nogil:
    """Convert values exactly, but for float64 to float32."""
    cdef Py_ssize_t i
    if kind == Kind.UINT8:
        for i in range(n):
            out[i] = (<const uint8_t*>values)[i]
    elif kind == Kind.INT8:
        for i in range(n):
            out[i] = (<const int8_t*>values)[i]
    elif kind == Kind.FLOAT16:
        for i in range(n):
            out[i] = float16_value((<const uint16_t*>values)[i])
    elif kind == Kind.BFLOAT16:
        for i in range(n):
            out[i] = bfloat16_value((<const uint16_t*>values)[i])
    elif kind == Kind.FLOAT32:
        for i in range(n):
            out[i] = (<const float*>values)[i]
    else:
        for i in range(n):
            out[i] = <floating>(<const double*>values)[i]


cdef inline void copy_values(
    const Map* x, const char* values, key_t* out, Py_ssize_t n
) noexcept nogil:
    """Copy n contiguous values, as numbers if they are to be summed."""
    if key_t in floating:
        widen(values, x.kind, out, n)
    else:
        memcpy(out, values, n * sizeof(key_t))


cdef inline void raise_values(key_t* values, Py_ssize_t n, double p) noexcept nogil:
    """Raise copied values to the power that is summed, if any."""
    if p > 0:
        if key_t is float:
            raise_float(values, n, p)
        elif key_t is double:
            raise_double(values, n, p)


cdef inline void take_roots(floating* values, Py_ssize_t n, double p) noexcept nogil:
    """Undo a power of values, if any."""
    if p > 0:
        if floating is float:
            take_root_float(values, n, p)
        else:
            take_root_double(values, n, p)


cdef void copy_plane(
    const Map* x, const char* plane, Py_ssize_t ahead, key_t* out
) noexcept nogil:
    """Copy a plane of contiguous rows, and prefetch the one that lies `ahead`."""
    cdef Py_ssize_t y, rows = 1, size = x.width
    if x.row_stride == size * x.itemsize:
        size *= x.height
    else:
        rows = x.height
    for y in range(rows):
        prefetch(plane + y * x.row_stride + ahead, size * x.itemsize)
        copy_values(x, plane + y * x.row_stride, out + y * size, size)
    raise_values(out, x.height * x.width, x.p)


cdef void copy_row(
    const Map* x, const char* row, Py_ssize_t lanes, key_t* out, Py_ssize_t n
) noexcept nogil:
    """Copy a row of pixels, `lanes` channels each, n apart."""
    cdef Py_ssize_t lane, i, width = x.width, stride = x.pixel_stride
    cdef const char* channel
    if x.channel_stride == x.itemsize:
        for i in range(width):
            prefetch(row + i * stride + x.row_stride, lanes * x.itemsize)
            copy_values(x, row + i * stride, out + i * n, lanes)
    else:
        for lane in range(lanes):
            channel = row + lane * x.channel_stride
            for i in range(width):
                copy_values(x, channel + i * stride, out + i * n + lane, 1)
    raise_values(out, width * n, x.p)
