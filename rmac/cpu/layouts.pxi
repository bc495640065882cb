# From the map's layout in memory to pixels that are lines of channels.

cdef inline void prefetch(const char* data, Py_ssize_t size) noexcept nogil:
    """Begin to bring memory that the next task reads into the second-level cache."""
    cdef Py_ssize_t at
    for at in range(size // LINE):
        prefetch_line(data + at * LINE)


cdef inline void interleave(
    const key_t* src, key_t* out, Py_ssize_t ways, Py_ssize_t part
) noexcept nogil:
    """Deal the 2 or 4 parts of `src` out like a deck of cards."""
    cdef Py_ssize_t i
    if ways == 2:
        for i in range(part):
            out[2 * i] = src[i]
            out[2 * i + 1] = src[part + i]
    else:
        for i in range(part):
            out[4 * i] = src[i]
            out[4 * i + 1] = src[part + i]
            out[4 * i + 2] = src[2 * part + i]
            out[4 * i + 3] = src[3 * part + i]


cdef void transpose(
    const key_t* src, key_t* out, key_t* spare, Py_ssize_t columns
) noexcept nogil:
    """Transpose (lanes, columns) into (columns, lanes).

    Element (lane, column) stands at i = lane * columns + column. Dealing out w parts takes i to
    w * i modulo the number of elements less one, so that rounds with a product of `lanes` take it
    to column * lanes + lane.
    """
    cdef Py_ssize_t lanes = lanes_of(src[0]), size = lanes * columns
    cdef Py_ssize_t ways = 4 if lanes % 3 == 1 else 2  # what makes the rest a power of 4
    if lanes > 16:
        interleave(src, out, ways, size // ways)
        interleave(out, spare, 4, size // 4)
    else:
        interleave(src, spare, ways, size // ways)
    interleave(spare, out, 4, size // 4)
