"""Prepare a copy of the source tree for a sanitizer; plant a fault there if one is named.

``python instrument.py FOLDER [FAULT]``. The checks must find the fault.
"""

import sys
from pathlib import Path

# The memory of a call's workspace is a line longer than the workspace, which starts at a line. The
# bytes before and after the workspace must not be touched.
POISON = '''
from rmac.cpu.keys cimport LINE

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


cdef void share_workspace('''
SHARED = "        batches[i].workspace_size = size\n"
POISONED = f"""{SHARED}\
        poison_memory(PyBytes_AsString(memory), batches[i].workspace)
        poison_memory(
            batches[i].workspace + len(memory) - LINE, PyBytes_AsString(memory) + len(memory)
        )
"""
# The text of a change may be in several modules of kernels; each that has it is changed.
KERNELS = "rmac/cpu/*.p[yx][xd]"
EXACT_WORKSPACE = [
    (KERNELS, "\ncdef void share_workspace(", POISON),
    (KERNELS, SHARED, POISONED),
    # -O1 compiles fast, and leaves out no access to memory.
    ("meson.build", "'-O3', ", "'-O1', "),
]

TASK = "<key_t*>(batch.workspace + thread * batch.workspace_size)"
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
    # A line too few of workspace.
    "overflow": [
        (KERNELS, "size_product(workers, size), LINE)", "size_product(workers, size), 0)")
    ],
    # The workers of a call share one workspace.
    "race of workers": [(KERNELS, TASK, "<key_t*>batch.workspace")],
    # The calls of all Python threads share one workspace.
    "race of threads": [
        (KERNELS, "workspace = uninitialised(", "workspace = kept("),
        (KERNELS, ALLOCATED, KEPT + ALLOCATED),
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
            KERNELS,
            "    out.kind, out.p, out.zero_point = spec.kind,",
            "    out.kind, out.p, out.zero_point = spec.kind | (1 << (spec.kind + 32)) & 0,",
        )
    ],
}


def main():
    """Change the files of the copy."""
    folder, *fault = sys.argv[1:]
    require_known_workspaces(Path(folder))
    for files, before, after in [*EXACT_WORKSPACE, *(FAULTS[fault[0]] if fault else [])]:
        texts = {path: path.read_text(encoding="utf-8") for path in Path(folder).glob(files)}
        changed = {path: text.replace(before, after) for path, text in texts.items()}
        if changed == texts:
            sys.exit(f"{files} no longer has {before!r}: edit .ci/instrument.py")
        for path, text in changed.items():
            path.write_text(text, encoding="utf-8")


def require_known_workspaces(folder):
    """Exit if a module of kernels has a workspace whose ends would not be poisoned."""
    poisoned = [before for files, before, _ in EXACT_WORKSPACE if files == KERNELS]
    for path in sorted(folder.glob(KERNELS)):
        text = path.read_text(encoding="utf-8")
        if "workspace" in text and not all(before in text for before in poisoned):
            sys.exit(f"{path.name} has a workspace of another kind: edit .ci/instrument.py")


if __name__ == "__main__":
    main()
