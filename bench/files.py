"""Measure `rmac describe` on files of many maps of different sizes, against one array.

    python bench/files.py [--maps 20000] [--channels 256] [--folder FOLDER] [--json FILE]

See bench/README.md for what the columns mean.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from run import write_json

import rmac

SIDES = range(7, 14)  # of maps: 49 sizes, of 100 cells on average
CELLS = (10, 10)  # of the maps of the one array


def main():
    options = parse()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        maps = random_maps(options.maps, options.channels)
        paths = {"npy": write_array(Path(folder), maps)}
        expected = rmac.rmac(list(maps.values()))
        for kind in options.kinds:
            paths[kind] = write(Path(folder) / f"maps.{kind}", maps)
            require_equal(describe(paths[kind])[1], list(maps), expected, kind)
        for path in paths.values():
            read_from_disk(path)
        size = sum(one.nbytes for one in maps.values())
        del maps, expected
        samples = {kind: [] for kind in paths}
        for _ in range(options.repeats):
            for kind, path in paths.items():
                samples[kind].append(describe(path)[0])
    results = []
    print(f"{'file':<12} {'s':>7} {'GB/s':>6} {'of npy':>7} {'us a map':>9}")
    for kind, seconds in samples.items():
        took, array = (statistics.median(samples[one]) for one in (kind, "npy"))
        more = 1e6 * (took - array) / options.maps
        results.append({"file": kind, "s": took, "s_min": min(seconds), "bytes": size})
        print(f"{kind:<12} {took:7.3f} {size / took / 1e9:6.2f} {array / took:7.2f} {more:9.1f}")
    write_json(options, results)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--maps", type=int, default=20_000)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--kinds", nargs="+", default=["npz", "safetensors"], choices=WRITERS)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--folder", help="where files are made, if not in the temporary folder")
    parser.add_argument("--json", metavar="FILE", help="write the results there too")
    return parser.parse_args()


def random_maps(count, channels):
    """Maps by their names, of random sizes, half zeros and the rest positive."""
    rng = np.random.default_rng(0)
    sides = rng.choice(SIDES, (count, 2))
    pool = np.maximum(rng.standard_normal(1 << 24, dtype=np.float32), 0)
    starts = rng.integers(len(pool) - channels * max(SIDES) ** 2, size=count)
    return {
        f"photographs/{i:06d}.jpg": pool[start : start + channels * height * width].reshape(
            channels, height, width
        )
        for i, (start, (height, width)) in enumerate(zip(starts, sides.tolist(), strict=True))
    }


def write_array(folder, maps):
    """Write one array of as many bytes as the maps have, and return its path."""
    values = np.concatenate([one.ravel() for one in maps.values()])
    channels = len(next(iter(maps.values())))
    row = channels * CELLS[0] * CELLS[1]
    np.save(folder / "maps.npy", values[: len(values) // row * row].reshape(-1, channels, *CELLS))
    return folder / "maps.npy"


def write_npz(path, maps):
    np.savez(path, **maps)


def write_safetensors(path, maps):
    import safetensors.numpy

    safetensors.numpy.save_file({name: one.copy() for name, one in maps.items()}, path)


def write_h5(path, maps):
    import h5py

    with h5py.File(path, "w") as file:
        for name, one in maps.items():
            file[name] = one


def write_zarr(path, maps):
    import zarr

    group = zarr.create_group(path)
    for name, one in maps.items():
        group.create_array(name, data=one, chunks=one.shape, compressors=None)


WRITERS = {
    "npz": write_npz,
    "safetensors": write_safetensors,
    "h5": write_h5,
    "zarr": write_zarr,
}


def write(path, maps):
    WRITERS[path.suffix[1:]](path, maps)
    return path


def read_from_disk(path):
    """Read a file once that the cache no longer holds.

    The cache keeps what was written in the pieces in which it was written. Those of an .npz file
    are small, and slower to read than those of a file that came from the disk.
    """
    for file in [path] if path.is_file() else filter(Path.is_file, path.rglob("*")):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while opened.read(1 << 20):
                pass


def describe(path):
    """Describe the maps of a file by the command, and return its seconds and its output."""
    output = path.parent / "descriptors.npz"
    command = [sys.executable, "-P", "-m", "rmac", "describe", str(path), "-o", str(output)]
    started = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - started, output


def require_equal(output, names, expected, kind):
    """Raise unless an output has these descriptors, by their names."""
    with np.load(output) as file:
        found = dict(zip(file["names"].tolist(), file["descriptors"], strict=True))
    result = np.stack([found[name] for name in names])
    np.testing.assert_array_equal(result, expected, err_msg=kind)


if __name__ == "__main__":
    main()
