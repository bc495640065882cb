"""The command ``rmac describe``: descriptors of the feature maps in files of any size."""

from __future__ import annotations

import inspect
from contextlib import closing
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import rmac
from rmac._config import startable, workers_for
from rmac._maps import require_axes
from rmac.cli.files import naming, require_suffix, results
from rmac.cli.inputs import open_inputs
from rmac.cli.rows import write_rows
from rmac.cli.whitenings import load_whitening, require_channels

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from rmac.cli.inputs import Inputs
    from rmac.cli.parts import Rows, Tile

_LARGEST = 1 << 26  # bytes of a map for each of all threads together
# A call takes as long as 4 more maps in a list: 20 µs, and 5 µs a map.
_OF_ONE_SIZE = 4
_OPTIONS = inspect.signature(rmac.rmac).parameters


def run(options: argparse.Namespace) -> None:
    """Read feature maps from files a batch at a time, and write their descriptors to another."""
    require_suffix("--output", options.output, ".npy", ".npz")
    settings = {name: value for name, value in vars(options).items() if name in _OPTIONS}
    layout = settings.get("layout", "NCHW")
    maps = open_inputs(options.source, options.key, [len(layout)], strict=options.strict)
    paths = list(maps.paths)
    with naming({"x": maps.name}):
        require_axes(maps, layout)
    maps.require_alike(layout.index("C") - 1, "channels")
    if "whitening" in settings:
        path = settings["whitening"]
        settings["whitening"] = load_whitening(path, "regions", strict=options.strict)
        require_channels(settings["whitening"], path, maps, layout.index("C"))
        paths.append(path)
    none = _of_no_maps(maps, settings)
    row_bytes = prod(none.shape[1:]) * none.itemsize
    threads = _threads(maps, row_bytes, settings)
    if threads > 1:
        settings["workers"] = 1

    def described(tile: Tile) -> Iterator[tuple[Rows, npt.NDArray[Any]]]:
        return _described(tile, settings)

    with closing(results(maps, "map", none, described, threads)) as parts:
        write_rows(options, maps, paths, none, parts)


def _of_no_maps(maps: Inputs, settings: dict[str, Any]) -> npt.NDArray[Any]:
    """Return the descriptors of no maps: options, dtype and shapes are checked before the work."""
    flags = {name: f"--{name.replace('_', '-')}" for name in settings}
    results = {}
    for shape, name in maps.distinct().items():
        with naming(flags | {"x": name}):
            results[name] = rmac.rmac(np.empty((0, *shape), maps.dtype), **settings)
    first = next(iter(results.values()))
    for name, result in results.items():
        if result.shape != first.shape:
            raise ValueError(
                f"{name}: expected maps with as many regions as {next(iter(results))}, as "
                f"--aggregate {settings['aggregate']} needs; give maps of one size, or take sum"
            )
    return first


def _described(tile: Tile, settings: dict[str, Any]) -> Iterator[tuple[Rows, npt.NDArray[Any]]]:
    """Yield the descriptors of maps; those of rare sizes are described together, as a list."""
    rare: list[npt.NDArray[Any]] = []
    places: list[Rows] = []
    for rows, block in tile:
        if len(block) < _OF_ONE_SIZE and len(tile) > 1:
            rare.extend(block)
            places.append(rows)
        else:
            yield rows, rmac.rmac(block, **settings)
    if rare:
        yield np.concatenate(places), rmac.rmac(rare, **settings)


def _threads(maps: Inputs, row_bytes: int, settings: dict[str, Any]) -> int:
    """Return how many threads read and describe batches of their own.

    With 1 the threads share each batch: where maps are large, and where a BLAS or Zarr has threads
    too. Else threads of their own are faster: 2 GB in the page cache take 0.2 s with two threads,
    and 1.6 s if they share batches of 64 MB, on a machine with other load.
    """
    if "whitening" in settings or maps.chunk_bytes:
        return 1
    fitting = _LARGEST // max(1, row_bytes + max(map(prod, maps.distinct())) * maps.dtype.itemsize)
    return startable(max(1, min(workers_for(settings.get("workers")), fitting)))
