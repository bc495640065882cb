"""The functions as modules, with their options as attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rmac._checks import type_name
from rmac.torch import operators
from rmac.torch.functions import region_pool, rmac, roi_pool
from rmac.whitening import Whitening

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Unpack

    from rmac._options import MapLayout
    from rmac._typing import RegionPoolKeywords, RMACKeywords
    from rmac.pooling import Regions

__all__ = ["RMAC", "RegionPool", "RoIPool"]


class _Options(nn.Module):
    """A module whose attributes are the options of a function."""

    defaults: dict[str, Any]

    def __init__(self, **options: Any) -> None:
        super().__init__()
        unknown = options.keys() - self.defaults
        if unknown:
            expected = ", ".join(self.defaults)
            raise TypeError(f"expected options {expected}, got {', '.join(sorted(unknown))}")
        for name, value in {**self.defaults, **options}.items():
            setattr(self, name, value)

    def options(self) -> dict[str, Any]:
        """Return the options for the function."""
        return {name: getattr(self, name) for name in self.defaults}

    def extra_repr(self) -> str:
        """Return the options that are not the defaults."""
        changed = [one for one in self.options().items() if one[1] != self.defaults[one[0]]]
        return ", ".join(f"{name}={value!r}" for name, value in changed)


class RMAC(_Options):
    """R-MAC as the last layer of a model: feature maps in, descriptors out.

    Parameters
    ----------
    whitening : rmac.Whitening, optional
        A whitening of regional vectors. It becomes the buffers `mean` and `projection`, float32.
    **options
        The options of `rmac.rmac`, but for `out`. They are attributes.

    See Also
    --------
    rmac : The same as a function.

    Examples
    --------
    >>> import torch
    >>> import rmac.torch
    >>> layer = rmac.torch.RMAC(pool="gem", levels=2)
    >>> layer
    RMAC(pool='gem', levels=2)
    >>> layer(torch.rand(8, 512, 24, 32)).shape
    torch.Size([8, 512])
    """

    defaults = operators.RMAC

    def __init__(
        self, *, whitening: Whitening | None = None, **options: Unpack[RMACKeywords]
    ) -> None:
        super().__init__(**options)
        mean, projection = (None, None) if whitening is None else _tensors_of(whitening)
        self.register_buffer("mean", mean)
        self.register_buffer("projection", projection)

    def forward(self, x: Tensor) -> Tensor:
        """Return the descriptors (N, D) of feature maps (N, C, H, W)."""
        whitening = None if self.projection is None else (self.mean, self.projection)
        return rmac(x, whitening=whitening, **self.options())


def _tensors_of(whitening: Whitening) -> list[Tensor]:
    """Return copies of the mean and the projection of a whitening, on its device."""
    if not issubclass(type(whitening), Whitening):
        raise TypeError(f"whitening: expected a Whitening, got {type_name(whitening)}")
    state = whitening._state
    state.require_directions()
    return [torch.as_tensor(array.copy()) for array in state.in_float32()]


class RegionPool(_Options):
    """Regional pooling as a layer.

    Parameters
    ----------
    regions : RegionGrid or array_like of int, shape (R, 4), optional
        Boxes, as in `rmac.region_pool`.
    **options
        The options of `rmac.region_pool`, but for `out`. They are attributes.

    See Also
    --------
    region_pool : The same as a function.
    """

    defaults = operators.REGION_POOL

    def __init__(self, regions: Regions = None, **options: Unpack[RegionPoolKeywords]) -> None:
        super().__init__(regions=regions, **options)

    def forward(self, x: Tensor) -> Tensor:
        """Return the maxima or means (N, R, C) of feature maps (N, C, H, W)."""
        return region_pool(x, **self.options())


class RoIPool(_Options):
    """RoI max pooling as a layer, in the place of `torchvision.ops.RoIPool`.

    Parameters
    ----------
    output_size : int or (int, int), default 1
        Bins along the height and along the width of a RoI.
    spatial_scale : float, default 1.0
        The factor from coordinates to cells, such as 1/16.
    layout, workers : str, int
        As for `rmac.roi_pool`. All options are attributes.

    See Also
    --------
    roi_pool : The same as a function.
    """

    defaults = operators.ROI_POOL

    def __init__(
        self,
        output_size: int | tuple[int, int] = 1,
        spatial_scale: float = 1.0,
        *,
        layout: MapLayout = "NCHW",
        workers: int | None = None,
    ) -> None:
        super().__init__(
            output_size=output_size, spatial_scale=spatial_scale, layout=layout, workers=workers
        )

    def forward(self, x: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the maxima (K, C, ph, pw) of RoIs on feature maps (N, C, H, W)."""
        return roi_pool(x, rois, **self.options())
