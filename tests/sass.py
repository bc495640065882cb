"""The machine code of kernels, by NVRTC and nvdisasm: loads in flight, instructions per byte."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_.]+)\s*([^;]*);")
WIDTHS = {"64": 2, "128": 4}  # registers of a load, by the end of its name
PARTS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2}  # bytes of a load of less than a register


def machine_code(code, names, folder, arch="sm_90"):
    """Return the lines of machine code of each kernel."""
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
    return {name: lines[nvrtc.getLoweredName(program, name)] for name in names}


def until(lines, instruction):
    """Return the lines before the first such instruction, or all if there is none."""
    found = [i for i, line in enumerate(lines) if f" {instruction}" in line]
    return lines[: found[0]] if found else lines


def _nvdisasm():
    spec = importlib.util.find_spec("nvidia")
    places = [] if spec is None else spec.submodule_search_locations
    found = [path for place in places for path in Path(place).glob("*/bin/nvdisasm")]
    if not found:
        pytest.skip("needs the package nvidia-cuda-nvdisasm")
    return found[0]


def loads_in_flight(lines):
    """Return how many loads from global memory start, at most, before one of them is used."""
    most, pending, loads = 0, set(), 0
    for name, operands in instructions(lines):
        registers = [int(number) for number in re.findall(r"\bR(\d+)\b", operands)]
        is_load = name.startswith("LDG.")
        used = set(registers[1:] if is_load else registers)
        if used & pending or name.startswith(("BRA", "BAR", "EXIT")):
            pending, loads = set(), 0
        if is_load:
            pending |= set(range(registers[0], registers[0] + _registers_of(name)))
            loads += 1
            most = max(most, loads)
    return most


def instructions_per_byte(lines):
    """Return how many instructions there are for a byte, in the loop that loads most bytes.

    All branches in the loop count.
    """
    labels, names, loops = {}, [], []
    for line in lines:
        label = re.match(r"(\.L_x_\d+):$", line)
        if label:
            labels[label[1]] = len(names)
        for name, operands in instructions([line]):
            target = re.search(r"\.L_x_\d+", operands)
            if name.startswith("BRA") and target and target[0] in labels:
                loops.append((labels[target[0]], len(names) + 1))
            names.append(name)
    inner = [(_loaded_bytes(names[start:stop]), start - stop) for start, stop in loops]
    loaded, minus_length = max(inner)  # of loops that load as much, the shortest
    return -minus_length / loaded


def instructions(lines):
    """Yield the name and the operands of each instruction."""
    return (match.groups() for match in filter(None, map(INSTRUCTION.match, lines)))


def _registers_of(name):
    return WIDTHS.get(name.rpartition(".")[2], 1)


def _loaded_bytes(names):
    loads = [name for name in names if name.startswith("LDG.")]
    return sum(PARTS.get(name.rpartition(".")[2], 4 * _registers_of(name)) for name in loads)
