"""Caches that hold a bounded number of bytes, whatever the sizes of the results."""

from __future__ import annotations

from functools import lru_cache, wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Params = ParamSpec("Params")
Result = TypeVar("Result")

_MANY, _FEW = 512, 8  # small and large results that are kept


def bounded_cache(
    size_of: Callable[Params, int], *, small: int, large: int
) -> Callable[[Callable[Params, Result]], Callable[Params, Result]]:
    """Cache 512 results whose size is at most `small`, and 8 whose size is at most `large`.

    `size_of` gives the size of a result, in any unit, from the arguments. Larger results are made
    again at each call.
    """

    def decorate(make: Callable[Params, Result]) -> Callable[Params, Result]:
        many = lru_cache(maxsize=_MANY, typed=True)(make)
        few = lru_cache(maxsize=_FEW, typed=True)(make)

        @wraps(make)
        def call(*args: Params.args, **options: Params.kwargs) -> Result:
            size = size_of(*args, **options)
            cached = many if size <= small else few if size <= large else make
            return cached(*args, **options)  # type: ignore[arg-type]

        return call

    return decorate
