# cython: language_level=3, cdivision=True
"""Values in memory: a batch of maps, its values as numbers, and copies of them.

Accumulation: none here. Values are widened exactly, but float64 to float32 is rounded.
NaN: it stays NaN when it is widened and when it is raised to a power.
Memory: maps of any strides; copies are contiguous, in the workspace of the thread.
Threads: none; each caller owns what it writes.
"""

from cython cimport floating
from libc.stdint cimport int8_t, uint8_t, uint16_t
from libc.string cimport memcpy

from rmac.cpu.keys cimport LINE, key_t, prefetch_line
from rmac.cpu.tables cimport Kind

cdef extern from "widen.h" nogil:
    float number_of_half(uint16_t bits)
    float number_of_brain(uint16_t bits)
    void widen_halves(const uint16_t* values, float* out, Py_ssize_t n, int zero_point)
    void widen_brains(const uint16_t* values, float* out, Py_ssize_t n, int zero_point)
    void widen_uint8s(const uint8_t* values, float* out, Py_ssize_t n, int zero_point)
    void widen_int8s(const int8_t* values, float* out, Py_ssize_t n, int zero_point)

cdef extern from "powers.h" nogil:
    void apply_power_float(float* values, Py_ssize_t n, double p)
    void apply_power_double(double* values, Py_ssize_t n, double p)
    void apply_root_float(float* values, Py_ssize_t n, double p)
    void apply_root_double(double* values, Py_ssize_t n, double p)

cdef struct Map:
    # A batch of feature maps in memory; strides in bytes.
    const char* data
    Py_ssize_t images, channels, height, width
    Py_ssize_t image_stride, channel_stride, row_stride, pixel_stride
    Py_ssize_t itemsize
    int kind
    double p  # the power of the values that is summed, 0 for the values themselves
    int zero_point  # of integers, the value that stands for 0


cdef inline void widen(
    const char* values, int kind, int zero_point, floating* out, Py_ssize_t n
) noexcept nogil:
    """Convert n contiguous values to float32 or float64; integers to what they stand for."""
    cdef Py_ssize_t i
    if kind == Kind.UINT8:
        if floating is float:
            widen_uint8s(<const uint8_t*>values, out, n, zero_point)
        else:
            for i in range(n):
                out[i] = <int>(<const uint8_t*>values)[i] - zero_point
    elif kind == Kind.INT8:
        if floating is float:
            widen_int8s(<const int8_t*>values, out, n, zero_point)
        else:
            for i in range(n):
                out[i] = <int>(<const int8_t*>values)[i] - zero_point
    elif kind == Kind.FLOAT16:
        if floating is float:
            widen_halves(<const uint16_t*>values, out, n, 0)
        else:
            for i in range(n):
                out[i] = number_of_half((<const uint16_t*>values)[i])
    elif kind == Kind.BFLOAT16:
        if floating is float:
            widen_brains(<const uint16_t*>values, out, n, 0)
        else:
            for i in range(n):
                out[i] = number_of_brain((<const uint16_t*>values)[i])
    elif kind == Kind.FLOAT32:
        for i in range(n):
            out[i] = (<const float*>values)[i]
    else:  # FLOAT64: `KernelSpec` has refused all other numbers
        for i in range(n):
            out[i] = <floating>(<const double*>values)[i]


cdef inline void copy_values(
    const Map* x, const char* values, key_t* out, Py_ssize_t n
) noexcept nogil:
    """Copy n contiguous values: as numbers where they are summed, else as bits."""
    if key_t in floating:
        widen(values, x.kind, x.zero_point, out, n)
    else:
        memcpy(out, values, n * sizeof(key_t))


cdef inline bint are_keys(const Map* x, key_t like) noexcept nogil:
    """Return whether values are used as they are in memory: for maxima, or summed unchanged."""
    if key_t is float:
        return x.kind == Kind.FLOAT32 and x.p == 0
    elif key_t is double:
        return x.kind == Kind.FLOAT64 and x.p == 0
    else:
        return True


cdef inline void apply_power(key_t* values, Py_ssize_t n, double p) noexcept nogil:
    """Raise copied values to the power that is summed, if there is one."""
    if p > 0:
        if key_t is float:
            apply_power_float(values, n, p)
        elif key_t is double:
            apply_power_double(values, n, p)


cdef inline void apply_root(floating* values, Py_ssize_t n, double p) noexcept nogil:
    """Undo `apply_power`, on means of powers."""
    if p > 0:
        if floating is float:
            apply_root_float(values, n, p)
        else:
            apply_root_double(values, n, p)


cdef inline void prefetch(const char* data, Py_ssize_t size) noexcept nogil:
    """Start to load memory into the second-level cache that is read soon."""
    cdef Py_ssize_t at
    for at in range(size // LINE):
        prefetch_line(data + at * LINE)


cdef inline void copy_plane(
    const Map* x, const char* plane, Py_ssize_t distance, key_t* out
) noexcept nogil:
    """Copy a plane of contiguous rows, and prefetch the plane at that distance in bytes."""
    cdef Py_ssize_t y, rows = 1, size = x.width
    if x.row_stride == size * x.itemsize:
        size *= x.height
    else:
        rows = x.height
    for y in range(rows):
        prefetch(plane + y * x.row_stride + distance, size * x.itemsize)
        copy_values(x, plane + y * x.row_stride, out + y * size, size)
    apply_power(out, x.height * x.width, x.p)


cdef inline void copy_row(
    const Map* x, const char* row, Py_ssize_t channels, key_t* out, Py_ssize_t n
) noexcept nogil:
    """Copy so many channels of each pixel of a row, to places n keys apart."""
    cdef Py_ssize_t channel, i, width = x.width, stride = x.pixel_stride
    cdef const char* values
    if x.channel_stride == x.itemsize:
        for i in range(width):
            prefetch(row + i * stride + x.row_stride, channels * x.itemsize)
            copy_values(x, row + i * stride, out + i * n, channels)
    else:
        for channel in range(channels):
            values = row + channel * x.channel_stride
            for i in range(width):
                copy_values(x, values + i * stride, out + i * n + channel, 1)
    apply_power(out, width * n, x.p)
