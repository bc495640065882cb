"""R-MAC inside JAX programs, for `jax.jit` and `jax.vmap`.

Each function is a `jax.pure_callback` on the host: the program waits for it, and arrays of a device
are copied to the host and back. There is no gradient: JAX raises if it needs one.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from rmac import descriptors, pooling
from rmac._options import MAP_LAYOUTS
from rmac._shapes import (
    flat_boxes,
    options_of,
    shape_of_region_pool,
    shape_of_rmac,
    shape_of_roi_pool,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Unpack

    from rmac._typing import RegionPoolKeywords, RMACKeywords, RoIPoolKeywords
    from rmac.pooling import Regions
    from rmac.whitening import Whitening

__all__ = ["region_pool", "rmac", "roi_pool"]

_RMAC = options_of(descriptors.rmac)
_REGION_POOL = options_of(pooling.region_pool)
_ROI_POOL = options_of(pooling.roi_pool)


def rmac(
    x: jax.Array, /, *, whitening: Whitening | None = None, **options: Unpack[RMACKeywords]
) -> jax.Array:
    """Describe each feature map by one vector, as `rmac.rmac` does.

    Parameters
    ----------
    x : jax.Array, shape (N, C, H, W), or as `layout` says
        Feature maps.
    whitening : Whitening, optional
        A whitening of the regional vectors, on the host. A compiled program has it as it is when
        the program is traced.
    **options
        The other options of `rmac.rmac`, but for `out`. They are constants of a compiled program.

    Returns
    -------
    jax.Array, shape (N, D), or (N, R, D) with ``aggregate="none"``
        The descriptors, as of `rmac.rmac`.

    See Also
    --------
    region_pool : The maxima of regions.

    Examples
    --------
    >>> import jax
    >>> import rmac.jax
    >>> describe = jax.jit(lambda images: rmac.jax.rmac(jax.nn.relu(images)))
    >>> describe(jax.numpy.ones((8, 512, 24, 32))).shape
    (8, 512)
    """
    given: Any = _RMAC | options
    whitening = copy.copy(whitening)
    dim = None if whitening is None else len(whitening.projection)
    shape = shape_of_rmac(x, dim, _counted(given))
    return _callback(descriptors.rmac, shape, _descriptor_dtype(x), x, whitening=whitening, **given)


def region_pool(
    x: jax.Array, /, regions: Regions = None, **options: Unpack[RegionPoolKeywords]
) -> jax.Array:
    """Pool each channel of each feature map, or sequence, over regions.

    Parameters
    ----------
    x : jax.Array, shape (N, C, H, W), or as `layout` says
        Feature maps.
    regions : RegionGrid or array_like of int, shape (R, 4), optional
        Boxes, as in `rmac.region_pool`.
    **options
        The other options of `rmac.region_pool`, but for `out`.

    Returns
    -------
    jax.Array, shape (N, R, C)
        The maxima or means, as of `rmac.region_pool`.

    See Also
    --------
    rmac : Descriptors.
    """
    given: Any = _REGION_POOL | options | {"regions": regions}
    dtype = x.dtype if given["pool"] == "max" else _descriptor_dtype(x)
    return _callback(
        pooling.region_pool, shape_of_region_pool(x, _counted(given)), dtype, x, **given
    )


def roi_pool(x: jax.Array, /, rois: jax.Array, **options: Unpack[RoIPoolKeywords]) -> jax.Array:
    """Max-pool each RoI into a grid of bins, as `rmac.roi_pool` does.

    Parameters
    ----------
    x : jax.Array, shape (N, C, H, W), or (N, H, W, C) with ``layout="NHWC"``
        Feature maps.
    rois : jax.Array, shape (K, 5)
        ``batch_index, x1, y1, x2, y2`` of each RoI.
    **options
        The other options of `rmac.roi_pool`, but for `out`.

    Returns
    -------
    jax.Array, shape (K, C, ph, pw)
        The maxima, as of `rmac.roi_pool`.

    See Also
    --------
    region_pool : The same regions for all images.
    """
    given: Any = _ROI_POOL | options
    return _callback(pooling.roi_pool, shape_of_roi_pool(x, rois, given), x.dtype, x, rois, **given)


def _counted(options: dict[str, Any]) -> dict[str, Any]:
    """Return options for the shape of a result, which tell how many boxes there are."""
    if options["regions"] is None:
        return options
    boxes = flat_boxes(options["regions"], sequence=options["layout"] not in MAP_LAYOUTS)
    return {**options, "regions": boxes}


def _descriptor_dtype(x: jax.Array) -> Any:
    return np.float64 if x.dtype == np.float64 else np.float32


def _callback(
    function: Callable[..., Any],
    shape: tuple[int, ...],
    dtype: Any,
    *arrays: jax.Array,
    **options: Any,
) -> jax.Array:
    """Return the result of a public function, which is called when the program runs."""

    def call(*values: jax.Array) -> Any:
        return function(*map(np.asarray, values), **options)

    result = jax.ShapeDtypeStruct(shape, dtype)
    found: jax.Array = jax.pure_callback(call, result, *arrays, vmap_method="sequential")
    return found
