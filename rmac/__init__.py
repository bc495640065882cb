"""R-MAC: regional max pooling of feature maps, for NumPy and CuPy arrays."""

try:
    from rmac import _hints, operators
    from rmac._config import __version__, show_config
    from rmac.branches import branch_pool
    from rmac.descriptors import rmac
    from rmac.evaluation import average_precision, evaluate
    from rmac.localization import localize, quantize
    from rmac.pooling import region_pool, rmac_regions, roi_pool
    from rmac.ranking import expand, rerank
    from rmac.regions import RegionGrid, region_grid, sequence_grid
    from rmac.scales import merge_scales
    from rmac.whitening import Whitening

    _hints.advise_callers_of(__name__)
except (Exception, KeyboardInterrupt) as error:
    from rmac._terminal import end_command_line

    end_command_line(error)
    raise

__all__ = [
    "RegionGrid",
    "Whitening",
    "__version__",
    "average_precision",
    "branch_pool",
    "evaluate",
    "expand",
    "localize",
    "merge_scales",
    "operators",
    "quantize",
    "region_grid",
    "region_pool",
    "rerank",
    "rmac",
    "rmac_regions",
    "roi_pool",
    "sequence_grid",
    "show_config",
]
