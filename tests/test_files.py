"""Arrays in files: every format, lazily and in batches, and what files that are not such raise."""

import json
import os
import re
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import zarr

from rmac._io import atomic_write
from rmac.cli import files

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def save_npy(path, x):
    np.save(path.with_suffix(".npy"), x)
    return path.with_suffix(".npy")


def save_zarr(path, x):
    path = path.with_suffix(".zarr")
    chunks = (3, *(max(1, n // 2) for n in x.shape[1:]))
    zarr.create_array(path, shape=x.shape, dtype=x.dtype, chunks=chunks)[...] = x
    return path


def save_safetensors(path, x):
    path = path.with_suffix(".safetensors")
    safetensors.numpy.save_file({"x": np.ascontiguousarray(x)}, path)
    return path


SAVE = {"npy": save_npy, "zarr": save_zarr, "safetensors": save_safetensors}


def raw_safetensors(path, header, data=b""):
    """A .safetensors file with any header, padded to 8 bytes as they usually are."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def tensor(dtype="F32", shape=(2, 3), data_offsets=(0, 24)):
    return {"dtype": dtype, "shape": shape, "data_offsets": data_offsets}


@pytest.mark.parametrize("kind", SAVE)
def test_systems_without_preadv(tmp_path, rng, monkeypatch, kind):
    """Windows; a read then takes several steps."""
    monkeypatch.delattr(os, "preadv")
    monkeypatch.setattr("rmac._io._MOST_AT_ONCE", 100)
    x = rng.random((7, 5, 4, 4))
    array = files.open_array(str(SAVE[kind](tmp_path / "x", x)))
    for first, last in ((2, 5), (0, 7)):
        np.testing.assert_array_equal(array.read(first, last), x[first:last])


@pytest.mark.parametrize("kind", SAVE)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", "int8"])
def test_slices(tmp_path, rng, kind, dtype):
    x = (50 * rng.random((7, 5, 4, 4))).astype(dtype)
    array = files.open_array(str(SAVE[kind](tmp_path / "x", x)))
    assert array.shape == x.shape
    assert array.dtype == x.dtype
    for first, last in ((0, 7), (2, 5), (6, 7), (3, 3)):
        part = array.read(first, last)
        assert type(part) is np.ndarray
        assert part.dtype == x.dtype
        np.testing.assert_array_equal(part, x[first:last])


def test_slices_of_bfloat16_safetensors(tmp_path, rng):
    x = rng.standard_normal((3, 8)).astype(BFLOAT16)
    array = files.open_array(str(save_safetensors(tmp_path / "x", x)))
    assert array.dtype == BFLOAT16
    np.testing.assert_array_equal(array.read(1, 3), x[1:3])


def test_bfloat16_needs_ml_dtypes(tmp_path, monkeypatch):
    path = save_safetensors(tmp_path / "x", np.zeros((3, 8), BFLOAT16))
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ImportError, match="bfloat16 arrays need ml_dtypes: pip install ml_dtypes"):
        files.open_array(str(path))


def test_misaligned_safetensors(tmp_path):
    x = np.arange(6, dtype="float32").reshape(2, 3)
    header = {"odd": tensor("U8", (1,), (0, 1)), "x": tensor(data_offsets=(1, 25))}
    path = raw_safetensors(tmp_path / "x.safetensors", header, b"?" + x.tobytes())
    part = files.open_array(str(path), "x").read(0, 2)
    assert part.flags.aligned
    np.testing.assert_array_equal(part, x)


@pytest.mark.parametrize("kind", SAVE)
@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_no_elements(tmp_path, kind, shape):
    array = files.open_array(str(SAVE[kind](tmp_path / "x", np.zeros(shape, "float32"))))
    assert array.read(0, shape[0]).shape == shape
    assert sum(len(part) for part in files.batches(array, "row")) == shape[0]


@pytest.mark.parametrize("kind", SAVE)
def test_batches(tmp_path, rng, monkeypatch, kind):
    monkeypatch.setattr(files, "_BATCH", 4 * (5 * 6 * 4 + 40) + 1)
    x = rng.random((10, 5, 6), dtype="float32")
    array = files.open_array(str(SAVE[kind](tmp_path / "x", x)))
    parts = [part.copy() for part in files.batches(array, "row", row_bytes=40)]
    # four rows fit; those of .zarr come by whole chunks of three
    assert [len(part) for part in parts] == ([3, 3, 3, 1] if kind == "zarr" else [4, 4, 2])
    np.testing.assert_array_equal(np.concatenate(parts), x)


@pytest.mark.parametrize(
    ("chunks", "step"),
    [((4, 8), 4), ((4, 4), 4), ((16, 8), 16), ((20, 4), 1)],
    ids=["one", "side by side", "one large", "side by side and large"],
)
def test_zarr_is_read_by_whole_chunks_that_memory_allows(tmp_path, monkeypatch, chunks, step):
    monkeypatch.setattr(files, "_BATCH", 10 * 8)
    zarr.create_array(tmp_path / "x.zarr", shape=(40, 8), chunks=chunks, dtype="uint8")
    array = files.open_array(str(tmp_path / "x.zarr"))
    rows = max(step, 10 // step * step)
    assert {len(part) for part in files.batches(array, "row")} <= {rows, 40 % rows}


def test_zarr_of_either_version_compressed_and_sharded(tmp_path, rng):
    x = rng.integers(9, size=(12, 4), dtype="uint8")
    options = {"shape": x.shape, "dtype": x.dtype, "chunks": (3, 4)}
    zarr.create_array(tmp_path / "2.zarr", zarr_format=2, **options)[...] = x
    zarr.create_array(tmp_path / "shards.zarr", shards=(6, 4), **options)[...] = x
    for name in ("2.zarr", "shards.zarr", "2.zarr/"):
        np.testing.assert_array_equal(files.open_array(f"{tmp_path}/{name}").read(2, 9), x[2:9])


def zarr_group(path):
    group = zarr.create_group(path)
    group.create_array("a", shape=(2, 3), dtype="float64")
    group.create_group("layer4").create_array("b", shape=(4, 5), dtype="float64")[...] = 1
    return path, "a", "layer4/b"


def two_tensors(path):
    safetensors.numpy.save_file({"a": np.zeros((2, 3)), "b": np.ones((4, 5))}, path)
    return path, "a", "b"


@pytest.mark.parametrize(("make", "name"), [(zarr_group, "x.zarr"), (two_tensors, "x.safetensors")])
def test_key(tmp_path, make, name):
    path, a, b = make(tmp_path / name)
    assert files.open_array(str(path), a).shape == (2, 3)
    array = files.open_array(str(path), b)
    np.testing.assert_array_equal(array.read(0, 4), np.ones((4, 5)))
    for key, got in ((None, "none"), ("c", "'c'")):
        message = f"--key: expected one of {a}, {b} in {path}, got {got}"
        with pytest.raises(ValueError, match=re.escape(message)):
            files.open_array(str(path), key)


def test_the_only_array_needs_no_key(tmp_path):
    zarr.create_group(tmp_path / "x.zarr").create_array("a", shape=(2, 3), dtype="float64")
    assert files.open_array(str(tmp_path / "x.zarr")).shape == (2, 3)


@pytest.mark.parametrize("kind", ["npy", "zarr"])
def test_an_array_without_name_has_no_key(tmp_path, kind):
    path = SAVE[kind](tmp_path / "x", np.zeros((2, 3)))
    with pytest.raises(
        ValueError, match=f"--key: expected none, since {path} is one array, got 'a'"
    ):
        files.open_array(str(path), "a")


def raw(*arguments, data=24, **options):
    """A file of one tensor, and so many bytes of data."""
    return {"x": tensor(*arguments, **options)}, bytes(data)


def two(*offsets):
    a, b = (tensor(data_offsets=pair) for pair in (offsets[:2], offsets[2:]))
    return {"a": a, "b": b}, bytes(max(offsets))


BAD_SAFETENSORS = {
    "empty": (b"", ValueError, "not a .safetensors file that can be read"),
    "text": (b"hello, world", ValueError, "its header has 8583909746840200552 bytes"),
    "not JSON": (b"\2\0\0\0\0\0\0\0{]", ValueError, "not a .safetensors file that can be read"),
    "a list": ([1], ValueError, "not a .safetensors file that can be read"),
    "no array": ({"__metadata__": {"a": "b"}}, ValueError, "expected an array, got none"),
    "no entry": ({"x": 3}, ValueError, "not a .safetensors file that can be read"),
    "no shape": ({"x": {"dtype": "F32"}}, ValueError, "not a .safetensors file that can be read"),
    "text for shape": (raw(shape="ab"), ValueError, "its shape is 'ab'"),
    "a dict for shape": (raw(shape={}), ValueError, "its shape is {}"),
    "a number for dtype": (raw(dtype=5), ValueError, "its dtype is 5"),
    "negative": (raw(shape=(-2, -3)), ValueError, "its shape is (-2, -3)"),
    "before": ({"x": tensor(data_offsets=(-24, 0))}, ValueError, "data_offsets of x are -24 and 0"),
    "backwards": ({"x": tensor(data_offsets=(24, 0))}, ValueError, "of x are 24 and 0"),
    "one offset": ({"x": tensor(data_offsets=(1,))}, ValueError, "not enough values to unpack"),
    "too few": (
        raw(data_offsets=(0, 8), data=8),
        ValueError,
        "the bytes of F32 (2, 3), got 8",
    ),
    "truncated": (raw(data=20), ValueError, "truncated: 24 bytes of data expected, 20"),
    "int64": (raw("I64"), TypeError, "expected one of F16, BF16, F32, F64, U8, I8"),
    "more bytes": (raw(data=30), ValueError, "6 bytes at its end are in no tensor"),
    "a gap": (two(0, 24, 26, 50), ValueError, "2 bytes before b are in no tensor"),
    "a gap at the start": (two(4, 28, 28, 52), ValueError, "4 bytes before a are in no tensor"),
    "an overlap": (two(0, 24, 20, 44), ValueError, "4 bytes before b are in two tensors"),
    "the same twice": (two(0, 24, 0, 24), ValueError, "24 bytes before b are in two tensors"),
    "a name twice": (
        b'\x10\0\0\0\0\0\0\0{"x": 1, "x": 2}',
        ValueError,
        "a name is twice in its header",
    ),
}


@pytest.mark.parametrize("case", BAD_SAFETENSORS)
def test_bad_safetensors(tmp_path, case):
    content, kind, message = BAD_SAFETENSORS[case]
    path = tmp_path / "x.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        raw_safetensors(path, *(content if isinstance(content, tuple) else [content]))
    with pytest.raises(kind, match=re.escape(message)) as error:
        files.open_array(str(path), "b" if "b " in message else None)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("shape", [(1, 6.0), (True, 6)], ids=["a float", "a bool"])
def test_a_size_that_equals_an_integer_and_is_none(tmp_path, shape):
    """In the second of two tensors whose sizes are equal."""
    header = {"a": tensor(shape=(1, 6)), "b": tensor(shape=shape, data_offsets=(24, 48))}
    path = raw_safetensors(tmp_path / "x.safetensors", header, bytes(48))
    message = f"x.safetensors[b]: not a .safetensors file that can be read: its shape is {shape}"
    with pytest.raises(ValueError, match=re.escape(message)):
        files.open_array(str(path), "a")


def corrupt(path):
    path = save_zarr(path.with_suffix(""), np.arange(24.0).reshape(6, 4))
    for chunk in (path / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"nonsense")


BAD_ZARR = {
    "missing": (lambda _path: None, "No such file or directory"),
    "a file": (
        lambda path: path.write_text("hello"),
        "rmac reads .npy, .npz, .safetensors, .h5 and Zarr",
    ),
    "a FIFO": (os.mkfifo, "expected a regular file, got a FIFO"),
    "not zarr": (lambda path: path.mkdir(), "not a Zarr folder that can be read"),
    "no array": (lambda path: zarr.create_group(path), "expected an array, got none"),
    "a number": (
        lambda path: zarr.create_array(path, shape=(), dtype="float64"),
        "expected an array, got a single number",
    ),
    "corrupt": (corrupt, "not a Zarr folder that can be read"),
}


@pytest.mark.parametrize("case", BAD_ZARR)
def test_bad_zarr(tmp_path, case):
    make, message = BAD_ZARR[case]
    path = tmp_path / "x.zarr"
    make(path)
    with pytest.raises((ValueError, OSError), match=message) as error:
        files.open_array(str(path)).read(0, 2)
    assert str(path) in str(error.value)


def test_zarr_needs_zarr(tmp_path, monkeypatch):
    path = save_zarr(tmp_path / "x", np.zeros((2, 3)))
    monkeypatch.setitem(sys.modules, "zarr", None)
    message = f"{path}: needs zarr: pip install 'zarr>=3'"
    with pytest.raises(ImportError, match=re.escape(message)):
        files.open_array(str(path))


def test_a_single_number(tmp_path):
    path = save_npy(tmp_path / "x", np.array(1.0))
    with pytest.raises(ValueError, match="expected an array, got a single number"):
        files.open_array(str(path))


def test_atomic_write_replaces_only_once_complete(tmp_path):
    path = tmp_path / "x"
    path.write_text("from before")
    with atomic_write(str(path)) as file:
        file.write(b"new")
        assert path.read_text() == "from before"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_replaces_no_source(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    (tmp_path / "link").symlink_to("b")
    with (
        pytest.raises(FileExistsError, match=r"the output would replace the input .*b"),
        atomic_write(str(tmp_path / "link"), str(tmp_path / "a"), str(tmp_path / "b")),
    ):
        pass
    assert (tmp_path / "b").read_text() == "b"
