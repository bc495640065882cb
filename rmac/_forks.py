"""What a forked child needs: it has one thread of its parent, and the memory of all threads."""

from __future__ import annotations

import os
from threading import RLock
from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Callable


class Lock:
    """A lock that its thread can take again, and that is free in a forked child.

    A child has the locks of its parent as they were, but not the threads that would release them. A
    lock that such a thread held is a new one in the child. What it protects may be half changed
    there: `reset` is called to make it whole.
    """

    __slots__ = ("__weakref__", "_lock", "_reset")

    def __init__(self, reset: Callable[[], None] | None = None) -> None:
        self._lock = RLock()
        self._reset = reset
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_error: object) -> None:
        self._lock.release()

    def renew(self) -> None:
        """Make the lock free, unless it is the calling thread that holds it."""
        if self._lock.acquire(blocking=False):
            self._lock.release()
            return
        self._lock = RLock()
        if self._reset is not None:
            self._reset()


_locks: WeakSet[Lock] = WeakSet()


def call_in_children(function: Callable[[], None]) -> None:
    """Call a function in each forked child from now on, on systems that fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)


def _renew_locks() -> None:
    for lock in list(_locks):
        lock.renew()


call_in_children(_renew_locks)
