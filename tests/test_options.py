"""Every backend knows every option, and raises for one that it does not know."""

from enum import IntEnum

import numpy as np
import pytest

from rmac import cpu, cuda
from rmac._options import Aggregate, Pool, PoolingOptions

FLOAT32 = np.dtype(np.float32)
KERNEL_SPECS = {
    "cpu": lambda pooling: cpu.route.kernel_spec(FLOAT32, pooling),
    "cuda": lambda pooling: cuda.route.kernel_spec(FLOAT32, pooling, FLOAT32),
}


class Foreign(IntEnum):
    """A pool that no backend knows."""

    MEDIAN = 9


@pytest.mark.parametrize("device", sorted(KERNEL_SPECS))
def test_every_pool_has_kernels(device):
    for pool in Pool:
        spec = KERNEL_SPECS[device](PoolingOptions(pool, 3.0 if pool is Pool.GEM else 0.0, 0))
        assert spec.sums == (pool is not Pool.MAX)


@pytest.mark.parametrize("device", sorted(KERNEL_SPECS))
def test_an_unknown_pool_is_an_error(device):
    with pytest.raises(AssertionError, match="MEDIAN"):
        KERNEL_SPECS[device](PoolingOptions(Foreign.MEDIAN, 0.0, 0))


def test_every_aggregate_has_a_place_for_descriptors():
    in_place = {aggregate for aggregate in Aggregate if cuda.route.leaves_in_place(aggregate)}
    assert in_place == {Aggregate.NONE, Aggregate.CONCAT}
