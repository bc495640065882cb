"""Chunks of Zarr arrays are refused if they are too many, or unpack to far more than the array."""

import bz2
import gzip
import json
import lzma
import os
import pickle
import zlib

import numcodecs
import numpy as np
import pytest
import zarr
from helpers import error_of
from zarr import codecs
from zarr.codecs import numcodecs as wrapped

from rmac.cli import main, zarr_chunks
from rmac.cli.files import open_array

pytestmark = [
    pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:numcodecs"),
]

TRANSPOSE = codecs.TransposeCodec(order=(3, 1, 2, 0))
X = np.random.default_rng(0).integers(0, 9, (6, 4, 5, 7)).astype("float32")
BOMB = bytes(1 << 25)

COMPRESSORS = {
    "gzip": {"compressors": codecs.GzipCodec()},
    "zstd": {"compressors": codecs.ZstdCodec(level=19, checksum=True)},
    "blosc": {"compressors": codecs.BloscCodec()},
    "gzip and a checksum": {"compressors": [codecs.GzipCodec(), codecs.Crc32cCodec()]},
    "zstd in shards": {"compressors": codecs.ZstdCodec(), "shards": (4, 4, 10, 7)},
    "gzip in shards": {"compressors": codecs.GzipCodec(), "shards": (4, 4, 10, 7)},
    "lz4 of version 3": {"compressors": [wrapped.LZ4]},
    "lzma of version 3": {"compressors": [wrapped.LZMA]},
    "nothing": {"compressors": None},
    "a filter": {"compressors": codecs.ZstdCodec(), "filters": [TRANSPOSE]},
    **{
        f"{codec.codec_id} of version 2": {"zarr_format": 2, "compressors": codec}
        for codec in (
            *(numcodecs.Zlib(), numcodecs.BZ2(), numcodecs.LZMA(), numcodecs.LZ4()),
            *(numcodecs.Blosc(), numcodecs.GZip(), numcodecs.Zstd()),
            numcodecs.LZMA(format=lzma.FORMAT_ALONE),
        )
    },
    "a filter that widens": {
        "zarr_format": 2,
        "compressors": numcodecs.Zlib(),
        "filters": [numcodecs.AsType("f8", "f4")],
    },
}


def create(path, **options):
    options = {"shape": X.shape, "chunks": (2, 4, 5, 7), "dtype": X.dtype} | options
    if isinstance(options.get("compressors"), list):  # classes are those that warn when called
        options["compressors"] = [c() if isinstance(c, type) else c for c in options["compressors"]]
    zarr.create_array(path, **options)[...] = X
    return str(path)


def chunk_of(path):
    """The file of the first chunk."""
    found = [path / "c" / "0" / "0" / "0" / "0", path / "0.0.0.0"]
    return next(chunk for chunk in found if chunk.exists())


def describe(path, tmp_path):
    return main(["describe", str(path), "-o", str(tmp_path / "d.npy")])


@pytest.mark.parametrize("case", COMPRESSORS)
def test_chunks_of_all_compressors_are_read(tmp_path, case):
    array = open_array(create(tmp_path / "x.zarr", **COMPRESSORS[case]))
    np.testing.assert_array_equal(array.read(0, 6), X)
    np.testing.assert_array_equal(array.read(1, 3), X[1:3])
    assert not len(array.unwritten(0, 6))


def zstd_of_unknown_size(data, *, told=None):
    """A frame that repeats the first byte, whose size it does not tell, or tells wrongly."""
    size = b"\0\x58" if told is None else b"\x80\x58" + told.to_bytes(4, "little")
    blocks = [
        ((i + (1 << 17) >= len(data)) | 1 << 1 | (1 << 17) << 3).to_bytes(3, "little") + data[:1]
        for i in range(0, len(data), 1 << 17)
    ]
    return b"\x28\xb5\x2f\xfd" + size + b"".join(blocks)


PACK = {
    "gzip": gzip.compress,
    "zlib": zlib.compress,
    "bz2": bz2.compress,
    "lzma": lzma.compress,
    "lz4": numcodecs.LZ4().encode,
    "blosc": numcodecs.Blosc("zstd").encode,
    "zstd": numcodecs.Zstd().encode,
    "zstd of unknown size": zstd_of_unknown_size,
    "zstd in many frames": lambda data: (
        numcodecs.Zstd().encode(data[:10000]) * (len(data) // 10000)
    ),
    "zstd behind a frame that is skipped": lambda data: (
        b"\x5f\x2a\x4d\x18\3\0\0\0abc" + numcodecs.Zstd().encode(data)
    ),
    "zstd that tells a wrong size": lambda data: (
        zstd_of_unknown_size(data, told=7) + zstd_of_unknown_size(b"1")
    ),
    "gzip in many members": lambda data: gzip.compress(data[:100000]) * (len(data) // 100000),
}


def codec_named(name):
    return {
        "gzip": numcodecs.GZip,
        "zlib": numcodecs.Zlib,
        "bz2": numcodecs.BZ2,
        "lzma": numcodecs.LZMA,
        "lz4": numcodecs.LZ4,
        "blosc": numcodecs.Blosc,
        "zstd": numcodecs.Zstd,
    }[name.split()[0]]()


@pytest.mark.parametrize("how", PACK)
def test_a_chunk_that_unpacks_to_too_much_is_refused(tmp_path, capsys, monkeypatch, how):
    codec = codec_named(how)
    create(tmp_path / "x.zarr", zarr_format=2, compressors=codec)
    chunk_of(tmp_path / "x.zarr").write_bytes(PACK[how](BOMB))
    monkeypatch.setattr(zarr.Array, "__getitem__", None)  # Zarr would unpack it
    assert describe(tmp_path / "x.zarr", tmp_path) == 2
    said = error_of(capsys, "describe")
    assert "unpacks to " in said
    assert "at most 1049696 are expected" in said
    assert os.listdir(tmp_path) == ["x.zarr"]


@pytest.mark.parametrize("how", ["gzip", "zstd", "blosc"])
def test_a_chunk_in_a_shard_that_unpacks_to_too_much_is_refused(tmp_path, capsys, monkeypatch, how):
    kind = {"gzip": codecs.GzipCodec, "zstd": codecs.ZstdCodec, "blosc": codecs.BloscCodec}[how]
    create(tmp_path / "x.zarr", compressors=kind(), shards=(4, 4, 10, 7))
    shard = chunk_of(tmp_path / "x.zarr")
    bomb = PACK[how](BOMB)
    data = shard.read_bytes()
    index = np.frombuffer(data[-68:-4], "<u8").reshape(4, 2).copy()
    index[2] = len(data) - 68, len(bomb)  # the chunk of rows 2 and 3
    tail = index.tobytes()
    checksum = numcodecs.checksum32.CRC32C().encode(tail)
    checksum = bytes(checksum)[:4] if bytes(checksum)[4:] == tail else bytes(checksum)[-4:]
    shard.write_bytes(data[:-68] + bomb + tail + checksum)
    array = open_array(str(tmp_path / "x.zarr"))
    np.testing.assert_array_equal(array.read(0, 2), X[:2])
    monkeypatch.setattr(zarr.Array, "__getitem__", None)
    with pytest.raises(ValueError, match="unpacks to "):
        array.read(2, 4)
    assert describe(tmp_path / "x.zarr", tmp_path) == 2
    assert "unpacks to " in error_of(capsys, "describe")


@pytest.mark.parametrize("how", PACK)
@pytest.mark.parametrize("cut", [1, 5, 17, 30])
def test_a_chunk_that_is_cut_short_is_an_error(tmp_path, capsys, how, cut):
    codec = codec_named(how)
    create(tmp_path / "x.zarr", zarr_format=2, compressors=codec)
    chunk_of(tmp_path / "x.zarr").write_bytes(PACK[how](X[:2].tobytes())[:cut])
    assert describe(tmp_path / "x.zarr", tmp_path) == 2
    assert "not a Zarr folder that can be read" in error_of(capsys, "describe")


PICKLED = {
    "compressor": {"compressor": {"id": "pickle"}},
    "filter": {"filters": [{"id": "pickle"}]},
    "objects": {"filters": [{"id": "pickle"}], "dtype": "|O", "fill_value": None},
}


@pytest.mark.parametrize("case", PICKLED)
def test_nothing_is_unpickled(tmp_path, capsys, case):
    """Pickle would run what a chunk says."""
    create(tmp_path / "x.zarr", zarr_format=2, compressors=None)
    chunk_of(tmp_path / "x.zarr").write_bytes(pickle.dumps(Exploding(tmp_path)))
    metadata = tmp_path / "x.zarr" / ".zarray"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | PICKLED[case]))
    assert describe(tmp_path / "x.zarr", tmp_path) == 2
    assert error_of(capsys, "describe").startswith(str(tmp_path / "x.zarr"))
    assert os.listdir(tmp_path) == ["x.zarr"]


class Exploding:
    def __init__(self, folder):
        self._folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self._folder / "run"),)


@pytest.mark.parametrize(
    "compressors",
    [[codecs.GzipCodec(), codecs.ZstdCodec()], [codecs.ZstdCodec(), wrapped.Adler32]],
    ids=["two", "a checksum"],
)
def test_chunks_that_are_packed_twice_are_refused(tmp_path, capsys, compressors):
    create(tmp_path / "x.zarr", compressors=compressors)
    assert describe(tmp_path / "x.zarr", tmp_path) == 2
    assert "its chunks are packed by" in error_of(capsys, "describe")


CLAIMS = {
    "chunks": ((10**9, 1, 2, 2), (1, 1, 2, 2), "it has 1000000000 chunks"),
    "chunks in a row": ((2, 10**5, 2, 2), (1, 1, 2, 2), "100000 of them in a row"),
    "a chunk": ((2, 1, 2, 2), (2**40, 1, 2, 2), "its chunks have shape"),
}


@pytest.mark.parametrize("case", CLAIMS)
def test_what_an_array_claims_is_bounded(tmp_path, capsys, case):
    shape, chunks, message = CLAIMS[case]
    zarr.create_array(tmp_path / "x.zarr", shape=shape, chunks=chunks, dtype="float32")
    assert describe(tmp_path / "x.zarr", tmp_path) == 2
    assert message in error_of(capsys, "describe")


def test_a_shard_that_is_shorter_than_its_index_is_an_error(tmp_path, capsys):
    create(tmp_path / "x.zarr", compressors=codecs.ZstdCodec(), shards=(4, 4, 10, 7))
    chunk_of(tmp_path / "x.zarr").write_bytes(b"short")
    assert describe(tmp_path / "x.zarr", tmp_path) == 2
    assert "has 5 bytes, and its index 68" in error_of(capsys, "describe")


@pytest.mark.parametrize("most", [1, 3])
def test_few_chunks_are_read_at_once(tmp_path, monkeypatch, most):
    monkeypatch.setattr(zarr_chunks, "_MOST_AT_ONCE", most)
    path = create(tmp_path / "x.zarr", chunks=(1, 4, 5, 7))
    array, reads, read = open_array(path), [], zarr.Array.__getitem__
    monkeypatch.setattr(
        zarr.Array, "__getitem__", lambda self, rows: reads.append(rows) or read(self, rows)
    )
    np.testing.assert_array_equal(array.read(0, 6), X)
    np.testing.assert_array_equal(array.read(2, 5), X[2:5])
    assert max(rows.stop - rows.start for rows in reads) == most
