"""Checks of single options: what each may be, and its error messages.

Options may be objects of the user, whose methods raise and return anything. They are asked once,
through `ask`. Their type is looked at, never their `__class__`, which may be another.
"""

from __future__ import annotations

import operator
import sys
import warnings
from collections.abc import Sequence
from functools import lru_cache, wraps
from math import inf
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from rmac import _hints

if TYPE_CHECKING:
    from collections.abc import Callable, Collection


_INT_LIMIT = 1 << 31
_SHOWN = 80  # characters of a value, a type or another error in an error message
PLAIN_TYPES = frozenset({bool, float, int, str, type(None)})
_BOOLS = (bool, np.bool_)
_BEYOND_MEMORY = ("array is too big", "Maximum allowed dimension exceeded")
_TEXT = (str, bytes, bytearray, memoryview)  # they have items, or float() reads them

Name = TypeVar("Name", bound=str)
Result = TypeVar("Result")
Params = ParamSpec("Params")


def cached_check(check: Callable[Params, Result]) -> Callable[Params, Result]:
    """Cache a function that checks options, so that it does not check the same ones on every call.

    Only values of Python's own types are cached. Another object may have a new value at the next
    call: a PyTorch parameter, or any object with `__index__`. 1 and True are different options.
    """
    cached = lru_cache(maxsize=1024, typed=True)(check)

    @wraps(check)
    def call(*args: Params.args, **options: Params.kwargs) -> Result:
        if options or not PLAIN_TYPES.issuperset(map(type, args)):
            return check(*args, **options)
        return cached(*args)

    return call


def warn(message: str) -> None:
    """Warn, at the line of the caller's code that called rmac."""
    frame, level = sys._getframe(), 1
    while frame.f_back and _is_of_rmac(frame.f_globals.get("__name__")):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


def _is_of_rmac(module: object) -> bool:
    """Return whether this is the name of a module of rmac. Code that `exec` runs may have none."""
    return isinstance(module, str) and module.partition(".")[0] == __package__


def shorten(text: str) -> str:
    """Return a text as a plain string on one line, shortened if it is long."""
    line = " ".join(map(str.strip, str.splitlines(text)))
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 3]}..."


def shown(value: object) -> str:
    """Return how an error message shows a value."""
    try:
        return shorten(repr(value))
    except Exception:  # such as that of an int of 5000 digits
        return f"an object of type {type_name(value)}"


def reason(error: BaseException) -> str:
    """Return how an error message shows another error."""
    try:
        return shorten(str(error)) or type_name(error)
    except Exception:
        return type_name(error)


def type_name(value: object) -> str:
    """Return how an error message shows the type of a value."""
    kind = type(value)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return shorten(f"{module}{kind.__qualname__}")


def ask(name: str, value: Any, question: Callable[[Any], Result], expected: str) -> Result:
    """Return the answer of an object; if its methods raise, raise an error that names the argument.

    That is a TypeError, or a ValueError for a number that is too large.
    """
    try:
        return question(value)
    except MemoryError as error:
        raise memory_error(error, name) from error
    except OverflowError as error:
        raise ValueError(f"{name}: expected {expected}, got {shown(value)}") from error
    except Exception as error:
        raise TypeError(f"{name}: expected {expected}, got {type_name(value)}") from error


def memory_error(error: Exception, argument: str) -> Exception:
    """Return the error to raise for one of a call: if it is of memory, it names an argument.

    NumPy has a ValueError for an array of 2**63 bytes or more. Python has no text if it is itself
    out of memory.
    """
    if type(error) is ValueError:
        if not reason(error).startswith(_BEYOND_MEMORY):
            return error
        return MemoryError(f"{argument}: the call needs an array of 2**63 bytes or more")
    if error.args and not type(error).__module__.startswith("numpy"):
        return error  # it names the argument, or is of CuPy
    return MemoryError(f"{argument}: {(error.args and error) or 'there is not enough memory'}")


def naming_memory(
    argument: str,
) -> Callable[[Callable[Params, Result]], Callable[Params, Result]]:
    """Make errors of memory name the argument of a function that may be too large."""

    def decorate(function: Callable[Params, Result]) -> Callable[Params, Result]:
        @wraps(function)
        def call(*args: Params.args, **options: Params.kwargs) -> Result:
            try:
                return function(*args, **options)
            except (MemoryError, ValueError) as error:
                raise memory_error(error, argument) from error.__cause__

        return call

    return decorate


def unmade(value: object, name: str, parts: Collection[str], makers: str) -> Exception:
    """Return the error for an attribute that an object lacks.

    It lacks `parts` if `object.__new__` made it, or a subclass that does not call `__init__`.
    """
    kind = type(value).__qualname__
    if name in parts:
        return TypeError(f"{kind}: expected one that {makers} made, got one without its contents")
    return AttributeError(f"{kind!r} object has no attribute {name!r}")


def is_list(value: object) -> bool:
    """Return whether a value is a list or tuple."""
    return issubclass(type(value), (list, tuple))


def is_sequence(value: Any) -> bool:
    """Return whether a value has items in order, as lists, ranges and arrays have, but not text."""
    kind = type(value)
    if issubclass(kind, np.ndarray):
        return bool(np.ndarray.view(value, np.ndarray).ndim)
    return issubclass(kind, Sequence) and not issubclass(kind, _TEXT)


def require_unmasked(name: str, value: object) -> None:
    """Raise if a value is an array with a mask, which all that reads its memory would ignore."""
    if issubclass(type(value), np.ma.MaskedArray):
        raise TypeError(f"{name}: expected an array without a mask, got a MaskedArray")


def items_of(name: str, value: Any, count: int, expected: str) -> list[Any]:
    """Return the first items of a sequence, each read once."""
    require_unmasked(name, value)
    return ask(name, value, lambda items: [items[i] for i in range(count)], expected)


def optional_workers(workers: int | None) -> int | None:
    """Return `workers` as an int of at least 1 or None, or raise."""
    return None if workers is None else positive_int("workers", workers)


def integer(name: str, value: int) -> int:
    """Return `value` as an int, or raise."""
    if type(value) in _BOOLS:
        raise TypeError(f"{name}: expected an integer, got {shown(value)}")
    require_unmasked(name, value)
    return ask(name, value, operator.index, "an integer")


def positive_int(name: str, value: int) -> int:
    """Return `value` as an int of at least 1 that fits an index, or raise."""
    number = integer(name, value)
    if number < 1:
        raise ValueError(f"{name}: expected an integer of at least 1, got {shown(number)}")
    if number >= _INT_LIMIT:
        raise ValueError(f"{name}: expected an integer less than 2**31, got {shown(number)}")
    return number


def one_or_two_ints(name: str, value: Any) -> tuple[int, int]:
    """Return a pair of ints of at least 1, from one int or two, or raise."""
    if is_sequence(value):
        expected = "one or two integers"
        if ask(name, value, len, expected) != 2:
            raise ValueError(f"{name}: expected {expected}, got {shown(value)}")
        first, second = items_of(name, value, 2, expected)
        return positive_int(name, first), positive_int(name, second)
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
    if type(value) in _BOOLS or issubclass(type(value), _TEXT):
        raise TypeError(f"{name}: expected a number, got {shown(value)}")
    require_unmasked(name, value)
    bound = f"{low:g} {'<' if strict else '<='} {name}"
    bound += f" < {high:g}" if high < inf else "" if infinite else ", finite"
    expected = f"a number with {bound}"
    number = ask(name, value, float, expected)
    if infinite and number == inf:
        return number
    if not low <= number < high or (strict and number == low):
        raise ValueError(f"{name}: expected {expected}, got {shown(value)}")
    return number


def plain_text(name: str, value: Any) -> str:
    """Return `value` as a plain string if it is one, or raise.

    The methods of a subclass of str may make it equal to all, or to no key of a dictionary.
    """
    if not issubclass(type(value), str):
        raise TypeError(f"{name}: expected a string, got {type_name(value)}")
    return str.__str__(value)


def choice(name: str, value: Name, choices: Collection[Name]) -> Name:
    """Return the string `value` if it is one of `choices`, or raise."""
    text = plain_text(name, value)
    for word in choices:
        if text == word:
            return word
    expected = ", ".join(map(repr, choices))
    hint = _hints.for_word(text, choices)
    raise ValueError(f"{name}: expected one of {expected}, got {shown(text)}{hint}")


def flag(name: str, value: bool) -> bool:
    """Return `value` as a bool if it is one, or raise."""
    if type(value) not in _BOOLS:
        raise TypeError(f"{name}: expected True or False, got {shown(value)}")
    return bool(value)
