"""Forked children: no lock that a thread of the parent held stops them."""

import inspect
import os
import pkgutil
import re
import signal
import threading
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from helpers import VECTORS

import rmac
from rmac import _forks
from rmac._caches import cached
from rmac._forks import Lock
from rmac.cuda import arrays as cuda_arrays

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]
PATIENCE = 20  # seconds until a child is taken for one that hangs


def forked(function):
    """Call a function in a forked child, and return how that ended: 0 if it returned."""
    child = os.fork()
    if not child:
        signal.alarm(PATIENCE)
        try:
            function()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]


def forked_while_held(locks, function):
    """The same, while another thread holds locks."""
    held, done = threading.Event(), threading.Event()

    def hold():
        with ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            held.set()
            done.wait(PATIENCE)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(PATIENCE)
    try:
        return forked(function)
    finally:
        done.set()
        thread.join()


@cached(len)
def kept(size):
    return bytes(size)


def test_a_child_uses_all_that_has_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_arrays, "_kept_for_graphs", [])
    whitening = rmac.Whitening(3).fit(VECTORS)
    other = rmac.Whitening(3).fit(VECTORS)
    other.apply(VECTORS)
    kept(2)

    def use():
        kept(3)
        x = np.ones((1, 6, 5, 7), np.float32)
        rmac.rmac(x, whitening=whitening, preset="cirtorch", workers=3)
        for one in (whitening, other):
            one.partial_fit(VECTORS).apply(VECTORS)
            one.set_params(dim=2).fit(VECTORS).apply(VECTORS.astype(np.float32))
            one.save(tmp_path / "w.npz")
        cuda_arrays._keep(np.ones(3), 24)

    assert len(_forks._locks) > 8
    assert forked_while_held(list(_forks._locks), use) == 0


def test_a_cache_that_was_half_changed_is_empty_in_the_child():
    kept(4)
    cache = kept.cache

    def use():
        assert not cache.results
        assert cache.bytes == 0

    assert forked_while_held([cache._adding], use) == 0
    assert forked(use) != 0
    assert cache.results


def test_the_thread_that_forks_keeps_its_locks():
    lock = Lock(reset=lambda: os._exit(3))

    def use():
        with lock:
            pass

    with lock:
        before = lock._lock
        assert forked(use) == 0
        assert lock._lock is before


def test_a_lock_is_forgotten_with_its_owner():
    lock = Lock()
    assert lock in _forks._locks
    count = len(_forks._locks)
    del lock
    assert len(_forks._locks) == count - 1


def test_all_locks_are_of_this_kind():
    """Any other would stay locked in a child."""
    other = re.compile(r"\b(threading|RLock|Condition|Semaphore|Event|allocate_lock)\b")
    folder = Path(inspect.getfile(rmac)).parent
    files = [path for path in folder.rglob("*.py") if path.name != "_forks.py"]
    assert len(files) > len(list(pkgutil.iter_modules([str(folder)])))
    found = {path.name: other.findall(path.read_text(encoding="utf-8")) for path in files}
    assert {name: words for name, words in found.items() if words} == {
        "flat_files.py": ["threading"],  # `local`, which is no lock
        "parts.py": ["threading"],  # the same
    }
