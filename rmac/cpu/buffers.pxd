# cython: language_level=3, cdivision=True
"""Where arrays of Python lie in memory, and workspace.

Accumulation, NaN: none here.
Memory: a buffer says where an array lies at a tenth of a typed memoryview's cost. It is released at
    once: the caller keeps the array.
Threads: with the GIL.
"""

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_STRIDED_RO, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from libc.stdint cimport uintptr_t

from rmac.cpu.keys cimport LINE
from rmac.cpu.tables cimport KernelSpec
from rmac.cpu.values cimport Map

cdef extern from "sizes.h" nogil:
    Py_ssize_t size_product(Py_ssize_t a, Py_ssize_t b)
    Py_ssize_t size_sum(Py_ssize_t a, Py_ssize_t b)

cdef struct Memory:
    # Where an array is written, in C order.
    char* data
    Py_ssize_t itemsize
    Py_ssize_t size  # of all elements


cdef inline Map map_of(x, KernelSpec spec) except *:
    cdef Py_buffer buffer
    cdef Map out
    PyObject_GetBuffer(x, &buffer, PyBUF_STRIDED_RO)
    out.data = <const char*>buffer.buf
    out.images, out.channels = buffer.shape[0], buffer.shape[1]
    out.height, out.width = buffer.shape[2], buffer.shape[3]
    out.image_stride, out.channel_stride = buffer.strides[0], buffer.strides[1]
    out.row_stride, out.pixel_stride = buffer.strides[2], buffer.strides[3]
    out.itemsize = spec.value_bytes
    out.kind, out.p, out.zero_point = spec.kind, spec.p, spec.zero_point
    PyBuffer_Release(&buffer)
    return out


cdef inline Memory memory_of(out) except *:
    cdef Py_buffer buffer
    cdef Memory memory
    PyObject_GetBuffer(out, &buffer, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
    memory.data, memory.itemsize = <char*>buffer.buf, buffer.itemsize
    memory.size = buffer.len // buffer.itemsize
    PyBuffer_Release(&buffer)
    return memory


cdef inline Py_ssize_t whole_lines(Py_ssize_t size) noexcept nogil:
    """Return a size in whole lines; the largest number of whole lines if it is more."""
    return size_sum(size, LINE - 1) // LINE * LINE


cdef inline bytes uninitialised(Py_ssize_t size):
    """Return memory that nobody else has seen, and that may therefore be written."""
    try:
        return PyBytes_FromStringAndSize(NULL, size)
    except (MemoryError, OverflowError):
        raise MemoryError(
            f"x: maps of this shape need {size} bytes of workspace: pool smaller maps or fewer "
            "regions, or take fewer workers"
        ) from None


cdef inline Py_ssize_t workspace_of_workers(int workers, Py_ssize_t size) noexcept:
    """Return the bytes for all workers, and a line so that they can start at one."""
    return size_sum(size_product(workers, size), LINE)


cdef inline char* first_line(bytes memory) noexcept:
    """Return where the first whole line starts, of memory with a line more than it must hold."""
    return <char*>whole_lines(<uintptr_t>PyBytes_AsString(memory))
