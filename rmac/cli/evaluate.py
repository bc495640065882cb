"""The command ``rmac evaluate``: the precision of rankings, by the ground truth in a JSON file."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import rmac
from rmac._checks import positive_int
from rmac._dtypes import dtype_info
from rmac._io import InputFile, atomic_write
from rmac.cli.array_file import readable
from rmac.cli.files import naming, require_suffix
from rmac.cli.queries import open_queries, read_whole
from rmac.cli.ranks import holds_ranks, open_ranks, rank
from rmac.cli.safetensors_files import unique

if TYPE_CHECKING:
    import argparse
    from contextlib import AbstractContextManager

    from rmac.evaluation import Evaluation

_MOST_BYTES = 1 << 28  # of a ground truth: ten million images


def run(options: argparse.Namespace) -> None:
    """Print how good ranks are, after ranking descriptors if these are given."""
    names = {"ground_truth": options.ground_truth, "ranks": options.source}
    with _output(options) as file:
        places = [positive_int("--at", place) for place in options.at]
        ground_truth = _read_json(options.ground_truth)
        ranks = _ranks(options)
        with naming(names):
            result = rmac.evaluate(ranks, ground_truth, at=places)
        if file is not None:
            file.write(_as_json(result, places))
    _print_table(result, places)


def _output(options: argparse.Namespace) -> AbstractContextManager[IO[bytes] | None]:
    """Return the file to write, if one is asked for."""
    if options.output is None:
        return nullcontext()
    require_suffix("--output", options.output, ".json")
    others = [options.ground_truth, *filter(None, [options.queries])]
    return atomic_write(options.output, options.source, *others)


def _read_json(path: str) -> Any:
    """Read a ground truth; pickles, which can run code, are not read."""
    file = InputFile(path)
    if file.size > _MOST_BYTES:
        expected = f"a ground truth of at most {_MOST_BYTES} bytes"
        raise ValueError(f"{path}: expected {expected}, got {file.size}")
    content = bytearray(file.size)
    file.read_into(memoryview(content), 0)
    file.require_unchanged()
    with readable(path, "JSON file"):
        return json.loads(content, object_pairs_hook=unique)


def _ranks(options: argparse.Namespace) -> npt.NDArray[np.int64]:
    """Read ranks, or rank the descriptors of a file; by themselves if there are no queries."""
    file = open_ranks(options.source, options.key)
    if holds_ranks(file):
        if options.queries is not None:
            raise ValueError(f"--queries: expected none, since {file.name} holds ranks")
        return read_whole(file)
    queries = file if options.queries is None else open_queries(options.queries)
    if queries.ndim != 2:
        raise ValueError(f"{queries.name}: expected descriptors (Q, D), got shape {queries.shape}")
    dtype_info(queries.dtype, queries.name)
    return np.stack(rank(file, read_whole(queries), strict=options.strict))


def _print_table(result: Evaluation, places: list[int]) -> None:
    print("protocol  queries     mAP" + "".join(f"  {f'mP@{place}':>6}" for place in places))
    for protocol, scores in zip(result._fields, result, strict=True):
        numbers = [scores.map, *scores.mean_precision]
        count = np.count_nonzero(~np.isnan(scores.ap))
        print(f"{protocol:8}  {count:7}" + "".join(f"  {number:6.4f}" for number in numbers))


def _as_json(result: Evaluation, places: list[int]) -> bytes:
    """Return all scores as JSON, with null for NaN."""
    content = {
        protocol: {
            "map": _or_null(scores.map),
            "ap": _or_null(scores.ap),
            "at": places,
            "mean_precision": _or_null(scores.mean_precision),
            "precision": _or_null(scores.precision),
        }
        for protocol, scores in zip(result._fields, result, strict=True)
    }
    return json.dumps(content, indent=1).encode() + b"\n"


def _or_null(numbers: npt.ArrayLike) -> Any:
    """Return numbers as JSON has them: lists, with None for NaN."""
    array = np.asarray(numbers, dtype=object)
    array[array != array] = None
    return array.tolist()
