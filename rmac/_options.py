"""Options of the public functions: the names that users write, and the options that backends get.

A backend must know every name in the enums here: one that does not know a pool or an aggregate
raises, and never computes another.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Literal, NamedTuple, assert_never, get_args

from rmac._checks import choice, flag, integer, positive_int, real

PoolName = Literal["max", "mean", "gem"]
AggregateName = Literal["sum", "mean", "concat", "none"]
PresetName = Literal["caffe2", "matlab", "cirtorch"]
MapLayout = Literal["NCHW", "NHWC"]
Layout = Literal["NCHW", "NHWC", "NCT", "NTC"]
SearchName = Literal["best", "grid", "aml"]

POOLS: tuple[PoolName, ...] = get_args(PoolName)
AGGREGATES: tuple[AggregateName, ...] = get_args(AggregateName)
PRESETS: tuple[PresetName, ...] = get_args(PresetName)
MAP_LAYOUTS: tuple[MapLayout, ...] = get_args(MapLayout)
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
SEARCHES: tuple[SearchName, ...] = get_args(SearchName)

# Powers p of the generalised mean. With p below 0.001 rounding dominates; with p above 50,
# 1e-6**p underflows float64.
_MIN_POWER, _MAX_POWER = 1e-3, 50.0


class Pool(StrEnum):
    """How the values of a region become one."""

    MAX = "max"
    MEAN = "mean"
    GEM = "gem"  # the generalised mean


class Aggregate(IntEnum):
    """How regional vectors become a descriptor; kernels have the same numbers."""

    NONE = 0
    SUM = 1
    MEAN = 2
    CONCAT = 3


class PoolingOptions(NamedTuple):
    """How the values of a region become one."""

    pool: Pool
    p: float  # the power of the generalised mean; 0 for other pools
    zero_point: int  # of integers: the value that stands for 0

    @property
    def sums_in_float32(self) -> bool:
        """Whether float32 accumulation is accurate and cannot overflow or underflow.

        With p of 1 to 5, the smallest term is 1e-6**5 = 1e-30, and a million values of a million
        sum to 1e36.
        """
        match self.pool:
            case Pool.MAX | Pool.MEAN:
                return True
            case Pool.GEM:
                return 1 <= self.p <= 5
            case unknown:
                assert_never(unknown)


class AggregationOptions(NamedTuple):
    """How regional vectors become a descriptor."""

    normalize_regions: bool
    aggregate: Aggregate
    normalize: bool  # whether descriptors are normalised; False with Aggregate.NONE
    eps: float


class GridOptions(NamedTuple):
    """Which grid is laid over a map."""

    levels: int
    overlap: float
    preset: PresetName


class SearchOptions(NamedTuple):
    """Which boxes of a map are compared with a query."""

    name: SearchName
    tolerance: float  # the factor by which the aspect of a box may differ
    step: int  # cells between candidates of a grid
    refine: int  # the largest step of the refinement of its best box, at least 0
    sweeps: int  # the most rounds at each step


MAX_POOLING = PoolingOptions(Pool.MAX, 0.0, 0)


def pooling_options(pool: PoolName, p: float, zero_point: int) -> PoolingOptions:
    """Return the options, checked, or raise."""
    power = real("p", p, low=_MIN_POWER, high=_MAX_POWER)
    chosen = Pool(choice("pool", pool, POOLS))
    power = power if chosen is Pool.GEM else 0.0
    return PoolingOptions(chosen, power, integer("zero_point", zero_point))


def aggregation_options(
    normalize_regions: bool, aggregate: AggregateName, normalize: bool, eps: float
) -> AggregationOptions:
    """Return the options, checked, or raise."""
    normalize_regions = flag("normalize_regions", normalize_regions)
    chosen = Aggregate[choice("aggregate", aggregate, AGGREGATES).upper()]
    normalize = flag("normalize", normalize) and chosen is not Aggregate.NONE
    return AggregationOptions(normalize_regions, chosen, normalize, real("eps", eps, low=0))


def grid_options(levels: int, overlap: float, preset: PresetName) -> GridOptions:
    """Return the options, checked, or raise."""
    return GridOptions(
        positive_int("levels", levels),
        real("overlap", overlap, low=0, high=1),
        choice("preset", preset, PRESETS),
    )
