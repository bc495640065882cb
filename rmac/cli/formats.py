"""Which kinds of files are read, and what to do with the others."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rmac._io import InputFile
from rmac.cli.array_file import READ
from rmac.cli.flat_files import open_npy, start_of
from rmac.cli.hdf5_files import open_hdf5
from rmac.cli.npz_files import open_npz
from rmac.cli.safetensors_files import open_safetensors
from rmac.cli.zarr_files import holds_zarr, is_zarr, open_zarr, open_zip

if TYPE_CHECKING:
    from collections.abc import Callable

    from rmac.cli.array_file import ArrayFile, Container


def _open_any_zip(path: str) -> ArrayFile | Container:
    is_npz = suffix_of(path) == ".npz" or not holds_zarr(path)
    return open_npz(path) if is_npz else open_zip(path)


READERS: dict[str, Callable[[str], ArrayFile | Container]] = {
    ".npy": open_npy,
    ".npz": open_npz,
    ".safetensors": open_safetensors,
    ".h5": open_hdf5,
    ".hdf5": open_hdf5,
    ".zip": _open_any_zip,
}

# By the first bytes of a file, whatever its name.
_BY_CONTENT = {b"\x93NUMPY": open_npy, b"PK\3\4": _open_any_zip, b"\x89HDF\r\n\x1a\n": open_hdf5}

_TORCH = "load it with torch.load, and save its tensors with safetensors.torch.save_file"
_MATLAB = "load it with scipy.io.loadmat, or h5py for version 7.3, and save it with numpy.savez"
_PICKLE = "load it, and save its arrays by their names with numpy.savez"
_TABLE = "save its numbers as an array (N, ...) with numpy.save"
_PHOTOGRAPH = "make feature maps of photographs with a network, and save these with numpy.savez"
_TENSORFLOW = "read it with TensorFlow, and save its arrays with numpy.savez"
CONVERT = {
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".bin"), _TORCH),
    ".mat": _MATLAB,
    **dict.fromkeys((".pkl", ".pickle", ".joblib"), _PICKLE),
    **dict.fromkeys((".csv", ".tsv", ".txt", ".parquet", ".arrow", ".feather"), _TABLE),
    **dict.fromkeys(
        (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".heic"), _PHOTOGRAPH
    ),
    **dict.fromkeys((".tfrecord", ".tfrecords", ".pb"), _TENSORFLOW),
}


def suffix_of(path: str) -> str:
    """Return the suffix of the name of a file, in lower case."""
    return os.path.splitext(path.rstrip("/"))[1].lower()


def is_read(path: str) -> bool:
    """Return whether a file or folder is of a kind that is read, by its name."""
    return is_zarr(path) if os.path.isdir(path) else suffix_of(path) in READERS


def split_path(path: str) -> tuple[str, str]:
    """Return the path of a file or Zarr folder, and the path inside it, which may be empty."""
    inside: list[str] = []
    head = path
    while not os.path.lexists(head):
        head, tail = os.path.split(head)
        if not head or (not tail and os.path.dirname(head) == head):
            return path, ""
        inside[:0] = [tail] if tail else []
    if inside and os.path.isdir(head) and not is_zarr(head):
        return path, ""
    return head, "/".join(inside)


def open_file(path: str) -> ArrayFile | Container:
    """Open a file or Zarr folder of any kind that is read."""
    if os.path.isdir(path):
        return open_zarr(path)
    suffix = suffix_of(path)
    if suffix in CONVERT:
        os.stat(path)
        raise ValueError(f"{path}: rmac reads {READ}, and no {suffix} files: {CONVERT[suffix]}")
    start = start_of(InputFile(path), 9)
    for mark, reader in _BY_CONTENT.items():
        if start.startswith(mark):
            return reader(path)
    if suffix in READERS:  # which tells what is wrong
        return READERS[suffix](path)
    if start[8:9] == b"{":
        return open_safetensors(path)
    raise ValueError(
        f"{path}: rmac reads {READ}, and this is none of them: save its arrays with numpy.savez"
    )
