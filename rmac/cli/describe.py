"""The command ``rmac describe``: descriptors of the feature maps in a file of any size."""

from __future__ import annotations

import inspect
from contextlib import closing
from math import prod
from typing import TYPE_CHECKING

import numpy as np

import rmac
from rmac._arrays import require_axes
from rmac.cli.files import batches, naming, open_array, require_suffix
from rmac.cli.rows import write_rows
from rmac.cli.whitenings import load_whitening, require_channels

if TYPE_CHECKING:
    import argparse

_OPTIONS = inspect.signature(rmac.rmac).parameters


def run(options: argparse.Namespace) -> None:
    """Read feature maps from a file a batch at a time, and write their descriptors to another."""
    require_suffix("--output", options.output, ".npy")
    maps = open_array(options.source, options.key)
    settings = {name: value for name, value in vars(options).items() if name in _OPTIONS}
    layout, others = settings.get("layout", "NCHW"), []
    with naming({"x": maps.name}):
        require_axes(maps, layout)
    if "whitening" in settings:
        path = settings["whitening"]
        settings["whitening"] = load_whitening(path, "regions", strict=options.strict)
        require_channels(settings["whitening"], path, maps, layout.index("C"))
        others.append(path)
    with naming({name: f"--{name}" for name in settings} | {"x": maps.name}):
        # A batch of no maps checks options, dtype and shape before any file is written.
        none = rmac.rmac(np.empty((0, *maps.shape[1:]), maps.dtype), **settings)
    row_bytes = prod(none.shape[1:]) * none.itemsize
    with closing(batches(maps, "map", row_bytes)) as parts:
        write_rows(options, maps, others, none, (rmac.rmac(part, **settings) for part in parts))
