"""The command ``rmac rerank``: look for each query in the maps that were ranked first."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

import rmac
from rmac._checks import positive_int, warn
from rmac._io import atomic_write
from rmac._maps import require_axes
from rmac.cli.files import naming, open_array, progress, require_suffix
from rmac.cli.formats import split_path
from rmac.cli.locate import searchable
from rmac.cli.queries import Queries, open_queries, read_maps, search_options
from rmac.cli.ranks import holds_ranks, open_ranks, rank, read_ranks
from rmac.cli.whitenings import load_whitening, require_channels

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from rmac.cli.array_file import ArrayFile
    from rmac.cli.ranks import Ranks

    Images = npt.NDArray[np.int64]

_BLOCK = 1 << 26  # bytes of the maps that are searched at a time
_SHOWN = 5  # numbers of bad maps in a message


def run(options: argparse.Namespace) -> None:
    """Read queries and ranks, and write the ranks with the first of them in another order."""
    require_suffix("--output", options.output, ".npy")
    maps, queries = open_array(options.source, options.key), open_queries(options.queries)
    ranks, whitening = open_ranks(options.ranks), getattr(options, "whitening", None)
    search = search_options(options)
    for file in (maps, queries):
        with naming({"x": file.name}):
            require_axes(file, search.get("layout", "NCHW"))
    _require_fitting(ranks, maps, queries)
    reranker = _Reranker(
        maps,
        search,
        _description(options, maps, search.get("layout", "NCHW")),
        positive_int("--top", options.top),
        0 if options.expand is None else positive_int("--expand", options.expand),
    )
    reranker.require_options(queries, options.aspect)
    sources = [options.source, options.queries, options.ranks, options.boxes, whitening]
    paths = [split_path(path)[0] for path in sources if path is not None]
    with atomic_write(options.output, *paths) as output:
        read = read_maps(queries, options, reranker.describe)
        if holds_ranks(ranks):
            rows = read_ranks(ranks, maps.shape[0])
        else:
            rows = rank(ranks, read.descriptors, strict=options.strict)
        _write(output, reranker, rows, read)
        reranker.tell_bad(strict=options.strict)


def _require_fitting(ranks: ArrayFile, maps: ArrayFile, queries: ArrayFile) -> None:
    """Raise unless there are as many ranks as queries, or as many descriptors as maps."""
    other, what = (queries, "rows of ranks") if holds_ranks(ranks) else (maps, "descriptors")
    if ranks.shape[0] != other.shape[0]:
        expected = f"{other.shape[0]} {what}, as {other.name} has maps"
        raise ValueError(f"{ranks.name}: expected {expected}, got {ranks.shape[0]}")


def _description(options: argparse.Namespace, maps: ArrayFile, layout: str) -> dict[str, Any]:
    """Return the options by which maps and queries are described."""
    given = vars(options)
    names = ("levels", "preset", "workers")
    description = {"preset": "matlab"} | {name: given[name] for name in names if name in given}
    if "whitening" in given:
        path = given["whitening"]
        description["whitening"] = load_whitening(path, "regions", strict=options.strict)
        require_channels(description["whitening"], path, maps, layout.index("C"))
    return description


def _write(output: IO[bytes], reranker: _Reranker, rows: Ranks, queries: Queries) -> None:
    """Write the new ranks of all queries, filled with -1 where a query has fewer than others."""
    shape = (len(rows), max(map(len, rows)))
    header = {"descr": npy.dtype_to_descr(np.dtype(np.int64)), "fortran_order": False}
    npy.write_array_header_1_0(output, header | {"shape": shape})
    with progress(len(rows), "query") as advance:
        for i, row in enumerate(rows):
            line = np.full(shape[1], -1, np.int64)
            line[: len(row)] = reranker.reorder(row, queries, i)
            output.write(line.data)
            advance(1)


@dataclass(frozen=True)
class _Reranker:
    """How the first images of a ranking are put in another order."""

    maps: ArrayFile
    search: dict[str, Any]
    description: dict[str, Any]
    top: int
    expand: int  # descriptors to add to a query before the last order; 0: none
    bad: set[int] = field(default_factory=set)  # maps without a finite descriptor

    def require_options(self, queries: ArrayFile, aspect: float | None) -> None:
        """Raise if options are wrong, or queries and maps do not fit each other."""
        settings = self.search | self.description
        flags = {name: f"--{name}" for name in (*settings, "aspect")}
        channels = queries.shape[self.search.get("layout", "NCHW").index("C")]
        none = np.empty((0, *self.maps.shape[1:]), self.maps.dtype)
        with naming(flags | {"x": self.maps.name, "queries": queries.name}):
            none = searchable(none, self.search)
            rmac.localize(none, np.ones(channels), aspect=aspect, **self.search)
            self.describe(np.empty((0, channels, 1, 1), self.maps.dtype))

    def describe(self, x: Sequence[npt.NDArray[Any]] | npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the descriptors of maps (C, h, w)."""
        return rmac.rmac(x, **self.description)

    def reorder(self, row: Images, queries: Queries, i: int) -> Images:
        """Return the images of a row in their new order, for query i."""
        first = row[: self.top]
        if not len(first):
            return row
        scores, vectors = self._compare(first, queries, i)
        self.bad.update(first[~np.isfinite(scores)].tolist())
        order = np.argsort(-scores, kind="stable")
        if self.expand:
            query = queries.descriptors[i : i + 1]
            expanded = rmac.expand(query, vectors, order[None, : self.expand])
            order = np.argsort(-(vectors @ expanded[0]), kind="stable")
        return np.concatenate([first[order], row[self.top :]])

    def _compare(
        self, images: Images, queries: Queries, i: int
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return how similar each image is to query i where it was found, and its descriptor."""
        row_bytes = prod(self.maps.shape[1:]) * self.maps.dtype.itemsize
        step = max(1, _BLOCK // max(1, row_bytes))
        results = []
        for start in range(0, len(images), step):
            block = self._read(images[start : start + step])
            found = rmac.localize(
                searchable(block, self.search),
                queries.maxima[i],
                aspect=None if queries.aspects is None else float(queries.aspects[i]),
                **self.search,
            )
            layout = self.search.get("layout", "NCHW")
            query = queries.descriptors[i]
            results.append(
                rmac.rerank(query, block, found.boxes, layout=layout, **self.description)
            )
        scores, vectors = zip(*((one.scores, one.vectors) for one in results), strict=True)
        return np.concatenate(scores), np.concatenate(vectors)

    def _read(self, images: Images) -> npt.NDArray[Any]:
        block = np.empty((len(images), *self.maps.shape[1:]), self.maps.dtype)
        for place, image in zip(block, images.tolist(), strict=True):
            place[...] = self.maps.read(image, image + 1)[0]
        return block

    def tell_bad(self, *, strict: bool) -> None:
        """Warn of maps whose descriptors are not finite; if strict, raise."""
        if not self.bad:
            return
        shown = ", ".join(map(str, sorted(self.bad)[:_SHOWN]))
        more = ", ..." if len(self.bad) > _SHOWN else ""
        message = f"{self.maps.name}: bad rows: {len(self.bad)} not finite ({shown}{more})"
        if strict:
            raise ValueError(f"{message}; without --strict this is a warning")
        warn(f"{message}; they come last of the first {self.top}; --strict makes this an error")
