"""Learning of a whitening: the moments of any number of vectors, and their components."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rmac._arrays import real_numbers
from rmac._backend import (
    Array,
    backend_of,
    device_context,
    namespace_of,
    require_same_device,
)
from rmac._checks import warn

if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOCK = 1 << 25  # bytes of vectors that are copied to float64 at a time
_TIE = 1e-9  # magnitudes that differ by a smaller share may be equal but for rounding
_EPS = float(np.finfo(np.float64).eps)


class Moments(NamedTuple):
    """The number of vectors, their mean (C,), and their scatter about the mean (C, C)."""

    number: int
    mean: Array
    scatter: Array

    @classmethod
    def of(cls, vectors: Array) -> Moments:
        """Return the moments of vectors (..., C), in float64."""
        with device_context(vectors):
            xp, channels = namespace_of(vectors), vectors.shape[-1]
            moments = cls(0, xp.zeros(channels), xp.zeros((channels, channels)))
            for block in blocks_of(vectors, np.dtype(np.float64)):
                backend_of(block).require_finite(block, "vectors")
                mean = block.mean(axis=0)
                block -= mean
                moments = moments.merged(cls(len(block), mean, block.T @ block))
        return moments

    def merged(self, other: Moments) -> Moments:
        """Return the moments of the vectors of both, by the update of Chan, Golub and LeVeque."""
        with device_context(self.mean):
            number = max(1, self.number + other.number)
            difference = other.mean - self.mean
            scatter = namespace_of(difference).outer(
                difference, difference * (self.number * other.number / number)
            )
            scatter += self.scatter
            scatter += other.scatter
            mean = self.mean + difference * (other.number / number)
        return Moments(self.number + other.number, mean, scatter)


class Learned(NamedTuple):
    """The mean (C,), the projection (D, C), and the variances (D,) of its rows, None if unknown."""

    mean: Array
    projection: Array
    variances: Array | None


def checked_learned(mean: Array, projection: Array, variances: Array | None = None) -> Learned:
    """Return what was learned elsewhere, or raise if shapes or devices do not match."""
    projection = real_numbers(projection, "projection")
    if projection.ndim != 2 or not projection.size:
        raise ValueError(f"projection: expected shape (D, C), got {projection.shape}")
    dim, channels = projection.shape
    mean = real_numbers(mean, "mean", [(channels,), (channels, 1)]).reshape(-1)
    require_same_device(mean, "mean", projection, "the projection")
    if variances is not None:
        variances = real_numbers(variances, "variances", [(dim,)])
    return Learned(mean, projection, variances)


def blocks_of(vectors: Array, dtype: np.dtype[Any]) -> Iterator[Array]:
    """Yield C-ordered copies (M, C) of vectors (..., C), a block at a time."""
    if vectors.ndim == 1:
        vectors = vectors[None]
    if not vectors.size:
        return
    fitting = max(1, _BLOCK // (vectors.shape[-1] * dtype.itemsize))
    inside = math.prod(vectors.shape[1:-1])
    if inside > fitting:
        for part in vectors:
            yield from blocks_of(part, dtype)
        return
    step = fitting // inside
    for first in range(0, len(vectors), step):
        block = vectors[first : first + step].astype(dtype, order="C")
        yield block.reshape(-1, vectors.shape[-1])


def learn(moments: Moments, dim: int | None, eps: float) -> Learned:
    """Return the principal components, largest variance first, scaled to a variance of 1."""
    require_enough(moments.number)
    if not math.isfinite(float(moments.scatter.trace())):
        raise ValueError("vectors: expected finite numbers whose squares fit float64, got others")
    xp = namespace_of(moments.scatter)
    variances, vectors = xp.linalg.eigh(moments.scatter / moments.number)
    variances = xp.maximum(variances[::-1][:dim], 0.0)
    rows = xp.ascontiguousarray(vectors.T[::-1][:dim])
    size = abs(rows)
    strongest = (size >= size.max(axis=1, keepdims=True) * (1 - _TIE)).argmax(axis=1)
    sign = xp.sign(xp.take_along_axis(rows, strongest[:, None], axis=1))
    floor = _floor(variances, len(moments.mean), eps)
    scale = xp.sqrt(xp.maximum(variances, floor))[:, None]
    return Learned(moments.mean, rows * sign / scale, variances)


def require_enough(number: int) -> None:
    """Raise if there are too few vectors for variances."""
    if number < 2:
        raise ValueError(f"vectors: expected at least 2 vectors to learn from, got {number}")


def _floor(variances: Array, channels: int, eps: float) -> float:
    """Return the least variance to divide by: `eps`, or more if some variances are rounding."""
    noise = channels * _EPS * (float(variances[0]) or 1.0)
    near_zero = int((variances < noise).sum())
    if near_zero and eps < noise:
        warn(
            f"{near_zero} of {len(variances)} variances are zero to rounding, and are taken as "
            f"{noise:.2g}; reduce dim or raise eps, since whitening amplifies their noise"
        )
        return noise
    return eps
