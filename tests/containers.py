"""Files that hold many feature maps by their names, and what a command makes of them."""

import shutil

import h5py
import numpy as np
import safetensors.numpy
import zarr

import rmac


def named():
    with np.load("o.npz") as file:
        return dict(zip(file["names"].tolist(), file["descriptors"], strict=True))


def assert_described(maps, **options):
    """The output has the descriptors of these maps, by their names and in this order."""
    expected = rmac.rmac(list(maps.values()), **options)
    result = named()
    assert list(result) == list(maps)
    np.testing.assert_array_equal(np.stack([*result.values()]), expected)


def to_zip(path, maps):
    with zarr.storage.ZipStore(path, mode="w") as store:
        fill(zarr.create_group(store), maps)


def to_group(path, maps):
    fill(zarr.create_group(path), maps)


def to_group_of_version_2(path, maps):
    group = zarr.create_group(path, zarr_format=2)
    fill(group, {name: one.astype(">f4") for name, one in maps.items()})


def fill(group, maps):
    for name, one in reversed(maps.items()):
        group.create_array(name, data=one)


def to_zipped_folder(path, maps):
    """As `zip -r` of a Zarr folder makes it: the store is in a folder in it, and compressed."""
    to_group("store", maps)
    shutil.move(shutil.make_archive("made", "zip", ".", "store"), path)
    shutil.rmtree("store")


def to_hdf5(path, maps):
    with h5py.File(path, "w") as file:
        for name, one in reversed(maps.items()):
            file.create_dataset(name, data=one, chunks=True, compression="gzip")


def to_folder(path, maps):
    path.mkdir()
    for name, one in maps.items():
        np.save(path / f"{name}.npy", one)


CONTAINERS = {
    "maps.npz": lambda path, maps: np.savez(path, **maps),
    "deflated.npz": lambda path, maps: np.savez_compressed(path, **maps),
    "Fortran.npz": lambda path, maps: np.savez(
        path, **{name: np.asfortranarray(one) for name, one in maps.items()}
    ),
    "big endian.npz": lambda path, maps: np.savez(
        path, **{name: one.astype(">f4") for name, one in maps.items()}
    ),
    "with axis N.npz": lambda path, maps: np.savez(
        path, **{name: one[None] for name, one in maps.items()}
    ),
    "maps.safetensors": lambda path, maps: safetensors.numpy.save_file(maps, path),
    "maps.zarr": to_group,
    "version2.zarr": to_group_of_version_2,
    "no suffix": to_group,
    "maps.zarr.zip": to_zip,
    "zipped.zip": to_zipped_folder,
    "maps.h5": to_hdf5,
    "folder": to_folder,
}
