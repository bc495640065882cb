"""The command ``rmac whiten``: learn a whitening from the vectors in a file of any size."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np

import rmac
from rmac._io import atomic_write
from rmac.cli.files import batches, naming, open_array, require_suffix
from rmac.whitening.archive import write_archive

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> None:
    """Learn from all vectors of a file, a batch at a time, and save what was learned."""
    require_suffix("--output", options.output, ".npz")
    vectors = open_array(options.vectors, options.key)
    if vectors.ndim not in (2, 3):
        axes = "2 or 3 axes, (M, C) or (N, R, C)"
        raise ValueError(f"{vectors.name}: expected {axes}, got shape {vectors.shape}")
    whitening = rmac.Whitening(options.dim, eps=options.eps)
    with naming(vectors, "vectors"):
        # A batch of no vectors checks options, dtype and shape before any file is written.
        whitening.partial_fit(np.empty((0, *vectors.shape[1:]), vectors.dtype))
        with atomic_write(options.output, options.vectors) as file:
            with closing(batches(vectors, "row")) as parts:
                for part in parts:
                    whitening.partial_fit(part)
            whitening._ready()  # raises for too few vectors
            write_archive(file, whitening._contents())
