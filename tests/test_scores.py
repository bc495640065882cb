"""The sums of boxes in rmac/cpu/scores.h, for registers of each size: AVX-512 is emulated in C."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from rmac.cpu.isa import available_isas

HERE = Path(__file__).parent
HEADERS = HERE.parent / "rmac" / "cpu"
COMPILE = ["cc", "-std=gnu11", "-O1", "-w"]


@pytest.fixture
def build(tmp_path):
    """Return a function that compiles a program with headers whose text is changed."""
    if not shutil.which("cc"):
        pytest.skip("needs a C compiler")
    if not HEADERS.is_dir():
        pytest.skip("needs the sources")

    def compiled(*flags, change=lambda text: text):
        for path in HEADERS.glob("*.h"):
            (tmp_path / path.name).write_text(change(path.read_text()))
        program = tmp_path / "scores"
        sources = [HERE / "emulated" / "scores.c", "-I", tmp_path, "-o", program, "-lm"]
        subprocess.run([*COMPILE, *flags, *sources], check=True)
        return program

    return compiled


def emulated(text):
    """Return a header that needs no AVX-512."""
    text = text.replace("#include <immintrin.h>", '#include "avx512.h"')
    text = re.sub(r'__asm__\("vpdpbusd.*\);', "sums = add_products_of_bytes(sums, a, b);", text)
    text = text.replace('__asm__("" : "+v"(', '__asm__("" : "+m"(')
    return text.replace("defined(__AVX512F__)", "0")


def test_sums_of_boxes(build):
    run = subprocess.run([build()], text=True, capture_output=True)
    assert re.fullmatch(r"\d{5,} sums, 0 wrong\n", run.stdout), run.stdout


def test_sums_of_boxes_with_avx2(build):
    if "x86-64-v3" not in available_isas():
        pytest.skip("needs a processor with AVX2")
    run = subprocess.run([build("-mavx2", "-mfma", "-mf16c")], text=True, capture_output=True)
    assert re.fullmatch(r"\d{5,} sums, 0 wrong\n", run.stdout), run.stdout


def test_sums_of_boxes_with_avx512(build):
    """And those of bytes, which only such machines have."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the code is for x86-64")
    program = build("-D__AVX512BW__", "-I", HERE / "emulated", change=emulated)
    run = subprocess.run([program, "digits"], text=True, capture_output=True)
    assert re.fullmatch(r"\d{5,} sums, 0 wrong\n", run.stdout), run.stdout
