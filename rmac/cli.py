"""The command line: ``rmac demo`` and ``rmac describe``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

from rmac import __version__, demo, describe
from rmac.regions import PRESETS

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status, 2 after a one-line error."""
    options = _parser().parse_args(arguments)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        options.run(options)
    except BrokenPipeError:  # the reader of the output has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, TypeError, ImportError, MemoryError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"rmac {options.command}: error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"rmac {options.command}: interrupted", file=sys.stderr)
        return 130
    return 0


def _interrupt(*_: object) -> None:
    """End as on Ctrl-C, so that nothing half-written stays behind."""
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rmac", description="R-MAC descriptors of convolutional feature maps."
    )
    parser.add_argument("--version", action="version", version=f"rmac {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("demo", help="rank the photographs that rmac ships")
    command.add_argument("--query", default="box", metavar="NAME", help="photograph to look for")
    command.add_argument("--plot", metavar="FILE.png", help="draw the query's region grid")
    command.set_defaults(run=demo.run)

    command = commands.add_parser("describe", help="describe the feature maps in a .npy file")
    command.add_argument("features", metavar="FEATURES.npy", help="feature maps, (N, C, H, W)")
    command.add_argument(
        "-o", "--output", metavar="DESCRIPTORS.npy", required=True, help="descriptors, (N, C)"
    )
    command.add_argument("--layout", default="NCHW", choices=["NCHW", "NHWC"])
    command.add_argument("--levels", type=int, default=3, help="number of window sizes")
    command.add_argument("--overlap", type=float, default=0.4, help="of neighbouring windows")
    command.add_argument("--preset", default="caffe2", choices=list(PRESETS))
    command.add_argument("--workers", type=int, help="threads to use")
    command.set_defaults(run=describe.run)
    return parser
