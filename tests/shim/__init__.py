"""A stand-in for CuPy that runs the kernels on the CPU, see cuda.h.

It has only what `rmac.cuda` and the tests use. Put it into `sys.modules` as "cupy".
"""

import ctypes
import hashlib
import os
import subprocess
import tempfile
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np

HERE = Path(__file__).parent
COMPILE = ["c++", "-std=c++20", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-w"]
SHARED = 48 << 10
_libraries = tempfile.TemporaryDirectory()
_launches = 0


def allocate(size):
    """Return bytes of noise. The fuzzer replaces this function by one for guarded memory."""
    return np.frombuffer(bytearray(os.urandom(size)), np.uint8)


class MemoryPointer:
    """The address of an array, which it keeps alive."""

    device_id = 0

    def __init__(self, host):
        self._host = host
        self.ptr = host.ctypes.data

    def memset_async(self, value, size):
        ctypes.memset(self.ptr, value, size)


class ndarray:  # noqa: N801
    """An array whose memory only the kernels and this module use."""

    __module__ = "cupy"
    __array_ufunc__ = None

    def __init__(self, host, dtype=None):
        """Wrap an array of the host; or make an array of a shape and a dtype, full of noise."""
        if not isinstance(host, np.ndarray):
            size = int(np.prod(host)) * np.dtype(dtype).itemsize
            host = allocate(size).view(dtype).reshape(host)
        self._host = host
        self.device = cuda.Device(0)
        self.data = MemoryPointer(host)

    dtype = property(lambda self: self._host.dtype)
    shape = property(lambda self: self._host.shape)
    strides = property(lambda self: self._host.strides)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    T = property(lambda self: self.transpose())
    flags = property(lambda self: self._host.flags)

    def __len__(self):
        return len(self._host)

    def __array__(self, *_args, **_options):
        raise TypeError("no implicit copy from the device")

    def __getitem__(self, index):
        return ndarray(np.asarray(self._host[index]))

    def __setitem__(self, index, value):
        self._host[index] = value._host if isinstance(value, ndarray) else value

    def __iter__(self):
        return map(ndarray, self._host)

    def transpose(self, *axes):
        return ndarray(self._host.transpose(*axes))

    def reshape(self, *shape):
        return ndarray(self._host.reshape(*shape))

    def astype(self, dtype, order="K", copy=True):
        array = self._host.astype(dtype, order=order, copy=copy)
        return self if array is self._host else ndarray(array)

    def copy(self):
        return ndarray(self._host.copy())

    def get(self):
        return self._host.copy()

    def view(self, dtype=None):
        return ndarray(self._host.view(dtype or self.dtype))

    def __float__(self):
        return float(self._host)

    def __int__(self):
        return int(self._host)


def _on_device(function):
    """Return NumPy's function for arrays of the device and scalars; NumPy's arrays are an error."""

    def host(value):
        if isinstance(value, np.ndarray):
            raise TypeError("no implicit copy to the device")
        if isinstance(value, list):
            return [host(one) for one in value]
        return value._host if isinstance(value, ndarray) else value

    def call(*args, **options):
        result = function(*map(host, args), **{name: host(one) for name, one in options.items()})
        if isinstance(result, tuple):
            return tuple(map(ndarray, result))
        return ndarray(np.asarray(result))

    return call


for _name in ("abs", "add", "and", "iadd", "isub", "matmul", "mul", "neg", "pow", "sub", "truediv"):
    setattr(ndarray, f"__{_name}__", _on_device(getattr(np.ndarray, f"__{_name}__")))
for _name in ("eq", "ge", "gt", "lt", "radd", "rmul"):
    setattr(ndarray, f"__{_name}__", _on_device(getattr(np.ndarray, f"__{_name}__")))
for _name in ("argmax", "diagonal", "max", "mean", "sum", "swapaxes", "trace"):
    setattr(ndarray, _name, _on_device(getattr(np.ndarray, _name)))
for _name in ("ascontiguousarray", "concatenate", "matmul", "maximum", "outer", "sign", "sqrt"):
    globals()[_name] = _on_device(getattr(np, _name))
argsort = _on_device(np.argsort)
take = _on_device(np.take)
take_along_axis = _on_device(np.take_along_axis)
where = _on_device(np.where)
linalg = SimpleNamespace(eigh=_on_device(np.linalg.eigh), qr=_on_device(np.linalg.qr))
nan = np.nan


def empty(shape, dtype=float):
    return ndarray(shape, dtype)


def zeros(shape, dtype=float):
    array = ndarray(shape, dtype)
    array._host[...] = 0
    return array


def ones(shape, dtype=float):
    return ndarray(np.ones(shape, dtype))


def asarray(x):
    return x if isinstance(x, ndarray) else ndarray(np.asarray(x))


def from_dlpack(x):
    """Return an array on the memory of an object that says that it is on a device."""
    assert x.__dlpack_device__()[0] == 2
    return ndarray(np.from_dlpack(x.on_host))


def asnumpy(x):
    return x.get()


def byte_bounds(x):
    start = stop = x.data.ptr
    for length, stride in zip(x.shape, x.strides, strict=True):
        start += min(0, (length - 1) * stride)
        stop += max(0, (length - 1) * stride)
    return start, stop + x.itemsize


class Device:
    """The one device there is."""

    def __init__(self, index=None):
        self.id = index or 0

    def __enter__(self):
        return self

    def __exit__(self, *_args):
        pass


cuda = SimpleNamespace(
    Device=Device,
    get_current_stream=lambda: SimpleNamespace(is_capturing=lambda: False),
    alloc=lambda size: MemoryPointer(allocate(size)),
    function=SimpleNamespace(CNumpyArray=np.asarray),
    runtime=SimpleNamespace(getDevice=lambda: 0),
)


@cache
def _header():
    """Return a header that is read already: that is half of the time of a kernel."""
    header = Path(_libraries.name) / "cuda.h"
    header.write_text(f'#include "{HERE / "cuda.h"}"\n')
    subprocess.run([*COMPILE, "-x", "c++-header", header, "-o", f"{header}.gch"], check=True)
    return header


class RawModule:
    """Source that is compiled for the CPU, one kernel at a time."""

    def __init__(self, code, options, name_expressions):
        self._code, self._options, self._names = code, options, name_expressions

    def get_function(self, name):
        assert name in self._names
        key = hashlib.sha256((self._code + name).encode()).hexdigest()
        library = Path(_libraries.name) / key[:16]
        flushed = int("double" not in name)  # CuPy takes subnormals as 0 in float32 alone
        source = (
            f'#include "{_header()}"\n{self._code}\n'
            'extern "C" const char *run(unsigned blocks, unsigned x, unsigned y, unsigned seed, '
            f"void **args) {{ return launch<&{name}, {flushed}>(blocks, x, y, seed, args); }}\n"
        )
        if not library.exists():
            library.with_suffix(".cpp").write_text(source)
            subprocess.run([*COMPILE, "-o", library, library.with_suffix(".cpp")], check=True)
        run = ctypes.CDLL(str(library)).run
        run.restype = ctypes.c_char_p
        return SimpleNamespace(kernel=partial(_launch, run))


def argument(value):
    """Return an array that holds an argument. It is an error if CuPy would refuse it or be slow."""
    if isinstance(value, ndarray):
        return np.asarray(value.data.ptr)
    assert isinstance(value, np.ndarray | np.number)
    assert value.size == 1
    assert value.dtype.fields is None  # CuPy is slow with these
    return np.asarray(value)


def _launch(run, grid, block, args, shared_mem=0):
    """Launch a kernel. Each launch runs its threads in another order."""
    global _launches
    _launches += 1
    assert shared_mem <= SHARED
    assert len(grid) == 1
    assert 1 <= grid[0] < 1 << 31
    host = [argument(a) for a in args]
    pointers = (ctypes.c_void_p * len(host))(*[a.ctypes.data for a in host])
    x, y = (*block, 1)[:2]
    wrong = run(grid[0], x, y, _launches, pointers)
    if wrong:
        raise RuntimeError(wrong.decode())
