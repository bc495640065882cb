"""Prepare a copy of the source tree for a sanitizer; plant a fault there if one is named.

``python instrument.py FOLDER [FAULT]``. With a fault, a check that is worth its time must fail.
"""

import sys
from pathlib import Path

# The scratch memory of a call is rounded up to lines: what is not used of it must not be touched.
POISON = '''
cdef extern from *:
    """
    #ifdef __SANITIZE_ADDRESS__
    #include <sanitizer/asan_interface.h>
    #define poison_memory(from, to) __asan_poison_memory_region(from, (to) - (from))
    #else
    #define poison_memory(from, to) ((void)0)
    #endif
    """
    void poison_memory(const char* start, const char* stop) noexcept


cdef void share_scratch('''
SHARED = "        jobs[i].scratch_size = size\n"
POISONED = f"""{SHARED}\
        poison_memory(PyBytes_AS_STRING(memory), <char*>jobs[i].scratch)
        poison_memory(
            <char*>jobs[i].scratch + PyBytes_GET_SIZE(memory) - LINE,
            PyBytes_AS_STRING(memory) + PyBytes_GET_SIZE(memory),
        )
"""
KERNELS = "rmac/cpu/kernels.pyx"
IMPORTED = "from cpython.bytes cimport PyBytes_AS_STRING, "
EXACT_SCRATCH = [
    (KERNELS, IMPORTED, f"{IMPORTED}PyBytes_GET_SIZE, "),
    (KERNELS, "\ncdef void share_scratch(", POISON),
    (KERNELS, SHARED, POISONED),
    # As fast to compile as it gets, with all accesses still there.
    ("meson.build", "'-O3', ", "'-O1', "),
]

TASK = "<key_t*>(job.scratch + thread * job.scratch_size)"
ALLOCATED = "\ncdef bytes uninitialised("
KEPT = """
_kept = b""


cdef bytes kept(Py_ssize_t size):
    global _kept
    if len(_kept) < size:
        _kept = uninitialised(size)
    return _kept

"""
FAULTS = {
    # A line too few of scratch memory.
    "overflow": [
        (
            KERNELS,
            "bytes scratch = uninitialised(workers * size",
            "bytes scratch = uninitialised(workers * size - LINE",
        )
    ],
    # The workers of a call share one scratch memory.
    "race of workers": [(KERNELS, TASK, "<key_t*>job.scratch")],
    # The calls of all Python threads share one scratch memory.
    "race of threads": [
        (KERNELS, "scratch = uninitialised(", "scratch = kept("),
        (KERNELS, ALLOCATED, KEPT + ALLOCATED),
    ],
    # A region lacks the last of the lines that it is made of.
    "wrong value": [
        (
            "rmac/cpu/paths.pxi",
            "        own = reach[region]\n",
            "        own = reach[region]\n        own.count = max(1, own.count - 1)\n",
        )
    ],
    # A shift as wide as its type, which C does not define.
    "undefined": [
        (KERNELS, "    out.kind = kind\n", "    out.kind = kind | (1 << (kind + 32)) & 0\n")
    ],
}


def main():
    """Change the files of the copy."""
    folder, *fault = sys.argv[1:]
    for file, before, after in [*EXACT_SCRATCH, *(FAULTS[fault[0]] if fault else [])]:
        path = Path(folder, file)
        text = path.read_text(encoding="utf-8")
        if before not in text:
            sys.exit(f"{file} no longer has {before!r}: edit .ci/instrument.py")
        path.write_text(text.replace(before, after), encoding="utf-8")


if __name__ == "__main__":
    main()
