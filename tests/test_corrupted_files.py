"""Thousands of damaged files: each is an error that is documented, or read as others read it.

They are read in a process of their own: it may take neither much memory nor long, nor end early.
"""

import json
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import safetensors.numpy
import zarr

import rmac
from rmac.cli import files
from rmac.cli.inputs import open_inputs

EACH = 500
SECONDS = 60  # of all
MEMORY = 1 << 30  # bytes that the process may take beside what it has at the start
DOCUMENTED = (ValueError, TypeError, OSError, ImportError)
NUMBERS = [b"0", b"-1", b"1", b"7", b"4294967296", b"9223372036854775808", b"1" * 30, b"1e400"]


def damaged(draw, data):
    """Return the bytes of a file after one kind of damage, half of it near the start."""
    data = bytearray(data)
    end = min(len(data), draw.choice([160, len(data)]))
    kind = draw.choice(["flip", "flip", "cut", "append", "number", "swap", "repeat"])
    at, to = sorted(draw.randrange(end + 1) for _ in range(2))
    if kind == "flip":
        for _ in range(draw.choice([1, 1, 2, 8])):
            data[draw.randrange(end)] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del data[at : draw.choice([to, len(data)])]
    elif kind == "append":
        data += draw.choice([b"\0", bytes(data), data[:at], draw.randbytes(to)])
    elif kind == "repeat":
        data[at:at] = data[at:to]
    else:  # of the header: replace a number, or swap two words
        words = list(re.finditer(rb"\d+" if kind == "number" else rb"[\w.<>-]+", data[:end]))
        words = words or [re.match(b".", data, re.DOTALL)]
        one, other = sorted(draw.choices(words, k=2), key=lambda word: word.start())
        new = draw.choice(NUMBERS) if kind == "number" else one[0]
        data[other.start() : other.end()] = new
        if kind == "swap" and one.start() < other.start():
            data[one.start() : one.end()] = other[0]
    return bytes(data)


def read(path):
    array = files.open_array(str(path))
    parts = [part.copy() for part in files.batches(array, "row")]
    return np.concatenate(parts) if parts else np.empty(array.shape, array.dtype)


def read_maps(path):
    inputs = open_inputs([str(path)], None, [4])
    result = np.zeros(inputs.shape, inputs.dtype)
    for batch, first in zip(files.batches(inputs, "row"), [0], strict=True):
        for rows, block in (piece for tile in batch.tiles for piece in tile()):
            result[rows] = block
        assert not first
    return result[np.argsort([*inputs.row_names()])]


def by_name(arrays):
    return np.stack([arrays[name] for name in sorted(arrays)])


def learned(whitening):
    return np.concatenate([whitening.mean[None], whitening.projection])


def save_zarr(path, x):
    zarr.create_array(path, shape=x.shape, dtype=x.dtype, chunks=(3, *x.shape[1:]))[...] = x


def save_zip(path, x):
    with zarr.storage.ZipStore(path, mode="w") as store:
        zarr.create_array(store, shape=x.shape, dtype=x.dtype, chunks=(3, *x.shape[1:]))[...] = x


def load_zip(path):
    with zarr.storage.ZipStore(path, mode="r") as store:
        return zarr.open(store, mode="r")[...]


X = np.random.default_rng(0).random((7, 4, 3, 5), dtype=np.float32)
WHITENING = rmac.Whitening(dim=3).fit(X.reshape(-1, 5))
LEARNED = learned(WHITENING)

# How a file is written, read by rmac and read by others.
KINDS = {
    "npy": (lambda path: np.save(path, X), read, np.load),
    "safetensors": (
        lambda path: safetensors.numpy.save_file({"x": X}, path),
        read,
        lambda path: next(iter(safetensors.numpy.load_file(path).values())),
    ),
    "npz": (
        WHITENING.save,
        lambda path: learned(rmac.Whitening.load(path)),
        lambda _path: LEARNED,
    ),  # each array has a checksum
    "maps.npz": (
        lambda path: np.savez(path, **{f"{i}": one for i, one in enumerate(X)}),
        read_maps,
        lambda path: by_name(np.load(path)),
    ),
    "deflated.npz": (
        lambda path: np.savez_compressed(path, X),
        read,
        lambda path: next(iter(np.load(path).values())),
    ),
    "maps.safetensors": (
        lambda path: safetensors.numpy.save_file({f"{i}": one for i, one in enumerate(X)}, path),
        read_maps,
        lambda path: np.stack(
            [one for _, one in sorted(safetensors.numpy.load_file(path).items())]
        ),
    ),
    "zip": (lambda path: save_zip(path, X), read, load_zip),
    "zarr": (lambda path: save_zarr(path, X), read, lambda path: zarr.open(path, mode="r")[...]),
}


def outcome(path, ours, others):
    """Return how reading ended: "error", "right", or what is wrong."""
    signal.alarm(10)
    try:
        result = ours(path)
    except DOCUMENTED:
        return "error"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    try:
        expected = others(path)
    except Exception as error:
        return f"read, though others do not: {error}"
    same = (
        result.shape == expected.shape
        and result.tobytes() == expected.astype(result.dtype).tobytes()
    )
    return "right" if same else "read, and not as others read it"


def damage_all(folder):
    """Return the outcomes of all damaged files, counted for each kind of file."""
    counts = {kind: Counter() for kind in KINDS}
    for kind, (write, ours, others) in KINDS.items():
        whole = folder / f"whole.{kind}"
        write(whole)
        assert outcome(whole, ours, others) == "right"
        draw = random.Random(kind)
        for i in range(EACH):
            path = folder / f"{i}.{kind}"
            if whole.is_dir():
                shutil.copytree(whole, path)
                part = draw.choice([file for file in sorted(path.rglob("*")) if file.is_file()])
            else:
                part = path
                part.write_bytes(whole.read_bytes())
            part.write_bytes(damaged(draw, part.read_bytes()))
            counts[kind][outcome(path, ours, others)] += 1
    return counts


def main():
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    warnings.simplefilter("ignore")  # Zarr warns of what it does not know
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(damage_all(Path(folder))))


def test_damaged_files(tmp_path):
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-P", __file__],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=4 * SECONDS,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout)
    print(f"{counts} in {time.monotonic() - started:.1f} s")
    assert sum(sum(outcomes.values()) for outcomes in counts.values()) == EACH * len(KINDS)
    assert {kind: set(outcomes) for kind, outcomes in counts.items()} == {
        kind: {"error", "right"} for kind in KINDS
    }


if __name__ == "__main__":
    main()
