"""The version of rmac, how it was built, and what it uses on this machine."""

from __future__ import annotations

import platform
from typing import Any

from rmac._backend import BACKENDS
from rmac._checks import choice
from rmac.cpu import tables, threads
from rmac.cpu.isa import kernels

# For the command line, which knows no backend.
workers_for, startable = threads.workers_for, threads.startable
crc32, read_rows = tables.crc32, tables.read_rows
record_ends, are_equal = tables.record_ends, tables.are_equal
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
    config = {"rmac": __version__, "machine": platform.machine()}
    for backend in BACKENDS.values():
        config |= backend.config()
    if choice("mode", mode, ["stdout", "dicts"]) == "dicts":
        return config
    width = max(map(len, config))
    for name, value in config.items():
        print(f"{name:>{width}}: {value}")
    return None
