"""Whitenings in files, and what they were learned from: regional vectors or descriptors."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import rmac
from rmac._checks import warn

if TYPE_CHECKING:
    from rmac.cli.array_file import ArrayFile
    from rmac.cli.inputs import Inputs
    from rmac.whitening.state import VectorKind

_USE: dict[VectorKind, str] = {
    "regions": "regions: give it to rmac describe --whitening",
    "descriptors": "descriptors: give it to rmac apply, with descriptors",
}


VECTOR_AXES = (2, 3)  # of vectors (M, C), and of regional vectors (N, R, C)


def kind_of(vectors: Inputs) -> VectorKind:
    """Return what the vectors of a file are by their axes, or raise."""
    if vectors.ndim not in VECTOR_AXES:
        axes = "2 or 3 axes, (M, C) or (N, R, C)"
        raise ValueError(f"{vectors.name}: expected {axes}, got shape {vectors.shape}")
    return "regions" if vectors.ndim == 3 else "descriptors"


def load_whitening(path: str, kind: VectorKind, *, strict: bool) -> rmac.Whitening:
    """Read a whitening. If it was learned from another kind of vectors, warn; if strict, raise."""
    whitening = rmac.Whitening.load(path)
    if whitening.kind not in (None, kind):
        message = f"{path}: expected a whitening of {kind}, got one of {_USE[whitening.kind]}"
        if strict:
            raise ValueError(f"{message}; without --strict this is a warning")
        warn(f"{message}; --strict makes this an error")
        warnings.filterwarnings("ignore", "whitening: ")  # rmac.rmac would say it once more
    return whitening


def require_channels(
    whitening: rmac.Whitening, path: str, source: ArrayFile | Inputs, axis: int
) -> None:
    """Raise unless a whitening is of as many channels as an array has along an axis."""
    channels = source.shape[axis]
    if whitening.channels != channels:
        raise ValueError(
            f"{source.name}: expected {whitening.channels} channels, as {path} was learned from, "
            f"got {channels}"
        )
