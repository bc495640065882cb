"""How many threads a call may use. No other place decides it."""

from __future__ import annotations

import os
from functools import cache
from math import ceil
from pathlib import PurePosixPath

from rmac._forks import call_in_children
from rmac.cpu.isa import kernels

_MOST = 8 * (os.cpu_count() or 1)  # threads; a bound on memory, as more than CPUs gain nothing
_MOST_DIGITS = 9  # of OMP_NUM_THREADS: a number of 10 digits may be beyond C's int
_PF_FORKNOEXEC = 0x40  # of Linux's process flags: it was forked, and has not executed a program


def workers_for(workers: int | None) -> int:
    """Return the threads to use: those asked for, or the default; 1 in a forked child.

    A child made by fork has none of the parent's OpenMP threads, and GNU's runtime waits for them
    for ever. That is so even if only another library used OpenMP in the parent. The kernels use
    fewer threads if the system cannot start so many.
    """
    if _forked:
        return 1
    return default_workers() if workers is None else min(workers, _MOST)


def startable(threads: int) -> int:
    """Return how many of so many threads, with the caller as one, the system can start now."""
    return kernels.startable(threads)


def default_workers() -> int:
    """Return the threads that OpenMP would use at this call, but no more than there are CPUs.

    So each thread of the caller has its own default, which `omp_set_num_threads` changes. The CPUs
    are those of the caller's affinity at this call, and of the cgroup's quota at the first. If
    OMP_NUM_THREADS was set, there may be more threads than CPUs.
    """
    threads: int = (
        kernels.default_threads(_MOST, False)
        if _NUMBER_IS_SET
        else kernels.default_threads(_quota_cpus(), True)
    )
    return threads


def _is_number(text: str) -> bool:
    """Return whether OpenMP takes a value of OMP_NUM_THREADS, such as "3" or "4,2"."""
    digits = text.partition(",")[0].strip().lstrip("0")
    return digits.isascii() and digits.isdecimal() and len(digits) <= _MOST_DIGITS


_NUMBER_IS_SET = _is_number(os.environ.get("OMP_NUM_THREADS", ""))


@cache
def _quota_cpus() -> int:
    quota = cgroup_quota()
    return _MOST if quota is None else max(1, min(ceil(quota), _MOST))


def cgroup_quota(proc: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup") -> float | None:
    """Return how many CPUs the cgroups of this process allow, None if unlimited."""
    groups = [line.split(":", 2) for line in _read(proc).splitlines() if line.count(":") >= 2]
    quotas = []
    for _, controllers, path in groups:
        if not controllers:  # version 2
            quotas += [_quota(_read(f"{root}{up}/cpu.max")) for up in _upwards(path)]
        elif "cpu" in controllers.split(","):  # version 1
            for up in _upwards(path):
                folder = f"{root}/cpu{up}"
                limit = _read(f"{folder}/cpu.cfs_quota_us"), _read(f"{folder}/cpu.cfs_period_us")
                quotas.append(_quota(" ".join(limit)))
    return min((quota for quota in quotas if quota is not None), default=None)


def _upwards(path: str) -> list[str]:
    """Return the folder of a cgroup and all above it; a container sees its own as the root."""
    folder = PurePosixPath(path.strip())
    return [str(up).rstrip("/") for up in (folder, *folder.parents)]


def _quota(text: str) -> float | None:
    fields = text.split()
    if len(fields) != 2 or not all(field.isdecimal() for field in fields):
        return None  # "max", -1, or no such file
    quota, period = map(int, fields)
    return quota / period if period else None


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _is_forked() -> bool:
    """Return whether this process was forked and has not executed a program since (on Linux)."""
    flags = _read("/proc/self/stat").rpartition(")")[2].split()[6:7]
    return bool(flags) and bool(int(flags[0]) & _PF_FORKNOEXEC)


def _after_fork() -> None:
    global _forked
    _forked = True


_forked = _is_forked()
call_in_children(_after_fork)
