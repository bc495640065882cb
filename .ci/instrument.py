"""Prepare a copy of the source tree for a sanitizer; plant a fault there if one is named.

``python instrument.py FOLDER [FAULT]``. The checks must find the fault.
"""

import sys
from pathlib import Path

# Memory of a workspace is a line longer than the workspace, which starts at a line. The bytes
# before and after the workspace must not be touched.
FIRST_LINE = "\ncdef inline char* first_line("
POISON = f'''
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

{FIRST_LINE}'''
FOUND = "    return <char*>whole_lines(<uintptr_t>PyBytes_AsString(memory))\n"
POISONED = """\
    cdef char* start = PyBytes_AsString(memory)
    cdef char* first = <char*>whole_lines(<uintptr_t>start)
    poison_memory(start, first)
    poison_memory(first + len(memory) - LINE, start + len(memory))
    return first
"""
KERNELS, BUFFERS = "rmac/cpu/kernels.pyx", "rmac/cpu/buffers.pxd"
EXACT_WORKSPACE = [
    (BUFFERS, FIRST_LINE, POISON),
    (BUFFERS, FOUND, POISONED),
    # -O1 compiles fast, and leaves out no access to memory.
    ("meson.build", "'-O3', ", "'-O1', "),
]

TASK = "<key_t*>(batch.workspace + thread * batch.workspace_size)"
FIRST_FUNCTION = "\ndef pool("
KEPT = """
_kept = b""


cdef bytes kept(Py_ssize_t size):
    global _kept
    if len(_kept) < size:
        _kept = uninitialised(size)
    return _kept

"""
FAULTS = {
    # A line too few of workspace.
    "overflow": [
        (BUFFERS, "size_product(workers, size), LINE)", "size_product(workers, size), 0)")
    ],
    # The workers of a call share one workspace.
    "race of workers": [(KERNELS, TASK, "<key_t*>batch.workspace")],
    # The calls of all Python threads share one workspace.
    "race of threads": [
        (KERNELS, "workspace = uninitialised(", "workspace = kept("),
        (KERNELS, FIRST_FUNCTION, KEPT + FIRST_FUNCTION),
    ],
    # A region lacks the last of the lines that it is made of.
    "wrong value": [
        (
            "rmac/cpu/paths.pxd",
            "    vectors.count = span.count\n",
            "    vectors.count = max(1, span.count - 1)\n",
        )
    ],
    # A shift as wide as its type, which C does not define.
    "undefined": [
        (
            BUFFERS,
            "    out.kind, out.p, out.zero_point = spec.kind,",
            "    out.kind, out.p, out.zero_point = spec.kind | (1 << (spec.kind + 32)) & 0,",
        )
    ],
}


def main():
    """Change the files of the copy."""
    folder, *fault = sys.argv[1:]
    for file, before, after in [*EXACT_WORKSPACE, *(FAULTS[fault[0]] if fault else [])]:
        path = Path(folder, file)
        text = path.read_text(encoding="utf-8")
        if before not in text:
            sys.exit(f"{file} no longer has {before!r}: edit .ci/instrument.py")
        path.write_text(text.replace(before, after), encoding="utf-8")
    require_known_workspaces(Path(folder))


def require_known_workspaces(folder):
    """Exit if a module of kernels has a workspace whose ends would not be poisoned."""
    for path in sorted(folder.glob("rmac/cpu/*.pyx")):
        text = path.read_text(encoding="utf-8")
        is_known = "first_line(" in text or "share_workspace(" in text  # which calls the other
        if "uninitialised(workspace_of_workers" in text and not is_known:
            sys.exit(f"{path.name} has a workspace of another kind: edit .ci/instrument.py")


if __name__ == "__main__":
    main()
