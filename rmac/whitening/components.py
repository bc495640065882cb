"""Principal components of moments, and which of them are more than rounding."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rmac._arrays import real_numbers
from rmac._backend import Array, backend_of, namespace_of, require_same_device
from rmac._checks import warn
from rmac.whitening.eigen import largest_eigenpairs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rmac.whitening.moments import Moments

_TIE = 1e-9  # elements of an eigenvector that differ by a smaller share count as equal
_EPS = float(np.finfo(np.float64).eps)


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


def require_enough(number: int) -> None:
    """Raise if there are too few vectors for variances."""
    if number < 2:
        raise ValueError(f"vectors: expected at least 2 vectors to learn from, got {number}")


def learn(moments: Moments, dim: int | None, eps: float) -> Learned:
    """Return the principal components, largest variance first, scaled to a variance of 1."""
    require_enough(moments.number)
    moments.require_finite()
    scatter = moments.channel_scatter()
    squares = moments.mean * moments.mean + scatter / moments.number
    asked = dim or len(scatter)
    for found in _directions(moments, asked):
        noise = np.maximum(found.noise, _noise_of_values(found.rows, squares, moments))
        variances = backend_of(found.variances).to_host(found.variances)
        kept = np.flatnonzero(np.maximum(variances, eps) >= noise)[:asked]
        if len(kept) == asked or max(found.rest, eps) < found.noise:
            break
    return _scaled(moments.mean, found, kept, eps)


def warn_of_cut(kept: int, asked: int) -> None:
    """Warn if fewer components are kept than were asked for."""
    if kept < asked:
        warn(
            f"{asked - kept} of {asked} variances are zero to rounding, so their directions are "
            f"cut, and the projection has {kept} rows; learn from more vectors, or reduce dim or "
            "raise eps"
        )


class _Directions(NamedTuple):
    """The directions of the largest variances, as vectors of length 1."""

    variances: Array  # (K,), largest first
    rows: Array  # (K, C)
    noise: float  # the variance that rounding in float64 may give to any direction
    rest: float  # no other direction has a larger variance


def _directions(moments: Moments, count: int) -> Iterator[_Directions]:
    """Yield the `count` directions of the largest variances, then more in case some are cut.

    Those from few vectors are fewer than `count` if the variances of all others are rounding.
    """
    number, channels = moments.number, len(moments.mean)
    xp = namespace_of(moments.mean)
    if moments.rows is not None:
        # The products of K rows have the eigenvalues of the scatter, and K < C.
        inner = moments.rows @ moments.rows.T / number
        for wanted in sorted({min(count, len(inner)), len(inner)}):
            variances, vectors = largest_eigenpairs(inner, wanted)
            noise = _noise_of_moments(float(variances[0]), number, channels)
            certain = int((variances > noise).sum())
            rest = float(variances[-1]) if certain == wanted < len(inner) else 0.0
            rows = vectors[:, :certain].T @ moments.rows
            rows = rows / xp.sqrt((rows * rows).sum(axis=1))[:, None]
            yield _Directions(variances[:certain], rows, noise, rest)
    covariance = moments.whole_scatter() / number
    for wanted in sorted({count, channels}):
        variances, vectors = largest_eigenpairs(covariance, wanted)
        variances = xp.maximum(variances, 0.0)
        noise = _noise_of_moments(float(variances[0]), number, channels)
        rest = float(variances[-1]) if wanted < channels else 0.0
        yield _Directions(variances, xp.ascontiguousarray(vectors.T), noise, rest)


def _noise_of_moments(largest: float, number: int, channels: int) -> float:
    """Return the variance that rounding in float64 may give to a direction without variance.

    `numpy.linalg.matrix_rank` has C * eps * largest for a symmetric (C, C) matrix: that is the
    rounding of the eigenvalues. The scatter is itself a sum over N vectors, and its elements are
    off by sqrt(N) * eps of their size, if roundings are independent (Higham and Mary, "A new
    approach to probabilistic rounding error analysis", 2019). A (C, C) matrix of independent
    errors has a norm of sqrt(C) of them. So it is sqrt(C * N) * eps * largest for N above C.
    """
    noise = _EPS * math.sqrt(channels * max(channels, number)) * largest
    return max(noise, float(np.finfo(np.float64).tiny))


def _noise_of_values(rows: Array, squares: Array, moments: Moments) -> Array:
    """Return the variance in each direction (K, C) that the rounding of the vectors gives.

    A value v is off by at most unit * |v|. The roundings of channels are independent, so their
    variances add up with the squares of the direction's elements. `squares` are the mean squares of
    the channels. N vectors of C channels of noise of variance 1 have a largest variance of
    (1 + sqrt(C / N))**2 (Marchenko and Pastur, 1967).

    Means are rounded to float64 also where values are exact, which matters if they are far larger
    than the spread. The unit therefore is at least the eps of float64.
    """
    unit = max(moments.unit, _EPS)
    edge = 1 + math.sqrt(len(squares) / moments.number)
    return backend_of(rows).to_host((rows * rows) @ squares) * (unit * edge) ** 2


def _scaled(mean: Array, found: _Directions, kept: Array, eps: float) -> Learned:
    """Return the kept directions, scaled to a variance of 1, with the sign that is documented."""
    variances, rows, xp = found.variances, found.rows, namespace_of(mean)
    if not len(kept) or kept[-1] < len(kept):  # the first ones, as a rule: slices take no memory
        variances, rows = variances[: len(kept)], rows[: len(kept)]
    else:
        kept = xp.asarray(kept)
        variances, rows = xp.take(variances, kept), xp.take(rows, kept, axis=0)
    size = abs(rows)
    strongest = (size >= size.max(axis=1, keepdims=True) * (1 - _TIE)).argmax(axis=1)
    sign = xp.sign(xp.take_along_axis(rows, strongest[:, None], axis=1))
    scale = xp.sqrt(xp.maximum(variances, eps))[:, None]
    return Learned(mean, rows * sign / scale, variances)
