"""The structs that launches of the kernels take by value, in NumPy's terms.

A .cu file has each struct with the same fields, and the compiler checks that the layouts agree (see
`source.py`). All devices and drivers allow 4 KiB of parameters for a kernel. So the arrays in these
structs are bounded, and larger work takes several launches.
"""

from __future__ import annotations

import numpy as np

# These sizes keep each struct below 4 KiB. Other divisions of that room are not measured.
BATCHES = 10  # in one launch of a kernel that pools
PLAN_WORDS = 800  # int32 words for the plans of these batches
ROI_SHARED = 128  # bytes of shared memory of a block that pools RoIs
BOXES = 200  # that one launch writes as RoIs
COUNTS = 900  # images of one launch that have their own number of regions
WORDS = 1000  # int32 words that one launch writes to device memory

_STRIDES = np.dtype(
    [("image", np.int64), ("channel", np.int64), ("row", np.int64), ("pixel", np.int64)],
    align=True,
)
_BATCH = np.dtype(
    [
        ("data", np.intp),
        ("strides", _STRIDES),
        ("first_image", np.int64),
        ("width", np.int32),
        ("chunk_width", np.int32),
        ("first_block", np.int32),
        ("first_word", np.int32),
    ],
    align=True,
)
_AGGREGATION = np.dtype(
    [
        ("normalize_regions", np.int32),
        ("aggregate", np.int32),
        ("in_place", np.int32),
        ("normalize", np.int32),
        ("eps", np.float64),
    ],
    align=True,
)
_DESCRIPTION = np.dtype(
    [
        ("options", _AGGREGATION),
        ("squares", np.intp),
        ("finished", np.intp),
        ("descriptors", np.intp),
    ],
    align=True,
)
POOL_LAUNCH = np.dtype(
    [
        ("batches", np.int32),
        ("channels", np.int32),
        ("zero_point", np.int32),
        ("factors", np.int32),
        ("p", np.float64),
        ("regions", np.int64),
        ("description", _DESCRIPTION),
        ("batch", _BATCH, BATCHES),
        ("words", np.int32, PLAN_WORDS),
    ],
    align=True,
)

ROI_LAUNCH = np.dtype(
    [
        ("data", np.intp),
        ("strides", _STRIDES),
        ("images", np.int32),
        ("channels", np.int32),
        ("height", np.int32),
        ("width", np.int32),
        ("bin_rows", np.int32),
        ("bin_columns", np.int32),
        ("scale", np.float32),
        ("group", np.int32),
        ("groups", np.int32),
        ("rois", np.int64),
    ],
    align=True,
)
BOX_LAUNCH = np.dtype(
    [
        ("images", np.int64),
        ("regions", np.int64),
        ("first_box", np.int32),
        ("boxes", np.int32),
        ("corners", np.int32, 4 * BOXES),
    ],
    align=True,
)

DESCRIBE_LAUNCH = np.dtype(
    [
        ("first_image", np.int64),
        ("most_regions", np.int32),
        ("channels", np.int32),
        ("options", _AGGREGATION),
        ("vectors", np.intp),
        ("squares", np.intp),
        ("are_squared", np.int32),
        ("same_count", np.int32),
        ("counts", np.int32, COUNTS),
    ],
    align=True,
)

# Rows of the tables of boxes to search, in device memory; FOUND is a result.
RUN = np.dtype(
    [
        ("height", np.int32),
        ("width", np.int32),
        ("rows", np.int32),
        ("columns", np.int32),
        ("first_query", np.int32),
        ("queries", np.int32),
        ("first_sum", np.int64),
    ],
    align=True,
)
STAGE = np.dtype(
    [
        ("rows", np.int32),
        ("columns", np.int32),
        ("first_run", np.int32),
        ("stop_run", np.int32),
    ],
    align=True,
)
FOUND = np.dtype(
    [("score", np.float64), *((edge, np.int32) for edge in ("x1", "y1", "x2", "y2"))],
    align=True,
)
SEARCH_LAUNCH = np.dtype(
    [
        ("data", np.intp),
        ("strides", _STRIDES),
        ("first_image", np.int64),
        ("images", np.int64),
        *(
            (name, np.int32)
            for name in (
                "channels",
                "height",
                "width",
                "by_channels",
                "step",
                "channel_block",
                "channel_blocks",
                "blocks",
                "stages",
                "first_run",
                "stop_run",
                "queries",
                "parts",
                "is_first",
                "takes",
                "small_first",
                "refine",
                "sweeps",
            )
        ),
        ("first_sum", np.int64),
        ("sums", np.int64),
        ("stage", np.intp),
        ("run", np.intp),
        ("order", np.intp),
        ("units", np.intp),
        ("scale", np.float64),
        ("least", np.float64),
        ("most", np.float64),
        ("overflows", np.intp),
        ("all_sums", np.intp),
        ("workspace", np.intp),
        ("block_bytes", np.int64),
        ("found", np.intp),
        ("boxes", np.intp),
        ("scores", np.intp),
    ],
    align=True,
)
WORD_LAUNCH = np.dtype(
    [("first", np.int32), ("count", np.int32), ("words", np.int32, WORDS)], align=True
)

# By their names in the .cu files.
STRUCTS = {
    "Strides": _STRIDES,
    "Batch": _BATCH,
    "AggregationOptions": _AGGREGATION,
    "Description": _DESCRIPTION,
    "PoolLaunch": POOL_LAUNCH,
    "RoiLaunch": ROI_LAUNCH,
    "BoxLaunch": BOX_LAUNCH,
    "DescribeLaunch": DESCRIBE_LAUNCH,
    "Run": RUN,
    "Stage": STAGE,
    "Found": FOUND,
    "SearchLaunch": SEARCH_LAUNCH,
    "WordLaunch": WORD_LAUNCH,
}
