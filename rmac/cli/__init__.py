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
    except BrokenPipeError:  # the reader of the output, such as head, has ended
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
        if signal.getsignal(ending) != signal.SIG_IGN:  # nohup has SIGHUP ignored
            signal.signal(ending, _interrupt)
    status = main()
    if status:
        sys.stdout.flush()
        os._exit(status)  # an ordinary exit prints many lines about zarr's unfinished reads


def _say(who: str, what: str) -> None:
    print(f"{who}: {' '.join(what.split())}", file=sys.stderr)


def _interrupt(number: int, _frame: object) -> None:
    """End as Ctrl-C does, so that no partial output stays behind."""
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
    _add_whiten(command("whiten", help="learn a PCA-whitening from vectors of regions"))
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
        help="dtype of the descriptors (default: float32, or float64 for float64 maps)",
    )
    # An option that is not given is not passed on: rmac.rmac has the defaults.
    add = command.add_argument_group("pipeline", argument_default=argparse.SUPPRESS).add_argument
    add("--layout", choices=LAYOUTS, help="order of the axes (default: NCHW)")
    add("--pool", choices=POOLS, help="pooling of the values in a region (default: max)")
    add("--p", type=float, help="power of the generalised mean, gem (default: 3)")
    add("--levels", type=int, help="number of window sizes (default: 3)")
    add("--overlap", type=float, help="overlap of neighbouring windows (default: 0.4)")
    add("--preset", choices=PRESETS, help="grid preset (default: caffe2)")
    add(
        "--whitening",
        metavar="W.npz",
        help="whiten vectors of regions; written by rmac whiten",
    )
    add(
        "--aggregate",
        choices=AGGREGATES,
        help="how vectors of regions become a descriptor (default: sum); "
        "none writes them as they are, (N, R, D), for rmac whiten",
    )
    add("--eps", type=float, help="number added to each norm before the division (default: 0)")
    add(
        "--no-normalize-regions",
        dest="normalize_regions",
        action="store_false",
        help="do not L2-normalise the vectors of regions",
    )
    add(
        "--no-normalize",
        dest="normalize",
        action="store_false",
        help="do not L2-normalise descriptors",
    )
    add("--workers", type=int, help="threads to use (default: all CPUs that the process may use)")
    command.set_defaults(run=describe.run)


def _add_whiten(command: argparse.ArgumentParser) -> None:
    _add_files(
        command,
        ("vectors", "vectors (M, C), or (N, R, C) as rmac describe --aggregate none writes them"),
        ("W.npz", "the whitening, for rmac describe --whitening"),
    )
    command.add_argument("--dim", type=int, help="components to keep (default: all)")
    command.add_argument(
        "--eps",
        type=float,
        default=0.0,
        help="least variance to divide by (default: 0)",
    )
    command.set_defaults(run=whiten.run)


def _add_files(
    command: argparse.ArgumentParser, source: tuple[str, str], target: tuple[str, str]
) -> None:
    """Add the arguments of a command for its input and its output, each as (name, help)."""
    name, text = source
    command.add_argument(
        name, metavar=name.upper(), help=f"{text}: a .npy, .zarr or .safetensors file"
    )
    command.add_argument("--key", help="name of the array, in a file that holds several")
    name, text = target
    command.add_argument("-o", "--output", metavar=name, required=True, help=text)
