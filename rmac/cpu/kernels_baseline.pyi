from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rmac._options import AggregationOptions
from rmac.cpu.tables import KernelSpec, Route

_Array: TypeAlias = npt.NDArray[Any]

def pool(x: _Array, route: Route, spec: KernelSpec, out: _Array, workers: int) -> None: ...
def rmac(
    maps: Sequence[_Array],
    routes: Sequence[Route],
    spec: KernelSpec,
    aggregation: AggregationOptions,
    order: npt.NDArray[np.intp] | None,
    out: _Array,
    workers: int,
) -> None: ...
def describe(vectors: _Array, aggregation: AggregationOptions, out: _Array) -> None: ...
def workspace_bytes(route: Route, spec: KernelSpec) -> int: ...
def read(words: npt.NDArray[np.int64], workers: int) -> int: ...
def build_info() -> dict[str, Any]: ...
def machine_has(isa: str) -> bool: ...
def max_threads() -> int: ...
