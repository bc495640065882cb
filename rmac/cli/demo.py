"""The command ``rmac demo``: rank photographs by the similarity of their descriptors."""

from __future__ import annotations

import time
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import rmac
from rmac._io import atomic_write
from rmac.cli.files import require_suffix

if TYPE_CHECKING:
    import argparse

_REPEATS = 20


def feature_maps() -> dict[str, npt.NDArray[np.uint8]]:
    """Return the feature maps (C, H, W) that rmac ships, by the names of their photographs."""
    with as_file(files("rmac") / "data" / "features.npz") as path, np.load(path) as archive:
        return {name: archive[name] for name in archive.files if "__" not in name}


def run(options: argparse.Namespace) -> None:
    """Print the ranking of the photographs for a query, and draw its region grid if asked."""
    maps = feature_maps()
    if options.query not in maps:
        raise ValueError(f"--query: expected one of {', '.join(maps)}, got {options.query!r}")
    if options.plot is not None:
        require_suffix("--plot", options.plot, ".png")

    started = time.perf_counter()
    for _ in range(_REPEATS):
        descriptors = rmac.rmac(list(maps.values()))
    seconds = (time.perf_counter() - started) / _REPEATS / len(maps)

    query = maps[options.query]
    grid = rmac.region_grid(*query.shape[1:])
    similarity = dict(
        zip(maps, descriptors @ descriptors[list(maps).index(options.query)], strict=True)
    )
    _print_ranking(options.query, similarity)
    print(
        f"\n{len(maps)} feature maps, {query.shape[0]} channels: "
        f"{seconds * 1e3:.3f} ms per image; {options.query} has {len(grid)} regions on "
        f"{grid.height}x{grid.width} cells"
    )
    if options.plot is not None:
        _plot(grid, options.plot)
        print(f"region grid of {options.query} drawn to {options.plot}")


def _print_ranking(query: str, similarity: dict[str, Any]) -> None:
    ranking = sorted((name for name in similarity if name != query), key=lambda n: -similarity[n])
    print(f"query: {query}\n\nrank  similarity  photograph")
    for rank, name in enumerate(ranking, 1):
        print(f"{rank:4}  {similarity[name]:10.4f}  {name}")


def _plot(grid: rmac.RegionGrid, path: str) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("--plot needs matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=(8, 4.8), layout="compressed")
    grid.plot(ax=figure.add_subplot())
    with atomic_write(path) as file:
        figure.savefig(file, dpi=150, format="png")
