"""The command ``rmac describe``: descriptors of the feature maps in a file of any size."""

from __future__ import annotations

import inspect
from contextlib import closing
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib import format as npy

import rmac
from rmac._arrays import require_axes
from rmac._io import atomic_write
from rmac.cli.files import batches, naming, open_array, require_suffix

if TYPE_CHECKING:
    import argparse

_OPTIONS = inspect.signature(rmac.rmac).parameters


def run(options: argparse.Namespace) -> None:
    """Read feature maps from a file a batch at a time, and write their descriptors to another."""
    require_suffix("--output", options.output, ".npy")
    maps = open_array(options.features, options.key)
    settings = {name: value for name, value in vars(options).items() if name in _OPTIONS}
    sources = [options.features]
    if "whitening" in settings:
        sources.append(settings["whitening"])
        settings["whitening"] = rmac.Whitening.load(settings["whitening"])
    with naming(maps, "x"):
        require_axes(maps, settings.get("layout", "NCHW"))
        # A batch of no maps checks options, dtype and shape before any file is written.
        none = rmac.rmac(np.empty((0, *maps.shape[1:]), maps.dtype), **settings)
    dtype = np.dtype(options.dtype or none.dtype)
    header = {
        "descr": npy.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (maps.shape[0], *none.shape[1:]),
    }
    row_bytes = prod(none.shape[1:]) * none.itemsize
    with atomic_write(options.output, *sources) as file:
        npy.write_array_header_1_0(file, header)
        with closing(batches(maps, "map", row_bytes)) as parts:
            for part in parts:
                file.write(rmac.rmac(part, **settings).astype(dtype, copy=False).data)
