"""The GPU backend, twin of `rmac.cpu`: not there yet, and every entry says so."""

from __future__ import annotations

from typing import Any, NoReturn


def _no_gpu_backend(*_args: Any, **_options: Any) -> NoReturn:
    raise NotImplementedError(
        "this build of rmac has no GPU backend yet; copy the array to the host first, "
        "with cupy.asnumpy(x)"
    )


empty = rmac_regions = region_pool = roi_pool = rmac = to_device = to_host = _no_gpu_backend
