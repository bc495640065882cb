"""The operator registry: the one table from an operator's name and a device to code.

The public functions of rmac look their code up here too, so that an operator registered with
``replace=True`` takes effect everywhere.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from numpy import ndarray

from rmac._backend import BACKENDS, HOST, Backend, backend_of_input, move
from rmac._checks import (
    PLAIN_TYPES,
    is_list,
    memory_error,
    plain_text,
    positive_int,
    real,
    shown,
    type_name,
)
from rmac._dlpack import from_foreign, hand_over, is_foreign, snapshot, to_foreign
from rmac._tracing import being_compiled, opaque, untraced

if TYPE_CHECKING:
    from rmac._backend import Array

__all__ = [
    "GradientNotDefinedError",
    "RMACRegionsOp",
    "gradient",
    "register_cpu_operator",
    "register_cuda_operator",
    "run_on_device",
    "should_not_do_gradient",
]

Params = ParamSpec("Params")
Result = TypeVar("Result")
Operator = Callable[..., Any]
Factory = Callable[..., Operator]

_MOST_DIGITS = 4  # of the number of a device

_DEVICE_NAMES = ", ".join(  # for messages
    f'"{device}"' if device == HOST.DEVICE else f'"{device}", "{device}:N"' for device in BACKENDS
)

_factories: dict[tuple[str, str], Factory] = {}
_without_gradient: set[str] = set()


class GradientNotDefinedError(NotImplementedError):
    """The operator declares that it has no gradient."""


def register_cpu_operator(name: str, factory: Factory, *, replace: bool = False) -> None:
    """Register an operator's code for arrays on the host.

    Parameters
    ----------
    name : str
        The operator's name.
    factory : callable
        ``factory(**args)`` returns a new operator instance, a callable on an array.
    replace : bool, default False
        Whether the name may be registered already.

    Raises
    ------
    TypeError
        If `name` is not a string or `factory` not callable.
    ValueError
        If the name is registered already and `replace` is False.
    """
    _register("cpu", name, factory, replace)


def register_cuda_operator(name: str, factory: Factory, *, replace: bool = False) -> None:
    """Register an operator's code for arrays on a CUDA device.

    Parameters
    ----------
    name : str
        The operator's name.
    factory : callable
        ``factory(**args)`` returns a new operator instance, a callable on an array.
    replace : bool, default False
        Whether the name may be registered already.

    Raises
    ------
    TypeError
        If `name` is not a string or `factory` not callable.
    ValueError
        If the name is registered already and `replace` is False.
    """
    _register("cuda", name, factory, replace)


def _register(device: str, name: str, factory: Factory, replace: bool) -> None:
    name = plain_text("name", name)
    if not callable(factory):
        raise TypeError(f"factory: expected a callable, got {type_name(factory)}")
    if (name, device) in _factories and not replace:
        raise ValueError(
            f"name: expected one not yet registered for {device}, got {shown(name)}; "
            "replace=True replaces it"
        )
    _factories[name, device] = factory


@opaque
def run_on_device(
    operator: str | Operator, x: Array, device: str | None = None, **args: Any
) -> Any:
    """Run an operator on an array, on a device of choice.

    Parameters
    ----------
    operator : str or callable
        Name of a registered operator, or an operator instance.
    x : array
        The operator's input.
    device : {None, "cpu", "cuda", "cuda:N"}, optional
        Where to run. None is the device of `x`. If you name a device, `x` may be copied there.
    **args
        Arguments of a named operator.

    Returns
    -------
    array
        The operator's output, on the device where it ran.

    Raises
    ------
    TypeError
        If `x` is not an array, or `args` are given for an instance.
    ValueError
        If the operator has no code for the device, or the device's name is not one.
    """
    if device is not None:
        x = _moved(x, device)
    if issubclass(type(operator), str):
        return _run(plain_text("operator", operator), x, args)
    if not callable(operator):
        raise TypeError(f"operator: expected a name or a callable, got {type_name(operator)}")
    if args:
        raise TypeError(f"args: an operator instance has its own, got {', '.join(args)}")
    return operator(x)


def _run(name: str, x: Any, options: dict[str, Any]) -> Any:
    """Run a named operator. Arrays of other libraries come in and go out through DLPack."""
    x = snapshot(x)
    array = from_foreign(x)
    foreign = {
        key: from_foreign(value, key)
        for key, value in options.items()
        if type(value) not in PLAIN_TYPES and is_foreign(value)
    }
    arguments = options | foreign if foreign else options
    try:
        result = _create(name, array, arguments)(array)
    except (MemoryError, ValueError) as error:
        raise memory_error(error, "x") from error.__cause__
    if array is x and not foreign:
        return result
    if result is not None and result is arguments.get("out"):
        hand_over(result, options["out"])
        return options["out"]
    return to_foreign(result, x)


def _create(name: str, x: Array, options: dict[str, Any]) -> Operator:
    """Return a new instance of a named operator for the device that `x` lives on."""
    device = backend_of_input(x).DEVICE
    try:
        factory = _factories[name, device]
    except KeyError:
        known = sorted(known for known, where in _factories if where == device)
        raise ValueError(
            f"operator: expected one registered for {device} ({', '.join(known)}), "
            f"got {shown(name)}"
        ) from None
    return factory(**options)


def _moved(x: Any, device: str) -> Any:
    """Return an array, or a list of them, on the device of a name."""
    kind, colon, number = plain_text("device", device).partition(":")
    is_number = number.isdecimal() and len(number) <= _MOST_DIGITS
    if kind not in BACKENDS or (colon and (kind == HOST.DEVICE or not is_number)):
        raise ValueError(f"device: expected one of {_DEVICE_NAMES}, got {shown(device)}")
    index = int(number) if colon else None
    if is_list(x):
        return [_moved_array(one, kind, index) for one in snapshot(x)]
    return _moved_array(x, kind, index)


def _moved_array(x: Any, kind: str, index: int | None) -> Any:
    array = from_foreign(x)
    moved = move(array, kind, index)
    return x if moved is array else moved


def should_not_do_gradient(name: str) -> None:
    """Declare that an operator has no gradient.

    Parameters
    ----------
    name : str
        Name of a registered operator.

    Raises
    ------
    ValueError
        If there is no such operator.
    """
    _without_gradient.add(_registered(name))


def gradient(name: str) -> Any:
    """Return the gradient of an operator. No operator of rmac has one.

    Parameters
    ----------
    name : str
        Name of a registered operator.

    Returns
    -------
    None
        For operators that declare nothing about a gradient.

    Raises
    ------
    GradientNotDefinedError
        If the operator is marked with `should_not_do_gradient`.
    ValueError
        If there is no such operator.
    """
    name = _registered(name)
    if name in _without_gradient:
        raise GradientNotDefinedError(f"{name} is for inference only: it has no gradient")


def _registered(name: str) -> str:
    """Return the name of an operator that is registered, or raise."""
    name = plain_text("name", name)
    if not any(name == known for known, _ in _factories):
        known = sorted({known for known, _ in _factories})
        raise ValueError(f"name: expected one of {', '.join(known)}, got {shown(name)}")
    return name


def _factory(function: Callable[..., Any], backend: Backend) -> Factory:
    """Return what is registered: given options, it returns a function of x."""
    return lambda **options: partial(function, backend, **options)


def public_operator(
    name: str,
) -> Callable[[Callable[Concatenate[Backend, Params], Result]], Callable[Params, Result]]:
    """Register a function of (backend, x, ...) as an operator, and return the public function."""

    def decorate(
        function: Callable[Concatenate[Backend, Params], Result],
    ) -> Callable[Params, Result]:
        for device, backend in BACKENDS.items():
            _register(device, name, _factory(function, backend), replace=False)
        should_not_do_gradient(name)

        signature = inspect.signature(function)
        signature = signature.replace(parameters=list(signature.parameters.values())[1:])
        position_names = [
            one.name for one in signature.parameters.values() if one.kind != one.KEYWORD_ONLY
        ]

        @wraps(function)
        def public(*args: Params.args, **options: Params.kwargs) -> Result:
            alone = len(args) == 1
            if not (alone and type(args[0]) is ndarray) and being_compiled():
                return prepared()(*args, **options)
            if alone:
                return _run(name, args[0], options)  # type: ignore[no-any-return]
            # Factories take options by name alone.
            by_position = dict(zip(position_names[1:], args[1:], strict=False))
            if not 0 < len(args) <= len(position_names) or options.keys() & by_position:
                signature.bind(*args, **options)  # raises, and says why
            return _run(name, args[0], options | by_position)  # type: ignore[no-any-return]

        prepared = untraced(public)
        public.__signature__ = signature  # type: ignore[attr-defined]
        return public

    return decorate


class RMACRegionsOp:
    """Caffe2's RMACRegions as an object: the R-MAC windows on a batch of feature maps, as RoIs.

    Parameters
    ----------
    scales : int, default 3
        Number of levels, at least 1.
    overlap : float, default 0.4
        Overlap to aim for between neighbouring windows along the longer side, in [0, 1).

    Attributes
    ----------
    scales : int
        Number of levels.
    overlap : float
        Overlap to aim for between neighbouring windows.

    See Also
    --------
    rmac.rmac_regions : The same as a function.
    """

    def __init__(self, scales: int = 3, overlap: float = 0.4) -> None:
        self.scales = positive_int("scales", scales)
        self.overlap = real("overlap", overlap, low=0, high=1)

    def __call__(self, x: Array, /) -> Array:
        """Return the RoIs of x (N, C, H, W) as float32 (N * R, 5)."""
        return run_on_device("RMACRegions", x, scales=self.scales, overlap=self.overlap)

    def __repr__(self) -> str:
        return f"RMACRegionsOp(scales={self.scales}, overlap={self.overlap:g})"
