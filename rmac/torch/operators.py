"""The operators ``torch.ops.rmac``: their schemas, what they compute, and what shapes they give.

The options and their defaults are those of the public functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rmac import descriptors, pooling
from rmac._dlpack import import_array, to_foreign
from rmac._shapes import (
    options_of,
    shape_of_region_pool,
    shape_of_rmac,
    shape_of_rmac_regions,
    shape_of_roi_pool,
)
from rmac.operators import GradientNotDefinedError
from rmac.whitening import Whitening
from rmac.whitening.components import Learned

if TYPE_CHECKING:
    from collections.abc import Callable

_TYPES: dict[type, str] = {bool: "bool", float: "float", int: "int", str: "str"}
_SPECIAL = {"output_size": "int[2]", "regions": "int[]?", "workers": "int?"}


def _typed(name: str, default: Any) -> str:
    """Return how a schema declares an option."""
    value = f'"{default}"' if isinstance(default, str) else str(default)
    return f"{_SPECIAL.get(name) or _TYPES[type(default)]} {name}={value}"


RMAC = options_of(descriptors.rmac)
REGION_POOL = options_of(pooling.region_pool)
ROI_POOL = options_of(pooling.roi_pool)
RMAC_REGIONS = options_of(pooling.rmac_regions)


# What the operators compute.


def _run(function: Callable[..., Any], x: Tensor, *others: Tensor, **options: Any) -> Tensor:
    if options.get("regions") is not None:
        options["regions"] = np.array(options["regions"], np.int64).reshape(-1, 4)
    arrays = [import_array(one.detach(), "x") for one in (x, *others)]
    result: Tensor = to_foreign(function(*arrays, **options), x.detach())
    return result


def _run_rmac(
    x: Tensor, mean: Tensor | None = None, projection: Tensor | None = None, **options: Any
) -> Tensor:
    if mean is not None and projection is not None:
        _require_projection(mean, projection)
        parts = [
            import_array(one.detach().to(_descriptor_dtype(x)), "x") for one in (mean, projection)
        ]
        options["whitening"] = Whitening._of(Learned(parts[0], parts[1], None))
    return _run(descriptors.rmac, x, **options)


def _require_projection(mean: Tensor, projection: Tensor) -> None:
    """Raise unless the parts of a whitening fit each other."""
    if mean.ndim != 1 or projection.ndim != 2 or projection.shape[1] != mean.shape[0]:
        got = f"{tuple(mean.shape)} and {tuple(projection.shape)}"
        raise ValueError(f"mean, projection: expected shapes (C,) and (D, C), got {got}")


# What shapes their results have. Sizes may be symbols.


def _descriptor_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _shape_rmac(
    x: Tensor, mean: Tensor | None = None, projection: Tensor | None = None, **given: Any
) -> Tensor:
    dim = None if mean is None or projection is None else projection.shape[0]
    return x.new_empty(shape_of_rmac(x, dim, RMAC | given), dtype=_descriptor_dtype(x))


def _shape_region_pool(x: Tensor, **given: Any) -> Tensor:
    options = REGION_POOL | given
    dtype = x.dtype if options["pool"] == "max" else _descriptor_dtype(x)
    return x.new_empty(shape_of_region_pool(x, options), dtype=dtype)


def _shape_roi_pool(x: Tensor, rois: Tensor, **given: Any) -> Tensor:
    return x.new_empty(shape_of_roi_pool(x, rois, ROI_POOL | given))


def _shape_rmac_regions(x: Tensor, **given: Any) -> Tensor:
    options = RMAC_REGIONS | given
    return x.new_empty(shape_of_rmac_regions(x, options), dtype=torch.float32)


def _no_gradient(name: str) -> Callable[..., None]:
    def backward(*_: Any) -> None:
        raise GradientNotDefinedError(
            f"rmac::{name} is for inference only: it has no gradient; run the model under "
            "torch.no_grad(), or detach the input"
        )

    return backward


_library = torch.library.Library("rmac", "DEF")


def _register(
    name: str,
    arguments: str,
    options: dict[str, Any],
    run: Callable[..., Tensor],
    shape: Callable[..., Tensor],
) -> None:
    """Register an operator for the CPU and CUDA."""
    schema = ", ".join([arguments, *(_typed(*option) for option in options.items())])
    _library.define(f"{name}({schema}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
    for device in ("CPU", "CUDA"):
        _library.impl(name, run, device)
    torch.library.register_fake(f"rmac::{name}", shape, lib=_library)
    torch.library.register_autograd(f"rmac::{name}", _no_gradient(name), lib=_library)


def _running(function: Callable[..., Any]) -> Callable[..., Tensor]:
    return lambda *tensors, **options: _run(function, *tensors, **options)


_WHITENING = "Tensor? mean=None, Tensor? projection=None"
_register("rmac", f"Tensor x, {_WHITENING}, *", RMAC, _run_rmac, _shape_rmac)
_register(
    "region_pool", "Tensor x, *", REGION_POOL, _running(pooling.region_pool), _shape_region_pool
)
_register(
    "roi_pool", "Tensor x, Tensor rois, *", ROI_POOL, _running(pooling.roi_pool), _shape_roi_pool
)
_register(
    "rmac_regions",
    "Tensor x, *",
    RMAC_REGIONS,
    _running(pooling.rmac_regions),
    _shape_rmac_regions,
)
