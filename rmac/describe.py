"""Descriptors of a file of feature maps, however large."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from math import prod
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

import rmac
from rmac._files import whole_file

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

_BATCH = 1 << 26  # bytes of feature maps described at a time


def run(options: argparse.Namespace) -> None:
    """Describe the feature maps of one .npy file into another, a batch at a time."""
    maps = _open(options.features)
    if maps.ndim != 4:
        raise ValueError(f"{options.features}: expected 4 axes, got shape {maps.shape}")
    settings = {
        name: getattr(options, name)
        for name in ("layout", "levels", "overlap", "preset", "workers")
    }
    try:  # an empty batch checks every option and shape before a file is touched
        nothing = rmac.rmac(maps[:0], **settings)
    except (TypeError, ValueError) as error:
        raise type(error)(re.sub(r"^x:", f"{options.features}:", str(error))) from None
    output = _writable(options.output, options.features)
    batch = max(1, _BATCH // max(1, maps[:1].nbytes))
    with whole_file(output) as file, _progress(len(maps)) as advance:
        header = {
            "descr": npy.dtype_to_descr(nothing.dtype),
            "fortran_order": False,
            "shape": (len(maps), nothing.shape[1]),
        }
        npy.write_array_header_1_0(file, header)
        for first in range(0, len(maps), batch):
            part = maps[first : first + batch]
            file.write(rmac.rmac(part, **settings).data)
            advance(len(part))


def _open(path: str) -> npt.NDArray[Any]:
    """Return the array in a .npy file, mapped into memory where it has elements to map."""
    with open(path, "rb") as file:
        try:
            shape, fortran_order, dtype = _read_header(file)
        except Exception as error:  # a header is Python source, and fails to parse in many ways
            raise ValueError(f"{path}: not a .npy file that can be read: {error}") from None
        offset = file.tell()
        there = os.fstat(file.fileno()).st_size - offset
    if dtype.hasobject:
        raise TypeError(f"{path}: expected numbers, got {dtype} objects")
    if dtype.kind == "V":
        raise TypeError(f"{path}: expected numbers, got {dtype} (bfloat16, perhaps: save float32)")
    size = prod(shape) * dtype.itemsize
    if there < size:
        raise ValueError(f"{path}: truncated: {size} bytes of data expected, {there} there")
    order: Any = "F" if fortran_order else "C"
    if size == 0:
        return np.empty(shape, dtype, order)
    return np.memmap(path, dtype, mode="r", offset=offset, shape=shape, order=order)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its format has version {version}")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran_order, dtype = read(file)
    if not all(type(size) is int and 0 <= size < 1 << 62 for size in shape):
        raise ValueError(f"its shape is {shape}")
    return shape, fortran_order, dtype


def _writable(path: str, source: str) -> str:
    """Return the real path of a file that may be written, or raise."""
    target = os.path.realpath(path)
    if not path or not os.path.isdir(os.path.dirname(target)):
        raise FileNotFoundError(f"{path!r}: no such folder to write to")
    if os.path.exists(target):
        if not os.path.isfile(target):
            raise FileExistsError(f"{path}: expected a file to write, got something else")
        if os.path.samefile(target, source):
            raise FileExistsError(f"{path}: the output would replace the input")
    return target


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """Show a bar on the terminal where tqdm is installed; yield what advances it."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda _count: None
        return
    with tqdm(total=total, unit="map", disable=None) as bar:
        yield bar.update
