"""The file of a whitening: an ``.npz`` of its options and of all that it has learned."""

from __future__ import annotations

import zipfile
from typing import IO, Any, NamedTuple

import numpy as np

from rmac._arrays import real_numbers
from rmac.whitening.moments import Learned, Moments, checked_learned

_FORMAT = 1  # raise it when older readers would misread a file


class Contents(NamedTuple):
    """The contents of a file, with arrays on the host. It has moments, a projection or both."""

    dim: int | None
    eps: float
    moments: Moments | None
    learned: Learned | None


def write_archive(file: IO[bytes], contents: Contents) -> None:
    """Write the contents to a file."""
    arrays: dict[str, Any] = {"format": _FORMAT, "dim": contents.dim, "eps": contents.eps}
    if contents.learned is not None:
        arrays |= contents.learned._asdict()
    if contents.moments is not None:
        number, mean, scatter = contents.moments
        arrays |= {"count": number, "mean": mean, "scatter": scatter}
    np.savez(file, **{name: part for name, part in arrays.items() if part is not None})


def read_archive(file: IO[bytes]) -> Contents:
    """Return what `write_archive` wrote. Broken files raise errors of any type."""
    if not zipfile.is_zipfile(file):
        raise ValueError("it is not an .npz file")
    archive = np.load(file, allow_pickle=False)
    if archive["format"] != _FORMAT:
        raise ValueError(f"format: expected {_FORMAT}, got {archive['format']}")
    mean = real_numbers(archive["mean"], "mean")
    if mean.ndim != 1 or not mean.size:
        raise ValueError(f"mean: expected shape (C,), got {mean.shape}")
    moments = learned = None
    if "scatter" in archive:
        count, least = archive["count"].item(), 2 if "projection" in archive else 0
        if type(count) is not int or count < least:
            raise ValueError(f"count: expected an integer of at least {least}, got {count}")
        scatter = real_numbers(archive["scatter"], "scatter", [2 * mean.shape])
        moments = Moments(count, mean, scatter)
    if "projection" in archive or moments is None:
        learned = checked_learned(mean, archive["projection"], archive.get("variances"))
    return Contents(archive.get("dim"), archive["eps"], moments, learned)
