"""python .ci/check_wheels.py WHEEL...: check the files in wheels, and print their sizes.

Needs pyelftools, which auditwheel brings.
"""

import re
import sys
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

from elftools.elf.elffile import ELFFile

MOST_BYTES = 2_000_000  # of a wheel, compressed, less the data of the demonstration
DATA = ("rmac/data/", "rmac/images/")
ISAS = {"x86_64": ["baseline", "x86_64_v3", "x86_64_v4"], "aarch64": ["baseline"]}
MODULES_NEED = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libgomp"}
LIBGOMP_NEEDS = {"libc.so.6", "libdl.so.2", "libpthread.so.0"}
LOADER = re.compile(r"ld-linux.*\.so\.\d")
LICENCES = ["LICENSE", "rmac/data/LICENSE", "libgomp/copyright", "libgomp/GPL-3"]


def libraries_needed(elf):
    """Return the shared libraries that an ELF file needs; libgomp without the hash in its name."""
    tags = ELFFile(BytesIO(elf)).get_section_by_name(".dynamic").iter_tags("DT_NEEDED")
    names = {tag.needed for tag in tags}
    return {re.sub(r"^libgomp-.*", "libgomp", name) for name in names if not LOADER.match(name)}


def expected_modules(machine, suffix):
    """Return the compiled modules that a wheel must have."""
    names = ["levels", "tables"]
    names += [f"{source}_{isa}" for source in ("boxes", "kernels") for isa in ISAS[machine]]
    return {f"rmac/cpu/{name}{suffix}" for name in names}


def check(wheel):
    """Return what is wrong with a wheel, and its bytes without data."""
    name, version, python, abi, platform = wheel.stem.split("-")
    errors = []
    match = re.fullmatch(r"manylinux2014_(\w+?)\.manylinux_2_17_\1", platform)
    if match is None:
        return [f"platform {platform}: expected manylinux2014 alone"], 0
    machine = match[1]
    if abi == "abi3":
        suffix = ".abi3.so"
        if python != "cp311":
            errors.append(f"Python tag {python}: expected cp311")
    else:
        suffix = f".cpython-{python.removeprefix('cp')}t-{machine}-linux-gnu.so"
        if abi != f"{python}t":
            errors.append(f"ABI tag {abi}: expected abi3 or {python}t")
    with ZipFile(wheel) as archive:
        sizes = {entry.filename: entry.compress_size for entry in archive.infolist()}
        elves = {path: archive.read(path) for path in sizes if ".so" in path}
        licences = f"{name}-{version}.dist-info/licenses/"
        missing = [text for text in LICENCES if licences + text not in sizes]
    errors += [f"{text}: this licence is missing" for text in missing]
    bundled = {path for path in elves if path.startswith("rmac.libs/libgomp-")}
    if len(bundled) != 1:
        errors.append("rmac.libs: expected libgomp")
    wrong = expected_modules(machine, suffix) ^ (set(elves) - bundled)
    errors += [f"{path}: missing or not expected" for path in sorted(wrong)]
    for path, elf in elves.items():
        allowed = LIBGOMP_NEEDS if path in bundled else MODULES_NEED
        not_allowed = libraries_needed(elf) - allowed
        errors += [f"{path}: needs {library}" for library in sorted(not_allowed)]
    size = sum(packed for path, packed in sizes.items() if not path.startswith(DATA))
    if size > MOST_BYTES:
        errors.append(f"{size} bytes without data: expected {MOST_BYTES} at most")
    return errors, size


def main():
    """Check all wheels that were named."""
    failed = False
    for wheel in map(Path, sys.argv[1:]):
        errors, size = check(wheel)
        print(f"{wheel.name}: {wheel.stat().st_size:,} bytes, {size:,} without data")
        for error in errors:
            print(f"  {error}")
            failed = True
    sys.exit(failed)


if __name__ == "__main__":
    main()
