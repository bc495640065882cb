"""Files of the user: outputs that are complete or not there at all, and inputs that hold still."""

from __future__ import annotations

import os
import stat
from collections import deque
from contextlib import contextmanager, suppress
from secrets import token_hex
from typing import IO, TYPE_CHECKING
from weakref import finalize, ref

import numpy as np

from rmac._config import crc32, read_rows
from rmac._forks import Lock

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

_READ = os.O_RDONLY
for _flag in ("O_CLOEXEC", "O_NONBLOCK", "O_BINARY"):  # each is missing on some systems
    _READ |= getattr(os, _flag, 0)
_SEEKING = Lock()
_OPENING = Lock()
_MOST_OPENED = 256  # files; many systems allow 1024
_opened_files: deque[ref[InputFile]] = deque()
_MOST_AT_ONCE = 1 << 24  # bytes of a read on Windows, which are in memory twice for a moment


@contextmanager
def atomic_write(path: str, *sources: str) -> Iterator[IO[bytes]]:
    """Open a file for writing that appears under `path` when it is complete.

    `path` must not be one of the input files `sources`, nor lie in one that is a folder. The file
    has the mode of the one that it replaces, from its first byte on.
    """
    target = _writable(path, sources)
    partial = os.path.join(os.path.dirname(target), f".rmac-{token_hex(8)}.part")
    try:
        mode = _mode(target)
        with open(partial, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            file.flush()
            with suppress(FileNotFoundError):  # os.open took the umask from the mode
                mode = stat.S_IMODE(os.stat(target).st_mode)
                os.chmod(file.fileno() if os.chmod in os.supports_fd else partial, mode)
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException as error:
        with suppress(FileNotFoundError):
            os.unlink(partial)
        if isinstance(error, OSError) and error.errno and error.filename in (None, partial):
            raise OSError(f"{path}: cannot be written: {error.strerror}") from None
        raise


def _mode(target: str) -> int:
    """Return the mode to create the output with, before the umask is taken from it."""
    try:
        return stat.S_IMODE(os.stat(target).st_mode)
    except FileNotFoundError:
        return 0o666


def _writable(path: str, sources: Sequence[str]) -> str:
    """Return the path of the output file with links resolved, or raise."""
    target = os.path.realpath(path)
    if not path or not os.path.isdir(os.path.dirname(target)):
        raise FileNotFoundError(f"{path!r}: cannot be written: no such folder")
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(target).st_mode):
            raise FileExistsError(f"{path}: expected a file to write, got something else")
    for source in map(os.path.realpath, sources):
        if os.path.commonpath([source, target]) == source:  # it is the input, or lies inside
            raise FileExistsError(f"{path}: the output would replace the input {source}")
    return target


def require_regular(path: str, status: os.stat_result | None = None) -> None:
    """Raise unless a path is that of a regular file, and not of one that may never end."""
    kind = stat.S_IFMT((status or os.stat(path)).st_mode)
    if kind != stat.S_IFREG:
        got = _KINDS.get(kind, "something else")
        raise OSError(f"{path}: expected a regular file, got {got}")


def _read_at(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Read into a buffer from `offset` on; return how many bytes there were."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [buffer], offset)
    with _SEEKING:  # Windows has no read at an offset, and threads share the file's position
        os.lseek(descriptor, offset, os.SEEK_SET)
        data = os.read(descriptor, min(len(buffer), _MOST_AT_ONCE))
    buffer[: len(data)] = data
    return len(data)


class _Opened:
    """A descriptor, which is closed when nobody uses the object."""

    def __init__(self, path: str) -> None:
        require_regular(path)  # before it is opened: that may wait, or do something to a device
        self.descriptor = os.open(path, _READ)
        finalize(self, os.close, self.descriptor)
        require_regular(path, os.fstat(self.descriptor))


def _limit_opened(file: InputFile) -> None:
    """Note that a file was opened, and close one if too many are open."""
    with _OPENING:
        _opened_files.append(ref(file))
        if len(_opened_files) > _MOST_OPENED:
            first = _opened_files.popleft()()
            if first is not None:
                first.close()


class InputFile:
    """A regular file that is read, and must not change meanwhile.

    It is read into memory and not mapped: another process that shortens a mapped file ends this
    one by a signal. It is closed when the object is no longer used. Of very many files those that
    were opened first are closed, and opened again when they are read.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._opened: _Opened | None = _Opened(path)
        _limit_opened(self)
        status = os.fstat(self._opened.descriptor)
        self.size = status.st_size
        self._modified_ns = status.st_mtime_ns
        self._place = status.st_dev, status.st_ino

    def close(self) -> None:
        """Close the file until it is read again. Reads under way in other threads go on."""
        self._opened = None

    def _open(self) -> _Opened:
        """Return the file opened, the same as at first."""
        opened = self._opened
        if opened is None:
            opened = self._opened = _Opened(self._path)
            _limit_opened(self)
            status = os.fstat(opened.descriptor)
            if (status.st_dev, status.st_ino) != self._place:
                raise self._changed_error()
        return opened

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer with the bytes from `offset` on, or raise."""
        done = 0
        opened = self._open()
        try:
            while done < len(buffer):
                count = _read_at(opened.descriptor, buffer[done:], offset + done)
                if not count:
                    raise self._changed_error()
                done += count
        except OSError as error:
            if error.errno is None:
                raise
            raise OSError(f"{self._path}: cannot be read: {error.strerror}") from None

    def read_each(
        self,
        rows: npt.NDArray[np.uint8],
        offsets: npt.NDArray[np.int64],
        crcs: npt.NDArray[np.uint32] | None = None,
    ) -> None:
        """Fill rows of bytes (N, size) with those from each offset on, or raise.

        Add each row to its CRC-32, if these are given.
        """
        opened = self._open()
        done = read_rows(opened.descriptor, offsets, rows, crcs)
        for i in range(done, len(rows)):  # a read was short or failed: this goes on, or raises
            self.read_into(rows[i].data, int(offsets[i]))
            if crcs is not None:
                crcs[i] = crc32(rows[i], int(crcs[i]))

    def starts(self, offsets: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.uint8]:
        """Return the bytes (N, size) from each offset on, which ascend; 0 beyond the end."""
        rows = np.empty((len(offsets), size), np.uint8)
        inside = int(np.searchsorted(offsets, self.size - size, "right"))
        self.read_each(rows[:inside], offsets[:inside])
        rows[inside:] = 0
        for i in range(inside, len(rows)):
            count = max(0, self.size - int(offsets[i]))
            self.read_into(rows[i, :count].data, int(offsets[i]))
        return rows

    def require_unchanged(self) -> None:
        """Raise if the file was written to since it was opened.

        If another file takes its name meanwhile, this one stays as it is, and is read to its end.
        """
        opened = self._open()  # kept, so that no other thread closes it
        status = os.fstat(opened.descriptor)
        if (status.st_size, status.st_mtime_ns) != (self.size, self._modified_ns):
            raise self._changed_error()

    def _changed_error(self) -> OSError:
        return OSError(f"{self._path}: was changed while it was read; run again once it is whole")
