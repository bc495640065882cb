# cython: language_level=3, cdivision=True
"""Tiles of channels as numbers: all cells of a map, and the maxima of one box.

Accumulation: none here; maxima are exact.
NaN: it becomes inf, so that a maximum needs no second comparison. No box with either has a score.
Memory: a cell is `lanes` numbers, whole lines; the channels that the last tile lacks are 0.
Threads: none; each caller owns what it writes.
"""

from cython cimport floating
from libc.math cimport INFINITY
from libc.stdint cimport int8_t, int16_t

from rmac.cpu.candidates cimport Box
from rmac.cpu.keys cimport lanes_of
from rmac.cpu.tables cimport Kind
from rmac.cpu.values cimport Map, copy_values, widen

cdef extern from "transpose.h" nogil:
    void transpose(
        const void* rows, void* out, Py_ssize_t columns, Py_ssize_t stride, double like
    )

cdef extern from "tiles.h" nogil:
    # Numbers have the type of the last argument.
    double largest(
        const void* row, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t n, double like
    )
    void take_larger(void* maxima, const void* numbers, Py_ssize_t n, double like)

cdef enum:
    CHUNK = 256  # channels of a pixel that are read at a time

# What cells hold: the bits of values, as keys; or numbers.
ctypedef fused cell_t:
    int8_t
    int16_t
    float
    double


cdef inline void read_row(
    const Map* x, const char* row, Py_ssize_t n, floating* out
) noexcept nogil:
    """Read the first n values of a row of one channel."""
    cdef Py_ssize_t i
    if x.pixel_stride == x.itemsize:
        widen(row, x.kind, 0, out, n)
    else:
        for i in range(n):
            widen(row + i * x.pixel_stride, x.kind, 0, out + i, 1)


cdef inline void pack_pixels(
    const Map* x, const char* row, Py_ssize_t channels, cell_t* cells, Py_ssize_t lanes
) noexcept nogil:
    """Copy contiguous channels of each pixel of a row."""
    cdef Py_ssize_t i, lane
    for i in range(x.width):
        copy_values(x, row + i * x.pixel_stride, cells + i * lanes, channels)
        for lane in range(channels, lanes):
            cells[i * lanes + lane] = 0


cdef inline void pack_rows(
    const Map* x, const char* row, Py_ssize_t channels, cell_t* cells, Py_ssize_t lanes,
    cell_t* rows,
) noexcept nogil:
    """Transpose a row of each channel; `rows` is room for a line's worth of them."""
    cdef Py_ssize_t lane, i, line = lanes_of(cells[0])
    cdef const char* values
    cdef cell_t* out
    for lane in range(lanes):
        out = rows + lane % line * x.width
        values = row + lane * x.channel_stride
        if lane >= channels:
            for i in range(x.width):
                out[i] = 0
        elif x.pixel_stride == x.itemsize:
            copy_values(x, values, out, x.width)
        else:
            for i in range(x.width):
                copy_values(x, values + i * x.pixel_stride, out + i, 1)
        if lane % line == line - 1:
            transpose(rows, cells + lane - lane % line, x.width, lanes, cells[0])


cdef inline bint has_numbers(const Map* x, cell_t like) noexcept nogil:
    """Return whether the values of a map need not be widened."""
    if cell_t is float:
        return x.kind == Kind.FLOAT32
    elif cell_t is double:
        return x.kind == Kind.FLOAT64
    else:
        return True


cdef inline bint has_planes(const Map* x, cell_t like) noexcept nogil:
    """Return whether the planes of a map can be transposed as one: contiguous, and not widened."""
    return (
        has_numbers(x, like) and x.pixel_stride == x.itemsize
        and x.row_stride == x.width * x.itemsize and x.channel_stride == x.height * x.row_stride
    )


cdef inline void pack_tile(
    const Map* x, const char* image, Py_ssize_t first, cell_t* cells, Py_ssize_t lanes,
    cell_t* rows,
) noexcept nogil:
    """Copy channels from `first` on of all cells."""
    cdef const char* data = image + first * x.channel_stride
    cdef Py_ssize_t y, lane, n = x.height * x.width, channels = min(lanes, x.channels - first)
    cdef Py_ssize_t line = lanes_of(cells[0])
    if x.channel_stride == x.itemsize and x.channels > 1:
        for y in range(x.height):
            pack_pixels(x, data + y * x.row_stride, channels, cells + y * x.width * lanes, lanes)
    elif channels == lanes and has_planes(x, cells[0]):
        for lane in range(lanes // line):
            transpose(
                data + lane * line * x.channel_stride, cells + lane * line, n, lanes, cells[0]
            )
    else:
        for y in range(x.height):
            pack_rows(
                x, data + y * x.row_stride, channels, cells + y * x.width * lanes, lanes, rows
            )


cdef inline void maxima_of_pixels(
    const Map* x, const char* image, const Box* box, floating* maxima
) noexcept nogil:
    """Write the maxima of a box where the channels of a pixel are contiguous."""
    cdef floating numbers[CHUNK]
    cdef Py_ssize_t chunk, first, n, i, j
    for chunk in range((x.channels + CHUNK - 1) // CHUNK):
        first = chunk * CHUNK
        n = min(CHUNK, x.channels - first)
        for i in range(box.y1, box.y2 + 1):
            for j in range(box.x1, box.x2 + 1):
                widen(
                    image + first * x.itemsize + i * x.row_stride + j * x.pixel_stride,
                    x.kind, 0, numbers, n,
                )
                take_larger(maxima + first, numbers, n, numbers[0])


cdef inline void maxima_of_planes(
    const Map* x, const char* image, const Box* box, floating* maxima, floating* cells
) noexcept nogil:
    """Write the maxima of a box, one channel after the other; `cells` is room for a plane."""
    cdef Py_ssize_t channel, y, n = box.x2 - box.x1 + 1, rows = box.y2 - box.y1 + 1
    cdef bint in_place = has_numbers(x, cells[0]) and x.pixel_stride == x.itemsize
    cdef const char* row
    for channel in range(x.channels):
        row = image + channel * x.channel_stride + box.y1 * x.row_stride + box.x1 * x.pixel_stride
        if in_place:
            maxima[channel] = <floating>largest(row, x.row_stride, rows, n, cells[0])
        else:
            for y in range(rows):
                read_row(x, row + y * x.row_stride, n, cells + y * n)
            maxima[channel] = <floating>largest(cells, n * sizeof(floating), rows, n, cells[0])


cdef inline void maxima_of_box(
    const Map* x, const char* image, const Box* box, floating* maxima, Py_ssize_t size,
    floating* cells,
) noexcept nogil:
    """Write the maxima of a box, and 0 for channels that the map lacks, up to `size`."""
    cdef Py_ssize_t channel
    for channel in range(size):
        maxima[channel] = -INFINITY if channel < x.channels else 0
    if x.channel_stride == x.itemsize and x.channels > 1:
        maxima_of_pixels(x, image, box, maxima)
    else:
        maxima_of_planes(x, image, box, maxima, cells)
