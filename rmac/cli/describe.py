"""The command ``rmac describe``: descriptors of a file of feature maps, however large."""

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

_SETTINGS = inspect.signature(rmac.rmac).parameters


def run(options: argparse.Namespace) -> None:
    """Describe the feature maps of one file into another, a batch at a time."""
    require_suffix("--output", options.output, ".npy")
    maps = open_array(options.features, options.key)
    settings = {name: value for name, value in vars(options).items() if name in _SETTINGS}
    sources = [options.features]
    if "whitening" in settings:
        sources.append(settings["whitening"])
        settings["whitening"] = rmac.Whitening.load(settings["whitening"])
    with naming(maps, "x"):
        require_axes(maps, settings.get("layout", "NCHW"))
        # no maps check the options, dtype and shape before a file is touched
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
