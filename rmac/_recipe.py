"""What backends are told to compute, as checked options of the public functions."""

from typing import NamedTuple


class Pooling(NamedTuple):
    """How a region's values become one."""

    pool: str
    p: float  # the power of a generalised mean, else 0

    @property
    def fits_float32(self) -> bool:
        """Whether sums of float32 values are as good in float32 as it is, and far from its ends.

        The least power is that of 1e-6; activations of a million leave room for a million cells.
        """
        return self.p == 0 or 1 <= self.p <= 5


class Recipe(NamedTuple):
    """What becomes of an image's regional vectors."""

    normalize_regions: bool
    aggregate: str
    normalize: bool
    eps: float


MAXIMA = Pooling("max", 0.0)
