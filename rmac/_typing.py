"""Types of the public functions, for users' type checkers: array in, the same kind of array out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypedDict, TypeVar

import numpy.typing as npt

if TYPE_CHECKING:
    from rmac._options import AggregateName, Layout, MapLayout, PoolName, PresetName
    from rmac.pooling import Regions


class DLPackArray(Protocol):
    """An array of any library, such as a PyTorch tensor."""

    def __dlpack__(self) -> Any: ...


NumPyArray = npt.NDArray[Any]
ArrayT = TypeVar("ArrayT", bound=DLPackArray)


class GridKeywords(TypedDict, total=False):
    """The options of `rmac.region_grid`."""

    levels: int
    overlap: float
    preset: PresetName


class RegionPoolKeywords(GridKeywords, total=False):
    """The options of `rmac.region_pool`."""

    pool: PoolName
    p: float
    zero_point: int
    layout: Layout
    workers: int | None
    out: Any


class RMACKeywords(RegionPoolKeywords, total=False):
    """The options of `rmac.rmac`, but for `whitening`."""

    regions: Regions
    normalize_regions: bool
    aggregate: AggregateName
    normalize: bool
    eps: float


class RoIPoolKeywords(TypedDict, total=False):
    """The options of `rmac.roi_pool`."""

    output_size: int | tuple[int, int]
    spatial_scale: float
    layout: MapLayout
    workers: int | None
    out: Any
