"""The command ``rmac whiten``: learn a whitening from the vectors in files of any size."""

from __future__ import annotations

from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

import rmac
from rmac._io import atomic_write
from rmac.cli.files import batches, naming, require_suffix
from rmac.cli.inputs import open_inputs
from rmac.cli.rows import BadRows
from rmac.cli.whitenings import VECTOR_AXES, kind_of
from rmac.whitening.archive import write_archive

if TYPE_CHECKING:
    import argparse

    from rmac.whitening.state import VectorKind


_MOST_CHANNELS = 1 << 18  # a thousand vectors of them are 2 GB in float64


def run(options: argparse.Namespace) -> None:
    """Learn from all vectors of some files, a batch at a time, and save what was learned."""
    require_suffix("--output", options.output, ".npz")
    vectors = open_inputs(options.source, options.key, VECTOR_AXES, strict=options.strict)
    kind: VectorKind = options.kind or kind_of(vectors)
    vectors.require_alike(-1, "channels")
    if vectors.shape[-1] > _MOST_CHANNELS:
        expected = f"at most {_MOST_CHANNELS} channels"
        raise ValueError(f"{vectors.name}: expected {expected}, got {vectors.shape[-1]}")
    with naming({"vectors": vectors.name, "dim": "--dim", "eps": "--eps"}):
        whitening = rmac.Whitening(options.dim, eps=options.eps, kind=kind)
        # A batch of no vectors checks options, dtype and shape before any file is written.
        whitening.partial_fit(np.empty((0, *vectors.shape[1:]), vectors.dtype))
        bad = BadRows(vectors, strict=options.strict)
        with atomic_write(options.output, *vectors.paths) as file:
            with closing(batches(vectors, "row")) as parts:
                for part in parts:
                    for rows, block in chain.from_iterable(tile() for tile in part.tiles):
                        bad.look(rows, block, finite=True)
                        whitening.partial_fit(block)
                    bad.passed(len(part))
            bad.tell()
            if not len(whitening._ready().projection):  # which raises for too few vectors
                raise ValueError(
                    "vectors: expected some that differ, got some that differ by rounding at most, "
                    "so that all directions are cut; learn from others, or raise --eps"
                )
            write_archive(file, whitening._contents())
