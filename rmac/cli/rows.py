"""Rows of results: written to a file, and bad ones told by their numbers."""

from __future__ import annotations

from itertools import islice
from typing import IO, TYPE_CHECKING, Any
from zipfile import ZipFile, ZipInfo

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from rmac._checks import warn
from rmac._io import atomic_write
from rmac.cli.array_file import ArrayFile

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

    from rmac.cli.inputs import Inputs

_NAMES_BYTES = 1 << 24  # of names that are written at once
_SHOWN = 5  # numbers of bad rows of a kind in a message


class BadRows:
    """The rows of a file that are not finite, not written or zero; each is of one kind only."""

    def __init__(self, source: ArrayFile | Inputs, *, strict: bool) -> None:
        self._source, self._strict = source, strict
        self._seen = self._in_sight = 0  # rows before these, and of these
        self._counts: dict[str, int] = {}
        self._shown: dict[str, list[int]] = {}

    def add(self, batch: npt.NDArray[Any]) -> None:
        """Look at the next rows (N, C) or (N, R, C); raise if one is bad and the command strict."""
        self.look(np.arange(len(batch)), batch)
        self.passed(len(batch))

    def look(
        self, rows: npt.NDArray[np.intp], block: npt.NDArray[Any], *, finite: bool = False
    ) -> None:
        """Look at some of the next rows; `rows` are their places among the next rows.

        Also raise if they must be `finite` and one is not.
        """
        numbers = self._seen + rows
        self._in_sight = max(self._in_sight, len(rows))
        flat = block.reshape(len(block), -1)
        known = np.zeros(len(block), bool)
        for kind, bad in (
            ("not finite", ~np.isfinite(flat).all(axis=1)),
            ("not written", self._unwritten(numbers)),
            ("zero", ~flat.any(axis=1)),
        ):
            found = numbers[bad & ~known]
            known |= bad
            if len(found):
                self._counts[kind] = self._counts.get(kind, 0) + len(found)
                shown = self._shown.get(kind, [])
                self._shown[kind] = sorted([*shown, *found.tolist()[:_SHOWN]])[:_SHOWN]
        if finite and "not finite" in self._counts:
            raise ValueError(f"{self}; leave out rows that are not finite")
        if self._strict and self._counts:
            raise ValueError(f"{self}; without --strict this is a warning")

    def passed(self, count: int) -> None:
        """Count rows that were looked at."""
        self._seen, self._in_sight = self._seen + count, 0

    def tell(self) -> None:
        """Warn of all bad rows in one line."""
        if self._counts:
            warn(f"{self}; --strict makes this an error")

    def _unwritten(self, numbers: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
        if not len(numbers):
            return np.zeros(0, bool)
        first, last = int(numbers[0]), int(numbers[-1]) + 1
        return np.isin(numbers, self._source.unwritten(first, last))

    def _row(self, row: int) -> str:
        """Return the number of a row, with its name if it has one."""
        name = None if isinstance(self._source, ArrayFile) else self._source.row_name(row)
        return str(row) if name is None else f"{row} {name}"

    def __str__(self) -> str:
        kinds = []
        for kind in sorted(self._counts):
            count = self._counts[kind]
            more = ", ..." if count > _SHOWN else ""
            kinds.append(f"{count} {kind} ({', '.join(map(self._row, self._shown[kind]))}{more})")
        if "not written" in self._counts:
            kinds.append("Zarr does not write chunks of its fill value either")
        seen = self._seen + self._in_sight
        return f"{self._source.name}: bad rows among the first {seen}: {'; '.join(kinds)}"


def write_rows(
    options: argparse.Namespace,
    source: ArrayFile | Inputs,
    others: list[str],
    like: npt.NDArray[Any],
    parts: Iterable[npt.NDArray[Any]],
) -> None:
    """Write the results for all rows of `source`, which are like those of `like`.

    They are the array of a .npy file, or with the names of the rows in an .npz file. `options` has
    --output, --strict and perhaps --dtype. `others` are the paths of all inputs.
    """
    dtype = np.dtype(getattr(options, "dtype", None) or like.dtype)
    shape = (source.shape[0], *like.shape[1:])
    bad = BadRows(source, strict=options.strict)

    def blocks() -> Iterator[npt.NDArray[Any]]:
        done = 0
        for part in parts:
            rows = _converted(part, dtype, done)
            bad.add(rows)
            yield rows
            done += len(rows)

    with atomic_write(options.output, *others) as file:
        if options.output.lower().endswith(".npz") and not isinstance(source, ArrayFile):
            with ZipFile(file, "w") as archive:
                with _member(archive, "descriptors.npy") as member:
                    _write_array(member, dtype, shape, blocks())
                names = source.row_names
                width = max(map(len, names()), default=1) or 1
                with _member(archive, "names.npy") as member:
                    _write_array(member, np.dtype(("U", width)), shape[:1], _blocks(names(), width))
        else:
            _write_array(file, dtype, shape, blocks())
        bad.tell()


def _member(archive: ZipFile, name: str) -> IO[bytes]:
    return archive.open(ZipInfo(name), "w", force_zip64=True)


def _write_array(
    file: IO[bytes],
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    blocks: Iterable[npt.NDArray[Any]],
) -> None:
    """Write an array in .npy format, some rows at a time."""
    header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(file, header)
    for block in blocks:
        file.write(block.data)


def _blocks(names: Iterator[str], width: int) -> Iterator[npt.NDArray[Any]]:
    """Yield the bytes of names, some names at a time, so that memory holds few of them."""
    while some := list(islice(names, max(1, _NAMES_BYTES // (4 * width)))):
        yield np.array(some, f"U{width}").view(np.uint8)


def _converted(rows: npt.NDArray[Any], dtype: np.dtype[Any], first: int) -> npt.NDArray[Any]:
    """Return rows in a dtype, or raise if one of their numbers is too large for it."""
    with np.errstate(over="ignore", under="ignore"):
        result = rows.astype(dtype, copy=False)
    if dtype.itemsize < rows.dtype.itemsize:
        lost = np.isinf(result) & np.isfinite(rows)
        if lost.any():
            place = tuple(np.argwhere(lost)[0])
            raise ValueError(
                f"--dtype: expected numbers of at most {np.finfo(dtype).max:g}, which {dtype} has, "
                f"got {rows[place]:g} in row {first + place[0]}; take a wider dtype, or normalise"
            )
    return result
