"""Arrays in guarded memory: one byte before or after it is a page that nobody may touch."""

import ctypes
import mmap

import numpy as np

PAGE = mmap.PAGESIZE
_FILL = 0xA5
_NONE, _READ, _READ_WRITE = 0, mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE
_FAR = 1 << 33  # bytes between images that lie far apart
_NO_RESERVE = 0x4000  # Linux's MAP_NORESERVE, which Python 3.11 has no name for
_libc = ctypes.CDLL(None, use_errno=True)


def _protect(start, size, access):
    if _libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(size), access):
        raise OSError(ctypes.get_errno(), "mprotect")


def _map(size):
    # Shared, so that address space without memory does not count as data of the process.
    flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _NO_RESERVE
    memory = mmap.mmap(-1, size, flags=flags, prot=_READ_WRITE)
    return memory, ctypes.addressof(ctypes.c_char.from_buffer(memory))


class Guarded:
    """Some bytes that lie at the end, or at the start, of the pages that may be accessed.

    A read or a write past that side is a crash. On the other side the rest of a page comes first:
    `check` finds writes there, and what lies beyond it is a crash too.
    """

    def __init__(self, size, at_end):
        self._size = max(1, -(-size // PAGE)) * PAGE
        memory, start = _map(self._size + 2 * PAGE)
        self._start = start + PAGE
        _protect(start, PAGE, _NONE)
        _protect(self._start + self._size, PAGE, _NONE)
        whole = np.frombuffer(memory, np.uint8, self._size, PAGE)
        first = self._size - size if at_end else 0
        self.bytes = whole[first : first + size]
        self._slack = whole[:first] if at_end else whole[size:]
        self._slack[:] = _FILL

    def array(self, dtype, shape):
        return self.bytes.view(dtype).reshape(shape) if self.bytes.size else np.empty(shape, dtype)

    def freeze(self):
        """From now on, a write is a crash."""
        _protect(self._start, self._size, _READ)

    def check(self):
        """Raise if bytes beside the array were written."""
        assert (self._slack == _FILL).all(), "bytes beside an array were written"


class Memory:
    """All guarded memory of one call."""

    def __init__(self, rng):
        self._rng = rng
        self._inputs, self._outputs = [], []

    def _new(self, shape, dtype):
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        return Guarded(size, at_end=self._rng.random() < 0.75)

    def input(self, values):
        """Return a C-ordered copy that ends, or starts, where memory does."""
        guarded = self._new(values.shape, values.dtype)
        self._inputs.append(guarded)
        array = guarded.array(values.dtype, values.shape)
        array[...] = values
        return array

    def output(self, shape, dtype):
        guarded = self._new(shape, dtype)
        self._outputs.append(guarded)
        return guarded.array(dtype, shape)

    def freeze(self):
        for guarded in self._inputs:
            guarded.freeze()

    def check(self):
        for guarded in self._outputs:
            guarded.check()


def far_apart(images):
    """Return a copy of two images that lie 8 GiB apart, with no memory between them."""
    size = max(1, -(-images[0].nbytes // PAGE)) * PAGE
    memory, start = _map(_FAR + size + PAGE)
    _protect(start + size, _FAR - size, _NONE)
    _protect(start + _FAR + size, PAGE, _NONE)
    first = size - images[0].nbytes
    flat = np.frombuffer(memory, np.uint8, images[0].nbytes, first).view(images.dtype)
    strides = (_FAR, *images.strides[1:])
    far = np.lib.stride_tricks.as_strided(flat, images.shape, strides)
    far[...] = images
    return far
