from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rmac._candidates import Candidates
from rmac.cpu.search import Options
from rmac.cpu.tables import KernelSpec

_Array: TypeAlias = npt.NDArray[Any]

def search(
    maps: Sequence[_Array],
    tables: Sequence[Candidates],
    spec: KernelSpec,
    powers: npt.NDArray[np.int64],
    roots: _Array,
    queries: npt.NDArray[np.float64],
    norms: npt.NDArray[np.float64],
    options: Options,
    boxes: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float64],
    workers: int,
) -> None: ...
