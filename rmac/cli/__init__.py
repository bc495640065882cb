"""The command line: the parser of its commands, and what ends them."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from rmac import __version__
from rmac._dtypes import ZERO_POINT_NAMES
from rmac._options import AGGREGATES, LAYOUTS, MAP_LAYOUTS, POOLS, PRESETS, SEARCHES
from rmac._terminal import explain, say, silence
from rmac.cli import apply, demo, describe, evaluate, locate, rerank, whiten
from rmac.cli.array_file import READ
from rmac.whitening.state import VECTOR_KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence

READ_ONE = READ.replace(" and ", " or ")
# Objects between two garbage collections. The names and sizes of 20,000 maps are some 200,000, and
# none of them is garbage: collecting again and again took a third of the time of opening.
_OBJECTS = 200_000
_EXPECTED = (OSError, ValueError, TypeError, ImportError, MemoryError, Warning)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status, 2 after a one-line error."""
    options = _parser().parse_args(arguments)
    tell = partial(say, f"rmac {options.command}")
    told: list[str] = []  # in warnings
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_args, **_options: told.append(str(message))
            options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output, such as head, has ended
        silence(sys.stdout)
    except _EXPECTED as error:
        tell(f"error: {explain(error)}")
        return 2
    except KeyboardInterrupt as ending:
        tell("interrupted")
        return 128 + int(ending.args[0] if ending.args else signal.SIGINT)
    except Exception as error:
        tell(f"error: unexpected {type(error).__name__}: {explain(error)}; please report it")
        return 2
    for message in told:  # not earlier: a command that fails says one line
        tell(f"warning: {message}")
    return 0


def program() -> None:
    """Run the command line as a process of its own."""
    _open_standard_streams()
    gc.set_threshold(_OBJECTS)
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

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print --help or --version. If that fails, argparse itself says nothing."""
        try:
            print(message, end="", file=file, flush=True)
        except OSError as error:
            silence(sys.stdout)
            if not isinstance(error, BrokenPipeError):
                say(self.prog, f"error: {explain(error)}")
                raise SystemExit(2) from None


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="rmac", description="R-MAC descriptors of convolutional feature maps.")
    parser.add_argument("--version", action="version", version=f"rmac {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    command = partial(commands.add_parser, allow_abbrev=False)
    _add_demo(command("demo", help="rank the photographs that rmac ships"))
    _add_describe(command("describe", help="describe the feature maps in a file"))
    _add_whiten(command("whiten", help="learn a PCA-whitening from regional vectors"))
    _add_apply(command("apply", help="whiten descriptors, or regional vectors"))
    _add_locate(command("locate", help="find the boxes of queries in feature maps"))
    _add_rerank(command("rerank", help="order what was ranked first by what is in its boxes"))
    _add_evaluate(command("evaluate", help="print the precision of ranks"))
    return parser


def _add_demo(command: argparse.ArgumentParser) -> None:
    command.add_argument("--query", default="box", metavar="NAME", help="photograph to look for")
    command.add_argument(
        "--locate",
        action="store_true",
        help="find the query in the photograph that is ranked first",
    )
    command.add_argument(
        "--plot", metavar="FILE.png", help="draw the query's region grid, or with --locate its box"
    )
    command.set_defaults(run=demo.run)


def _add_describe(command: argparse.ArgumentParser) -> None:
    _add_files(
        command,
        ("features", "feature maps (N, C, H, W), or as --layout says; or one (C, H, W) an image"),
        ("DESCRIPTORS.npy", "descriptors (N, D); an .npz file has their names too"),
        several=True,
    )
    _add_dtype(command, "descriptors", "maps")
    # An option that is not given is not passed on: rmac.rmac has the defaults.
    add = command.add_argument_group("pipeline", argument_default=argparse.SUPPRESS).add_argument
    add("--layout", choices=LAYOUTS, help="order of the axes (default: NCHW)")
    add("--pool", choices=POOLS, help="pooling of the values in a region (default: max)")
    add("--p", type=float, help="power of the generalised mean, gem (default: 3)")
    zero = f"value of {ZERO_POINT_NAMES} maps that stands for 0 (default: 0)"
    add("--zero-point", type=int, help=zero)
    add("--levels", type=int, help="number of window sizes (default: 3)")
    add("--overlap", type=float, help="overlap of neighbouring windows (default: 0.4)")
    add("--preset", choices=PRESETS, help="grid preset (default: caffe2)")
    add(
        "--whitening",
        metavar="W.npz",
        help="whiten regional vectors; written by rmac whiten",
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
        several=True,
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
        (
            "WHITENED.npy",
            "the whitened vectors (M, D) or (N, R, D); an .npz file has their names too",
        ),
        several=True,
    )
    _add_dtype(command, "whitened vectors", "vectors")
    command.add_argument(
        "--no-normalize",
        dest="normalize",
        action="store_false",
        help="do not L2-normalise the whitened vectors",
    )
    command.set_defaults(run=apply.run)


def _add_locate(command: argparse.ArgumentParser) -> None:
    _add_files(
        command,
        ("maps", "feature maps (N, C, H, W), or as --layout says"),
        ("BOXES.npy", "x1, y1, x2, y2 in cells, inclusive, and the score of each query (N, Q, 5)"),
    )
    command.add_argument(
        "queries",
        metavar="QUERIES",
        help="feature maps of the queries, or vectors (Q, C) of their maxima",
    )
    _add_dtype(command, "boxes and scores", "maps")
    _add_search(command)
    command.set_defaults(run=locate.run)


def _add_rerank(command: argparse.ArgumentParser) -> None:
    _add_files(
        command,
        ("maps", "feature maps (N, C, H, W), or as --layout says"),
        ("RANKS.npy", "the new ranks (Q, M)"),
    )
    command.add_argument("queries", metavar="QUERIES", help="feature maps of the queries")
    command.add_argument(
        "ranks",
        metavar="RANKS",
        help="the maps that were found for each query (Q, M), -1 for none; or the descriptors "
        "(N, D) of the maps, by which they are ranked first",
    )
    add = command.add_argument
    add("--top", type=int, default=100, help="maps to re-rank for each query (default: 100)")
    add(
        "--expand", type=int, metavar="K", help="rank once more, by the query and the K first boxes"
    )
    _add_search(command)
    add = command.add_argument_group("description", argument_default=argparse.SUPPRESS).add_argument
    add("--levels", type=int, help="number of window sizes (default: 3)")
    add("--preset", choices=PRESETS, help="grid preset (default: matlab)")
    add("--whitening", metavar="W.npz", help="whiten regional vectors; written by rmac whiten")
    command.set_defaults(run=rerank.run)


def _add_search(command: argparse.ArgumentParser) -> None:
    """Add the options of `rmac.localize`."""
    command.add_argument(
        "--boxes",
        metavar="BOXES.npy",
        help="x1, y1, x2, y2 of each query on its feature map (Q, 4), in cells, inclusive "
        "(default: the whole map)",
    )
    command.add_argument(
        "--aspect",
        type=float,
        help="height / width of the boxes to find (default: that of the query, any for vectors)",
    )
    # An option that is not given is not passed on: rmac.localize has the defaults.
    add = command.add_argument_group("search", argument_default=argparse.SUPPRESS).add_argument
    add("--search", choices=SEARCHES, help="which boxes are searched (default: best)")
    add("--tolerance", type=float, help="most factor between aspects (default: 1.1)")
    add("--step", type=int, help="cells between boxes; grid and aml (default: 3)")
    add("--refine", type=int, help="largest step of the refinement; grid and aml (default: 3)")
    add("--sweeps", type=int, help="most rounds of each refinement; grid and aml (default: 5)")
    add("--layout", choices=MAP_LAYOUTS, help="order of the axes of maps (default: NCHW)")
    add("--workers", type=int, help="threads to use (default: all CPUs that the process may use)")


def _add_evaluate(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "source",
        metavar="RANKS",
        help="the images that were found for each query (Q, M), -1 for none; or descriptors "
        "(N, D), to be ranked: a " + READ_ONE + " file",
    )
    command.add_argument(
        "ground_truth",
        metavar="GROUND_TRUTH.json",
        help='a list with {"easy": [...], "hard": [...], "junk": [...]} for each query, or the '
        'dictionary of revisitop with this list as "gnd"',
    )
    add = command.add_argument
    add("--queries", help="descriptors of the queries (Q, D) (default: the descriptors themselves)")
    add(
        "--at",
        type=int,
        nargs="+",
        default=[1, 5, 10],
        help="places of precisions (default: 1 5 10)",
    )
    add("--key", help="name of the array, in a file that holds several")
    add("--strict", action="store_true", help="fail where descriptors are not finite or zero")
    add("-o", "--output", metavar="SCORES.json", help="all scores, also those of each query")
    command.set_defaults(run=evaluate.run)


def _add_dtype(command: argparse.ArgumentParser, results: str, inputs: str) -> None:
    command.add_argument(
        "--dtype",
        choices=["float16", "float32", "float64"],
        help=f"dtype of the {results} (default: float32, or float64 for float64 {inputs})",
    )


def _add_files(
    command: argparse.ArgumentParser,
    source: tuple[str, str],
    target: tuple[str, str],
    *,
    several: bool = False,
) -> None:
    """Add the arguments of a command for its input and its output, each as (name, help)."""
    name, text = source
    if several:
        command.add_argument(
            "source",
            metavar=name.upper(),
            nargs="+",
            help=f"{text}: {READ} files, or folders of them, which are taken in order",
        )
    else:
        command.add_argument("source", metavar=name.upper(), help=f"{text}: a {READ_ONE} file")
    command.add_argument(
        "--key",
        help="name of the array or group, in a file that holds several; FILE/KEY says it too",
    )
    command.add_argument(
        "--strict",
        action="store_true",
        help="fail where there is a warning otherwise: rows with numbers that are not finite, rows "
        "of zeros, rows never written to a Zarr or HDF5 file, files of a folder that are not read, "
        "a whitening of another kind of vectors",
    )
    name, text = target
    command.add_argument("-o", "--output", metavar=name, required=True, help=text)
