"""The command ``rmac describe``: descriptors of the feature maps in a file of any size."""

from __future__ import annotations

import inspect
from contextlib import closing
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import rmac
from rmac._arrays import require_axes
from rmac._config import startable, workers_for
from rmac.cli.files import batches, naming, open_array, require_suffix
from rmac.cli.rows import write_rows
from rmac.cli.whitenings import load_whitening, require_channels

if TYPE_CHECKING:
    import argparse

    from rmac.cli.array_file import ArrayFile

_LARGEST = 1 << 26  # bytes of a map for each of all threads together
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
    flags = {name: f"--{name.replace('_', '-')}" for name in settings}
    with naming(flags | {"x": maps.name}):
        # A batch of no maps checks options, dtype and shape before any file is written.
        none = rmac.rmac(np.empty((0, *maps.shape[1:]), maps.dtype), **settings)
    row_bytes = prod(none.shape[1:]) * none.itemsize
    threads = _threads(maps, row_bytes, settings)
    if threads > 1:
        settings["workers"] = 1

    def described(part: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return rmac.rmac(part, **settings)

    with closing(batches(maps, "map", row_bytes, described, threads)) as parts:
        write_rows(options, maps, others, none, parts)


def _threads(maps: ArrayFile, row_bytes: int, settings: dict[str, Any]) -> int:
    """Return how many threads read and describe batches of their own.

    With 1 the threads share each batch: where maps are large, and where a BLAS or Zarr has threads
    too. Else threads of their own are faster: 2 GB in the page cache take 0.2 s with two threads,
    and 1.6 s if they share batches of 64 MB, on a machine with other load.
    """
    if "whitening" in settings or maps.chunk_bytes:
        return 1
    fitting = _LARGEST // max(1, row_bytes + prod(maps.shape[1:]) * maps.dtype.itemsize)
    return startable(max(1, min(workers_for(settings.get("workers")), fitting)))
