"""Threads: how many a call starts, how they share its work, and how many are the default."""

import os
import re
import sys
import tempfile
from math import ceil
from pathlib import Path

import numpy as np
import pytest
from helpers import run_python

import rmac
from rmac import cpu
from rmac.cpu import route, threads
from rmac.cpu.isa import kernels

HAS_OPENMP = rmac.show_config("dicts")["OpenMP"] != "not in this build"
counts_threads = pytest.mark.skipif(
    sys.platform != "linux" or not HAS_OPENMP,
    reason="needs OpenMP, and the list of a process's threads that Linux has",
)
needs_root = pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="needs root, to become somebody else"
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
    "localize in images": "rmac.localize, images, np.ones(64), aspect=1",
    "localize in an image": "rmac.localize, image, np.ones(512), aspect=1",
    "localize by a grid": "rmac.localize, image, np.ones(512), search='grid'",
    "localize in levels": "rmac.localize, image.astype('u1'), np.ones(512), search='aml'",
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


def test_every_parallel_loop_takes_the_workers_of_its_call():
    """Read from the source: where a call has several loops, one of them starts the threads."""
    folder = Path(__file__).parent.parent / "rmac" / "cpu"
    loops = [
        loop
        for path in sorted(folder.glob("*.p[xy][xd]"))
        for loop in re.findall(r" in prange\((.*)\):", path.read_text(encoding="utf-8"))
    ]
    assert len(loops) > 8
    for loop in loops:
        assert re.search(r", num_threads=(call\.)?workers$", loop), loop


@counts_threads
def test_the_floor_of_the_benchmarks_starts_the_workers_it_is_given():
    code = """
    from rmac.cpu.isa import kernels
    words = np.zeros(1 << 20, np.int64)
    print([started(kernels.read, words, n) for n in (1, 2, 3)])
    """
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


@pytest.mark.skipif(not HAS_OPENMP, reason="one thread takes images in their own order")
@pytest.mark.usefixtures("shared_small_maps")
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_threads_that_store_the_same_channels_store_the_same(rng, layout):
    """The last block of channels begins in the block before it. A root must not be taken twice."""
    x = rng.random((1, 12, 48, 48) if layout == "NCHW" else (1, 48, 48, 12)) + 2
    options = {"pool": "gem", "p": 3, "levels": 12, "layout": layout}
    expected = rmac.region_pool(x, workers=1, **options).tobytes()
    for _ in range(300):
        assert rmac.region_pool(x, workers=2, **options).tobytes() == expected


def test_threads_take_images_in_the_order_that_the_kernel_is_given(monkeypatch):
    """Seen by an order that names one of the images alone: the others stay as they were."""
    monkeypatch.setattr(cpu, "_largest_first", lambda maps: np.full(len(maps), 1, np.intp))
    maps = [np.ones((512, *size), np.float32) for size in [(24, 32), (32, 24), (48, 16)]]
    out = np.full((3, 512), -1, np.float32)
    rmac.rmac(maps, workers=2, out=out)
    # Threads may write that row at once, so its values are not compared.
    assert (out != -1).any(axis=1).tolist() == [False, True, False]


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


@pytest.mark.parametrize(
    "value", ["10" * 9, "9" * 5000, "-1", "1.5", "٣", "0x2", "3x", ",", "\udcff"]
)
def test_nonsense_in_the_environment_is_no_error(value):
    code = "from rmac.cpu import threads as t; print(t.workers_for(None))"
    result = run_python(code, OMP_NUM_THREADS=value)
    assert 1 <= int(result.stdout) <= 8 * os.cpu_count()


def test_workers_are_bounded():
    assert threads.workers_for(10**9) <= 8 * os.cpu_count()


def test_default_workers_heed_the_quota(monkeypatch):
    monkeypatch.setattr(threads, "_NUMBER_IS_SET", False)
    monkeypatch.setattr(threads, "cgroup_quota", lambda: 0.5)
    threads._quota_cpus.cache_clear()
    assert threads.default_workers() == 1
    threads._quota_cpus.cache_clear()


openmp_library = pytest.mark.skipif(
    sys.platform != "linux" or not HAS_OPENMP, reason="finds OpenMP's library as Linux lists it"
)
SET_THREADS = """
    import ctypes
    from threading import Thread

    from rmac.cpu import threads

    lines = open("/proc/self/maps").read().splitlines()
    path = next(line.split()[-1] for line in lines if "/libgomp" in line or "/libomp" in line)
    set_threads = ctypes.CDLL(path).omp_set_num_threads

    def default():
        return threads.workers_for(None)
"""


@openmp_library
def test_default_workers_are_those_of_openmp_at_each_call():
    """As threadpoolctl and PyTorch set them, in either order, and for one thread of the caller."""
    code = f"""{SET_THREADS}
    counts = []
    for number in (1, 3, 2):
        set_threads(number)
        counts.append(default())
        rmac.rmac(images)
    set_threads(3)
    Thread(target=lambda: counts.append(default())).start()
    print(counts)
"""
    assert printed(code, OMP_NUM_THREADS="2") == "[1, 3, 2, 2]"


FEWER_CPUS = f"""{SET_THREADS}
    set_threads(64)
    before = default()
    os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
    print(before, default())
"""


@openmp_library
def test_default_workers_fit_the_cpus_of_each_call():
    cpus = min(len(os.sched_getaffinity(0)), ceil(threads.cgroup_quota() or 64))
    assert printed(FEWER_CPUS) == f"{cpus} 1"


@openmp_library
def test_default_workers_may_exceed_the_cpus_where_the_environment_says_how_many():
    most = min(64, 8 * os.cpu_count())
    assert printed(FEWER_CPUS, OMP_NUM_THREADS="2") == f"{most} {most}"


@openmp_library
def test_the_environment_counts_when_openmp_is_loaded():
    code = "os.environ['OMP_NUM_THREADS'] = '3'; print(started(rmac.rmac, images))"
    assert printed(code, OMP_NUM_THREADS="2") == "1"


# A process of nobody may have `more` threads than it has; or so many MiB.
FEW_THREADS = """
    import resource

    expected = rmac.rmac(images, workers=1).tobytes()
    os.setgid(65534)
    os.setuid(65534)
    have = len(os.listdir("/proc/self/task"))
    resource.setrlimit(resource.RLIMIT_NPROC, (have + more, have + more))
    counts = []
    for workers in (2, 8, 3, 8):
        assert rmac.rmac(images, workers=workers).tobytes() == expected
        counts.append(len(os.listdir("/proc/self/task")) - have)
    print(counts)
"""
LITTLE_MEMORY = """
    import resource

    expected = rmac.rmac(images, workers=1).tobytes()
    bytes_used = int(open("/proc/self/statm").read().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (bytes_used + (more << 20),) * 2)
    print(started(rmac.rmac, images, workers=2), rmac.rmac(images, workers=2).tobytes() == expected)
"""


@counts_threads
@needs_root
@pytest.mark.parametrize("more", [0, 1, 3])
def test_a_call_uses_the_threads_that_start(more):
    """With none to spare, and after a smaller call, which ends the threads that it does not use."""
    # Threads that end after a smaller call count for a while.
    assert printed(f"more = {more}\n{FEW_THREADS}").startswith(f"[{min(more, 1)}, {more}, ")


@counts_threads
@pytest.mark.parametrize(
    ("stack", "more"),
    [
        (None, 4),
        ("64M", 40),
        (" 65536 ", 40),
        ("65536k", 40),
        ("1 G", 512),
        ("67108864B", 40),
        ("9" * 30, 4),
        ("none", 4),
    ],
)
def test_a_call_uses_no_thread_whose_stack_finds_no_memory(stack, more):
    assert printed(f"more = {more}\n{LITTLE_MEMORY}", OMP_STACKSIZE=stack) == "0 True"


@counts_threads
@needs_root
def test_the_command_line_uses_the_threads_that_start():
    code = """
    import resource

    import rmac.cli

    # All is imported now: the other user may not read the installation.
    rmac.cli.main(["describe", "x.npy", "-o", "d.npy", "--workers", "2"])
    os.remove("d.npy")
    os.setgid(65534)
    os.setuid(65534)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    print(rmac.cli.main(["describe", "x.npy", "-o", "d.npy", "--workers", "8"]))
"""
    with tempfile.TemporaryDirectory() as folder:  # one that everybody can enter
        os.chmod(folder, 0o777)
        np.save(f"{folder}/x.npy", np.ones((300, 64, 8, 8), np.float32))
        assert printed(f"os.chdir({folder!r})\n{code}") == "0"
        assert sorted(os.listdir(folder)) == ["d.npy", "x.npy"]


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
