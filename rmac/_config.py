"""The version of rmac, how it was built, and what it uses on this machine."""

from __future__ import annotations

import platform
from typing import Any

from rmac._checks import choice
from rmac.cpu import threads
from rmac.cpu.isa import available_isas, kernels

# For the command line, which knows no backend.
workers_for, startable = threads.workers_for, threads.startable
__version__: str = kernels.build_info()["version"]


def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Show how rmac was built and what it uses on this machine.

    Parameters
    ----------
    mode : {"stdout", "dicts"}, default "stdout"
        Whether to print the configuration or return it.

    Returns
    -------
    dict or None
        The configuration, with ``mode="dicts"``.

    Raises
    ------
    TypeError
        If `mode` is not a string.
    ValueError
        If `mode` is another string.
    """
    build = kernels.build_info()
    config = {
        "rmac": __version__,
        "compiler": build["compiler"],
        "machine": platform.machine(),
        "ISA": build["isa"],
        "ISAs": ", ".join(available_isas()),
        "OpenMP": build["openmp"] or "not in this build",
        "threads": threads.workers_for(None),
        "CUDA": _cuda(),
    }
    if choice("mode", mode, ["stdout", "dicts"]) == "dicts":
        return config
    width = max(map(len, config))
    for name, value in config.items():
        print(f"{name:>{width}}: {value}")
    return None


def _cuda() -> str:
    """Return the version of CuPy and the number of its devices, or why there are none."""
    try:
        import cupy
    except ImportError:
        return "no CuPy"
    try:
        devices = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        return f"CuPy {cupy.__version__}, {error}"
    return f"CuPy {cupy.__version__}, {devices} devices"
