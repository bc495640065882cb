"""The command ``rmac demo``: rank photographs by similarity, and find one in another."""

from __future__ import annotations

import time
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import rmac
from rmac._io import atomic_write
from rmac._plot import plot_box
from rmac.cli.files import require_suffix

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from matplotlib.axes import Axes

    Maps = dict[str, npt.NDArray[np.uint8]]

_REPEATS = 20


def feature_maps() -> Maps:
    """Return the feature maps (C, H, W) that rmac ships, by the names of their photographs."""
    with as_file(files("rmac") / "data" / "features.npz") as path, np.load(path) as archive:
        return {name: archive[name] for name in archive.files if "__" not in name}


def run(options: argparse.Namespace) -> None:
    """Print the ranking of the photographs for a query, or where it is in the first; draw it."""
    maps = feature_maps()
    if options.query not in maps:
        raise ValueError(f"--query: expected one of {', '.join(maps)}, got {options.query!r}")
    if options.plot is not None:
        require_suffix("--plot", options.plot, ".png")
    (_locate if options.locate else _rank)(options, maps)


def _rank(options: argparse.Namespace, maps: Maps) -> None:
    """Print the ranking of the photographs for a query, and draw its region grid if asked."""
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
        _draw(options.plot, lambda ax: grid.plot(ax=ax))
        print(f"region grid of {options.query} drawn to {options.plot}")


def _locate(options: argparse.Namespace, maps: Maps) -> None:
    """Print where a query is in the most similar photograph, and draw it if asked."""
    query = maps[options.query]
    descriptors = dict(zip(maps, rmac.rmac(list(maps.values())), strict=True))
    others = [name for name in maps if name != options.query]
    scene = max(others, key=lambda name: descriptors[name] @ descriptors[options.query])
    x, (height, width) = maps[scene][None], maps[scene].shape[1:]
    maxima = query.max(axis=(1, 2)).astype(np.float32)
    started = time.perf_counter()
    found = rmac.localize(x, maxima, aspect=query.shape[1] / query.shape[2])
    milliseconds = (time.perf_counter() - started) * 1e3
    x1, y1, x2, y2 = box = found.boxes[0].tolist()
    print(
        f"query: {options.query}\nscene: {scene}, the most similar photograph\n\n"
        f"{options.query} is at x {x1} to {x2} and y {y1} to {y2} of {height}x{width} cells, "
        f"similarity {found.scores[0]:.4f}; found in {milliseconds:.2f} ms"
    )
    if options.plot is not None:
        _draw(options.plot, lambda ax: plot_box(x[0], box, ax))
        print(f"box of {options.query} drawn over {scene} to {options.plot}")


def _print_ranking(query: str, similarity: dict[str, Any]) -> None:
    ranking = sorted((name for name in similarity if name != query), key=lambda n: -similarity[n])
    print(f"query: {query}\n\nrank  similarity  photograph")
    for rank, name in enumerate(ranking, 1):
        print(f"{rank:4}  {similarity[name]:10.4f}  {name}")


def _draw(path: str, draw: Callable[[Axes], object]) -> None:
    """Write a picture that a function draws."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("--plot needs matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=(8, 4.8), layout="compressed")
    draw(figure.add_subplot())
    with atomic_write(path) as file:
        figure.savefig(file, dpi=150, format="png")
