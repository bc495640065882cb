from enum import IntEnum
from typing import Any

class Path(IntEnum):
    CHANNELS = 0
    ROWS = 1
    PLANES = 2
    GATHER = 3

class Aggregate(IntEnum):
    NONE = 0
    SUM = 1
    MEAN = 2
    CONCAT = 3

class Kind(IntEnum):
    BITS = 0
    UINT8 = 1
    INT8 = 2
    FLOAT16 = 3
    BFLOAT16 = 4
    FLOAT32 = 5
    FLOAT64 = 6

class Plan:
    n_regions: int
    def __init__(
        self,
        height: int,
        width: int,
        rows: Any,
        columns: Any,
        keep_bands: bool,
        of_rows: Any,
        of_bands: Any,
        row: Any,
        bin_: Any,
        bins: int,
        cells: Any,
    ) -> None: ...

class Route:
    plan: Plan
    path: int
    lanes: int
    def __init__(self, plan: Plan, path: int, lanes: int) -> None: ...

class _Fused:
    def __getitem__(self, types: str | tuple[str, ...]) -> Any: ...

pool: _Fused
rmac: _Fused
describe: _Fused

def scratch_bytes(plan: Plan, path: int, lanes: int, itemsize: int, sums: bool) -> int: ...
def read(words: Any, workers: int) -> int: ...
def build_info() -> dict[str, Any]: ...
def vector_level() -> int: ...
def max_threads() -> int: ...
