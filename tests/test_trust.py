"""Many threads and very many calls: the same bits, and no more memory than before."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def run(module, *options):
    """Run a module of tests/fuzz in a process of its own, and return what it printed."""
    result = subprocess.run(
        [sys.executable, "-m", f"fuzz.{module}", *options],
        # BLAS threads of 64 callers at once would wait for each other most of the time.
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OPENBLAS_NUM_THREADS": "1"},
        cwd="/",
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(result.stdout)
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")
def test_random_calls_neither_crash_nor_are_wrong():
    """RMAC_FUZZ_CALLS tells how many, RMAC_FUZZ_SEED which."""
    run("__main__")


@pytest.mark.parametrize("workers", ["1", "4"])
def test_64_threads_compute_what_one_does(workers):
    run("together", "--workers", workers)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_100_000_calls_keep_no_memory():
    run("leaks")
