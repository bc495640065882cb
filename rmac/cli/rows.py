"""Rows of results: written to a file, and bad ones told by their numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from rmac._checks import warn
from rmac._io import atomic_write

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from rmac.cli.array_file import ArrayFile

_SHOWN = 5  # numbers of bad rows of a kind in a message


class BadRows:
    """The rows of a file that are not finite, not written or zero; each is of one kind only."""

    def __init__(self, source: ArrayFile, *, strict: bool) -> None:
        self._source, self._strict = source, strict
        self._seen = 0
        self._counts: dict[str, int] = {}
        self._shown: dict[str, list[int]] = {}

    def add(self, rows: npt.NDArray[Any], *, finite: bool = False) -> None:
        """Look at the next rows (N, C) or (N, R, C).

        Raise if one is bad and the command is strict, or if they must be `finite` and one is not.
        """
        first, self._seen = self._seen, self._seen + len(rows)
        flat = rows.reshape(len(rows), -1)
        known = np.zeros(len(rows), bool)
        for kind, bad in (
            ("not finite", ~np.isfinite(flat).all(axis=1)),
            ("not written", self._unwritten(first)),
            ("zero", ~flat.any(axis=1)),
        ):
            numbers = np.flatnonzero(bad & ~known)
            known |= bad
            if len(numbers):
                self._counts[kind] = self._counts.get(kind, 0) + len(numbers)
                shown = self._shown.setdefault(kind, [])
                shown += (first + numbers[: _SHOWN - len(shown)]).tolist()
        if finite and "not finite" in self._counts:
            raise ValueError(f"{self}; leave out rows that are not finite")
        if self._strict and self._counts:
            raise ValueError(f"{self}; without --strict this is a warning")

    def tell(self) -> None:
        """Warn of all bad rows in one line."""
        if self._counts:
            warn(f"{self}; --strict makes this an error")

    def _unwritten(self, first: int) -> npt.NDArray[np.bool_]:
        bad = np.zeros(self._seen - first, bool)
        bad[self._source.unwritten(first, self._seen) - first] = True
        return bad

    def __str__(self) -> str:
        kinds = []
        for kind in sorted(self._counts):
            count = self._counts[kind]
            more = ", ..." if count > _SHOWN else ""
            kinds.append(f"{count} {kind} ({', '.join(map(str, self._shown[kind]))}{more})")
        if "not written" in self._counts:
            kinds.append("Zarr does not write chunks of its fill value either")
        return f"{self._source.name}: bad rows among the first {self._seen}: {'; '.join(kinds)}"


def write_rows(
    options: argparse.Namespace,
    source: ArrayFile,
    others: list[str],
    like: npt.NDArray[Any],
    parts: Iterable[npt.NDArray[Any]],
) -> None:
    """Write the results for all rows of `source`, which are like those of `like`, to a .npy file.

    `others` are the paths of further inputs.
    """
    dtype = np.dtype(options.dtype or like.dtype)
    shape = (source.shape[0], *like.shape[1:])
    header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    bad, done = BadRows(source, strict=options.strict), 0
    with atomic_write(options.output, options.source, *others) as file:
        npy.write_array_header_1_0(file, header)
        for part in parts:
            rows = _converted(part, dtype, done)
            bad.add(rows)
            file.write(rows.data)
            done += len(rows)
        bad.tell()


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
