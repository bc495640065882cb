"""Merging of the descriptors of an image at several scales."""

from __future__ import annotations

from functools import reduce
from math import inf
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from rmac._backend import Array, backend_of, backend_of_input
from rmac._checks import is_list, naming_memory, real
from rmac._dlpack import from_foreign, snapshot, to_foreign
from rmac._dtypes import dtype_info
from rmac._floats import default_floats
from rmac._tracing import opaque

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rmac._typing import ArrayT, NumPyArray

__all__ = ["merge_scales"]

_BLOCK = 1 << 20  # elements of each scale that are merged at a time, in float64


@overload
def merge_scales(
    descriptors: NumPyArray | Sequence[NumPyArray], /, p: float = 1.0
) -> NumPyArray: ...
@overload
def merge_scales(descriptors: ArrayT | Sequence[ArrayT], /, p: float = 1.0) -> ArrayT: ...
@opaque
@naming_memory("descriptors")
def merge_scales(descriptors: Sequence[Array] | Array, /, p: float = 1.0) -> Array:
    r"""Merge the descriptors of images at several scales into one descriptor for each image.

    With :math:`d_s` the descriptor of an image at scale s of S, the result is their mean with power
    p, element by element, and then L2-normalised:

    .. math:: L2\left(\left(\frac{1}{S} \sum_s d_s^p\right)^{1/p}\right)

    Parameters
    ----------
    descriptors : list of S arrays, shape (N, D), or array, shape (S, N, D)
        The descriptors of the images at each scale, of any dtype that `rmac.rmac` takes.
    p : float, default 1.0
        Power of the mean over scales, at least 0.001. 1 gives the direction of the sum, and
        infinity that of the maximum.

    Returns
    -------
    array, shape (N, D)
        The merged descriptors, float64 for float64 descriptors, else float32. A zero vector stays
        zero.

    Raises
    ------
    TypeError
        If an array or `p` is of the wrong type, or descriptors differ in dtype or device.
    ValueError
        If shapes differ, there is no scale, or `p` is out of its range.

    See Also
    --------
    rmac : The descriptors of one scale.

    Notes
    -----
    The mean is for elements that are not negative, such as maxima after a ReLU. If an element is
    negative and `p` is neither 1 nor infinity, the whole descriptor of that image is NaN. It is NaN
    also if an element is NaN or infinite. Powers are computed in float64, of ratios to the largest
    element, so that neither they nor norms overflow or underflow.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> sizes = [(12, 16), (17, 23), (24, 32)]
    >>> scales = [rmac.rmac(rng.random((8, 512, *size), dtype=np.float32)) for size in sizes]
    >>> rmac.merge_scales(scales).shape
    (8, 512)
    """
    p = real("p", p, low=1e-3, infinite=True)
    descriptors = snapshot(descriptors, "descriptors")
    scales = _checked(from_foreign(descriptors, "descriptors"))
    backend = backend_of(scales[0])
    xp = backend.namespace()
    images, dim = scales[0].shape
    rows = max(1, _BLOCK // max(1, dim))
    with backend.device_context(scales[0]), default_floats():
        merged = xp.empty((images, dim), dtype_info(scales[0].dtype).descriptor)
        for first in range(0, images if dim else 0, rows):
            part = slice(first, first + rows)
            block = [scale[part].astype(np.float64, order="C") for scale in scales]
            merged[part] = normalized(_mean(in_range(block, xp), p, xp), xp)
    return to_foreign(merged, descriptors)


def _checked(descriptors: Any) -> list[Array]:
    """Return the arrays of the scales, or raise if their shapes, dtypes or devices differ."""
    if not is_list(descriptors):
        descriptors = backend_of(descriptors, "descriptors").plain(descriptors, "descriptors")
        if descriptors.ndim != 3:
            raise ValueError(
                "descriptors: expected shape (S, N, D), or a list of arrays (N, D), "
                f"got {descriptors.shape}"
            )
    backend = backend_of_input(list(descriptors), "descriptors")
    scales = [backend.plain(one, f"descriptors[{i}]") for i, one in enumerate(descriptors)]
    for i, scale in enumerate(scales):
        name = f"descriptors[{i}]"
        dtype_info(scale.dtype, name)
        if scale.ndim != 2:
            raise ValueError(f"{name}: expected shape (N, D), got {scale.shape}")
        if scale.shape != scales[0].shape:
            raise ValueError(f"{name}: expected shape {scales[0].shape}, got {scale.shape}")
        if scale.dtype != scales[0].dtype:
            dtypes = scales[0].dtype.name, scale.dtype.name
            raise TypeError("{}: expected dtype {}, got {}".format(name, *dtypes))
    return scales


def in_range(scales: list[Array], xp: Any) -> list[Array]:
    """Return arrays (N, D), all divided by the largest magnitude in their rows."""
    peak = reduce(xp.maximum, [abs(scale).max(axis=1, keepdims=True) for scale in scales])
    unit = xp.where(peak == 0, 1.0, peak)
    return [scale / unit for scale in scales]


def _mean(scales: list[Array], p: float, xp: Any) -> Array:
    """Return the generalised mean over scales. Negative elements give NaN, unless p is 1 or inf."""
    if p == 1:
        return sum(scales)
    highest = reduce(xp.maximum, scales)
    if p == inf:
        return highest
    unit = xp.where(highest > 0, highest, 1.0)
    powers = [(xp.where(scale < 0, xp.nan, scale) / unit) ** p for scale in scales]
    return highest * (sum(powers) / len(scales)) ** (1 / p)


def normalized(vectors: Array, xp: Any) -> Array:
    """Return vectors (N, D), L2-normalised; a zero vector stays zero."""
    norms = xp.sqrt((vectors * vectors).sum(axis=1, keepdims=True))
    return vectors / xp.where(norms == 0, 1.0, norms)
