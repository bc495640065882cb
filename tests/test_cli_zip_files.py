"""Zip files of maps: how they are read, checked and refused."""

import os
import struct
import zipfile
import zlib

import numpy as np
import pytest
from containers import CONTAINERS, assert_described
from helpers import error_of

from rmac.cli import zip_files
from rmac.cpu import tables

pytestmark = pytest.mark.filterwarnings("default")


def test_checksums_are_those_of_zlib(rng):
    """With sizes around those from which data are divided by multiples of the generator."""
    for size in [*range(1200), 8999, *range(16_000, 16_200), 100_003]:
        data, before = rng.bytes(size), int(rng.integers(1 << 32))
        assert tables.crc32(data, before) == zlib.crc32(data, before)
        first, second = data[: size // 3], data[size // 3 :]
        sums = zlib.crc32(first), zlib.crc32(second)
        assert zip_files.combined_crc32(*sums, len(second)) == zlib.crc32(data)


def npy_of(x, padding=0, version=1):
    """A .npy file, with more spaces in its header than NumPy writes."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {x.shape}, }}{' ' * padding}\n"
    length = len(header).to_bytes(2 * version, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + header.encode() + x.tobytes()


def with_wide_places(content):
    """A zip file with all sizes and places of its directory in 64 bits, as in files beyond 4 GB."""
    count, _, start = struct.unpack_from("<H2L", content, len(content) - 12)
    directory, at = b"", start
    for _ in range(count):
        entry = content[at : at + 46]
        stored, size = struct.unpack_from("<2L", entry, 20)
        (name_size,) = struct.unpack_from("<H", entry, 28)
        (offset,) = struct.unpack_from("<L", entry, 42)
        wide = struct.pack("<2H3Q", 1, 24, size, stored, offset)
        directory += entry[:20] + b"\xff" * 8 + entry[28:30] + len(wide).to_bytes(2, "little")
        directory += entry[32:42] + b"\xff" * 4 + content[at + 46 : at + 46 + name_size] + wide
        at += 46 + name_size
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(directory), start, 0)
    return content[:start] + directory + end


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_npz_files_that_numpy_does_not_write(run, maps, method):
    """Long headers, long extra fields, folders, sizes in 64 bits, and members in another order."""
    with zipfile.ZipFile("x.npz", "w", method) as archive:
        archive.writestr("folder/", b"")
        for i, (name, one) in enumerate(maps.items()):
            info = zipfile.ZipInfo(f"{name}.npy")
            info.compress_type = method
            info.extra = struct.pack("<2H", 99, 300 * (i % 3)) + bytes(300 * (i % 3))
            archive.writestr(info, npy_of(one, padding=400 * (i % 2), version=1 + i % 5 // 3))
        archive.filelist.sort(key=lambda info: -info.header_offset)
    assert run("describe", "x.npz") == 0
    assert_described(dict(reversed(maps.items())))
    np.savez("y.npz", **maps)
    with open("y.npz", "rb") as file:
        content = with_wide_places(file.read())
    with open("y.npz", "wb") as file:
        file.write(content)
    assert run("describe", "y.npz") == 0
    assert_described(maps)


@pytest.mark.parametrize("at_once", [1, 3, 1 << 20])
def test_headers_are_read_some_at_a_time(run, maps, monkeypatch, at_once, capsys):
    """They are compared across the reads."""
    monkeypatch.setattr(zip_files, "_HEADERS", 400 * at_once)
    np.savez("x.npz", **maps)
    assert run("describe", "x.npz") == 0
    assert_described(maps)
    with zipfile.ZipFile("x.npz", "a") as archive:  # a gap between two members
        del archive.filelist[20]
        archive._didModify = True
    assert run("describe", "x.npz") == 2
    assert "photo 21.npy does not start where the member before it ends" in error_of(
        capsys, "describe"
    )


@pytest.mark.parametrize("kind", ["maps.npz", "big endian.npz", "maps.safetensors"])
def test_a_system_without_reads_at_a_place(run, maps, kind, monkeypatch, capsys):
    monkeypatch.setattr("rmac._io.read_rows", lambda *_arguments: 0)
    CONTAINERS[kind](kind, maps)
    assert run("describe", kind) == 0
    assert_described(maps)
    with open(kind, "r+b") as file:
        file.seek(20_000)
        byte = file.read(1)[0]
        file.seek(20_000)
        file.write(bytes([byte ^ 1]))
    assert run("describe", kind) == (2 if "npz" in kind else 0)
    assert ("its checksum is wrong" in capsys.readouterr().err) == ("npz" in kind)


def test_rows_of_bytes_of_a_file(tmp_path, rng):
    content = rng.bytes(5000)
    (tmp_path / "x").write_bytes(content)
    offsets = np.array([0, 4000, 17, 4950, 3])
    for size in (0, 1, 63, 64, 65, 500, 1007):
        rows, crcs = np.empty((5, size), np.uint8), rng.integers(1 << 32, size=5, dtype=np.uint32)
        expected = [content[at : at + size] for at in offsets]
        sums = [zlib.crc32(one, crc) for one, crc in zip(expected, crcs.tolist(), strict=True)]
        with open(tmp_path / "x", "rb") as file:
            there = next((i for i, one in enumerate(expected) if len(one) < size), 5)
            assert tables.read_rows(file.fileno(), offsets, rows) == there
            done = tables.read_rows(file.fileno(), offsets, rows, crcs)
        assert done == there
        assert [row.tobytes() for row in rows[:there]] == expected[:there]
        assert crcs[:done].tolist() == sums[:done]
    for wrong in (offsets[:4], np.append(offsets, 0)):
        with pytest.raises(ValueError, match="as many offsets"):
            tables.read_rows(0, wrong, rows)
    with pytest.raises(ValueError, match="as many offsets"):
        tables.read_rows(0, offsets, rows, np.zeros(4, np.uint32))


def damaged(offset):
    def damage(path):
        content = bytearray(path.read_bytes())
        content[offset(content)] ^= 1
        path.write_bytes(content)

    return damage


def append(path):
    with open(path, "ab") as file:
        file.write(b"more")


def prepend(path):
    path.write_bytes(b"more" + path.read_bytes())


DAMAGE = {
    "a value": (damaged(lambda content: len(content) // 2), "its checksum is wrong"),
    "a value of the last": (
        damaged(lambda content: content.index(b"PK\1\2") - 5),
        "its checksum is wrong",
    ),
    "bytes after it": (append, "or has bytes after its end"),
    "bytes before it": (prepend, "its directory is not at its end"),
    "its end": (lambda path: path.write_bytes(path.read_bytes()[:-30]), "it is no zip file"),
    "a name": (damaged(lambda content: content.index(b"photo 02")), "has another name"),
}


@pytest.mark.parametrize("case", DAMAGE)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("whole", [True, False])
def test_a_damaged_npz(run, tmp_path, maps, rng, case, save, whole, capsys):
    arrays = {"photo 02": rng.random((200, 8, 5, 5))} if whole else maps
    save("x.npz", **arrays)
    damage, message = DAMAGE[case]
    damage(tmp_path / "x.npz")
    assert run("describe", "x.npz", "--workers", "3") == 2
    error = error_of(capsys, "describe")
    assert "x.npz" in error
    assert message in error or (save is np.savez_compressed and "value" in case)
    assert not os.path.exists("o.npz")


def test_a_zip_that_claims_more_than_it_can_hold(run, capsys):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 512, 4096, 4096), }\n"
    with (
        zipfile.ZipFile("x.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w", force_zip64=True) as member,
    ):
        member.write(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header)
        for _ in range(16):
            member.write(bytes(1 << 20))
    assert run("describe", "x.npz") == 2
    assert "x.npy has 16777300 bytes, and 34359738452 are expected" in error_of(capsys, "describe")


def test_a_row_of_zeros_that_takes_all_memory(run, monkeypatch, capsys):
    monkeypatch.setattr("rmac.cli.npz_files._MOST_INFLATED", 10_000)
    np.savez_compressed("x.npz", np.zeros((1, 8, 32, 32)))
    assert run("describe", "x.npz") == 2
    assert "expected at most 10000 bytes that are read together" in error_of(capsys, "describe")
