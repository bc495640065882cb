"""What the command line says: one line, whatever happens."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import IO

_LONGEST = 500  # characters of a message; a broken file can put all of its header into one


def say(who: str, what: str) -> None:
    """Print a message on one line to standard error; say nothing where nobody can hear it."""
    if sys.stderr is None:
        return
    try:
        print(f"{who}: {_one_line(what)}", file=sys.stderr, flush=True)
    except (OSError, ValueError):  # its reader has ended, its disk is full, or it is closed
        with suppress(OSError, ValueError):  # Python prints what is left of it once more at its end
            silence(sys.stderr)


def is_on_terminal() -> bool:
    """Return whether standard error is a terminal."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # it is closed
        return False


def silence(stream: IO[str]) -> None:
    """Let a stream of the process lead nowhere from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, stream.fileno())
    finally:
        os.close(nowhere)


def explain(error: BaseException) -> str:
    """Return what an error says, without the number of an error of the system."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error) or type(error).__name__


def end_command_line(error: BaseException) -> None:
    """End the process in one line if it is the command line; else return.

    The command line imports rmac before its own code can catch anything.
    """
    program = os.path.basename(getattr(sys, "argv", [""])[0])
    module = sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1] if "-m" in sys.orig_argv else []
    if program == "rmac" or module == ["rmac"]:
        if isinstance(error, KeyboardInterrupt):
            say("rmac", "interrupted")
            raise SystemExit(128 + signal.SIGINT)
        say("rmac", f"error: {explain(error)}")
        raise SystemExit(2)


def _one_line(text: str) -> str:
    """Return a text without line breaks and control characters, and cut if it is long."""
    line = _cut(" ".join(text.split()))
    return _cut("".join(one if one.isprintable() else ascii(one)[1:-1] for one in line))


def _cut(line: str) -> str:
    """Cut out the middle of a long line: the file is named at its start, the remedy at its end."""
    if len(line) <= _LONGEST:
        return line
    half = _LONGEST // 2 - 3
    return f"{line[:half]} ... {line[-half:]}"
