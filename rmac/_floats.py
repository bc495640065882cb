"""The mode of the processor and of NumPy in which results are computed, whatever the caller set."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from rmac.cpu.tables import DefaultFloats

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def default_floats() -> Iterator[None]:
    """Return a context for computation with NumPy: subnormals are kept, and nothing is reported.

    The caller may have set another mode, as `torch.set_flush_denormal` does, or made NumPy raise on
    underflow and the like, as `numpy.seterr` does. The kernels set the mode by themselves.
    """
    with np.errstate(all="ignore"), DefaultFloats():
        yield
