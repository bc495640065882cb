"""The moments of any number of vectors: what a whitening is learned from."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rmac._backend import Array, backend_of, device_context, namespace_of
from rmac._dtypes import dtype_info
from rmac._floats import default_floats

if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOCK = 1 << 25  # bytes of vectors that are copied to float64 at a time


class Moments(NamedTuple):
    """The number of vectors, their mean (C,), and their scatter about the mean.

    The scatter (C, C) is held as it is, or as fewer than C rows (K, C): scatter = rows.T @ rows.
    One of the two is None.
    """

    number: int
    mean: Array
    scatter: Array | None
    rows: Array | None
    unit: float  # the largest relative rounding error of the values; 0 if they are exact

    @classmethod
    def of(cls, vectors: Array, *, whole: bool = False) -> Moments:
        """Return the moments of vectors (..., C), in float64.

        The scatter is whole if there are at least C vectors, or if `whole` asks for it.
        """
        number, channels = math.prod(vectors.shape[:-1]), vectors.shape[-1]
        unit = dtype_info(vectors.dtype).unit
        with device_context(vectors), default_floats():
            xp, blocks = namespace_of(vectors), blocks_of(vectors, np.dtype(np.float64))
            if number < channels and not whole:
                rows = xp.zeros((number, channels))
                done = 0
                for block in blocks:
                    backend_of(block).require_finite(block, "vectors")
                    rows[done : done + len(block)] = block
                    done += len(block)
                mean = _centre(rows)
                # One vector is its own mean: its row is 0, and left out.
                return cls(number, mean, None, rows if number > 1 else rows[:0], unit)
            moments = cls(0, xp.zeros(channels), None, xp.zeros((0, channels)), unit)
            for block in blocks:
                backend_of(block).require_finite(block, "vectors")
                mean = _centre(block)
                moments = moments.merged(cls(len(block), mean, block.T @ block, None, unit))
        return moments

    def merged(self, other: Moments) -> Moments:
        """Return the moments of the vectors of both, by the update of Chan, Golub and LeVeque."""
        unit = max(self.unit, other.unit)
        if not (self.number and other.number):
            return (self if self.number else other)._replace(unit=unit)
        number = self.number + other.number
        share = self.number * other.number / number
        with device_context(self.mean), default_floats():
            xp = namespace_of(self.mean)
            difference = other.mean - self.mean
            mean = self.mean + difference * (other.number / number)
            if self.rows is not None and other.rows is not None:
                between = (difference * math.sqrt(share))[None]
                rows = xp.concatenate([self.rows, other.rows, between])
                if len(rows) < len(mean):
                    return Moments(number, mean, None, rows, unit)
                return Moments(number, mean, rows.T @ rows, None, unit)
            scatter = xp.outer(difference, difference * share)
            scatter += self.whole_scatter()
            scatter += other.whole_scatter()
        return Moments(number, mean, scatter, None, unit)

    def require_finite(self) -> None:
        """Raise unless all numbers are finite, and wait until a device has computed them."""
        with device_context(self.mean), default_floats():
            if not math.isfinite(float(self.mean.sum()) + float(self.channel_scatter().sum())):
                raise ValueError(
                    "vectors: expected finite numbers whose squares fit float64, got others"
                )

    def whole_scatter(self) -> Array:
        """Return the scatter (C, C)."""
        return self.scatter if self.rows is None else self.rows.T @ self.rows

    def channel_scatter(self) -> Array:
        """Return the diagonal (C,) of the scatter."""
        if self.rows is None:
            return self.scatter.diagonal()  # type: ignore[union-attr]
        return (self.rows * self.rows).sum(axis=0)


def _centre(vectors: Array) -> Array:
    """Subtract the mean from vectors (M, C), and return it.

    The first mean of a large number of large values is off by more than a rounding. The mean of
    what it leaves corrects it, so that a constant channel becomes 0.
    """
    if not len(vectors):
        return namespace_of(vectors).zeros(vectors.shape[1])
    mean = vectors.mean(axis=0)
    vectors -= mean
    rest = vectors.mean(axis=0)
    vectors -= rest
    return mean + rest


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
