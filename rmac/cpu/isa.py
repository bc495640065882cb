"""The kernels for this machine: one source, compiled for several vector instruction sets."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

__all__ = ["available_isas", "boxes", "kernels", "second_level_cache"]

ISAS = ("baseline", "x86-64-v3", "x86-64-v4")  # the best one last


def available_isas() -> list[str]:
    """Return the instruction sets that both this build and this machine have."""
    machine_has = _load("baseline").machine_has
    return [isa for isa in ISAS if machine_has(isa) and find_spec(_module_name(isa))]


def second_level_cache() -> int:
    """Return the bytes of the second-level cache of a core; 512 KiB if the system does not say."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text(encoding="ascii")
        return int(text.strip().removesuffix("K")) << 10
    except (OSError, ValueError):
        return 1 << 19


def _choose() -> str:
    """Return the ISA that RMAC_ISA names, or the best of those that run on this machine."""
    available = available_isas()
    isa = os.environ.get("RMAC_ISA") or available[-1]
    if isa not in available:
        raise ImportError(f"RMAC_ISA: expected one of {', '.join(available)}, got {isa!r}")
    return isa


def _module_name(isa: str, source: str = "kernels") -> str:
    return f"rmac.cpu.{source}_{isa.replace('-', '_')}"


def _load(isa: str, source: str = "kernels") -> Any:
    name = _module_name(isa, source)
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if isa != "baseline" or error.name != name:
            raise
        raise ImportError(
            "this is the source tree of rmac, without its compiled kernels: run `pip install .`, "
            "then start Python elsewhere or as `python -P`, or install it editable "
            "(see CONTRIBUTING.md)"
        ) from None


if TYPE_CHECKING:
    from rmac.cpu import boxes_baseline as boxes
    from rmac.cpu import kernels_baseline as kernels
else:
    _chosen = _choose()
    kernels, boxes = _load(_chosen), _load(_chosen, "boxes")
