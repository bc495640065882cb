"""The floating-point mode of the calling thread, as other libraries change it."""

import ctypes
import mmap
import platform
from contextlib import contextmanager

CAN_CHANGE = platform.machine() == "x86_64"
_DEFAULT, _FLUSH = 0x1F80, 0x9FC0  # of x86's register MXCSR; the second takes subnormals as 0
_LOAD = b"\x0f\xae\x17\xc3"  # ldmxcsr [rdi]; ret


@contextmanager
def subnormals_as_zero():
    """Set the mode that `torch.set_flush_denormal(True)` sets, and the default at the end."""
    _set(_FLUSH)
    try:
        yield
    finally:
        _set(_DEFAULT)


def _set(mode):
    access = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    with mmap.mmap(-1, mmap.PAGESIZE, prot=access) as page:
        page.write(_LOAD)
        first = ctypes.c_char.from_buffer(page)
        word = ctypes.c_uint32(mode)
        load = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(ctypes.addressof(first))
        load(ctypes.addressof(word))
        del first
