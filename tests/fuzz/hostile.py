"""Hostile calls: a right call, with one argument that is wrong, strange or a lie."""

import re

import numpy as np

import rmac
from fuzz import values
from fuzz.calls import pick
from fuzz.values import EITHER, REFUSED

ERRORS = (TypeError, ValueError, IndexError, ImportError, MemoryError)
# Of options that a call leaves out.
DEFAULTS = {"pool": "max", "p": 3.0, "zero_point": 0, "layout": "NCHW", "workers": None}
MOST = 500  # characters of a message


def check(rng, call, counts):
    """Make a call with a hostile value, and raise AssertionError unless rmac holds against it."""
    argument = pick(rng, sorted(call.kinds))
    kind = call.kinds[argument]
    if kind == "none":
        return
    plain = ({call.name: call.first} | DEFAULTS | call.options).get(argument)
    name, value, meaning = pick(rng, list(_values(rng, call, kind, plain)))
    call.notes.append(f"{argument} is {name!r}")
    counts["hostile values"] += 1
    if argument == "regions":
        call.options["out"] = None  # it has the shape of other boxes
    inputs = [np.array(one) for one in _arrays(call)]
    result = raised = None
    try:
        result = _run(call, argument, value)
    except ERRORS as error:
        raised = error
    if raised is not None:
        counts[f"raised {type(raised).__name__}"] += 1
        _check_message(call, argument, raised)
        assert meaning in (REFUSED, EITHER), f"a right value raised {raised!r:.300}"
    else:
        counts["taken"] += 1
        assert meaning is not REFUSED, f"a wrong value was taken: {result!r:.300}"
        if meaning is not EITHER:
            _check_result(call, argument, meaning, result)
    for before, after in zip(inputs, _arrays(call), strict=True):
        same = before.tobytes() == np.array(after).tobytes()
        assert same, "an input was written"


def _run(call, argument, value):
    if argument == call.name:
        return call.function(value, **call.options)
    return call.function(call.first, **(call.options | {argument: value}))


def _arrays(call):
    """The arrays that a call must not write."""
    found = [call.first, *(value for name, value in call.options.items() if name != "out")]
    parts = [part for one in found for part in (one if isinstance(one, list) else [one])]
    return [part for part in parts if type(part) is np.ndarray]


def _check_message(call, argument, error):
    text = str(error)
    assert len(text) <= MOST, f"{type(error).__name__} with {len(text)} characters: {text[:100]!r}"
    assert text, f"{type(error).__name__} without a message"
    if isinstance(error, (MemoryError, ImportError)):
        return
    names = "|".join(map(re.escape, {argument, *call.kinds, *_ALSO.get(argument, ())}))
    assert re.search(rf"\b({names})\b", text), f"no argument is named: {error!r}"


# Names of what an argument becomes, that messages may tell instead.
_ALSO = {"whitening": ("fitted", "dim"), "height": ("cells",), "mean": ("projection",)}


def _check_result(call, argument, meaning, result):
    expected = _run(call, argument, meaning)
    if isinstance(expected, rmac.RegionGrid):
        assert result == expected
    elif isinstance(expected, rmac.Whitening):
        assert result.projection.tobytes() == expected.projection.tobytes()
    elif isinstance(expected, (list, tuple)):
        bits, wanted = ([np.asarray(one).tobytes() for one in some] for some in (result, expected))
        assert bits == wanted
    else:
        assert type(result) is np.ndarray, type(result)
        assert result.dtype == expected.dtype
        assert result.shape == expected.shape
        assert result.tobytes() == expected.tobytes(), "another result than of the plain value"


def _values(rng, call, kind, plain):
    if kind == "small int":
        return values.integers(plain, small=values.EITHER)
    if kind == "int":
        return [*values.integers(plain), *_sizes(call)]
    if kind == "float":
        return values.floats(plain)
    if kind == "word":
        return values.words(plain)
    if kind == "flag":
        return values.flags(bool(plain))
    if kind == "array":
        return values.arrays(rng, plain)
    if kind == "any_maps":  # of any dtype
        whole = ("array of", "masked")
        return [one for one in values.arrays(rng, plain) if not one[0].startswith(whole)]
    if kind == "maps":
        return values.maps(rng, plain)
    if kind == "list":
        return _lists(rng, plain, call)
    if kind == "boxes":
        return values.boxes(rng, _map_size(call))
    if kind in _RETRIEVAL:
        return _RETRIEVAL[kind](rng, plain, call)
    if kind == "rois":
        return values.rois(rng, plain)
    if kind == "whitening":
        return _whitenings(call)
    if kind == "weights":
        return _weights(plain)
    if kind == "sizes":
        return _windows(plain)
    return _outs(rng, call)


def _lists(rng, plain, call):
    for name, value, meaning in values.lists(rng, plain):
        taken = call.name == "descriptors" and "misaligned" in name  # NumPy computes with them
        yield name, value, EITHER if taken else meaning


def _sizes(call):
    """Of an int that is a size of the grid, the largest there is."""
    if call.name in ("height", "length"):
        yield "largest size", 2**31 - 1, EITHER


def _map_size(call):
    axes = {"NCHW": (2, 3), "NHWC": (1, 2), "NTC": (None, 1), "NCT": (None, 2)}
    return [1 if axis is None else call.first.shape[axis] for axis in axes[call.options["layout"]]]


def _whitenings(call):
    channels = 3
    fitted = rmac.Whitening().fit(np.eye(channels))
    yield "whitening of other channels", rmac.Whitening().fit(np.eye(9)), REFUSED
    yield "whitening of nothing", rmac.Whitening(), EITHER
    yield "whitening's class", rmac.Whitening, REFUSED
    yield "whitening's projection", fitted.projection, REFUSED
    for value in (0, "x", True, np.eye(3), {}, object()):
        yield f"no whitening: {str(value)[:9]}", value, REFUSED
    del call


def _weights(plain):
    weight = plain[0]
    for value in (None, [], weight, [None] * len(plain), "x", {}, iter(plain)):
        yield f"no weights: {type(value).__name__}", value, REFUSED
    yield "tuple of weights", tuple(plain), list(plain)
    for shape in ((1, 1), (1, *weight.shape[1:3], 0), (1, 997, 1, 1), (1, weight.shape[1], 99, 1)):
        yield f"weights {shape}", [np.zeros(shape, "f4")] * len(plain), REFUSED
    for dtype in ("?", "O", "i8", "c8", ">f4"):
        wrong = np.zeros(weight.shape, dtype)
        yield f"weights of {dtype}", [wrong, *plain[1:]], REFUSED
    masked = np.ma.masked_array(np.array(weight), mask=True)
    yield "masked weights", [masked, *plain[1:]], REFUSED
    yield "lying weights", [np.array(weight).view(values.Lying), *plain[1:]], EITHER
    yield "weights in other bytes", [values.misaligned(weight), *plain[1:]], EITHER


def _windows(plain):
    for value in (
        None,
        "x",
        3,
        [],
        [*plain, None],
        ["x"] * len(plain),
        {},
        [[1, 2, 3]] * len(plain),
    ):
        yield f"no windows: {str(value)[:20]}", value, REFUSED
    for size in (0, -1, 2**31, 2**63, 10**400, 1.5, True, (1, 0), (1, 99), np.array([1, -1])):
        shown = "10**400" if isinstance(size, int) and size > 2**64 else size
        yield f"window {shown}", [size] * len(plain), REFUSED
    yield "long windows", [None] * 100_000, REFUSED
    yield "window of a long list", [[0] * 100_000] * len(plain), REFUSED
    yield "tuple of windows", tuple(plain), plain


def _boxes_of_maps(rng, plain, call):
    """A box for each map; other boxes may be as many."""
    del plain
    for name, value, meaning in values.boxes(rng, _map_size(call)):
        yield name, value, REFUSED if meaning is REFUSED else EITHER


def _ranks(rng, plain, call):
    del rng, call
    count = len(plain)
    yield from values._objects()
    for value in (None, 3, "x", {}, [1, 2], [[1, 2], [3]], [[[1]]], iter([])):
        yield f"no ranks: {str(value)[:9]}", value, REFUSED
    rows = max(1, count)
    for name, row in (
        ("twice", [1, 2, 1]),
        ("-1 inside", [1, -1, 2]),
        ("negative", [1, -2, 3]),
        ("floats", [1.0, 2.0, 3.0]),
        ("flags", [True, False, True]),
        ("text", ["a", "b", "c"]),
        ("objects", [None, {}, 3]),
    ):
        yield f"ranks: {name}", [row] * rows, REFUSED
    yield "ranks too large", np.full((rows, 1), 2**64 - 1, np.uint64), REFUSED
    yield "masked ranks", np.ma.masked_array(plain, mask=False), REFUSED
    yield "another number of ranks", np.arange(3)[None].repeat(count + 1, axis=0), REFUSED
    yield "lying ranks", np.array(plain).view(values.Lying), EITHER
    yield "list of ranks", plain.tolist(), plain if plain.size else EITHER
    yield "ranks of two bytes", plain.astype("i2"), plain


def _labels(rng, plain, call):
    del rng, call
    yield from values._objects()
    for value in (3, "x", {}, [*plain, []], iter(plain)):
        yield f"no labels: {type(value).__name__}", value, REFUSED
    yield "tuple of labels", tuple(map(tuple, plain)), plain
    yield "arrays of labels", [np.array(one, "u1") for one in plain], plain
    if not plain:
        return
    for name, images in _WRONG_IMAGES.items():
        yield f"labels: {name}", [images, *plain[1:]], REFUSED


_WRONG_IMAGES = {
    "negative": [-1],
    "twice": [5, 5],
    "floats": [1.5],
    "flags": [True],
    "text": ["a"],
    "a number": 3,
    "nested": [[1, 2]],
    "a set": {1},
    "nothing": None,
    "too large": [10**30],
    "a dictionary": {1: 2},
}


def _ground_truth(rng, plain, call):
    del rng, call
    yield from values._objects()
    for value in (None, 3, "x", {}, [*plain, {}], iter(plain), {"gnd": 3}):
        yield f"no ground truth: {type(value).__name__}", value, REFUSED
    yield "dictionary of revisitop", {"gnd": plain, "imlist": []}, EITHER
    yield "tuple of dictionaries", tuple(plain), EITHER
    if not plain:
        return
    first = plain[0]
    for label in first:
        less = {name: images for name, images in first.items() if name != label}
        yield f"no {label}", [less, *plain[1:]], REFUSED
        for name, images in _WRONG_IMAGES.items():
            yield f"{label}: {name}", [first | {label: images}, *plain[1:]], REFUSED
        if first[label]:
            for other in less:
                twice = first | {other: first[label]}
                yield f"{label} also {other}", [twice, *plain[1:]], REFUSED
    yield "lists of keys", [[*first], *plain[1:]], REFUSED


def _places(rng, plain, call):
    del rng, call
    yield from values._objects()
    for value in (None, 3, "5", {1}, [0], [-1], [1.5], [True], [2**31], ["1"], [None], iter(plain)):
        yield f"no places: {str(value)[:9]}", value, REFUSED
    yield "no place", [], EITHER
    yield "array of places", np.array(plain), EITHER


_RETRIEVAL = {
    "boxes of maps": _boxes_of_maps,
    "ranks": _ranks,
    "labels": _labels,
    "ground truth": _ground_truth,
    "places": _places,
}


def _outs(rng, call):
    out = call.output
    yield from values._objects()
    for value in ([], [0], "x", 3, memoryview(bytearray(8)), np.zeros(3, "f4"), True):
        yield f"no out: {type(value).__name__}", value, REFUSED
    if out is None or not out.size:
        return
    for dtype in ("?", "O", "i8", "c8", "f8" if out.dtype != np.float64 else "f4"):
        yield f"out of {dtype}", np.zeros(out.shape, dtype), REFUSED
    if out.dtype.itemsize > 1 and out.dtype.name != "bfloat16":
        yield "out of other bytes", np.zeros(out.shape, out.dtype.newbyteorder()), REFUSED
    for shape in ((), out.shape[1:], (*out.shape, 1), (out.shape[0] + 1, *out.shape[1:])):
        yield "out of another shape", np.zeros(shape, out.dtype), REFUSED
    yield "read-only out", np.broadcast_to(np.zeros((), out.dtype), out.shape), REFUSED
    yield "masked out", np.ma.zeros(out.shape, out.dtype), REFUSED
    yield "out of a subclass", np.zeros(out.shape, out.dtype).view(values.Plain), EITHER
    yield "misaligned out", values.misaligned(np.zeros(out.shape, out.dtype)), EITHER
    small = np.zeros((1,) * out.ndim, out.dtype)
    yield "lying out", small.view(_lying(out.shape)), EITHER
    del rng


def _lying(shape):
    class LyingOut(np.ndarray):
        @property
        def shape(self):
            return shape

    return LyingOut
