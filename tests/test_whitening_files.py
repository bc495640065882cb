"""Files of whitenings that are broken, malicious, old or large; and the kind of the vectors."""

import io
import os
import resource
import socket
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
from helpers import VECTORS, assert_same_whitening

import rmac
from rmac import Whitening


@pytest.fixture
def saved(tmp_path):
    """Bytes of a good file, which `refused` may break."""
    Whitening(3, kind="regions").fit(VECTORS).save(tmp_path / "good.npz")
    return (tmp_path / "good.npz").read_bytes()


@pytest.fixture
def refused(tmp_path):
    """Check that bytes are refused with a ValueError that names the file; return its message."""

    def check(content):
        path = tmp_path / "bad.npz"
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"expected a file that Whitening.save wrote"
        ) as raised:
            Whitening.load(path)
        start = f"{path}: expected a file that Whitening.save wrote: "
        assert str(raised.value).startswith(start)
        assert "\n" not in str(raised.value)
        return str(raised.value).removeprefix(start)

    return check


def members_of(saved):
    with zipfile.ZipFile(io.BytesIO(saved)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def archive_of(members, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of two members of one name
                archive.writestr(zipfile.ZipInfo(name), content, compression)
    return file.getvalue()


def member(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def header(descr, shape):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


def test_the_helpers_write_what_load_reads(saved, tmp_path):
    (tmp_path / "w.npz").write_bytes(archive_of(members_of(saved).items()))
    assert_same_whitening(
        Whitening.load(tmp_path / "w.npz"), Whitening.load(tmp_path / "good.npz"), 0
    )


def test_sizes_as_python_3_11_0_to_3_11_3_writes_them(saved, tmp_path):
    """Twice, in the start of a member and in its extra field."""
    older = bytearray(saved)
    for info in zipfile.ZipFile(io.BytesIO(saved)).infolist():
        at = info.header_offset
        older[at + 4] = 20  # the version that is needed to read it
        older[at + 18 : at + 26] = 2 * info.file_size.to_bytes(4, "little")
    (tmp_path / "w.npz").write_bytes(older)
    assert_same_whitening(
        Whitening.load(tmp_path / "w.npz"), Whitening.load(tmp_path / "good.npz"), 0
    )


def test_truncated_anywhere(saved, refused):
    for size in range(0, len(saved), 7):
        refused(saved[:size])


def test_bytes_that_are_in_no_member(saved, refused):
    assert "not an .npz file" in refused(saved + b"\0")
    assert "at byte 0" in refused(b"\0" + saved)
    refused(saved + saved)
    start = zipfile.ZipFile(io.BytesIO(saved)).start_dir
    refused(saved[:start] + bytes(64) + saved[start:])
    between = bytearray(saved[:start] + bytes(64) + saved[start:])
    between[-6:-2] = (start + 64).to_bytes(4, "little")  # where the directory starts
    assert "got 64 bytes that are in no member" in refused(bytes(between))


def test_every_bit_of_a_member_counts(saved, refused):
    start = zipfile.ZipFile(io.BytesIO(saved)).start_dir
    for i in range(0, start, 5):
        damaged = bytearray(saved)
        damaged[i] ^= 1 << i % 8
        refused(bytes(damaged))


def test_any_damage_is_an_error_or_harmless(saved, tmp_path, rng):
    """The directory has dates and the like, which change nothing."""
    path, good = tmp_path / "w.npz", Whitening.load(tmp_path / "good.npz")
    for _ in range(300):
        damaged = bytearray(saved)
        for i in rng.integers(0, len(saved), rng.integers(1, 4)):
            damaged[i] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert_same_whitening(Whitening.load(path), good, 0)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ")  # noqa: PT017


def changed(name, content):
    return lambda members: (members | {f"{name}.npy": content}).items()


MALICIOUS = {
    "unknown member": (changed("weights", member(np.ones(3))), "weights: got a member of this"),
    "second mean": (lambda m: [*m.items(), ("mean.npy", m["mean.npy"])], "second member"),
    "no array": (lambda m: [*m.items(), ("readme.txt", b"")], "readme.txt: got"),
    "claims more": (changed("mean", header("<f8", (1 << 40,))), "mean: expected 8796093022"),
    "claims less": (changed("mean", header("<f8", (6,)) + bytes(800)), "mean: expected 176"),
    "negative": (changed("scatter", header("<f8", (-6, -6)) + bytes(288)), "scatter: expected"),
    "objects": (changed("mean", header("|O", (6,)) + bytes(48)), "mean: expected real numbers"),
    "records": (
        changed("mean", header([("a", "<f8")], (6,)) + bytes(48)),
        "mean: expected real numbers",
    ),
    "long text": (changed("kind", member(np.array("x" * 10**6))), "kind: expected at most 64"),
    "another kind": (changed("kind", member(np.array("maps"))), "kind: expected one of 'regions'"),
    "a kind of numbers": (changed("kind", member(np.array(3))), "kind: expected real numbers"),
    "dim of text": (changed("dim", member(np.array("3"))), "dim: expected real numbers"),
    "dim of a half": (changed("dim", member(np.array(2.5))), "dim: expected an integer"),
    "two dims": (changed("dim", member(np.array([3, 3]))), "dim: expected shape ()"),
    "rows above dim": (changed("dim", member(np.array(2))), "projection: expected at most 2 rows"),
    "another length": (changed("variances", member(np.ones(4))), "variances: expected shape (D)"),
    "no channels": (changed("mean", member(np.ones(0))), "mean: expected shape (C) with C"),
    "both forms": (changed("rows", member(np.ones((2, 6)))), "format: expected 2, got 1"),
    "unit of 2": (changed("unit", member(np.array(2.0))), "unit: expected a number with 0 <= unit"),
    "not finite": (changed("scatter", member(np.full((6, 6), np.inf))), "scatter: expected finite"),
    "version 2.0": (
        changed("mean", b"\x93NUMPY\2\0" + bytes(170)),
        "mean: expected version 1.0",
    ),
}


@pytest.mark.parametrize("case", MALICIOUS)
def test_malicious_members(saved, refused, case):
    change, message = MALICIOUS[case]
    tracemalloc.start()
    assert message in refused(archive_of(change(members_of(saved))))
    assert tracemalloc.get_traced_memory()[1] < 16e6
    tracemalloc.stop()


def test_compressed_members_are_not_unpacked(saved, refused):
    members = members_of(saved) | {"mean.npy": header("<f8", (10**7,)) + bytes(8 * 10**7)}
    bomb = archive_of(members.items(), zipfile.ZIP_DEFLATED)
    assert len(bomb) < 1e5
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "got a compressed one" in refused(bomb)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000


def test_a_directory_of_many_members(refused):
    assert "at most 11 members" in refused(archive_of((f"{i}.npy", b"") for i in range(20_000)))


def test_no_regular_file(tmp_path):
    pipe, folder, listener = tmp_path / "pipe", tmp_path / "folder", socket.socket(socket.AF_UNIX)
    os.mkfifo(pipe)
    folder.mkdir()
    for path in (pipe, "/dev/zero", "/dev/null"):
        with pytest.raises(OSError, match=f"^{path}: expected a regular file, got a "):
            Whitening.load(path)
    with listener:
        listener.bind(str(tmp_path / "socket"))
        for path in (folder, tmp_path / "socket", tmp_path / "none"):
            with pytest.raises(OSError, match=f"{path}"):
                Whitening.load(path)


def test_files_of_the_first_version(tmp_path):
    """Which has no unit and no kind, and a scatter for few vectors too."""
    vectors = VECTORS[:5]
    w = Whitening(3).fit(vectors)
    arrays = {"format": 1, "dim": 3, "eps": 0.0, "count": 5}
    arrays |= w._ready()._asdict() | {"scatter": np.cov(vectors.T, bias=True) * 5}
    np.savez(tmp_path / "w.npz", **arrays)
    loaded = Whitening.load(tmp_path / "w.npz")
    assert (loaded.kind, loaded.count, loaded._state.moments.unit) == (None, 5, 0)
    assert_same_whitening(loaded, w, 0)
    loaded.partial_fit(VECTORS[5:])
    assert_same_whitening(loaded, Whitening(3).fit(VECTORS), 1e-9)


def test_only_files_with_rows_have_the_second_format(tmp_path):
    for count, version in ((5, 2), (150, 1)):
        Whitening(3).fit(VECTORS[:count]).save(tmp_path / "w.npz")
        with np.load(tmp_path / "w.npz") as archive:
            assert archive["format"] == version
            assert ("rows" in archive, "scatter" in archive) == (version == 2, version == 1)


@pytest.mark.parametrize("order", ["C", "F"])
def test_large_files(tmp_path, monkeypatch, order):
    """Beyond 2 GiB, zip files end in another way."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    w = Whitening(3).fit(VECTORS)
    moments = w._state.moments
    moments = moments._replace(scatter=np.asarray(moments.scatter, order=order))
    w._state = w._state._replace(moments=moments)
    w.save(tmp_path / "w.npz")
    assert b"PK\6\6" in (tmp_path / "w.npz").read_bytes()
    loaded = Whitening.load(tmp_path / "w.npz").partial_fit(VECTORS)
    assert_same_whitening(loaded, Whitening(3).fit(np.tile(VECTORS, (2, 1))), 1e-9)


@pytest.mark.parametrize("kind", ["regions", "descriptors", None])
def test_the_kind_is_kept(tmp_path, kind):
    w = Whitening(3, kind=kind).fit(VECTORS[:100])
    w.save(tmp_path / "w.npz")
    for same in (
        w,
        Whitening.load(tmp_path / "w.npz"),
        w.merge(Whitening()),
        w.partial_fit(VECTORS),
    ):
        assert same.kind == kind
    assert w.fit(VECTORS, dim=2).kind == kind
    assert Whitening(2).merge(w).kind == kind
    assert repr(w) == f"<Whitening: 6 to 2 channels, eps=0, of 150 {kind or 'vectors'}>"


def test_kinds_that_differ():
    regions, images = Whitening(kind="regions").fit(VECTORS), Whitening(kind="descriptors")
    for a, b in ((regions, images), (images, regions)):
        with pytest.raises(ValueError, match=f"^other: .* of {a.kind}, got one of {b.kind}"):
            a.merge(b)
    with pytest.raises(ValueError, match="kind: expected one of 'regions', 'descriptors', got 'r'"):
        Whitening(kind="r")
    with pytest.raises(TypeError, match="kind: expected a string, got int"):
        Whitening(kind=1)


def test_a_whitening_of_descriptors_inside_rmac(rng):
    maps = rng.random((40, 6, 9, 12), dtype=np.float32)
    images = Whitening(3, kind="descriptors").fit(rmac.rmac(maps))
    message = r"^whitening: .* learned from descriptors, .* its apply on the descriptors"
    for x in (maps, list(maps)):
        with pytest.warns(UserWarning, match=message) as warned:
            rmac.rmac(x, whitening=images)
        assert [one.filename for one in warned] == [__file__]
    regions = Whitening(3, kind="regions").fit(rmac.rmac(maps, aggregate="none"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images.apply(rmac.rmac(maps))
        for w in (regions, Whitening(3).fit(VECTORS)):
            rmac.rmac(maps, whitening=w)
