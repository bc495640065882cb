"""The largest eigenvalues of a symmetric matrix, and their eigenvectors."""

from __future__ import annotations

import math

import numpy as np

from rmac._backend import Array, namespace_of

_EPS = float(np.finfo(np.float64).eps)
_SMALL = 1024  # `eigh` of a smaller matrix takes less than a second
# Krylov iteration is tried if the basis has room for so many blocks. Eigenvalues that fall off as
# 1/i took 13 blocks, faster ones 9. For 64 components of 3072 channels it took 5.8 s of CPU time on
# 2 cores, and `eigh` 15.6 s.
_FEWEST_BLOCKS = 8
_SPARE = 8  # vectors of a block beyond those that are asked for
_GROWTH = 1.3  # the eigenproblem in the basis is solved again when the basis is this much larger


def largest_eigenpairs(matrix: Array, count: int) -> tuple[Array, Array]:
    """Return the `count` largest eigenvalues (K,) and eigenvectors (n, K) of a matrix (n, n).

    The matrix is symmetric, and has no negative eigenvalues but for rounding.
    """
    size = len(matrix)
    if size >= _SMALL and _FEWEST_BLOCKS * (count + _SPARE) <= size // 2:
        found = _krylov(matrix, count)
        if found is not None:
            return found
    return _descending(namespace_of(matrix).linalg.eigh(matrix), count)


def _krylov(matrix: Array, count: int) -> tuple[Array, Array] | None:
    """Return what `largest_eigenpairs` does, by block Krylov iteration; None if it is slower.

    The basis is orthogonalised in full, and Rayleigh-Ritz gives the eigenvectors in it, until
    their residuals are rounding (Musco and Musco, "Randomized block Krylov methods for stronger
    and faster approximate singular value decomposition", 2015). A block has at least `count`
    vectors, in general position. So it also finds all eigenvectors of an eigenvalue that occurs
    up to `count` times.
    """
    xp, size = namespace_of(matrix), len(matrix)
    block, limit = count + _SPARE, size // 2
    tolerance = 4 * math.sqrt(size) * _EPS  # of residuals, as shares of the largest eigenvalue
    start = np.random.default_rng(0).standard_normal((size, block))  # the same in every process
    fresh = xp.linalg.qr(xp.asarray(start))[0]
    basis, inside = fresh[:, :0], xp.zeros((0, 0))
    solved, residual = 0, math.inf
    while basis.shape[1] + block <= limit:
        image = matrix @ fresh
        basis = xp.concatenate([basis, fresh], axis=1)
        inside = _bordered(inside, basis.T @ image)
        for _ in range(2):  # the second time removes what rounding leaves
            image -= basis @ (basis.T @ image)
        if basis.shape[1] >= _GROWTH * solved:
            values, within = _descending(xp.linalg.eigh(inside), count)
            largest = float(values[0]) or 1.0
            before, residual = residual, _largest_norm(image @ within[-block:]) / largest
            if residual <= tolerance:
                vectors = basis @ within
                exact = _largest_norm(matrix @ vectors - vectors * values) / largest
                if exact <= 2 * tolerance:
                    return values, vectors
            steps = (basis.shape[1] - solved) / block
            if solved and block * _steps_left(before, residual, steps, tolerance) > (
                limit - basis.shape[1]
            ):
                return None
            solved = basis.shape[1]
        fresh = xp.linalg.qr(image)[0]
        fresh = xp.linalg.qr(fresh - basis @ (basis.T @ fresh))[0]
    return None


def _descending(pairs: tuple[Array, Array], count: int) -> tuple[Array, Array]:
    """Return the `count` largest of ascending eigenvalues, and their eigenvectors (n, K)."""
    values, vectors = pairs
    return values[::-1][:count], vectors[:, ::-1][:, :count]


def _steps_left(before: float, residual: float, steps: float, tolerance: float) -> float:
    """Return a low estimate of the steps until the residual is within the tolerance.

    It was `before` some steps ago. Convergence speeds up, so half of a linear estimate is low.
    """
    rate = math.log(max(before, tolerance) / max(residual, tolerance)) / steps
    return math.log(max(residual / tolerance, 1)) / rate / 2 if rate > 0 else math.inf


def _bordered(inside: Array, column: Array) -> Array:
    """Return a symmetric matrix with one more block column, and the same block row."""
    xp, old = namespace_of(inside), len(inside)
    result = xp.zeros((len(column), len(column)))
    result[:old, :old] = inside
    result[:, old:] = column
    result[old:, :old] = column[:old].T
    return result


def _largest_norm(columns: Array) -> float:
    """Return the largest norm of the columns of a matrix."""
    return math.sqrt(float((columns * columns).sum(axis=0).max()))
