"""A user's program, which mypy checks: what each function returns, and which calls are wrong.

It is never run. A wrong call bears an ignore comment, and mypy complains of one that ignores
nothing.
"""

from typing import Any, assert_type

import numpy as np
import numpy.typing as npt

import rmac


class Tensor:
    """An array of another library."""

    def __dlpack__(self, *, stream: int | None = None) -> object: ...


NumPyArray = npt.NDArray[Any]
x = np.zeros((2, 8, 24, 32), np.float32)
maps = [np.zeros((8, 24, 32), np.float32), np.zeros((8, 16, 16), np.float32)]
tensor = Tensor()
grid = rmac.region_grid(24, 32, preset="matlab")
whitening = rmac.Whitening(dim=4)

assert_type(rmac.rmac(x), NumPyArray)
assert_type(rmac.rmac(maps, pool="gem", whitening=whitening), NumPyArray)
assert_type(rmac.rmac(tensor, layout="NHWC"), Tensor)
assert_type(rmac.rmac([tensor, tensor], aggregate="concat"), Tensor)
assert_type(rmac.region_pool(x, grid, pool="mean"), NumPyArray)
assert_type(rmac.region_pool(maps, [[0, 0, 1, 1]]), list[NumPyArray])
assert_type(rmac.region_pool(tensor), Tensor)
assert_type(rmac.region_pool([tensor]), list[Tensor])
assert_type(rmac.rmac_regions(x), NumPyArray)
assert_type(rmac.rmac_regions(tensor), Tensor)
assert_type(rmac.roi_pool(x, x, output_size=(2, 2)), NumPyArray)
assert_type(rmac.roi_pool(tensor, tensor), Tensor)
assert_type(rmac.roi_pool(x, [x, x]), NumPyArray)
assert_type(rmac.roi_pool(tensor, [tensor, tensor]), Tensor)
assert_type(rmac.rmac(x, regions=grid, aggregate="none"), NumPyArray)
assert_type(rmac.branch_pool(x, [x], [None]), NumPyArray)
assert_type(rmac.branch_pool(tensor, [tensor], [3]), Tensor)
assert_type(rmac.merge_scales(maps, p=3), NumPyArray)
assert_type(rmac.merge_scales([tensor, tensor]), Tensor)
assert_type(rmac.expand(x, x, x, alpha=3), NumPyArray)
assert_type(rmac.expand(tensor, tensor, tensor), Tensor)
assert_type(rmac.average_precision(x, [x, x]), npt.NDArray[np.float64])
assert_type(rmac.evaluate(x, [{"easy": [1], "hard": [], "junk": []}]).easy.map, float)
assert_type(whitening.fit(x).apply(x), NumPyArray)
assert_type(whitening.apply(tensor), Tensor)
assert_type(whitening.fit(x, y=None, dim=3), rmac.Whitening)
assert_type(grid, rmac.RegionGrid)
assert_type(grid.boxes, npt.NDArray[np.int64])

rmac.rmac(x, preset="vissl")  # type: ignore[call-overload]
rmac.rmac(x, pool="average")  # type: ignore[call-overload]
rmac.rmac(x, layout="CHW")  # type: ignore[call-overload]
rmac.rmac(x, aggregate="max")  # type: ignore[call-overload]
rmac.rmac(x, level=3)  # type: ignore[call-overload]
rmac.rmac(x=x)  # type: ignore[call-overload]
rmac.region_pool(x, preset="vissl")  # type: ignore[call-overload]
rmac.region_pool(x, normalize=True)  # type: ignore[call-overload]
rmac.roi_pool(x, x, layout="NCT")  # type: ignore[call-overload]
rmac.rerank(x, x, x, layout="NCT")  # type: ignore[arg-type]
rmac.expand(x, x, x, power=3)  # type: ignore[call-overload]
rmac.region_grid(24, 32, preset="vissl")  # type: ignore[arg-type]
rmac.sequence_grid(24, overlap=0.4)  # type: ignore[call-arg]
