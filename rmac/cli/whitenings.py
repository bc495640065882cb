"""Whitenings in files, and what they were learned from: regional vectors or descriptors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import rmac
from rmac._checks import warn
from rmac._io import require_regular

if TYPE_CHECKING:
    from rmac.cli.array_file import ArrayFile

_USE = {
    "regions": "regional vectors: give it to rmac describe --whitening",
    "descriptors": "descriptors: give it to rmac apply, with descriptors",
}
KINDS = tuple(_USE)


def kind_of(vectors: ArrayFile) -> str:
    """Return what the vectors of a file are by their axes, or raise."""
    if vectors.ndim not in (2, 3):
        axes = "2 or 3 axes, (M, C) or (N, R, C)"
        raise ValueError(f"{vectors.name}: expected {axes}, got shape {vectors.shape}")
    return "regions" if vectors.ndim == 3 else "descriptors"


def load_whitening(path: str, kind: str, *, strict: bool) -> rmac.Whitening:
    """Read a whitening. If it was learned from another kind of vectors, warn; if strict, raise."""
    require_regular(path)
    whitening = rmac.Whitening.load(path)
    learned_from = getattr(whitening, "kind", None)
    if learned_from not in (None, kind):
        message = f"{path}: expected a whitening of {kind}, got one of {_USE[learned_from]}"
        if strict:
            raise ValueError(f"{message}; without --strict this is a warning")
        warn(f"{message}; --strict makes this an error")
    return whitening
