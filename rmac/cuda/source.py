"""The source of the kernels, and its compilation.

The numbers and types that Python and the kernels share are written in Python alone. Their
definitions in C++ are generated, and come before the .cu files.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from rmac._dtypes import DTYPES, DtypeInfo, Kind
from rmac._options import Aggregate
from rmac.cuda.arrays import namespace
from rmac.cuda.c_types import c_name, kernel_types
from rmac.cuda.route import (
    CHANNEL_BLOCK,
    DESCRIBE_SHARED,
    DESCRIBE_THREADS,
    NORM_GROUP,
    THREADS,
    WARP,
    WIDEST_LOAD,
)
from rmac.cuda.structs import BATCHES, BOXES, COUNTS, PLAN_WORDS, ROI_SHARED, STRUCTS, WORDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from enum import IntEnum

COMPILER_OPTIONS = ("-std=c++17",)
_FILES = (
    "keys.cu",
    "tiles.cu",
    "describe.cu",
    "operations.cu",
    "regions.cu",
    "planes.cu",
    "rois.cu",
    "boxes.cu",
    "choices.cu",
)
_CONSTANTS = {
    "BATCHES": BATCHES,
    "PLAN_WORDS": PLAN_WORDS,
    "CHANNEL_BLOCK": CHANNEL_BLOCK,
    "THREADS": THREADS,
    "DESCRIBE_THREADS": DESCRIBE_THREADS,
    "DESCRIBE_SHARED": DESCRIBE_SHARED,
    "NORM_GROUP": NORM_GROUP,
    "ROI_SHARED": ROI_SHARED,
    "BOXES": BOXES,
    "COUNTS": COUNTS,
    "WORDS": WORDS,
    "WARP": WARP,
    "WIDEST_LOAD": WIDEST_LOAD,
}


@cache
def kernel(name: str, device: int) -> Any:  # noqa: ARG001
    """Return a kernel of the current device by its name with template arguments.

    It is compiled when it is first used. CuPy's `RawKernel` would look for it by the device at each
    launch, which takes 1 us.
    """
    module = namespace().RawModule(
        code=kernel_source(), options=COMPILER_OPTIONS, name_expressions=(name,)
    )
    return module.get_function(name).kernel


def kernel_source() -> str:
    """Return the source of all kernels."""
    folder = files("rmac.cuda")
    texts = [
        f'#line 1 "{name}"\n{folder.joinpath(name).read_text(encoding="utf-8")}' for name in _FILES
    ]
    return "".join([*_shared_definitions(), *texts, *_layout_checks()])


def _shared_definitions() -> Iterator[str]:
    """Yield the constants, enums and types that the .cu files share with Python."""
    for name, value in _CONSTANTS.items():
        yield f"const int {name} = {value};\n"
    yield _enum(Kind)
    yield _enum(Aggregate)
    yield "template <Kind kind> struct Dtype;\n"
    for info in DTYPES.values():
        yield _dtype_struct(info)


def _enum(enum: type[IntEnum]) -> str:
    members = ", ".join(f"{member.name} = {member.value}" for member in enum)
    return f"enum {enum.__name__} : int {{ {members} }};\n"


def _dtype_struct(info: DtypeInfo) -> str:
    """Return the C++ struct of a dtype: its types, and how its keys are made."""
    bits, key, real = map(c_name, kernel_types(info))
    return (
        f"template <> struct Dtype<{info.kind.name}> {{\n"
        f"    typedef {bits} Bits;\n"
        f"    typedef {key} Key;\n"
        f"    typedef {real} Real;\n"
        f"    static constexpr bool is_float = {str('float' in info.name).lower()};\n"
        f"    static constexpr Bits key_shift = (Bits){info.key_shift}LL;\n"
        "};\n"
    )


def _layout_checks() -> Iterator[str]:
    """Yield assertions that the structs have the layout that Python gives them.

    Size, alignment and order of the fields determine it. NVRTC has no offsetof before CUDA 13.4.
    """
    yield '#line 1 "layout checks"\n'
    for name, struct in STRUCTS.items():
        yield f'static_assert(sizeof({name}) == {struct.itemsize}, "size of {name}");\n'
        yield f"constexpr {name} layout_of_{name} = {{}};\n"
        before = ""
        for field, (dtype, *_) in (struct.fields or {}).items():
            place = f"(const void *)&layout_of_{name}.{field}"
            conditions = [
                f"sizeof({name}::{field}) == {dtype.itemsize}",
                f"alignof(decltype({name}::{field})) == {dtype.alignment}",
                *([f"{place} > {before}"] if before else []),
            ]
            yield f'static_assert({" && ".join(conditions)}, "{field} of {name}");\n'
            before = place
