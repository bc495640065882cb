"""The tensors of .safetensors files, read without the safetensors library: it would map them."""

from __future__ import annotations

import json
import sys
from math import prod
from typing import Any

import numpy as np

from rmac._dtypes import DTYPES, bfloat16
from rmac._io import InputFile
from rmac.cli.array_file import ArrayFile, Container, checked_shape, readable
from rmac.cli.flat_files import FlatArrays, flat_array, require_bytes, start_of

_KIND = ".safetensors file"
_HEADER = 10_000_000  # bytes; some 100,000 tensors
_ENTRY = (b'"dtype"', b'"shape"', b'"data_offsets"')
_METADATA = b'"__metadata__"'
_WORDS = {int, str}
_CODES = {info.safetensors: info.name for info in DTYPES.values()}


def open_safetensors(path: str) -> Container:
    """Open the tensors of a .safetensors file, in the order of their data."""
    file = InputFile(path)
    with readable(path, _KIND):
        tensors, start = _header(file)
        places = {name: _place(name, entry) for name, entry in tensors.items()}
    names = sorted(tensors, key=places.__getitem__)
    _require_tiling(path, names, places, file.size - start)
    shapes, dtypes = _shapes_and_dtypes(path, names, tensors, places)

    def open_one(i: int) -> ArrayFile:
        name, dtype = f"{path}[{names[i]}]", dtypes[i]
        if dtype is None:
            code = str(tensors[names[i]]["dtype"])
            if code == "BF16":
                bfloat16()  # raises
            raise TypeError(f"{name}: expected one of {', '.join(_CODES)}, got {code}")
        stored = dtype if sys.byteorder == "little" else dtype.newbyteorder("<")
        return flat_array(file, name, shapes[i], stored, start + places[names[i]][0])

    offsets = [start + places[name][0] for name in names]
    flat = FlatArrays(file, offsets, None if sys.byteorder == "little" else lambda _i: True)
    return Container(path, names, shapes, dtypes, open_one, flat.fill)


def _shapes_and_dtypes(
    path: str,
    names: list[str],
    tensors: dict[str, dict[str, Any]],
    places: dict[str, tuple[int, int]],
) -> tuple[list[tuple[int, ...]], list[np.dtype[Any] | None]]:
    """Return the shapes and dtypes of tensors, or raise; there may be very many of few kinds."""
    known: dict[tuple[Any, ...], tuple[tuple[int, ...], np.dtype[Any] | None, int]] = {}
    shapes, dtypes = [], []
    for name in names:
        entry = tensors[name]
        try:
            kind = (entry["dtype"], *entry["shape"])
            # Equal numbers are one key, but only integers are sizes.
            found = known.get(kind) if set(map(type, kind)) <= _WORDS else None
        except (KeyError, TypeError):  # which is told below
            found = None
        if found is None:
            with readable(f"{path}[{name}]", _KIND):
                code, shape = str(entry["dtype"]), checked_shape(entry["shape"], itemsize=8)
            dtype = _dtype_of(code)
            size = -1 if dtype is None else prod(shape) * dtype.itemsize
            found = known[code, *shape] = shape, dtype, size
        shape, dtype, size = found
        first, last = places[name]
        if last - first != size >= 0:
            raise ValueError(
                f"{path}[{name}]: expected the bytes of {entry['dtype']} {shape}, got "
                f"{last - first} bytes"
            )
        shapes.append(shape)
        dtypes.append(dtype)
    return shapes, dtypes


def _dtype_of(code: str) -> np.dtype[Any] | None:
    """Return the dtype of a code, or None if it cannot be read."""
    if code == "BF16":
        try:
            return bfloat16()
        except ImportError:
            return None
    return np.dtype(_CODES[code]) if code in _CODES else None


def _header(file: InputFile) -> tuple[dict[str, dict[str, Any]], int]:
    """Return the entries of the header, and where the data start."""
    size = int.from_bytes(start_of(file, 8), "little")
    if size > min(_HEADER, file.size - 8):
        raise ValueError(f"its header has {size} bytes")
    text = start_of(file, 8 + size)[8:]
    header = json.loads(text)
    # Where each word is there once for each tensor, no name can be there twice. To look at all
    # names takes 4 µs a tensor.
    count = len(header) - ("__metadata__" in header)
    if b"\\" in text or text.count(_METADATA) > 1 or {text.count(one) for one in _ENTRY} != {count}:
        header = json.loads(text, object_pairs_hook=unique)
    return {key: entry for key, entry in header.items() if key != "__metadata__"}, 8 + size


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a dict of the pairs of a JSON object; raise if a name is twice there."""
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a name is twice in its header")
    return result


def _place(name: str, entry: Any) -> tuple[int, int]:
    """Return where the data of a tensor begin and end, or raise."""
    first, last = entry["data_offsets"]
    if not (type(first) is type(last) is int and 0 <= first <= last):
        raise ValueError(f"the data_offsets of {name} are {first} and {last}")
    return first, last


def _require_tiling(
    path: str, names: list[str], places: dict[str, tuple[int, int]], size: int
) -> None:
    """Raise unless each byte of the data is in one tensor."""
    at = 0
    for name in names:
        first, last = places[name]
        if first != at:
            fault = "are in no tensor" if first > at else "are in two tensors"
            raise ValueError(
                f"{path}: {abs(first - at)} bytes before {name} {fault}: it is damaged"
            )
        at = last
    if extra := require_bytes(path, at, size):
        raise ValueError(f"{path}: {extra} bytes at its end are in no tensor: it is damaged")
