"""R-MAC inside PyTorch programs, for `torch.compile`, `torch.export` and `torch.func.vmap`.

The functions of this module are registered operators, whose shapes PyTorch knows. The modules have
the options of the functions as attributes. Both compute what the functions of rmac compute, on the
CPU and on CUDA devices.

Inference only: a backward pass through them raises `rmac.operators.GradientNotDefinedError`.
"""

from rmac.torch.functions import region_pool, rmac, rmac_regions, roi_pool
from rmac.torch.modules import RMAC, RegionPool, RoIPool

__all__ = ["RMAC", "RegionPool", "RoIPool", "region_pool", "rmac", "rmac_regions", "roi_pool"]
