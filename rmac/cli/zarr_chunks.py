"""What chunks of Zarr arrays must not do: be too many, or unpack to far more than their numbers.

Zarr unpacks whatever a chunk holds. So what a chunk claims, or unpacks to, is looked at first.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from functools import partial
from math import ceil, prod
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import zarr

    Read = Callable[[int, int], bytes]  # so many bytes of a chunk, from a start on

# Zarr takes 0.7 ms and 2.3 kB for each chunk that is read at once, also for one without a file.
_MOST_CHUNKS = 10_000_000
_MOST_AT_ONCE = 1 << 14
# The bytes of a chunk that is larger than the array: 8 times the array's, or a GiB.
_MOST_CHUNK = (8, 1 << 30)
_PIECE = 1 << 20  # bytes that are unpacked at a time

# Codecs whose results are not larger than what they get, but for a few bytes. All others are
# refused: some unpack to anything, and pickle runs any code.
_EXACT = {
    *("bytes", "transpose", "shuffle", "bitround"),
    *("crc32", "crc32c", "adler32", "fletcher32", "jenkins_lookup3"),
}
_PLAIN = _EXACT | {
    *("astype", "delta", "fixedscaleoffset", "packbits", "quantize"),
    *("vlenbytes", "vlenutf8", "vlen-bytes", "vlen-utf8"),
}
# What a chunk may unpack to, as a multiple of the bytes of its numbers: more if filters widen them.
# And a MiB more.
_MOST_UNPACKED = {True: 1, False: 64}
_CHECKSUM = 4  # bytes of crc32c behind what it is of

_ZSTD, _ZSTD_SKIPPED = 0xFD2FB528, 0x184D2A50  # how its frames begin
_ZSTD_BLOCK = 1 << 17  # bytes that a packed block holds at most


def rows_at_once(shape: Sequence[int], chunks: Sequence[int], itemsize: int) -> int:
    """Return how many rows of an array to read at once; raise if chunks are too many or large."""
    times, least = _MOST_CHUNK
    if prod(chunks) * itemsize > max(times * prod(shape) * itemsize, least):
        raise ValueError(f"its chunks have shape {tuple(chunks)}, and it has {tuple(shape)}")
    counts = [ceil(n / m) for n, m in zip(shape, chunks, strict=True)]
    across = prod(counts[1:])
    if prod(counts) > _MOST_CHUNKS or across > _MOST_AT_ONCE:
        raise ValueError(
            f"it has {prod(counts)} chunks, {across} of them in a row, and at most {_MOST_CHUNKS} "
            f"and {_MOST_AT_ONCE} are read; write it in larger chunks"
        )
    return chunks[0] * max(1, _MOST_AT_ONCE // max(1, across))


class Unpacking:
    """How the chunks of an array are unpacked."""

    def __init__(self, codecs: Sequence[Any], chunk_bytes: int) -> None:
        names = [_name(codec) for codec in codecs]
        packed = [i for i, name in enumerate(names) if name not in _PLAIN]
        self._sizes: Callable[[Read, int], Iterator[int]] | None = None
        if not packed:
            return
        first = packed[0]
        is_exact = _EXACT.issuperset(names[:first])
        self._most = _MOST_UNPACKED[is_exact] * chunk_bytes + _PIECE
        unknown = names[first] not in _SIZES
        if unknown or len(packed) > 1 or set(names[first + 1 :]) - {"crc32c"}:
            known = ", ".join(sorted(_SIZES))
            raise ValueError(
                f"its chunks are packed by {' and '.join(names[i] for i in packed)}, and one of "
                f"{known} is read"
            )
        self._sizes = partial(_SIZES[names[first]], codecs[first])
        self._behind = _CHECKSUM * (len(names) - 1 - first)

    @property
    def is_bounded(self) -> bool:
        """Whether no chunk can unpack to too many bytes."""
        return self._sizes is None

    def require_bounded(self, read: Read, size: int) -> None:
        """Raise if a chunk of so many bytes unpacks to too many."""
        if self._sizes is None:
            return
        total = 0
        for some in self._sizes(read, max(0, size - self._behind)):
            total += some
            if total > self._most:
                raise ValueError(
                    f"a chunk of {size} bytes unpacks to {total} or more, and at most {self._most} "
                    "are expected"
                )


def codecs_of(array: zarr.Array[Any]) -> tuple[Any, ...]:
    """Return the codecs of the chunks of an array, in the order in which they pack."""
    metadata = vars(array.metadata)
    if "codecs" in metadata:
        return tuple(metadata["codecs"])
    packed = [*(metadata["filters"] or ()), metadata["compressor"]]
    return tuple(codec for codec in packed if codec is not None)


def _name(codec: Any) -> str:
    """Return the name of a codec, of Zarr or of numcodecs."""
    name = getattr(codec, "codec_id", None) or getattr(codec, "codec_name", None)
    name = name or type(codec).__name__.removesuffix("Codec")
    return str(name).rpartition(".")[2].lower()


# Each yields the bytes that a chunk unpacks to, part by part. A chunk that is cut short unpacks to
# less: Zarr raises.


def _blosc(_codec: Any, read: Read, size: int) -> Iterator[int]:
    head = np.frombuffer(read(0, min(size, 12)), np.uint8)
    if len(head) == 12:
        yield int(head[4:].view("<u4").max())  # of all, and of a block


def _lz4(_codec: Any, read: Read, size: int) -> Iterator[int]:
    yield int.from_bytes(read(0, min(size, 4)), "little")


def _zstd(_codec: Any, read: Read, size: int) -> Iterator[int]:
    """Yield the sizes that all frames tell; if one does not, the most that their blocks hold."""
    data, at = read(0, size), 0
    told, held, all_tell = 0, 0, True
    while at < len(data):
        magic = int.from_bytes(data[at : at + 4], "little")
        if magic >> 4 == _ZSTD_SKIPPED >> 4:
            at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
            continue
        if magic != _ZSTD or at + 5 > len(data):
            raise ValueError("a chunk is not packed by zstd, or is damaged")
        flags = data[at + 4]
        is_single = flags >> 5 & 1
        start = at + 6 - is_single + (0, 1, 2, 4)[flags & 3]
        length = (is_single, 2, 4, 8)[flags >> 6]
        told += int.from_bytes(data[start : start + length], "little") + 256 * (length == 2)
        all_tell = all_tell and length > 0
        at, is_last = start + length, False
        while not is_last and at < len(data):
            block = int.from_bytes(data[at : at + 3], "little")
            is_last, kind, count = bool(block & 1), block >> 1 & 3, block >> 3
            held += count if kind < 2 else _ZSTD_BLOCK
            at += 3 + (1 if kind == 1 else count)
        at += 4 * (flags >> 2 & 1)  # a checksum
    yield told if all_tell else held


def _streams(new: Callable[[Any], Any], codec: Any, read: Read, size: int) -> Iterator[int]:
    """Unpack the streams of a chunk, which lie one after the other, a piece at a time."""
    data = read(0, size)
    while data:
        stream = new(codec)
        while not stream.eof:
            piece = stream.decompress(data, _PIECE)
            data = getattr(stream, "unconsumed_tail", b"")
            yield len(piece)
            if not piece and not data:
                return
        data = stream.unused_data.lstrip(b"\0")


def _lzma(codec: Any) -> lzma.LZMADecompressor:
    options = getattr(codec, "codec_config", None) or vars(codec)
    kind, filters = options.get("format", lzma.FORMAT_XZ), options.get("filters")
    if kind == lzma.FORMAT_RAW:
        raise ValueError("its chunks are packed by lzma without a header, which is not read")
    return lzma.LZMADecompressor(kind, memlimit=1 << 28, filters=filters)


_SIZES: dict[str, Callable[[Any, Read, int], Iterator[int]]] = {
    "blosc": _blosc,
    "bz2": partial(_streams, lambda _codec: bz2.BZ2Decompressor()),
    "gzip": partial(_streams, lambda _codec: zlib.decompressobj(31)),
    "lz4": _lz4,
    "lzma": partial(_streams, _lzma),
    "zlib": partial(_streams, lambda _codec: zlib.decompressobj(15)),
    "zstd": _zstd,
}
