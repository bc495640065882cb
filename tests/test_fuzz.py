"""Thousands of random calls, right and wrong ones: see tests/fuzz."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CALLS = os.environ.get("RMAC_FUZZ_CALLS", "20000")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")
def test_random_calls_neither_crash_nor_are_wrong():
    """RMAC_FUZZ_CALLS tells how many, RMAC_FUZZ_SEED which."""
    result = subprocess.run(
        [sys.executable, "-m", "fuzz", "--calls", CALLS],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        cwd="/",
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(result.stdout)
    assert result.returncode == 0, result.stdout
