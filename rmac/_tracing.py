"""Frameworks that trace a program: they call it with arrays that hold no values.

No framework is imported here.
"""

from __future__ import annotations

import sys
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from rmac._checks import type_name

if TYPE_CHECKING:
    from collections.abc import Callable

Params = ParamSpec("Params")
Result = TypeVar("Result")

_TORCH = "inside torch.compile, torch.export, torch.fx and torch.func call it from rmac.torch"
_JAX = "inside jax.jit, jax.vmap and jax.grad call it from rmac.jax"
_TENSORFLOW = "inside tf.function and Keras models wrap the call in tf.numpy_function"

# Classes of arrays without values, by package and name, and what to do instead.
_PLACEHOLDERS = {
    ("jax", "Tracer"): _JAX,
    ("keras", "KerasTensor"): _TENSORFLOW,
    ("tensorflow", "SymbolicTensor"): _TENSORFLOW,
    ("torch", "FakeTensor"): _TORCH,
    ("torch", "FunctionalTensor"): _TORCH,
    ("torch", "Proxy"): _TORCH,
}


def _find_advice(kind: type) -> str:
    """Return what to do with arrays of a type that holds no values; "" for all other types."""
    bases = ((str(base.__module__).partition(".")[0], base.__name__) for base in kind.__mro__)
    return next((_PLACEHOLDERS[base] for base in bases if base in _PLACEHOLDERS), "")


_advice_for: Callable[[type], str] = lru_cache(maxsize=256)(_find_advice)


def require_values(x: Any, name: str) -> None:
    """Raise if `x` holds no values, or a trace would take its values for constants."""
    advice = _advice_for(type(x))
    if not advice and _is_traced_by_torch(x):
        advice = _TORCH
    if advice:
        raise TypeError(
            f"{name}: expected an array with values, got a {type_name(x)} of a trace; {advice}"
        )


def _is_traced_by_torch(x: Any) -> bool:
    """Return whether `x` is in a trace of torch.jit, or in a function that torch.func changes."""
    try:
        torch = sys.modules["torch"]
        if not issubclass(type(x), torch.Tensor):
            return False
        functorch = torch._C._functorch  # no public function tells
        return bool(torch.jit.is_tracing() or functorch.is_functorch_wrapped_tensor(x))
    except (KeyError, AttributeError):  # it is not imported, or another thread imports it
        return False


def being_compiled() -> bool:
    """Return whether torch.compile traces the caller. It then reads this as a constant True."""
    is_compiling = getattr(sys.modules.get("torch.compiler"), "is_compiling", None)
    return is_compiling is not None and is_compiling()


def untraced(function: Callable[Params, Result]) -> Callable[[], Callable[Params, Result]]:
    """Return a function that returns `function` in a form which torch.compile calls, untraced.

    PyTorch may be imported later than this runs.
    """
    disabled: Callable[Params, Result] | None = None

    def prepared() -> Callable[Params, Result]:
        nonlocal disabled
        if disabled is None:
            reason = f"{_TORCH} to stay in one graph"
            disabled = sys.modules["torch"].compiler.disable(function, reason=reason)
        return disabled

    return prepared


def opaque(function: Callable[Params, Result]) -> Callable[Params, Result]:
    """Make torch.compile call a function as it is."""
    prepared = untraced(function)

    @wraps(function)
    def call(*args: Params.args, **options: Params.kwargs) -> Result:
        if being_compiled():
            return prepared()(*args, **options)
        return function(*args, **options)

    return call
