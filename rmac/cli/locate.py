"""The command ``rmac locate``: find the objects of queries in the feature maps of a file."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import rmac
from rmac._maps import require_axes
from rmac.cli.files import batches, naming, open_array, require_suffix
from rmac.cli.formats import split_path
from rmac.cli.queries import open_queries, read_maps, read_vectors, search_options
from rmac.cli.rows import write_rows

if TYPE_CHECKING:
    import argparse

_COLUMNS = 5  # x1, y1, x2, y2 and the score


def run(options: argparse.Namespace) -> None:
    """Read maps from a file a batch at a time, and write where each query is in them."""
    require_suffix("--output", options.output, ".npy")
    maps = open_array(options.source, options.key)
    settings = search_options(options)
    layout = settings.get("layout", "NCHW")
    with naming({"x": maps.name}):
        require_axes(maps, layout)
    file = open_queries(options.queries)
    if file.ndim not in (2, 4):
        raise ValueError(
            f"{file.name}: expected vectors (Q, C), or maps ({', '.join('Q' + layout[1:])}), "
            f"got shape {file.shape}"
        )
    queries = (read_vectors if file.ndim == 2 else read_maps)(file, options)

    def located(part: npt.NDArray[Any]) -> npt.NDArray[Any]:
        part = searchable(part, settings)
        found = rmac.localize(part, queries.maxima, aspect=queries.aspects, **settings)
        return (
            np.concatenate([found.boxes, found.scores[..., None]], axis=2)
            .swapaxes(0, 1)
            .astype(found.scores.dtype, order="C")
        )

    flags = {name: f"--{name}" for name in (*settings, "aspect")}
    with naming(flags | {"x": maps.name, "queries": file.name}):
        # A batch of no maps checks options, dtype and shape before any file is written.
        none = located(np.empty((0, *maps.shape[1:]), maps.dtype))
    row_bytes = none.shape[1] * _COLUMNS * none.itemsize
    paths = (options.source, options.queries, options.boxes)
    others = [split_path(path)[0] for path in paths if path is not None]
    with closing(batches(maps, "map", row_bytes)) as parts:
        write_rows(options, maps, others, none, map(located, parts))


def searchable(maps: npt.NDArray[Any], settings: dict[str, Any]) -> npt.NDArray[Any]:
    """Return maps as the search takes them: the levels of the paper for "aml"."""
    if settings.get("search") == "aml" and maps.dtype != np.uint8:
        levels: npt.NDArray[Any] = rmac.quantize(maps)
        return levels
    return maps
