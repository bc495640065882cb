"""Whitenings from and to files and the transforms of other libraries."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Self

from rmac._backend import move
from rmac._checks import naming_memory
from rmac._dlpack import from_foreign
from rmac._io import atomic_write
from rmac._tracing import opaque
from rmac.whitening.archive import Contents, read_file, write_archive
from rmac.whitening.components import checked_learned
from rmac.whitening.interop import faiss_transform, projection_of_faiss, projection_of_pca
from rmac.whitening.state import new_state

if TYPE_CHECKING:
    from rmac._backend import Array
    from rmac.whitening.components import Learned
    from rmac.whitening.state import State


class Conversions:
    """The methods of `rmac.Whitening` that make one of something else, or something else of one."""

    if TYPE_CHECKING:
        _state: State

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write this whitening to an ``.npz`` file, which appears when it is complete.

        The file holds the arrays ``mean``, ``projection`` and ``variances``; the options ``dim``,
        ``eps`` and ``kind``; and ``count``, ``unit``, and ``scatter``, so that learning can go on
        from it. While there are fewer vectors than channels, it holds ``rows`` instead of
        ``scatter``, with ``scatter = rows.T @ rows``: these are vectors that were learned from,
        without their mean. If there are too few vectors for a projection, or all directions are
        cut, the file holds the other arrays.

        Parameters
        ----------
        path : str or path-like
            The name of the file; no suffix is added. A file of that name is replaced.

        Raises
        ------
        OSError
            If the file cannot be written.
        ValueError
            If nothing has been learned.

        See Also
        --------
        load : The opposite.
        """
        contents = self._contents()
        with atomic_write(os.fsdecode(path)) as file:
            write_archive(file, contents)

    def _contents(self) -> Contents:
        """Return what `save` writes."""
        state, learned = self._state, None
        if state.moments is None or state.number > 1:
            learned = state.learned()
            if not len(learned.projection):
                learned = None  # more vectors may change that
        state = new_state(state.dim, state.eps, state.kind, state.moments, learned).moved("cpu")
        return Contents(state.dim, state.eps, state.kind, state.moments, state.learned.known())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a whitening from a file.

        Parameters
        ----------
        path : str or path-like
            Name of a file that `save` wrote.

        Returns
        -------
        Whitening
            The whitening that was saved, on the host.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        OSError
            If the file cannot be read.
        ValueError
            If `save` did not write the file, or it was changed since.

        See Also
        --------
        save : The opposite.
        """
        whitening = cls()
        whitening._state = new_state(*read_file(os.fsdecode(path)))
        return whitening

    @classmethod
    @opaque
    @naming_memory("projection")
    def from_projection(cls, mean: Array, projection: Array) -> Self:
        """Make a whitening from a mean and a projection that were learned elsewhere.

        For example from the ``m`` and ``P`` of cnnimageretrieval-pytorch's `whitenlearn` and
        `pcawhitenlearn`: ``from_projection(m, P[:dim])`` is its `whitenapply` without the
        normalisation.

        Parameters
        ----------
        mean : array, shape (C,) or (C, 1)
            It is subtracted from a vector.
        projection : array, shape (D, C)
            The difference is multiplied by it.

        Returns
        -------
        Whitening
            A whitening that can be applied, but not updated.

        Raises
        ------
        TypeError
            If an argument is not an array of real numbers, or the two are on different devices.
        ValueError
            If a shape is wrong, or a number on the host is not finite.

        See Also
        --------
        from_sklearn : From a fitted `sklearn.decomposition.PCA`.
        from_faiss : From a FAISS transform.
        """
        return cls._of(
            checked_learned(from_foreign(mean, "mean"), from_foreign(projection, "projection"))
        )

    @classmethod
    def _of(cls, learned: Learned) -> Self:
        """Make a whitening from what was learned elsewhere."""
        whitening = cls()
        whitening._state = new_state(None, 0.0, None, None, learned)
        return whitening

    @classmethod
    def from_sklearn(cls, pca: Any) -> Self:
        """Make a whitening that transforms as a fitted `sklearn.decomposition.PCA` does.

        Parameters
        ----------
        pca : sklearn.decomposition.PCA
            A fitted PCA or `IncrementalPCA`. Without ``whiten=True`` it is a rotation, which keeps
            the variances.

        Returns
        -------
        Whitening
            A whitening that can be applied, but not updated. Its `variances` are those of
            scikit-learn, of 1/(N - 1).

        Raises
        ------
        TypeError
            If `pca` is not such an object.
        ValueError
            If it has not been fitted.

        See Also
        --------
        from_projection : From arrays.
        """
        return cls._of(checked_learned(*projection_of_pca(pca)))

    @classmethod
    def from_faiss(cls, transform: Any) -> Self:
        """Make a whitening that transforms as a FAISS `LinearTransform` does.

        Parameters
        ----------
        transform : faiss.LinearTransform
            A trained one, such as a `PCAMatrix` with an ``eigen_power`` of -0.5, which whitens.

        Returns
        -------
        Whitening
            A whitening that can be applied, but not updated. Its mean is that of a `PCAMatrix`. For
            other transforms it is the shortest vector that gives the bias.

        Raises
        ------
        ImportError
            If FAISS is not installed.
        TypeError
            If `transform` is not such an object.
        ValueError
            If it is not trained, or no mean gives its bias.

        See Also
        --------
        to_faiss : The opposite.
        """
        return cls.from_projection(*projection_of_faiss(transform))

    def to_faiss(self) -> Any:
        """Return this whitening as a FAISS transform, to put before an index.

        Returns
        -------
        faiss.LinearTransform
            A trained transform in float32, with the mean as a bias. Components whose variance is
            close to zero differ, since whitening amplifies the rounding to float32.

        Raises
        ------
        ImportError
            If FAISS is not installed.
        ValueError
            If nothing has been learned, or all directions are cut.

        See Also
        --------
        from_faiss : The opposite.
        """
        state = self._state
        state.require_directions()
        mean, rows, _ = state.learned()
        return faiss_transform(move(mean, "cpu"), move(rows, "cpu"))
