"""PCA-whitening: learned from any number of vectors in one pass, and applied to others."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np

from rmac._arrays import feature_vectors
from rmac._backend import Array, backend_of, move
from rmac._checks import choice, naming_memory, positive_int, real, type_name, unmade
from rmac._dlpack import from_foreign, to_foreign
from rmac._floats import default_floats
from rmac._forks import Lock
from rmac._tracing import opaque
from rmac.whitening.components import Learned, require_enough
from rmac.whitening.conversions import Conversions
from rmac.whitening.estimator import Estimator
from rmac.whitening.moments import Moments, blocks_of
from rmac.whitening.state import VECTOR_KINDS, State, VectorKind, new_state

if TYPE_CHECKING:
    from collections.abc import Callable

    from rmac._typing import ArrayT, NumPyArray

__all__ = ["Whitening"]


class Whitening(Conversions, Estimator):
    r"""PCA-whitening of vectors, such as regional vectors before they are summed.

    The vectors v that it is learned from have a mean m, and a covariance (of 1/N) with eigenvalues
    :math:`\lambda_i` and eigenvectors :math:`e_i`. The whitening is

    .. math:: v \mapsto P (v - m), \qquad P_i = e_i / \sqrt{\max(\lambda_i, eps)}

    It can be learned in any number of chunks, in any order and on several machines, and merged: the
    result is the same to rounding.

    Directions whose variance is rounding noise are cut, since whitening would amplify the noise.
    See the notes.

    Parameters
    ----------
    dim : int, optional
        The number of components to keep: those of the largest variances. The default is all whose
        variance is above the noise.
    eps : float, default 0.0
        The least variance to divide by. Smaller variances are taken as `eps`. With an `eps` of at
        least the noise, nothing is cut.
    kind : {"regions", "descriptors"}, optional
        What the vectors are: regional vectors, which `rmac` whitens; or whole descriptors, to
        which `apply` is applied. `rmac` warns if it gets a whitening of descriptors. The default is
        not to say.

    See Also
    --------
    rmac : Descriptors. It can whiten their regional vectors.

    Notes
    -----
    The eigenvectors are computed when they are first needed. The sign of an eigenvector is chosen
    such that its element of the largest magnitude is positive; on a tie, the first of these.

    **Rank.** N vectors of C channels have C variances, and some may be zero: those of channels that
    are constant, of copies of channels, and all beyond N - 1. What is computed for them is the
    noise of rounding. A direction is cut if both its variance and `eps` are below its noise, which
    is the larger of

    - ``2.2e-16 * sqrt(C * max(C, N))`` times the largest variance: the rounding of float64
      arithmetic;
    - ``(u * (1 + sqrt(C / N)))**2`` times the mean square of the vectors' values, which is weighted
      by the squares of the direction's elements: the rounding of the values. u is 2**-8 for
      bfloat16, 2**-11 for float16, 2**-24 for float32, and 2**-52 for other dtypes; for vectors of
      several dtypes, it is the largest.

    If fewer than `dim` directions are left, or fewer than C without a `dim`, the projection has
    fewer rows, and a `UserWarning` says how many are cut. A whitening without any direction can
    learn more, but not be applied.

    **Memory.** For N of less than C the centred vectors are kept, and a problem of N by N is
    solved. For more vectors a scatter matrix of C by C is kept.

    **Threads.** Any number of threads can use one whitening. Each call sees it as it is at one
    time, before or after the change that another thread makes. The properties are read one by one;
    read them from a `copy.copy` if another thread may change the whitening in between.

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

    def __init__(
        self, dim: int | None = None, *, eps: float = 0.0, kind: VectorKind | None = None
    ) -> None:
        dim = None if dim is None else positive_int("dim", dim)
        kind = None if kind is None else choice("kind", kind, VECTOR_KINDS)
        self._state = new_state(dim, real("eps", eps, low=0), kind)
        self._changing = Lock()  # held to replace the state, never to read it

    if not TYPE_CHECKING:  # else type checkers would allow any name

        def __getattr__(self, name: str) -> Any:
            raise unmade(self, name, ("_state", "_changing"), "Whitening() or its class methods")

    @opaque
    @naming_memory("vectors")
    def fit(
        self, vectors: Array, y: Any = None, *, dim: int | None = None, eps: float | None = None
    ) -> Self:
        """Learn from vectors, after forgetting all that was learned before.

        Parameters
        ----------
        vectors : array, shape (M, C) or (..., C)
            Vectors to learn from: float16, bfloat16, float32, float64, uint8 or int8, in any
            strides.
        y : object, optional
            Ignored. The pipelines of scikit-learn pass labels here.
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
            If a shape or value is wrong, or vectors are not finite, or their squares are not.

        See Also
        --------
        partial_fit : Learn from more vectors.
        """
        if isinstance(y, (int, np.integer)):
            raise TypeError(f"y: expected labels, which are ignored, got {y}; dim={y} is meant")
        state = self._state
        dim, eps = state.dim if dim is None else dim, state.eps if eps is None else eps
        fresh = Whitening(dim, eps=eps, kind=state.kind).partial_fit(vectors)
        require_enough(fresh.count)
        with self._changing:
            self._state = fresh._state
        return self

    @opaque
    @naming_memory("vectors")
    def partial_fit(self, vectors: Array, y: Any = None) -> Self:  # noqa: ARG002
        """Learn from more vectors.

        Parameters
        ----------
        vectors : array, shape (M, C) or (..., C)
            Vectors to learn from, as for `fit`.
        y : object, optional
            Ignored, as in `fit`.

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
        state = self._state
        self._require_takes(array, state)
        moments = Moments.of(array, whole=state.has_scatter)

        def learned_more(state: State) -> State:
            self._require_takes(array, state)  # which another thread may have replaced
            return state.with_moments(moments)

        self._change(learned_more)
        return self

    def _change(self, changed: Callable[[State], State]) -> None:
        """Replace the state by what a function returns for it.

        The function may run code of the user, such as a subclass's or a signal handler, which
        changes this whitening too. Then it is called once more.
        """
        with self._changing:
            before = None
            while before is not self._state:
                before = self._state
                after = changed(before)
            self._state = after

    @staticmethod
    def _require_takes(array: Array, state: State) -> None:
        """Raise unless vectors can be added to a state."""
        state.require_open("partial_fit")
        state.require_fits(array, array.shape[-1], "vectors")

    def merge(self, other: Whitening) -> Whitening:
        """Return a whitening that is learned from the vectors of both.

        Parameters
        ----------
        other : Whitening
            A whitening of the same number of channels, or one that has learned nothing yet.

        Returns
        -------
        Whitening
            A new whitening, with the options of this one. Its kind is that of the other if this one
            has none.

        Raises
        ------
        TypeError
            If `other` is not a Whitening, or on another device.
        ValueError
            If the channels or kinds differ, or one of the two was made from a projection.

        See Also
        --------
        partial_fit : Learn from more vectors.
        """
        if not issubclass(type(other), Whitening):
            raise TypeError(f"other: expected a Whitening, got {type_name(other)}")
        states = self._state, other._state
        kinds = {state.kind for state in states} - {None}
        if len(kinds) > 1:
            raise ValueError(
                f"other: expected a Whitening of {states[0].kind}, got one of {states[1].kind}"
            )
        result = Whitening(states[0].dim, eps=states[0].eps, kind=kinds.pop() if kinds else None)
        for state in states:
            state.require_open("merge")
            if state.moments is not None:
                mean = state.moments.mean
                result._state.require_fits(mean, len(mean), "other")
                result._state = result._state.with_moments(state.moments)
        return result

    @overload
    def apply(self, vectors: NumPyArray) -> NumPyArray: ...
    @overload
    def apply(self, vectors: ArrayT) -> ArrayT: ...
    @opaque
    @naming_memory("vectors")
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
            If it does not have C channels, nothing has been learned, or all directions are cut.

        See Also
        --------
        to_cupy : The same whitening for vectors on a GPU.
        """
        array, info = feature_vectors(from_foreign(vectors, "vectors"))
        state = self._state_for(array, array.shape[-1], "vectors")
        dim = len(state.learned().projection)
        done, number = 0, math.prod(array.shape[:-1])
        result = backend_of(array).empty((number, dim), info.descriptor, array)
        with default_floats():
            for block in blocks_of(array, info.descriptor):
                state.apply_to(block, result[done : done + len(block)])
                done += len(block)
        return to_foreign(result.reshape(*array.shape[:-1], dim), vectors)

    def _state_for(self, x: Array, channels: int, name: str) -> State:
        """Return the state for one call: it fits `x`, and its projection is computed. Or raise."""
        state = self._state
        state.require_fits(x, channels, name)
        state.require_directions()
        return state

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
        """The number of components that are kept, D.

        It is computed with the projection, as some may be cut. Before two vectors are learned, it
        is the number that was asked for, or C, or None if that is not known yet.
        """
        state = self._state
        if state.learned.known() is None and state.number < 2:
            return state.dim or state.channels
        return len(state.learned().projection)

    @property
    def eps(self) -> float:
        """The least variance to divide by."""
        return self._state.eps

    @property
    def kind(self) -> VectorKind | None:
        """What the vectors are that it was learned from, see `Whitening`; None if it is unknown."""
        return self._state.kind

    @property
    def channels(self) -> int | None:
        """The number of channels of the vectors, C; None if it is not known yet."""
        return self._state.channels

    @property
    def count(self) -> int:
        """The number of vectors it was learned from; 0 if it was made from a projection."""
        return self._state.number

    def __repr__(self) -> str:
        state = self._state
        if state.channels is None:
            return f"<Whitening: dim={state.dim}, eps={state.eps:g}, not fitted>"
        known = state.learned.known()
        dim = (state.dim or state.channels) if known is None else len(known.projection)
        learned = f"of {state.number} {state.kind or 'vectors'}"
        if state.moments is None:
            learned = "from a projection"
        return f"<Whitening: {state.channels} to {dim} channels, eps={state.eps:g}, {learned}>"

    def __getstate__(self) -> tuple[Any, ...]:
        state = self._state
        return state.dim, state.eps, state.kind, state.moments, state.learned.known()

    def __setstate__(self, parts: tuple[Any, ...]) -> None:
        self._state = new_state(*parts)
        self._changing = Lock()

    def _ready(self) -> Learned:
        """Return the mean, projection and variances. Compute them if that is not done yet."""
        return self._state.learned()

    def _moved(self, device: str) -> Whitening:
        """Return this whitening with its arrays on a kind of device."""
        state = self._state
        if state.example is None or move(state.example, device) is state.example:
            return self
        result = Whitening()
        result._state = state.moved(device)
        return result


def _read_only(array: Array) -> Array:
    return backend_of(array).read_only(array)
