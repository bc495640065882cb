"""The machine code of kernels, by NVRTC and nvdisasm: how many loads a thread has in flight."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_.]+)\s*([^;]*);")
WIDTHS = {"64": 2, "128": 4}  # registers of a load


def most_loads_in_flight(code, names, folder, arch="sm_90"):
    """Return for each kernel how many global loads it starts before it uses one of them."""
    nvrtc = pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="needs CuPy and NVRTC")
    program = nvrtc.createProgram(code, "rmac.cu", (), ())
    for name in names:
        nvrtc.addNameExpression(program, name)
    nvrtc.compileProgram(program, (f"--gpu-architecture={arch}", "-ftz=true", "-std=c++17"))
    cubin = Path(folder) / "rmac.cubin"
    cubin.write_bytes(nvrtc.getCUBIN(program) + b"\0")  # CuPy drops the last byte
    text = subprocess.run(
        [_nvdisasm(), "-c", cubin], check=True, capture_output=True, text=True
    ).stdout
    _, *parts = re.split(r"^\.text\.(\S+):$", text, flags=re.MULTILINE)
    lines = {name: part.splitlines() for name, part in zip(parts[::2], parts[1::2], strict=True)}
    return {name: _loads_in_flight(lines[nvrtc.getLoweredName(program, name)]) for name in names}


def _nvdisasm():
    spec = importlib.util.find_spec("nvidia")
    places = [] if spec is None else spec.submodule_search_locations
    found = [path for place in places for path in Path(place).glob("*/bin/nvdisasm")]
    if not found:
        pytest.skip("needs the package nvidia-cuda-nvdisasm")
    return found[0]


def _loads_in_flight(lines):
    most, pending, loads = 0, set(), 0
    for match in filter(None, map(INSTRUCTION.match, lines)):
        width = match[1].rpartition(".")[2]
        registers = [int(number) for number in re.findall(r"\bR(\d+)\b", match[2])]
        is_load = match[1].startswith("LDG")
        used = set(registers[1:] if is_load else registers)
        if used & pending or match[1].startswith(("BRA", "BAR", "EXIT")):
            pending, loads = set(), 0
        if is_load:
            pending |= set(range(registers[0], registers[0] + WIDTHS.get(width, 1)))
            loads += 1
            most = max(most, loads)
    return most
