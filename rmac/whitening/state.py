"""The state of a whitening: all that it knows at one time, for any number of threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar, get_args

import numpy as np

from rmac import _hints
from rmac._backend import (
    Array,
    backend_of,
    device_context,
    move,
    namespace_of,
    require_same_device,
)
from rmac._floats import default_floats
from rmac._forks import Lock
from rmac.whitening.components import Learned, learn, warn_of_cut
from rmac.whitening.moments import Moments

if TYPE_CHECKING:
    from collections.abc import Callable

VectorKind = Literal["regions", "descriptors"]
VECTOR_KINDS: tuple[VectorKind, ...] = get_args(VectorKind)

Result = TypeVar("Result")

_LEAST, _MOST = (float(end) for end in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))


class Once(Generic[Result]):
    """A value that the first thread that needs it computes, while others that need it wait.

    That thread then calls `tell` with the value, which may run code of the user and waits for
    nobody: the value is known, and the lock is free.
    """

    def __init__(
        self,
        compute: Callable[[], Result],
        value: Result | None = None,
        tell: Callable[[Result], None] | None = None,
    ) -> None:
        self._compute, self._value, self._tell, self._lock = compute, value, tell, Lock()

    def __call__(self) -> Result:
        """Return the value. If its computation raises, the next call computes it again."""
        if self._value is not None:
            return self._value
        with self._lock:
            is_first = self._value is None
            if self._value is None:
                self._value = self._compute()
        if is_first and self._tell is not None:
            self._tell(self._value)
        return self._value

    def known(self) -> Result | None:
        """Return the value if it is computed already."""
        return self._value


class State(NamedTuple):
    """All that a whitening knows. It never changes, so that every projection is of its moments."""

    dim: int | None
    eps: float
    kind: VectorKind | None
    moments: Moments | None
    learned: Once[Learned]
    in_float32: Once[tuple[Array, Array]]  # the mean and the projection

    @property
    def example(self) -> Array | None:
        """An array of the length and on the device of the vectors; None if nothing is known."""
        known = self.moments or self.learned.known()
        return None if known is None else known.mean

    @property
    def channels(self) -> int | None:
        """The number of channels of the vectors; None if it is not known yet."""
        return None if self.example is None else len(self.example)

    @property
    def number(self) -> int:
        """The number of vectors it was learned from."""
        return 0 if self.moments is None else self.moments.number

    @property
    def has_scatter(self) -> bool:
        """Whether the moments of more vectors will be added to a whole scatter."""
        return self.moments is not None and self.moments.rows is None

    def with_moments(self, moments: Moments) -> State:
        """Return a state that has learned from more vectors."""
        if self.moments is not None:
            moments = self.moments.merged(moments)
        moments.require_finite()
        return new_state(self.dim, self.eps, self.kind, moments)

    def with_options(self, other: State) -> State:
        """Return a state that knows the same, with the options of another; or raise."""
        if self.channels is not None and other.dim is not None and other.dim > self.channels:
            raise ValueError(
                f"dim: expected at most the {self.channels} channels, got {other.dim}; "
                "another Whitening can learn from vectors of more"
            )
        learned = None if self.moments is not None else self.learned.known()
        return new_state(other.dim, other.eps, other.kind, self.moments, learned)

    def moved(self, device: str) -> State:
        """Return the state with its arrays on a kind of device."""
        moments, learned = self.moments, self.learned.known()
        if moments is not None:
            moments = Moments._make(_moved(part, device) for part in moments)
        if learned is not None:
            learned = Learned._make(_moved(part, device) for part in learned)
        state = new_state(self.dim, self.eps, self.kind, moments, learned)
        if state.example is not None:
            wait_for(state.example)
        return state

    def require_open(self, method: str) -> None:
        """Raise if vectors cannot be added."""
        if self.moments is None and self.learned.known() is not None:
            raise ValueError(
                f"{method}: expected a Whitening that was learned from vectors, "
                "got one that was made from a projection, which cannot be updated"
            )

    def require_directions(self) -> None:
        """Compute the projection, and raise if it has no rows."""
        if not len(self.learned().projection):
            raise ValueError(
                "whitening: expected one that was learned from vectors which differ, got one whose "
                "vectors differ by rounding at most; learn from others, or raise eps"
            )

    def require_fits(self, x: Array, channels: int, name: str) -> None:
        """Raise unless the state takes vectors of these channels on the device of `x`."""
        known = self.example
        if known is None:
            if self.dim is not None and self.dim > channels:
                raise ValueError(f"dim: expected at most the {channels} channels, got {self.dim}")
            return
        if channels != len(known):
            hint = _hints.for_channels(x.shape, len(known))
            raise ValueError(f"{name}: expected {len(known)} channels, got {channels}{hint}")
        library = backend_of(x, name).ARRAY.partition(".")[0]
        advice = f"; call to_{library}() of the Whitening to move it"
        require_same_device(x, name, known, "the Whitening", advice)

    def apply_to(self, vectors: Array, out: Array) -> None:
        """Whiten vectors (M, C) into `out` (M, D); `vectors` are overwritten.

        Both are C-ordered and of one dtype, float32 or float64.
        """
        if vectors.dtype == np.float64:
            mean, projection, _ = self.learned()
        else:
            mean, projection = self.in_float32()
        with device_context(vectors), default_floats():
            vectors -= mean
            namespace_of(vectors).matmul(vectors, projection.T, out=out)


def new_state(
    dim: int | None,
    eps: float,
    kind: VectorKind | None,
    moments: Moments | None = None,
    learned: Learned | None = None,
) -> State:
    """Return a state of moments, of a projection that is known already, or of both."""

    def compute() -> Learned:
        if moments is None:
            raise ValueError("whitening: expected a fitted one; call fit or partial_fit first")
        with device_context(moments.mean), default_floats():
            result = learn(moments, dim, eps)
            wait_for(result.mean)
        return result

    def convert() -> tuple[Array, Array]:
        mean, projection, _ = known()
        if projection.dtype == np.float32:
            return mean, projection
        with device_context(mean), default_floats():
            _require_float32(mean, projection)
            result = mean.astype(np.float32), projection.astype(np.float32)
            wait_for(result[0])
        return result

    def tell(result: Learned) -> None:
        warn_of_cut(len(result.projection), dim or len(result.mean))

    known = Once(compute, learned, tell)
    return State(dim, eps, kind, moments, known, Once(convert))


def _require_float32(mean: Array, projection: Array) -> None:
    """Raise if float32 cannot hold the mean, or holds no number of a row of the projection."""
    largest = backend_of(projection).to_host(abs(projection).max(axis=1))
    least = float(largest[largest > 0].min(initial=1.0))
    most = max(float(largest.max()), float(abs(mean).max()))
    if least < _LEAST or most > _MOST:
        raise ValueError(
            "whitening: expected one whose mean and projection fit float32, got numbers of "
            f"{least:.1g} to {most:.1g}; apply it to float64 arrays"
        )


def wait_for(array: Array) -> None:
    """Wait until a device has done all that was begun: another thread may use another stream."""
    with device_context(array):
        float(array.reshape(-1)[0])


def _moved(part: Any, device: str) -> Any:
    """Return an array on a kind of device; numbers and None stay as they are."""
    return part if part is None or isinstance(part, (int, float)) else move(part, device)
