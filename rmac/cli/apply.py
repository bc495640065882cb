"""The command ``rmac apply``: whiten the vectors in a file of any size."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rmac._backend import HOST
from rmac._options import Aggregate, AggregationOptions
from rmac.cli.files import naming, require_suffix, results
from rmac.cli.inputs import open_inputs
from rmac.cli.rows import write_rows
from rmac.cli.whitenings import VECTOR_AXES, kind_of, load_whitening, require_channels

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from rmac import Whitening
    from rmac.cli.parts import Rows, Tile

_NORMALIZED = AggregationOptions(
    normalize_regions=True, aggregate=Aggregate.NONE, normalize=False, eps=0.0
)


def run(options: argparse.Namespace) -> None:
    """Read vectors from files a batch at a time, and write them whitened to another."""
    require_suffix("--output", options.output, ".npy", ".npz")
    vectors = open_inputs(options.source, options.key, VECTOR_AXES, strict=options.strict)
    whitening = load_whitening(options.whitening, kind_of(vectors), strict=options.strict)
    require_channels(whitening, options.whitening, vectors, axis=-1)
    for shape, name in vectors.distinct().items():
        if shape != vectors.shape[1:]:
            raise ValueError(f"{name}: expected shape {vectors.shape[1:]} of each row, got {shape}")

    def whitened(part: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        return _whitened(whitening, part, normalize=options.normalize)

    with naming({"vectors": vectors.name, "whitening": options.whitening}):
        # A batch of no vectors checks dtype and shape before any file is written.
        none = whitened(np.empty((0, *vectors.shape[1:]), vectors.dtype))

    def of_tile(tile: Tile) -> Iterator[tuple[Rows, npt.NDArray[np.generic]]]:
        return ((rows, whitened(block)) for rows, block in tile)

    with closing(results(vectors, "row", none, of_tile)) as parts:
        write_rows(options, vectors, [*vectors.paths, options.whitening], none, parts)


def _whitened(
    whitening: Whitening, vectors: npt.NDArray[np.generic], *, normalize: bool
) -> npt.NDArray[np.generic]:
    """Return vectors (M, C) or (N, R, C) whitened, and of length 1 if `normalize`."""
    result = whitening.apply(vectors)
    if normalize and result.size:
        flat = result.reshape(-1, 1, result.shape[-1])  # a view: they are normalised in place
        HOST.describe(flat, flat, _NORMALIZED)
    return result
