"""What backends are told to compute, as checked options of the public functions."""

from typing import NamedTuple


class Pooling(NamedTuple):
    """How a region's values become one."""

    pool: str
    p: float  # the power of a generalised mean, else 0


class Recipe(NamedTuple):
    """What becomes of an image's regional vectors."""

    normalize_regions: bool
    aggregate: str
    normalize: bool
    eps: float


MAXIMA = Pooling("max", 0.0)
