"""Checks of single options: what each may be, and its error messages."""

from __future__ import annotations

import operator
import sys
import warnings
from collections.abc import Sequence
from functools import lru_cache, wraps
from math import inf
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Collection


_INT_LIMIT = 1 << 31
_SHOWN = 100  # characters of a value in an error message
_PLAIN_TYPES = frozenset({bool, float, int, str, type(None)})

Name = TypeVar("Name", bound=str)
Result = TypeVar("Result")
Params = ParamSpec("Params")


def cached_check(check: Callable[Params, Result]) -> Callable[Params, Result]:
    """Cache a function that checks options, so that it does not check the same ones on every call.

    Only values of Python's own types are remembered. Another object may have a new value at the
    next call: a PyTorch parameter, or any object with `__index__`. 1 is not True.
    """
    cached = lru_cache(maxsize=1024, typed=True)(check)

    @wraps(check)
    def call(*args: Params.args, **options: Params.kwargs) -> Result:
        if options or not _PLAIN_TYPES.issuperset(map(type, args)):
            return check(*args, **options)
        return cached(*args)

    return call


def warn(message: str) -> None:
    """Warn, at the line of the caller's code that called rmac."""
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_globals["__name__"].partition(".")[0] == __package__:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


def optional_workers(workers: int | None) -> int | None:
    """Return `workers` as an int of at least 1 or None, or raise."""
    return None if workers is None else positive_int("workers", workers)


def shown(value: object) -> str:
    """Return how an error message shows a value: its `repr`, shortened if it is long."""
    try:
        text = repr(value)
    except Exception:  # such as that of an int of 5000 digits
        return f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def integer(name: str, value: int) -> int:
    """Return `value` as an int, or raise."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected an integer, got {shown(value)}")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}") from None


def positive_int(name: str, value: int) -> int:
    """Return `value` as an int of at least 1 that fits an index, or raise."""
    number = integer(name, value)
    if number < 1:
        raise ValueError(f"{name}: expected an integer of at least 1, got {shown(number)}")
    if number >= _INT_LIMIT:
        raise ValueError(f"{name}: expected an integer less than 2**31, got {shown(number)}")
    return number


def one_or_two_ints(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """Return a pair of ints of at least 1, from one int or two, or raise."""
    if isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, str):
        if len(value) != 2:
            raise ValueError(f"{name}: expected one or two integers, got {shown(value)}")
        return positive_int(name, value[0]), positive_int(name, value[1])
    side = positive_int(name, value)
    return side, side


def real(
    name: str,
    value: float,
    *,
    low: float,
    high: float = inf,
    strict: bool = False,
    infinite: bool = False,
) -> float:
    """Return `value` as a float with low <= value < high, or low < value if strict; or raise.

    Infinity raises, unless `infinite` is True.
    """
    if isinstance(value, (str, bytes, bool, np.bool_)):
        raise TypeError(f"{name}: expected a number, got {shown(value)}")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}") from None
    except OverflowError:
        number = inf
    if infinite and number == inf:
        return number
    if not low <= number < high or (strict and number == low):
        bound = f"{low:g} {'<' if strict else '<='} {name}"
        bound += f" < {high:g}" if high < inf else "" if infinite else ", finite"
        raise ValueError(f"{name}: expected a number with {bound}, got {shown(value)}")
    return number


def choice(name: str, value: Name, choices: Collection[Name]) -> Name:
    """Return the string `value` if it is one of `choices`, or raise."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a string, got {type(value).__name__}")
    if value not in choices:
        expected = ", ".join(map(repr, choices))
        raise ValueError(f"{name}: expected one of {expected}, got {shown(value)}")
    return value


def flag(name: str, value: bool) -> bool:
    """Return `value` as a bool if it is one, or raise."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {shown(value)}")
    return bool(value)
