"""The tensors of .safetensors files, read without the safetensors library: it would map them."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from itertools import chain
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rmac._dtypes import DTYPES, bfloat16
from rmac._io import InputFile
from rmac.cli.array_file import ArrayFile, Container, Kind, checked_shape, readable
from rmac.cli.flat_files import FlatArrays, flat_array, require_bytes, start_of

if TYPE_CHECKING:
    from collections.abc import Collection

_KIND = ".safetensors file"
_HEADER = 10_000_000  # bytes; some 100,000 tensors
_ENTRY = (b'"dtype"', b'"shape"', b'"data_offsets"')
_METADATA = b'"__metadata__"'
_CODES = {info.safetensors: info.name for info in DTYPES.values()}


def open_safetensors(path: str) -> Container:
    """Open the tensors of a .safetensors file, in the order of their data."""
    file = InputFile(path)
    with readable(path, _KIND):
        tensors, start = _header(file)
        names = list(tensors)
        places = _places(names, tensors.values())
    order = np.lexsort((places[:, 1], places[:, 0]))
    names, places = [names[i] for i in order.tolist()], places[order]
    _require_tiling(path, names, places, file.size - start)
    codes, kinds, kind_of = _kinds_of(path, names, tensors)
    _require_sizes(path, names, places[:, 1] - places[:, 0], codes, kinds, kind_of)
    offsets = start + places[:, 0]

    def open_one(i: int) -> ArrayFile:
        name, (shape, dtype) = f"{path}[{names[i]}]", kinds[kind_of[i]]
        if dtype is None:
            code = codes[kind_of[i]]
            if code == "BF16":
                bfloat16()  # raises
            raise TypeError(f"{name}: expected one of {', '.join(_CODES)}, got {code}")
        stored = dtype if sys.byteorder == "little" else dtype.newbyteorder("<")
        return flat_array(file, name, shape, stored, int(offsets[i]))

    flat = FlatArrays(file, offsets, np.full(len(names), sys.byteorder == "big"))
    return Container(path, names, kinds, kind_of, open_one, flat.fill)


def _places(names: list[str], entries: Collection[Any]) -> npt.NDArray[np.int64]:
    """Return where the data of tensors begin and end (N, 2), or raise."""
    pairs = [entry["data_offsets"] for entry in entries]
    for name, (first, last) in zip(names, pairs, strict=True):
        if not (type(first) is type(last) is int and 0 <= first <= last):
            raise ValueError(f"the data_offsets of {name} are {first} and {last}")
    return np.fromiter(chain.from_iterable(pairs), np.int64, 2 * len(pairs)).reshape(-1, 2)


def _kinds_of(
    path: str, names: list[str], tensors: dict[str, dict[str, Any]]
) -> tuple[list[str], list[Kind], npt.NDArray[np.intp]]:
    """Return the codes of dtypes and the kinds that differ, and which of them each tensor has."""
    keys = _keys_of(path, names, tensors)
    first: dict[tuple[Any, ...], str] = {}  # the name of the first tensor of each kind
    for key, name in zip(keys, names, strict=True):
        first.setdefault(key, name)
    kinds = []
    for (code, *sizes), name in first.items():
        with readable(f"{path}[{name}]", _KIND):
            kinds.append(Kind(checked_shape(sizes, itemsize=8), _dtype_of(code)))
    number = {key: i for i, key in enumerate(first)}
    return [code for code, *_ in first], kinds, np.array([number[key] for key in keys], np.intp)


def _keys_of(
    path: str, names: list[str], tensors: dict[str, dict[str, Any]]
) -> list[tuple[Any, ...]]:
    """Return the code of the dtype and the sizes of each tensor, or raise."""
    with suppress(KeyError, TypeError):
        codes = [tensors[name]["dtype"] for name in names]
        shapes = [tensors[name]["shape"] for name in names]
        types = {*map(type, codes)}, {*map(type, shapes)}, {*map(type, chain.from_iterable(shapes))}
        if types[0] <= {str} and types[1] <= {list} and types[2] <= {int}:  # 1 and true are equal
            return [(code, *shape) for code, shape in zip(codes, shapes, strict=True)]
    for name in names:
        with readable(f"{path}[{name}]", _KIND):
            code, shape = tensors[name]["dtype"], tensors[name]["shape"]
            if type(code) is not str:
                raise ValueError(f"its dtype is {code!r}")
            if type(shape) is not list:
                raise ValueError(f"its shape is {shape!r}")
            checked_shape(shape, itemsize=8)
    raise AssertionError("all tensors are right one by one")


def _require_sizes(
    path: str,
    names: list[str],
    sizes: npt.NDArray[np.int64],
    codes: list[str],
    kinds: list[Kind],
    kind_of: npt.NDArray[np.intp],
) -> None:
    """Raise unless each tensor has the bytes of its dtype and shape."""
    expected = [-1 if dtype is None else prod(shape) * dtype.itemsize for shape, dtype in kinds]
    each = np.array(expected, np.int64)[kind_of]
    wrong = (each >= 0) & (sizes != each)
    if wrong.any():
        i = int(wrong.argmax())
        code, shape = codes[kind_of[i]], kinds[kind_of[i]].shape
        raise ValueError(
            f"{path}[{names[i]}]: expected the bytes of {code} {shape}, got {sizes[i]} bytes"
        )


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
    header.pop("__metadata__", None)
    return header, 8 + size


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a dict of the pairs of a JSON object; raise if a name is twice there."""
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a name is twice in its header")
    return result


def _require_tiling(path: str, names: list[str], places: npt.NDArray[np.int64], size: int) -> None:
    """Raise unless each byte of the data is in one tensor."""
    ends = np.append(0, places[:, 1])
    gaps = places[:, 0] - ends[:-1]
    if gaps.any():
        i = int(gaps.astype(bool).argmax())
        fault = "are in no tensor" if gaps[i] > 0 else "are in two tensors"
        raise ValueError(f"{path}: {abs(gaps[i])} bytes before {names[i]} {fault}: it is damaged")
    if extra := require_bytes(path, int(ends[-1]), size):
        raise ValueError(f"{path}: {extra} bytes at its end are in no tensor: it is damaged")
