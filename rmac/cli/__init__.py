"""The command line: ``rmac demo``, ``rmac describe`` and ``rmac whiten``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from functools import partial
from typing import TYPE_CHECKING

from rmac import __version__
from rmac._options import AGGREGATES, LAYOUTS, POOLS, PRESETS
from rmac.cli import demo, describe, whiten

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status, 2 after a one-line error."""
    options = _parser().parse_args(arguments)
    say = partial(_say, f"rmac {options.command}")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_args, **_options: say(f"warning: {message}")
            options.run(options)
    except BrokenPipeError:  # the reader of the output has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, TypeError, ImportError, MemoryError) as error:
        say(f"error: {str(error) or type(error).__name__}")
        return 2
    except KeyboardInterrupt as ending:
        say("interrupted")
        return 128 + int(ending.args[0] if ending.args else signal.SIGINT)
    return 0


def program() -> None:
    """Run the command line as a process of its own."""
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) != signal.SIG_IGN:  # as nohup has it
            signal.signal(ending, _interrupt)
    status = main()
    if status:
        sys.stdout.flush()
        os._exit(status)  # at once: else zarr tells at length of the reads that were cut short


def _say(who: str, what: str) -> None:
    print(f"{who}: {' '.join(what.split())}", file=sys.stderr)


def _interrupt(number: int, _frame: object) -> None:
    """End as on Ctrl-C, so that nothing half-written stays behind."""
    raise KeyboardInterrupt(number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rmac", description="R-MAC descriptors of convolutional feature maps."
    )
    parser.add_argument("--version", action="version", version=f"rmac {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    command = partial(commands.add_parser, allow_abbrev=False)
    _add_demo(command("demo", help="rank the photographs that rmac ships"))
    _add_describe(command("describe", help="describe the feature maps in a file"))
    _add_whiten(command("whiten", help="learn a PCA-whitening of regional vectors"))
    return parser


def _add_demo(command: argparse.ArgumentParser) -> None:
    command.add_argument("--query", default="box", metavar="NAME", help="photograph to look for")
    command.add_argument("--plot", metavar="FILE.png", help="draw the query's region grid")
    command.set_defaults(run=demo.run)


def _add_describe(command: argparse.ArgumentParser) -> None:
    _add_files(
        command,
        ("features", "feature maps (N, C, H, W), or as --layout says"),
        ("DESCRIPTORS.npy", "descriptors (N, D)"),
    )
    command.add_argument(
        "--dtype",
        choices=["float16", "float32", "float64"],
        help="of the descriptors (default: float32, or float64 for float64 maps)",
    )
    # Those that are not given are left to rmac.rmac, whose defaults the texts repeat.
    add = command.add_argument_group("pipeline", argument_default=argparse.SUPPRESS).add_argument
    add("--layout", choices=LAYOUTS, help="the meaning of the axes (default: NCHW)")
    add("--pool", choices=POOLS, help="of a region's values (default: max)")
    add("--p", type=float, help="exponent of gem (default: 3)")
    add("--levels", type=int, help="number of window sizes (default: 3)")
    add("--overlap", type=float, help="of neighbouring windows (default: 0.4)")
    add("--preset", choices=PRESETS, help="whose windows exactly (default: caffe2)")
    add("--whitening", metavar="W.npz", help="whiten regional vectors, as rmac whiten learned")
    add(
        "--aggregate",
        choices=AGGREGATES,
        help="of regional vectors (default: sum); none leaves them, (N, R, D), for rmac whiten",
    )
    add("--eps", type=float, help="added to norms before they divide (default: 0)")
    add(
        "--no-normalize-regions",
        dest="normalize_regions",
        action="store_false",
        help="leave the lengths of regional vectors",
    )
    add(
        "--no-normalize",
        dest="normalize",
        action="store_false",
        help="leave the lengths of descriptors",
    )
    add("--workers", type=int, help="threads to use (default: all CPUs that it may use)")
    command.set_defaults(run=describe.run)


def _add_whiten(command: argparse.ArgumentParser) -> None:
    _add_files(
        command,
        ("vectors", "vectors (M, C), or (N, R, C) as rmac describe --aggregate none gives them"),
        ("W.npz", "the whitening, for rmac describe --whitening"),
    )
    command.add_argument("--dim", type=int, help="components to keep (default: all)")
    command.add_argument(
        "--eps", type=float, default=0.0, help="the least eigenvalue to divide by (default: 0)"
    )
    command.set_defaults(run=whiten.run)


def _add_files(
    command: argparse.ArgumentParser, source: tuple[str, str], target: tuple[str, str]
) -> None:
    """Add the file that a command reads, as (name, help), and the one it writes."""
    name, text = source
    command.add_argument(
        name, metavar=name.upper(), help=f"{text}: a .npy, .zarr or .safetensors file"
    )
    command.add_argument("--key", help="the array's name, in a file that holds several")
    name, text = target
    command.add_argument("-o", "--output", metavar=name, required=True, help=text)
