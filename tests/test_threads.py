"""Threads: how many a call starts, how they share its work, and how many are the default."""

import os
import sys

import pytest
from helpers import run_python

import rmac
from rmac.cpu import route, threads
from rmac.cpu.isa import kernels

HAS_OPENMP = rmac.show_config("dicts")["OpenMP"] != "not in this build"
counts_threads = pytest.mark.skipif(
    sys.platform != "linux" or not HAS_OPENMP,
    reason="needs OpenMP, and the list of a process's threads that Linux has",
)
# What else would decide how many threads OpenMP or a BLAS starts.
ENVIRONMENT = {
    "OMP_DYNAMIC": None,
    "OMP_NUM_THREADS": None,
    "OMP_THREAD_LIMIT": None,
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
# OpenMP's threads stay when their work is done, so that they can be counted after a call.
START = """if True:
    import mmap
    import os

    import numpy as np

    import rmac

    def started(call, *args, **options):
        before = set(os.listdir("/proc/self/task"))
        call(*args, **options)
        return len(set(os.listdir("/proc/self/task")) - before)

    images = np.zeros((8, 64, 24, 32), np.float32)
    image = np.zeros((1, 512, 24, 32), np.float32)
    sizes = [(24, 32), (32, 24), (48, 16)]
    whitening = rmac.Whitening.from_projection(np.zeros(64), np.eye(64))
"""
CALLS = {
    "region_pool of images": "rmac.region_pool, images",
    "region_pool of an image": "rmac.region_pool, image",
    "region_pool of a list": "rmac.region_pool, [np.zeros((512, *size), 'f4') for size in sizes]",
    "region_pool of means": "rmac.region_pool, images, pool='gem'",
    "roi_pool": "rmac.roi_pool, image, np.array([[0, 1, 2, 20, 20], [0, 0, 0, 9, 9]])",
    "rmac of images": "rmac.rmac, images",
    "rmac of an image": "rmac.rmac, image",
    "rmac of a list": "rmac.rmac, [np.zeros((512, *size), 'f4') for size in sizes]",
    "rmac of a short list": "rmac.rmac, [np.zeros((512, *size), 'f4') for size in sizes[:2]]",
    "rmac with whitening": "rmac.rmac, images, whitening=whitening",
}


def printed(code, **environment):
    """Return what code prints that comes after START, in a process of its own."""
    result = run_python(START + "    " + code, **{**ENVIRONMENT, **environment})
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@counts_threads
@pytest.mark.parametrize("call", sorted(CALLS))
def test_a_call_starts_the_workers_it_is_given(call):
    """No thread for one worker, and one more for each further worker: the caller is the first."""
    code = f"print([started({CALLS[call]}, workers=n) for n in (1, 2, 3)])"
    assert printed(code) == "[0, 1, 1]"


@pytest.mark.slow
@counts_threads
@pytest.mark.parametrize("call", sorted(CALLS.keys() - {"rmac with whitening"}))
def test_a_call_starts_the_default_workers(call):
    assert printed(f"print(started({CALLS[call]}))", OMP_NUM_THREADS="3") == "2"


@counts_threads
def test_small_maps_before_a_matrix_product_start_no_thread():
    """Unless the call asks for workers: they would disturb the product."""
    code = "print([started(rmac.rmac, images, whitening=whitening, workers=n) for n in (None, 3)])"
    assert printed(code, OMP_NUM_THREADS="3") == "[0, 2]"


DIVIDED = """
    def page_faults():
        counts = {}
        for thread in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{thread}/stat") as file:
                counts[thread] = int(file.read().rpartition(")")[2].split()[7])
        return counts

    most = 0
    for _ in range(200):
        memory = mmap.mmap(-1, 24 << 20)
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        x = np.frombuffer(memory, np.float32).reshape(shape)
        before = page_faults()
        call(x, workers=3)
        read = [count - before.get(thread, 0) for thread, count in page_faults().items()]
        share = len(memory) // mmap.PAGESIZE // 24
        most = max(most, sum(count >= share for count in read))
        if most == 3:
            break
    print(most)
"""


@counts_threads
@pytest.mark.parametrize("call", ["region_pool", "rmac"])
@pytest.mark.parametrize("images", [1, 24])
def test_every_worker_reads_a_share_of_the_maps(call, images):
    """Seen in the page faults of each thread, on memory that nobody has touched before.

    The system may start a thread too late for a share of one call, but not in each of 200.
    """
    code = f"call, shape = rmac.{call}, ({images}, {24 // images * 256}, 32, 32)\n{DIVIDED}"
    assert printed(code) == "3"


SMALL = 64  # KiB of maps for each thread


@pytest.mark.slow
@counts_threads
@pytest.mark.parametrize(
    "call",
    [
        "rmac.region_pool, np.zeros((1, kib, 16, 16), 'f4')",
        "rmac.region_pool, np.zeros((kib, 1, 16, 16), 'f4')",
        "rmac.rmac, np.zeros((1, kib, 16, 16), 'f4')",
        "rmac.rmac, np.zeros((kib, 1, 16, 16), 'f4')",
        "rmac.rmac, [np.zeros((1, 16, 16), 'f4')] * kib",
        "rmac.roi_pool, np.zeros((4, kib, 16, 16), 'f4'), np.array([[3, 0, 0, 9, 9]])",
    ],
)
def test_a_call_starts_no_thread_for_less_than_64_kib_of_maps(call):
    sizes = (SMALL, 2 * SMALL - 1, 2 * SMALL, 3 * SMALL - 1, 3 * SMALL)
    code = f"print([started({call}, workers=3) for kib in {sizes}])"
    assert printed(code) == "[0, 0, 1, 0, 1]"


@pytest.mark.parametrize(("value", "expected"), [("3", "3"), ("2,4", "2"), (" 5 ", "5")])
def test_default_workers_are_those_of_the_environment(value, expected):
    code = "from rmac.cpu import threads; print(threads.workers_for(None))"
    if not kernels.build_info()["openmp"]:
        expected = "1"
    assert run_python(code, OMP_NUM_THREADS=value).stdout.strip() == expected


def test_default_workers_fit_the_machine():
    code = "from rmac.cpu import threads; print(threads.workers_for(None))"
    for value in ("", "0", "many"):
        count = int(run_python(code, OMP_NUM_THREADS=value).stdout)
        assert 1 <= count <= len(os.sched_getaffinity(0))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_computes_on_one_thread():
    """It would hang with more: the OpenMP threads stay in the parent."""
    code = (
        "import os, numpy as np, rmac\n"
        "from rmac.cpu import threads\n"
        "x = np.random.default_rng(0).random((8, 64, 24, 32), dtype='f4')\n"
        "expected = rmac.rmac(x, workers=4)\n"
        "if pid := os.fork():\n"
        "    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
        "same = rmac.rmac(x, workers=4).tobytes() == expected.tobytes()\n"
        "os._exit(0 if same and threads.workers_for(4) == threads.workers_for(None) == 1 else 3)\n"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cgroup": "0::/\n", "cpu.max": "150000 100000\n"}, 1.5),
        ({"cgroup": "0::/\n", "cpu.max": "max 100000\n"}, None),
        (
            {"cgroup": "0::/a/b\n", "a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"},
            2.0,
        ),
        (
            {
                "cgroup": "4:memory:/x\n3:cpu,cpuacct:/x\n",
                "cpu/x/cpu.cfs_quota_us": "50000\n",
                "cpu/x/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "cgroup": "3:cpu,cpuacct:/x\n",
                "cpu/cpu.cfs_quota_us": "-1\n",
                "cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({"cgroup": ""}, None),
    ],
)
def test_cgroup_quota(tmp_path, files, expected):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert threads.cgroup_quota(str(tmp_path / "cgroup"), str(tmp_path)) == expected


def test_cgroup_files_may_be_missing(tmp_path):
    assert threads.cgroup_quota(str(tmp_path / "none"), str(tmp_path)) is None


def test_more_workers_than_the_system_can_start():
    assert threads.workers_for(10**9) <= 8 * os.cpu_count()
    result = run_python(
        "from rmac.cpu import threads as t; print(t.workers_for(None))", OMP_NUM_THREADS="10" * 9
    )
    assert int(result.stdout) <= 8 * os.cpu_count()


def test_default_workers_heed_the_quota(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "_affinity", lambda: 64)
    monkeypatch.setattr(kernels, "max_threads", lambda: 64, raising=False)
    threads.default_workers.cache_clear()
    monkeypatch.setattr(threads, "cgroup_quota", lambda: 1.5)
    assert threads.default_workers() == 2
    threads.default_workers.cache_clear()


@pytest.mark.skipif(sys.platform != "linux", reason="tells a fork by Linux's process flags")
def test_a_child_forked_before_the_import_computes_on_one_thread():
    code = (
        "import os\n"
        "if pid := os.fork():\n"
        "    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
        "from rmac.cpu import threads\n"
        "os._exit(0 if threads.workers_for(4) == 1 else 3)\n"
    )
    assert run_python(code).returncode == 0
    assert threads.workers_for(2) == 2


def test_workers_before_a_matrix_product(monkeypatch):
    """One, unless more were asked for or have much to do: they would disturb the product."""
    for cpus, size, expected in ((2, 1 << 20, 1), (2, 1 << 26, None), (65, 1 << 20, None)):
        monkeypatch.setattr(route, "default_workers", lambda cpus=cpus: cpus)
        assert route.workers_before_product(None, size) == expected
        assert route.workers_before_product(3, size) == 3
