"""The command line: ``rmac demo``, ``rmac describe``, ``rmac whiten`` and ``rmac apply``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from rmac import __version__
from rmac._options import AGGREGATES, LAYOUTS, POOLS, PRESETS
from rmac._terminal import explain, say
from rmac.cli import apply, demo, describe, whiten
from rmac.whitening.state import VECTOR_KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence

_EXPECTED = (OSError, ValueError, TypeError, ImportError, MemoryError, Warning)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status, 2 after a one-line error."""
    options = _parser().parse_args(arguments)
    tell = partial(say, f"rmac {options.command}")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_args, **_options: tell(f"warning: {message}")
            options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except _EXPECTED as error:
        tell(f"error: {explain(error)}")
        return 2
    except KeyboardInterrupt as ending:
        tell("interrupted")
        return 128 + int(ending.args[0] if ending.args else signal.SIGINT)
    except Exception as error:
        tell(f"error: unexpected {type(error).__name__}: {explain(error)}; please report it")
        return 2
    return 0


def program() -> None:
    """Run the command line as a process of its own."""
    _open_standard_streams()
    for ending in {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:  # not on Windows
        if signal.getsignal(ending) != signal.SIG_IGN:  # nohup has SIGHUP ignored
            signal.signal(ending, _interrupt)
    status = main()
    if status:
        os._exit(status)  # an ordinary exit prints many lines about zarr's unfinished reads


def _open_standard_streams() -> None:
    """Open what the caller closed of descriptors 0 to 2: messages must not get into the output."""
    while (lowest := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(lowest)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def _interrupt(number: int, _frame: object) -> None:
    """End as Ctrl-C does, so that no partial output stays behind."""
    raise KeyboardInterrupt(number)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all errors here are."""

    def error(self, message: str) -> NoReturn:
        say(self.prog, f"error: {message}; see {self.prog} --help")
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="rmac", description="R-MAC descriptors of convolutional feature maps.")
    parser.add_argument("--version", action="version", version=f"rmac {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    command = partial(commands.add_parser, allow_abbrev=False)
    _add_demo(command("demo", help="rank the photographs that rmac ships"))
    _add_describe(command("describe", help="describe the feature maps in a file"))
    _add_whiten(command("whiten", help="learn a PCA-whitening from vectors of regions"))
    _add_apply(command("apply", help="whiten descriptors, or vectors of regions"))
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
    _add_dtype(command, "descriptors", "maps")
    # An option that is not given is not passed on: rmac.rmac has the defaults.
    add = command.add_argument_group("pipeline", argument_default=argparse.SUPPRESS).add_argument
    add("--layout", choices=LAYOUTS, help="order of the axes (default: NCHW)")
    add("--pool", choices=POOLS, help="pooling of the values in a region (default: max)")
    add("--p", type=float, help="power of the generalised mean, gem (default: 3)")
    add("--zero-point", type=int, help="value of int8 or uint8 maps that stands for 0 (default: 0)")
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
        help="how regional vectors become a descriptor (default: sum); "
        "none writes them as they are, (N, R, D), for rmac whiten",
    )
    add("--eps", type=float, help="number added to each norm before the division (default: 0)")
    add(
        "--no-normalize-regions",
        dest="normalize_regions",
        action="store_false",
        help="do not L2-normalise regional vectors",
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
        ("W.npz", "the whitening, for rmac describe --whitening or rmac apply"),
    )
    command.add_argument("--dim", type=int, help="components to keep (default: all)")
    command.add_argument(
        "--eps",
        type=float,
        default=0.0,
        help="least variance to divide by (default: 0)",
    )
    command.add_argument(
        "--kind",
        choices=VECTOR_KINDS,
        help="what the vectors are, kept in W.npz (default: regions for (N, R, C), descriptors "
        "for (M, C))",
    )
    command.set_defaults(run=whiten.run)


def _add_apply(command: argparse.ArgumentParser) -> None:
    command.add_argument("whitening", metavar="W.npz", help="written by rmac whiten")
    _add_files(
        command,
        ("vectors", "descriptors (M, C), or regional vectors (N, R, C)"),
        ("WHITENED.npy", "the whitened vectors (M, D) or (N, R, D)"),
    )
    _add_dtype(command, "whitened vectors", "vectors")
    command.add_argument(
        "--no-normalize",
        dest="normalize",
        action="store_false",
        help="do not L2-normalise the whitened vectors",
    )
    command.set_defaults(run=apply.run)


def _add_dtype(command: argparse.ArgumentParser, results: str, inputs: str) -> None:
    command.add_argument(
        "--dtype",
        choices=["float16", "float32", "float64"],
        help=f"dtype of the {results} (default: float32, or float64 for float64 {inputs})",
    )


def _add_files(
    command: argparse.ArgumentParser, source: tuple[str, str], target: tuple[str, str]
) -> None:
    """Add the arguments of a command for its input and its output, each as (name, help)."""
    name, text = source
    command.add_argument(
        "source", metavar=name.upper(), help=f"{text}: a .npy, .zarr or .safetensors file"
    )
    command.add_argument("--key", help="name of the array, in a file that holds several")
    command.add_argument(
        "--strict",
        action="store_true",
        help="fail where there is a warning otherwise: rows with numbers that are not finite, rows "
        "of zeros, rows never written to a Zarr file, a whitening of another kind of vectors",
    )
    name, text = target
    command.add_argument("-o", "--output", metavar=name, required=True, help=text)
