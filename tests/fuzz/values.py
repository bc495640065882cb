"""Hostile values: what each is called, and the plain value that it stands for.

A value that stands for REFUSED must raise. One that stands for EITHER may also be taken, whatever
the result then is.
"""

import array
from decimal import Decimal
from fractions import Fraction

import numpy as np

import rmac

REFUSED, EITHER = "refused", "either"
LONG = "x" * 100_000


class Index:
    """An object with `__index__` and `__float__` that tells these values in turn."""

    def __init__(self, *values):
        self._values = list(values)

    def _tell(self):
        value = self._values.pop(0) if len(self._values) > 1 else self._values[0]
        if isinstance(value, BaseException):
            raise value
        return value

    __index__ = __float__ = __int__ = _tell


class NoRepr:
    def __repr__(self):
        raise RuntimeError("no repr")


class Equal(str):
    """A string that is equal to every other."""

    __slots__ = ()

    def __eq__(self, other):
        return True

    def __hash__(self):
        return hash("max")


class NoHash(str):
    __slots__ = ()
    __hash__ = None


class LyingInt(int):
    def __lt__(self, other):
        return False

    def __index__(self):
        return 10**9


class Plain(np.ndarray):
    """A subclass that changes nothing."""


class Lying(np.ndarray):
    """A subclass that tells another shape than it has."""

    @property
    def shape(self):
        return (3, 70, 9, 9)


class LyingDtype(np.ndarray):
    @property
    def dtype(self):
        return np.dtype("f8")


class LyingStrides(np.ndarray):
    @property
    def strides(self):
        return (2**40,) * 4


class NoShape(np.ndarray):
    @property
    def shape(self):
        raise RuntimeError("no shape")


class NoItems(np.ndarray):
    def __getitem__(self, key):
        raise RuntimeError("no items")

    def __len__(self):
        return 10**6


class Finalized(np.ndarray):
    def __array_finalize__(self, parent):
        if parent is not None and type(parent) is not np.ndarray:
            raise RuntimeError("no views")


class Interface:
    """An object whose `__array_interface__` tells of memory that is not there."""

    __array_interface__ = {  # noqa: RUF012
        "shape": (1, 1, 2, 2),
        "typestr": "<f4",
        "data": (16, True),
        "version": 3,
    }


class DLPack:
    """An object with the methods of DLPack. Some of them fail."""

    def __init__(self, array, device=(1, 0), error=None):
        self._array, self._device, self._error = array, device, error

    def __array_namespace__(self, **options):
        del options
        return np

    def __dlpack_device__(self):
        return self._device

    def __dlpack__(self, **options):
        if self._error:
            raise self._error
        return self._array.__dlpack__(**options)


class LyingGrid(rmac.RegionGrid):
    __slots__ = ()


def integers(plain, small=REFUSED):
    """Values for an integer; `small` is what 0 and -1 stand for."""
    yield from _numbers()
    yield "integer 0", 0, small
    yield "integer -1", -1, small
    for value in (-(2**31), -(2**63), 2**63, 2**64, 2**62, 10**400, -(10**400)):
        yield (
            f"integer {value:.3g}" if abs(value) < 2**70 else "integer of 400 digits",
            value,
            REFUSED,
        )
    for value in (1.0, 2.5, np.float32(2), Decimal(3), Fraction(3), "3", b"3", 3j):
        yield f"integer {value!r}", value, REFUSED
    if type(plain) is not int:
        return
    for kind in ("i1", "u8", "i8"):
        if np.iinfo(kind).min <= plain <= np.iinfo(kind).max:
            yield f"integer of {kind}", np.dtype(kind).type(plain), plain
    yield "integer of no axes", np.array(plain), plain
    yield "integer of one axis", np.array([plain]), EITHER
    yield "integer with __index__", Index(plain), plain
    yield "integer that changes", Index(plain, 10**9, -5), EITHER
    yield "integer subclass", LyingInt(plain), plain


def floats(plain):
    yield from _numbers()
    for value in (-1.0, -np.inf, np.nan, -(10**400), -5e-324, np.float32("nan"), "0.4", b"1", 1j):
        shown = "-10**400" if isinstance(value, int) else repr(value)
        yield f"number {shown}", value, REFUSED
    for value in (10**400, np.inf, 1e308, 1e39):
        yield f"number {value:.3g}" if value != 10**400 else "number 10**400", value, EITHER
    for kind in (np.float64, Decimal, Fraction, np.longdouble):
        yield f"number of {kind.__name__}", kind(plain) if np.isfinite(plain) else plain, plain
    yield "number of no axes", np.array(plain), plain
    yield "number of one axis", np.array([plain]), EITHER
    yield "number with __float__", Index(float(plain)), plain
    yield "number that changes", Index(float(plain), np.nan), EITHER


def _numbers():
    yield from _objects()
    for value in (True, np.True_, "", LONG, [], [3], (3, 4, 5), {}, {3}, range(3)):
        yield f"no number: {str(value)[:9]}", value, REFUSED
    for error in (RuntimeError, KeyError, OverflowError, MemoryError, AttributeError):
        yield f"number that raises {error.__name__}", Index(error("mine")), REFUSED
    yield "number that tells a string", Index("3"), REFUSED
    yield "array of three numbers", np.array([1, 2, 3]), REFUSED
    yield "array of no numbers", np.array([]), REFUSED
    yield "long list", [0] * 100_000, REFUSED
    yield "date", np.datetime64("2020-01-01"), REFUSED


def _objects():
    yield "object", object(), REFUSED
    yield "object without a repr", NoRepr(), REFUSED
    yield "type", int, REFUSED
    yield "function", len, REFUSED
    yield "not implemented", NotImplemented, REFUSED
    yield "bytes", bytearray(b"abc"), REFUSED


def words(plain):
    yield from _objects()
    for value in ("", "x", plain.swapcase(), plain + "\0", plain + " ", "\ud800", LONG):
        yield f"word {value[:9]!r}", value, REFUSED
    yield "word of bytes", plain.encode(), REFUSED
    yield "word of NumPy", np.str_(plain), plain
    yield "word without a hash", NoHash(plain), plain
    yield "word equal to all", Equal("x"), EITHER
    for value in (None, 0, 1.5, True, [plain], (plain,), {plain}, np.array(plain)):
        yield f"no word: {value!r}", value, REFUSED


def flags(plain):
    yield from _objects()
    yield "flag of NumPy", np.bool_(plain), plain
    for value in (None, 0, 1, 2.0, "yes", "", [], [True], Index(1), LONG, [0] * 100_000):
        yield f"no flag: {str(value)[:9]}", value, REFUSED
    yield "flag of no axes", np.array(plain), EITHER
    yield "flags", np.array([True, False]), REFUSED


def arrays(rng, plain):
    """Instead of any array: what is none, or of a dtype or form that no function takes."""
    yield from _objects()
    for value in (None, 3, 2.5, "x", LONG, b"abc", memoryview(b"abc"), {}, {1}, iter([])):
        yield f"no array: {str(value)[:9]}", value, REFUSED
    yield "array of Python", array.array("f", [1, 2]), REFUSED
    yield "lying interface", Interface(), REFUSED
    for dtype in ("?", "O", "U3", "S3", "c8", "c16", "i8,f4", "M8[s]", "m8[s]", "V8"):
        yield f"array of {dtype}", np.zeros(plain.shape, dtype), REFUSED
    yield "masked array", np.ma.masked_array(np.array(plain), mask=False), REFUSED
    yield "matrix", np.zeros((2, 2)).view(np.matrix), EITHER
    yield "array of no axes", np.zeros((), plain.dtype), REFUSED
    yield "array of 64 axes", np.zeros((1,) * 32, plain.dtype), EITHER
    yield "plain subclass", np.array(plain).view(Plain), plain
    yield "read-only array", _read_only(plain), plain
    for kind in (Lying, LyingDtype, LyingStrides, NoShape, NoItems, Finalized):
        yield f"array of {kind.__name__}", _viewed(plain, kind), EITHER
    for device in ((1, 0), (2, 0), (99, 0), (), None, ("x", 0), 3, (2**70, 0)):
        yield f"DLPack on {device}", DLPack(np.array(plain), device), EITHER
    for error in (RuntimeError, AttributeError, IndexError, KeyError, BufferError, MemoryError):
        yield f"DLPack raises {error.__name__}", DLPack(plain, error=error("mine")), REFUSED
    yield "extra axis", plain[None], EITHER
    del rng


def _viewed(plain, kind):
    view = np.array(plain).view(Plain)
    try:
        return np.array(plain).view(kind)
    except RuntimeError:
        return view


def _read_only(plain):
    copy = np.array(plain)
    copy.flags.writeable = False
    return copy


def maps(rng, plain):
    yield from arrays(rng, plain)
    for dtype in ("i2", "u2", "i4", "i8", "u8", "g"):
        yield f"maps of {dtype}", np.zeros(plain.shape, dtype), REFUSED
    if plain.dtype.itemsize > 1 and plain.dtype.name != "bfloat16":
        yield "maps of other bytes", np.array(plain).astype(plain.dtype.newbyteorder()), REFUSED
        if plain.size:
            yield "misaligned maps", misaligned(plain), REFUSED
    yield "maps without cells", np.zeros((*plain.shape[:-1], 0), plain.dtype), EITHER
    yield "list of maps", [np.array(one) for one in plain], EITHER
    yield "list of nothing", [], REFUSED
    yield "list of None", [None], REFUSED
    yield "list of a map and None", [np.zeros((1, 2, 2), "f4"), None], REFUSED
    yield "list of dtypes", [np.zeros((1, 2, 2), "f4"), np.zeros((1, 2, 2), "f8")], REFUSED
    yield "list of channels", [np.zeros((1, 2, 2), "f4"), np.zeros((2, 2, 2), "f4")], EITHER


def misaligned(plain):
    flat = np.zeros(plain.nbytes + 1, np.uint8)[1:].view(plain.dtype)
    copy = flat.reshape(plain.shape)
    copy[...] = plain
    return copy


def lists(rng, plain):
    yield "tuple", tuple(plain), list(plain)
    yield "generator", (one for one in plain), REFUSED
    yield "list twice", [*plain, *plain], EITHER
    for i in range(len(plain)):
        for name, value, meaning in maps(rng, plain[i]):
            wanted = REFUSED if meaning is REFUSED else EITHER
            yield f"list: {name}", [*plain[:i], value, *plain[i + 1 :]], wanted
    yield "list that holds itself", _cycle(), REFUSED


def _cycle():
    cycle = []
    cycle.append(cycle)
    return cycle


_WRONG_CORNERS = (
    [-1, 0, 0, 0],
    [0, -1, 0, 0],
    [1, 0, 0, 0],
    [0, 1, 0, 0],
    [2**31] * 4,
    [2**62] * 4,
    [2**63] * 4,
    [-(2**63)] * 4,
    [2**64] * 4,
    [0, 0, 2**63 - 1, 0],
    [10**30] * 4,
    [0, 0, 0, 2**40],
)
_NO_BOXES = ([], [0, 0, 1, 1], [[0] * 5], [[[0] * 4]], [[0] * 4, [0]], "", "abcd", 3)


def boxes(rng, shape):
    height, width = shape
    whole = [0, 0, width - 1, height - 1]
    yield from _objects()
    for row in ([0, 0, width, 0], [0, 0, 0, height], *_WRONG_CORNERS):
        yield f"box {row}", [whole, row], REFUSED
    for value in _NO_BOXES:
        yield f"no boxes {value}", value, REFUSED
    for dtype in ("f8", "?", "c8", "O", "U3", "S4", "M8[s]"):
        yield f"boxes of {dtype}", np.zeros((2, 4), dtype), REFUSED
    yield "boxes of NaN", [[np.nan] * 4], REFUSED
    yield "masked boxes", np.ma.masked_array([whole, whole], mask=[[1] * 4, [0] * 4]), EITHER
    yield "matrix of boxes", np.array([whole, whole]).view(np.matrix), np.array([whole, whole])
    yield "boxes of other bytes", np.array([whole], ">i4"), [whole]
    yield "boxes of two bytes", np.array([whole], "u2"), [whole]
    yield "box of tuples", (tuple(whole),), [whole]
    yield "box of objects with __index__", [[Index(n) for n in whole]], EITHER
    yield "lying boxes", np.zeros((2, 4), np.int64).view(Lying), EITHER
    yield "boxes of NoItems", np.zeros((2, 4), np.int64).view(NoItems), EITHER
    yield "grid of another size", rmac.region_grid(height + 1, width), REFUSED
    yield "lying grid", _lying_grid(height, width), EITHER
    yield "generator of boxes", (whole for _ in range(2)), REFUSED
    del rng


def _lying_grid(height, width):
    return LyingGrid._of(
        boxes=np.array([[0, 0, 3999, 3999]]),
        level=np.array([1]),
        height=height,
        width=width,
        levels=1,
        overlap=0.4,
        preset="caffe2",
    )


def rois(rng, plain):
    yield from arrays(rng, plain)
    row = np.zeros((1, 5))
    for column, value, error in (
        (0, -1, REFUSED),
        (0, 10**6, REFUSED),
        (0, 0.5, REFUSED),
        (0, np.nan, REFUSED),
        (0, np.inf, REFUSED),
        (0, 2.0**63, REFUSED),
        (0, 1e300, REFUSED),
        (1, np.nan, REFUSED),
        (4, -np.inf, REFUSED),
        (2, 1e300, REFUSED),
        (3, 3.4e38, EITHER),
        (1, -3.4e38, EITHER),
    ):
        wrong = row.copy()
        wrong[0, column] = value
        yield f"RoI with {value} at {column}", wrong, error
    for shape in ((5,), (1, 4), (1, 6), (1, 1, 5), (0, 0)):
        yield f"RoIs {shape}", np.zeros(shape), REFUSED
    yield "RoIs of uint64", np.full((1, 5), 2**64 - 1, np.uint64), REFUSED
    yield "list of RoIs", row.tolist(), EITHER
