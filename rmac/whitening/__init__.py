"""PCA-whitening: learned from any number of vectors in one pass, and applied to others."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any, overload

from rmac._arrays import feature_vectors
from rmac._backend import (
    HOST,
    Array,
    backend_of,
    device_context,
    move,
    namespace_of,
    require_same_device,
)
from rmac._checks import positive_int, real
from rmac._dlpack import from_foreign, to_foreign
from rmac._io import atomic_write
from rmac.whitening.archive import Contents, read_archive, write_archive
from rmac.whitening.interop import faiss_transform, projection_of_faiss, projection_of_pca
from rmac.whitening.moments import (
    Learned,
    Moments,
    blocks_of,
    checked_learned,
    learn,
    require_enough,
)

if TYPE_CHECKING:
    import numpy as np

    from rmac._typing import ArrayT, NumPyArray

__all__ = ["Whitening"]


class Whitening:
    r"""PCA-whitening of vectors, such as regional vectors before they are summed.

    The vectors v that it is learned from have a mean m, and a covariance (of 1/N) with eigenvalues
    :math:`\lambda_i` and eigenvectors :math:`e_i`. The whitening is

    .. math:: v \mapsto P (v - m), \qquad P_i = e_i / \sqrt{\max(\lambda_i, eps)}

    It can be learned in any number of chunks, in any order and on several machines, and merged: the
    result is the same to rounding.

    Parameters
    ----------
    dim : int, optional
        The number of components to keep: those of the largest variances. The default is all.
    eps : float, default 0.0
        The least variance to divide by. Smaller variances are taken as `eps`.

    See Also
    --------
    rmac : Descriptors, of which the regional vectors can be whitened.

    Notes
    -----
    The eigenvectors are computed when they are first needed. A `UserWarning` then tells if some
    variances are zero to rounding. The sign of an eigenvector is chosen such that its element of
    the largest magnitude is positive; on a tie, the first of these.

    References
    ----------
    .. [1] H. Jégou and O. Chum, "Negative evidences and co-occurences in image retrieval: the
       benefit of PCA and whitening", ECCV 2012.
    .. [2] T. F. Chan, G. H. Golub and R. J. LeVeque, "Updating formulae and a pairwise algorithm
       for computing sample variances", 1979.

    Examples
    --------
    >>> x = np.random.default_rng(0).random((64, 32, 12, 16), dtype=np.float32)
    >>> regions = rmac.rmac(x, aggregate="none")
    >>> whitening = rmac.Whitening(dim=16).fit(regions)
    >>> whitening
    <Whitening: 32 to 16 channels, eps=0, of 1280 vectors>
    >>> whitened = whitening.apply(regions)
    >>> whitened.shape
    (64, 20, 16)
    """

    def __init__(self, dim: int | None = None, *, eps: float = 0.0) -> None:
        self._dim = None if dim is None else positive_int("dim", dim)
        self._eps = real("eps", eps, low=0)
        self._moments: Moments | None = None
        self._learned: Learned | None = None
        self._float32: tuple[Array, Array] | None = None

    def fit(self, vectors: Array, dim: int | None = None, *, eps: float | None = None) -> Whitening:
        """Learn from vectors, after forgetting all that was learned before.

        Parameters
        ----------
        vectors : array, shape (M, C) or (..., C)
            Vectors to learn from: float16, bfloat16, float32, float64, uint8 or int8, in any
            strides.
        dim : int, optional
            A new number of components to keep.
        eps : float, optional
            A new least variance.

        Returns
        -------
        Whitening
            This one.

        Raises
        ------
        TypeError
            If `vectors` is not an array of these dtypes, or an option is of the wrong type.
        ValueError
            If a shape or value is wrong, or vectors are not finite. On a GPU the latter is checked
            when the projection is first needed.

        See Also
        --------
        partial_fit : Learn from more vectors.
        """
        dim = self._dim if dim is None else dim
        fresh = Whitening(dim, eps=self._eps if eps is None else eps).partial_fit(vectors)
        require_enough(fresh.count)
        vars(self).update(vars(fresh))
        return self

    def partial_fit(self, vectors: Array) -> Whitening:
        """Learn from more vectors.

        Parameters
        ----------
        vectors : array, shape (M, C) or (..., C)
            Vectors to learn from, as for `fit`.

        Returns
        -------
        Whitening
            This one.

        Raises
        ------
        TypeError
            If `vectors` is not such an array, or is on another device than earlier vectors.
        ValueError
            As for `fit`; or if this whitening was made from a projection, and cannot be updated.

        See Also
        --------
        merge : Join two whitenings.
        """
        array, _ = feature_vectors(from_foreign(vectors, "vectors"))
        self._require_open("partial_fit")
        self._require_fits(array, array.shape[-1], "vectors")
        self._add(Moments.of(array))
        return self

    def merge(self, other: Whitening) -> Whitening:
        """Return a whitening that is learned from the vectors of both.

        Parameters
        ----------
        other : Whitening
            A whitening of the same number of channels, or one that has learned nothing yet.

        Returns
        -------
        Whitening
            A new whitening, with the options of this one.

        Raises
        ------
        TypeError
            If `other` is not a Whitening, or on another device.
        ValueError
            If the channels differ, or one of the two was made from a projection.

        See Also
        --------
        partial_fit : Learn from more vectors.
        """
        if not isinstance(other, Whitening):
            raise TypeError(f"other: expected a Whitening, got {type(other).__name__}")
        self._require_open("merge")
        other._require_open("merge")
        result = Whitening(self._dim, eps=self._eps)
        for moments in (self._moments, other._moments):
            if moments is not None:
                result._require_fits(moments.mean, len(moments.mean), "other")
                result._add(moments)
        return result

    @overload
    def apply(self, vectors: NumPyArray) -> NumPyArray: ...
    @overload
    def apply(self, vectors: ArrayT) -> ArrayT: ...
    def apply(self, vectors: Array) -> Array:
        """Whiten vectors: subtract the mean, then multiply by the projection.

        Parameters
        ----------
        vectors : array, shape (..., C)
            Vectors of a dtype that `fit` takes, in any strides, on the device of the whitening.

        Returns
        -------
        array, shape (..., D)
            The whitened vectors, not normalised: float64 for float64 vectors, else float32.

        Raises
        ------
        TypeError
            If `vectors` is not an array of these dtypes, or on another device.
        ValueError
            If it does not have C channels, or nothing has been learned.

        See Also
        --------
        to_cupy : The same whitening for vectors on a GPU.
        """
        array, info = feature_vectors(from_foreign(vectors, "vectors"))
        self._require_fits(array, array.shape[-1], "vectors")
        dim = len(self._ready().projection)
        done, number = 0, math.prod(array.shape[:-1])
        result = backend_of(array).empty((number, dim), info.descriptor, array)
        for block in blocks_of(array, info.descriptor):
            self._apply_to(block, result[done : done + len(block)])
            done += len(block)
        return to_foreign(result.reshape(*array.shape[:-1], dim), vectors)

    def _apply_to(self, vectors: Array, out: Array) -> None:
        """Whiten vectors (M, C) into `out` (M, D); `vectors` are overwritten.

        Both are C-ordered and of one dtype, float32 or float64.
        """
        mean, projection = self._applied(vectors.dtype)
        with device_context(vectors):
            vectors -= mean
            namespace_of(vectors).matmul(vectors, projection.T, out=out)

    def to_cupy(self) -> Whitening:
        """Return this whitening on the current CUDA device.

        Returns
        -------
        Whitening
            A new whitening, or this one if it is there already or has learned nothing.

        See Also
        --------
        to_numpy : The opposite.
        """
        return self._moved("cuda")

    def to_numpy(self) -> Whitening:
        """Return this whitening on the host.

        Returns
        -------
        Whitening
            A new whitening, or this one if it is there already or has learned nothing.

        See Also
        --------
        to_cupy : The opposite.
        """
        return self._moved("cpu")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write this whitening to an ``.npz`` file, which appears when it is complete.

        The file holds the arrays ``mean``, ``projection`` and ``variances``; and ``scatter`` and
        ``count``, so that learning can go on from it. Fewer than two vectors have no projection;
        the file then holds the other arrays.

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
        if self._moments is None or self.count > 1:
            self._ready()
        here = self.to_numpy()
        return Contents(self._dim, self._eps, here._moments, here._learned)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Whitening:
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
        ValueError
            If `save` did not write the file.

        See Also
        --------
        save : The opposite.
        """
        with open(os.fsdecode(path), "rb") as file:
            try:
                dim, eps, moments, learned = read_archive(file)
                whitening = cls(dim, eps=eps)
                for state in (moments, learned):
                    if state is not None:
                        whitening._require_fits(state.mean, len(state.mean), "mean")
            except Exception as error:  # broken files raise many types of errors
                raise ValueError(
                    f"{os.fsdecode(path)}: expected a file that Whitening.save wrote: {error}"
                ) from error
        whitening._moments, whitening._learned = moments, learned
        return whitening

    @classmethod
    def from_projection(cls, mean: Array, projection: Array) -> Whitening:
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
        whitening = cls()
        whitening._learned = checked_learned(
            from_foreign(mean, "mean"), from_foreign(projection, "projection")
        )
        return whitening

    @classmethod
    def from_sklearn(cls, pca: Any) -> Whitening:
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
        whitening = cls()
        whitening._learned = checked_learned(*projection_of_pca(pca))
        return whitening

    @classmethod
    def from_faiss(cls, transform: Any) -> Whitening:
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
            If nothing has been learned.

        See Also
        --------
        from_faiss : The opposite.
        """
        self._ready()
        mean, rows, _ = self.to_numpy()._ready()
        return faiss_transform(mean, rows)

    @property
    def mean(self) -> Array:
        """The mean, float64 (C,). On the host this and the other arrays are read-only."""
        return _read_only(self._ready().mean)

    @property
    def projection(self) -> Array:
        """The matrix that multiplies vectors without their mean, float64 (D, C)."""
        return _read_only(self._ready().projection)

    @property
    def variances(self) -> Array | None:
        """The variances of the components, float64 (D,), largest first; None if they are not known.

        They are the variances of the vectors, which may be below `eps`.
        """
        variances = self._ready().variances
        return None if variances is None else _read_only(variances)

    @property
    def dim(self) -> int | None:
        """The number of components that are kept, D; None if it is not known yet."""
        if self._learned is not None:
            return len(self._learned.projection)
        return self._dim or self.channels

    @property
    def eps(self) -> float:
        """The least variance to divide by."""
        return self._eps

    @property
    def channels(self) -> int | None:
        """The number of channels of the vectors, C; None if it is not known yet."""
        state = self._moments or self._learned
        return None if state is None else len(state.mean)

    @property
    def count(self) -> int:
        """The number of vectors it was learned from; 0 if it was made from a projection."""
        return 0 if self._moments is None else self._moments.number

    def __repr__(self) -> str:
        if self.channels is None:
            return f"<Whitening: dim={self._dim}, eps={self._eps:g}, not fitted>"
        learned = "from a projection" if self._moments is None else f"of {self.count} vectors"
        return f"<Whitening: {self.channels} to {self.dim} channels, eps={self._eps:g}, {learned}>"

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_float32": None}

    def _add(self, moments: Moments) -> None:
        """Add the moments of more vectors, which are checked already."""
        self._moments = moments if self._moments is None else self._moments.merged(moments)
        self._learned = self._float32 = None

    def _require_open(self, method: str) -> None:
        """Raise if vectors cannot be added."""
        if self._moments is None and self._learned is not None:
            raise ValueError(
                f"{method}: expected a Whitening that was learned from vectors, "
                "got one that was made from a projection, which cannot be updated"
            )

    def _require_fits(self, x: Array, channels: int, name: str) -> None:
        """Raise unless this whitening takes vectors of these channels on the device of `x`."""
        state = self._moments or self._learned
        if state is None:
            if self._dim is not None and self._dim > channels:
                raise ValueError(f"dim: expected at most the {channels} channels, got {self._dim}")
            return
        if channels != len(state.mean):
            raise ValueError(f"{name}: expected {len(state.mean)} channels, got {channels}")
        method = "to_cupy" if backend_of(state.mean) is HOST else "to_numpy"
        advice = f"; call {method}() of the Whitening to move it"
        require_same_device(x, name, state.mean, "the Whitening", advice)

    def _ready(self) -> Learned:
        """Return the mean, projection and variances. Compute them if that is not done yet."""
        if self._learned is None:
            if self._moments is None:
                raise ValueError("whitening: expected a fitted one; call fit or partial_fit first")
            with device_context(self._moments.mean):
                self._learned = learn(self._moments, self._dim, self._eps)
        return self._learned

    def _applied(self, dtype: np.dtype[Any]) -> tuple[Array, Array]:
        """Return the mean and the projection in a dtype. They are converted once."""
        mean, projection, _ = self._ready()
        if dtype == mean.dtype:
            return mean, projection
        converted = self._float32
        if converted is None:
            with device_context(mean):
                converted = self._float32 = mean.astype(dtype), projection.astype(dtype)
        return converted

    def _moved(self, device: str) -> Whitening:
        """Return this whitening with its arrays on a kind of device."""
        state = self._moments or self._learned
        if state is None or move(state.mean, device) is state.mean:
            return self
        result = Whitening(self._dim, eps=self._eps)
        if self._moments is not None:
            number, mean, scatter = self._moments
            result._moments = Moments(number, move(mean, device), move(scatter, device))
        if self._learned is not None:
            result._learned = Learned(
                *(part if part is None else move(part, device) for part in self._learned)
            )
        return result


def _read_only(array: Array) -> Array:
    return backend_of(array).read_only(array)
