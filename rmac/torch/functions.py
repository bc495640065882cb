"""The operators as functions: regions and RoIs in all forms that the functions of rmac take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rmac._arrays import require_grid_size
from rmac._options import MAP_LAYOUTS
from rmac._shapes import flat_boxes, map_axes
from rmac.regions import RegionGrid
from rmac.torch import operators  # noqa: F401  it registers them
from rmac.whitening import Whitening

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Unpack

    from rmac._typing import RegionPoolKeywords, RMACKeywords, RoIPoolKeywords
    from rmac.pooling import Regions

__all__ = ["region_pool", "rmac", "rmac_regions", "roi_pool"]


def rmac(
    x: Tensor,
    /,
    *,
    whitening: tuple[Tensor, Tensor] | None = None,
    **options: Unpack[RMACKeywords],
) -> Tensor:
    """Describe each feature map by one vector, as `rmac.rmac` does.

    Parameters
    ----------
    x : Tensor, shape (N, C, H, W), or as `layout` says
        Feature maps.
    whitening : (Tensor, Tensor), optional
        The mean (C,) and the projection (D, C) of a `rmac.Whitening`, on the device of `x`.
    **options
        The other options of `rmac.rmac`, but for `out`. In a compiled graph they are constants.

    Returns
    -------
    Tensor, shape (N, D), or (N, R, D) with ``aggregate="none"``
        The descriptors, as of `rmac.rmac`. They have no gradient.

    See Also
    --------
    RMAC : The same as a module.
    """
    if issubclass(type(whitening), Whitening):
        raise TypeError(
            "whitening: expected two tensors, the mean and the projection, got a Whitening; "
            "rmac.torch.RMAC(whitening=...) takes one"
        )
    mean, projection = whitening or (None, None)
    result: Tensor = torch.ops.rmac.rmac(x, mean, projection, **_prepared(x, options))
    return result


def region_pool(
    x: Tensor, /, regions: Regions = None, **options: Unpack[RegionPoolKeywords]
) -> Tensor:
    """Pool each channel of each feature map, or sequence, over regions.

    Parameters
    ----------
    x : Tensor, shape (N, C, H, W), or as `layout` says
        Feature maps.
    regions : RegionGrid or array_like of int, shape (R, 4), optional
        Boxes, as in `rmac.region_pool`. In a compiled graph they are constants.
    **options
        The other options of `rmac.region_pool`, but for `out`.

    Returns
    -------
    Tensor, shape (N, R, C)
        The maxima or means, as of `rmac.region_pool`. They have no gradient.

    See Also
    --------
    RegionPool : The same as a module.
    """
    given: Any = {**options, "regions": regions}
    result: Tensor = torch.ops.rmac.region_pool(x, **_prepared(x, given))
    return result


def roi_pool(
    x: Tensor, /, rois: Tensor | Sequence[Tensor], **options: Unpack[RoIPoolKeywords]
) -> Tensor:
    """Max-pool each RoI into a grid of bins, as `rmac.roi_pool` and torchvision do.

    Parameters
    ----------
    x : Tensor, shape (N, C, H, W), or (N, H, W, C) with ``layout="NHWC"``
        Feature maps.
    rois : Tensor, shape (K, 5), or list of N tensors, shape (L, 4)
        ``batch_index, x1, y1, x2, y2`` of each RoI, or the boxes of each image.
    **options
        The other options of `rmac.roi_pool`, but for `out`.

    Returns
    -------
    Tensor, shape (K, C, ph, pw)
        The maxima, as of `rmac.roi_pool`. They have no gradient.

    See Also
    --------
    RoIPool : The same as a module.
    """
    if isinstance(rois, (list, tuple)):
        numbers = [one.new_full((len(one), 1), i) for i, one in enumerate(rois)]
        rois = torch.cat([torch.cat(one, 1) for one in zip(numbers, rois, strict=True)])
    result: Tensor = torch.ops.rmac.roi_pool(x, rois, **options)
    return result


def rmac_regions(x: Tensor, /, *, scales: int = 3, overlap: float = 0.4) -> Tensor:
    """Return the R-MAC windows of a batch of feature maps as RoIs, as Caffe2's operator does.

    Parameters
    ----------
    x : Tensor, shape (N, C, H, W)
        Feature maps, any dtype.
    scales, overlap : int, float
        The grid, see `rmac.rmac_regions`.

    Returns
    -------
    Tensor of float32, shape (N * R, 5)
        ``batch_index, x1, y1, x2, y2`` of each region, input for `roi_pool`.

    See Also
    --------
    roi_pool : Pooling over RoIs.
    """
    result: Tensor = torch.ops.rmac.rmac_regions(x, scales=scales, overlap=overlap)
    return result


def _prepared(x: Tensor, options: Any) -> dict[str, Any]:
    """Return options as the operators take them: boxes are a flat list of integers."""
    regions, layout = options.get("regions"), options.get("layout", "NCHW")
    if regions is None:
        return dict(options)
    if type(regions) is RegionGrid:
        height, width = [1, *map_axes(x, layout)[2:]][-2:]
        require_grid_size((regions.height, regions.width), (height, width))
    return {**options, "regions": _flat(regions, sequence=layout not in MAP_LAYOUTS)}


_flat = torch.compiler.assume_constant_result(flat_boxes)
