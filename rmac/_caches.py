"""What rmac keeps from call to call: results of functions that are slow, such as plans."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from rmac._forks import Lock

if TYPE_CHECKING:
    from collections.abc import Callable

Params = ParamSpec("Params")
Result = TypeVar("Result", covariant=True)

MOST_BYTES, MOST_ENTRIES = 1 << 24, 1024  # of one cache
# Bytes that are counted for the Python objects of an entry. Measured on 400 sizes of maps with
# grids of 3 levels: a plan and its route take 12 kB, and 14 kB are counted.
_OBJECT_BYTES = 4096


class Cached(Protocol[Params, Result]):
    """A function whose results are kept."""

    cache: Cache

    def __call__(self, *args: Params.args, **options: Params.kwargs) -> Result: ...


def cached(
    nbytes: Callable[[Any], int],
) -> Callable[[Callable[Params, Result]], Cached[Params, Result]]:
    """Keep results of a function, as many as fit; `nbytes` returns the bytes of one.

    The arguments are the key. So they must be checked values that never change: plain numbers,
    strings and bytes, tuples of these, or immutable objects. They are given by position.

    A call that finds its result takes no lock, as a look-up in a dict is one step to other threads.
    Threads that miss the same result at the same time all compute it, and all get one of them.
    """

    def decorate(compute: Callable[Params, Result]) -> Cached[Params, Result]:
        cache = Cache(nbytes)
        results = cache.results

        @wraps(compute)
        def call(*args: Any) -> Any:
            try:
                return results[args]
            except KeyError:
                pass
            return cache.add(args, compute(*args))  # type: ignore[call-arg]

        call.cache = cache  # type: ignore[attr-defined]
        return call  # type: ignore[return-value]

    return decorate


class Cache:
    """A bounded number of results by their arguments. The oldest is dropped to make room."""

    def __init__(self, nbytes: Callable[[Any], int]) -> None:
        self.results: dict[tuple[Any, ...], Any] = {}
        self._sizes: dict[tuple[Any, ...], int] = {}  # bytes of each, as a key may be long
        self._nbytes = nbytes
        self._adding = Lock(reset=self.clear)
        self.clear()

    def clear(self) -> None:
        """Drop all results."""
        self.results.clear()
        self._sizes.clear()
        self.bytes = 0

    def add(self, args: tuple[Any, ...], result: Any) -> Any:
        """Add a result unless it is too large, and return it, or the one that is there already."""
        size = _OBJECT_BYTES + _bytes_in(args) + self._nbytes(result)
        if size > MOST_BYTES:
            return result
        with self._adding:
            if args in self.results:
                return self.results[args]
            while self.results and (
                self.bytes + size > MOST_BYTES or len(self.results) >= MOST_ENTRIES
            ):
                first = next(iter(self.results))
                del self.results[first]
                self.bytes -= self._sizes.pop(first)
            self._sizes[args] = size
            self.bytes += size
            self.results[args] = result
        return result


def _bytes_in(key: tuple[Any, ...]) -> int:
    """Return the length of all bytes objects of a key, and of those in its tuples."""
    total = 0
    for part in key:  # twice as fast as a sum
        if type(part) is bytes:
            total += len(part)
        elif type(part) is tuple:
            total += _bytes_in(part)
    return total
