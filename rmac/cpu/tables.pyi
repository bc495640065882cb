from enum import IntEnum

import numpy as np
import numpy.typing as npt

from rmac._dtypes import Kind as Kind
from rmac._options import Aggregate as Aggregate
from rmac.cpu.plan import PlanTables

LINE_BYTES: int

def crc32(data: bytes | bytearray | memoryview, crc: int = 0) -> int: ...
def read_rows(
    descriptor: int,
    offsets: npt.NDArray[np.int64],
    rows: npt.NDArray[np.uint8],
    crcs: npt.NDArray[np.uint32] | None = None,
) -> int: ...
def record_ends(
    data: bytes | bytearray, fixed: int, sizes_at: int, ends: npt.NDArray[np.int64]
) -> bool: ...
def are_equal(
    a: bytes | bytearray,
    starts_of_a: npt.NDArray[np.int64],
    b: bytes | npt.NDArray[np.uint8],
    starts_of_b: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    equal: npt.NDArray[np.bool_],
) -> None: ...

class DefaultFloats:
    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...

class Path(IntEnum):
    CHANNELS = 0
    ROWS = 1
    PLANES = 2
    GATHER = 3

class Plan:
    @property
    def n_regions(self) -> int: ...
    @property
    def n_band_vectors(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def __init__(self, plan: PlanTables) -> None: ...

class Route:
    @property
    def plan(self) -> Plan: ...
    @property
    def path(self) -> int: ...
    @property
    def lanes(self) -> int: ...
    @property
    def keep_bands(self) -> bool: ...
    @property
    def prefetch(self) -> int: ...
    def __init__(
        self, plan: Plan, path: int, lanes: int, *, keep_bands: bool, prefetch: int
    ) -> None: ...

class KernelSpec:
    @property
    def value_bytes(self) -> int: ...
    @property
    def kind(self) -> int: ...
    @property
    def sums(self) -> bool: ...
    @property
    def p(self) -> float: ...
    @property
    def zero_point(self) -> int: ...
    @property
    def shift(self) -> int: ...
    @property
    def itemsize(self) -> int: ...
    @property
    def line(self) -> int: ...
    def __init__(
        self,
        value_bytes: int,
        kind: int,
        *,
        sums: bool,
        p: float,
        zero_point: int,
        shift: int,
        itemsize: int,
    ) -> None: ...
