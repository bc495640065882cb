from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rmac._candidates import Candidates
from rmac.cpu.search import Options
from rmac.cpu.tables import KernelSpec

_Array: TypeAlias = npt.NDArray[Any]

LINES_OF_NUMBERS: int
LINES_OF_DIGITS: int

def search(
    maps: Sequence[_Array],
    tables: Sequence[Candidates],
    spec: KernelSpec,
    queries: _Array,
    options: Options,
    boxes: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float64],
    overflows: npt.NDArray[np.int8],
    workers: int,
) -> None: ...
def has_byte_products() -> bool: ...
