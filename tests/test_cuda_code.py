"""The code of the GPU kernels: that it compiles, and what machine code it becomes."""

import re
import subprocess
from enum import IntEnum

import numpy as np
import pytest
import sass
from helpers import to_host

from rmac import cuda
from rmac._dtypes import DTYPES as DTYPE_TABLE
from rmac._dtypes import Kind
from rmac._options import Aggregate, AggregationOptions
from rmac.cuda import c_types, rois, route, search, source

ARCHITECTURES = ["sm_75", "sm_80", "sm_90", "sm_120"]
# The sums of these differ by an instruction from those of float16 and uint8. They are compiled for
# this GPU alone, since that takes 10 seconds.
ALIKE = {Kind.BFLOAT16: "sm_120", Kind.INT8: "sm_75"}


def specialisations(arch=None):
    """The names of all kernels that a call can launch; for a GPU, those to compile for it."""
    for info in DTYPE_TABLE.values():
        kind = info.kind.name
        types = c_types.kernel_types(info)
        bits, real = c_types.c_name(types.bits), c_types.c_name(types.real)
        for count in (1, rois.CHANNELS_AT_ONCE[info.itemsize]):
            yield f"pool_rois<{kind}, {count}>"
        outs = {bits} if info.descriptor.name == info.name else {bits, real}
        vectors = [v for v in (1, 2, 4, 8) if v * info.itemsize <= route.WIDEST_LOAD]
        for vector in vectors:
            yield f"pool_rois_by_channels<{kind}, {vector}>"
        for out in outs:
            for vector in vectors:
                yield f"pool_rows<Maximum<{kind}>, {vector}, {out}>"
                yield f"pool_channels<Maximum<{kind}>, {vector}, {out}>"
            for many in route._PLANES_OF_LANE:
                yield f"pool_planes<Maximum<{kind}>, {many}, {out}>"
        if arch in (None, ALIKE.get(info.kind, arch)):
            yield from kernels_of_sums(kind, real, vectors[-1])
        for split in search.channel_splits((1, 1, 1, 1), info):
            sums = c_types.c_name(split.sums)
            yield f"choose_boxes<{kind}, {sums}>"
            for many in (1, search._QUERIES_AT_ONCE):
                yield f"search_boxes<{kind}, {sums}, {many}>"
    for sums, score in (("float", "float"), ("double", "float"), ("double", "double")):
        yield f"compare_boxes<{sums}, {score}>"
    yield from ("describe<float>", "describe<double>", "write_rois", "scale_queries", "write_words")


def kernels_of_sums(kind, real, widest):
    for vector in {*route._ROWS_OF_SUMS, widest}:
        if vector <= widest:
            yield f"pool_rows<Mean<{kind}, {real}>, {vector}, {real}>"
    for vector in (1, widest):
        yield f"pool_channels<Mean<{kind}, {real}>, {vector}, {real}>"
    for many in route._PLANES_OF_SUMS:
        yield f"pool_planes<Mean<{kind}, {real}>, {many}, {real}>"
    for sums in sorted({real, "double"}):
        yield f"pool_rows<PowerMean<{kind}, {sums}>, 1, {real}>"
        yield f"pool_channels<PowerMean<{kind}, {sums}>, 1, {real}>"


def test_the_kernels_know_every_dtype_and_aggregate():
    code = source.kernel_source()
    for enum in (Kind, Aggregate):
        (members,) = re.findall(rf"^enum {enum.__name__} : int {{ (.*) }};$", code, re.MULTILINE)
        assert members.split(", ") == [f"{member.name} = {member.value}" for member in enum]
    structs = dict(re.findall(r"template <> struct Dtype<(\w+)> {([^}]*)};\n", code))
    assert set(structs) == {kind.name for kind in Kind}
    for info in DTYPE_TABLE.values():
        assert f"key_shift = (Bits){info.key_shift}LL;" in structs[info.kind.name]
        bits, key, _ = c_types.kernel_types(info)
        assert (bits.itemsize, key.itemsize) == (info.itemsize, max(info.itemsize, 4))


def test_a_struct_of_another_layout_does_not_compile(gpu, capfd):
    if gpu.__name__ != "shim":
        pytest.skip("needs the error of the shim's compiler")
    code = source.kernel_source()
    fields = "    int channels;\n    AggregationOptions options;\n"
    assert code.count(fields) == 1
    moved = code.replace(fields, "".join(fields.splitlines(keepends=True)[::-1]))
    module = gpu.RawModule(code=moved, options=(), name_expressions=("write_rois",))
    with pytest.raises(subprocess.CalledProcessError):
        module.get_function("write_rois")
    assert "options of DescribeLaunch" in capfd.readouterr().err


def test_an_unknown_aggregate_is_an_error(gpu):
    class Foreign(IntEnum):
        MEDIAN = 9

    vectors, out = gpu.ones((2, 3, 4), np.float32), gpu.zeros((2, 4), np.float32)
    with pytest.raises(AssertionError, match="MEDIAN"):
        cuda.describe(vectors, out, AggregationOptions(True, Foreign.MEDIAN, True, 0.0))
    assert not to_host(out).any()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_specialisation_compiles_without_spills(arch):
    nvrtc = pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="needs CuPy and NVRTC")
    program = nvrtc.createProgram(source.kernel_source(), "rmac.cu", (), ())
    names = list(specialisations(arch))
    for name in names:
        nvrtc.addNameExpression(program, name)
    nvrtc.compileProgram(
        program,
        (f"--gpu-architecture={arch}", "--ptxas-options=-v", "-ftz=true", *source.COMPILER_OPTIONS),
    )
    log = nvrtc.getProgramLog(program)
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", log)]
    assert len(registers) == len(names)
    print(f"{arch}: {len(names)} kernels, {min(registers)} to {max(registers)} registers")
    stacks = re.findall(
        r"properties for (\S+)\n.*?(\d+) bytes stack frame, (\d+) bytes spill stores", log
    )
    assert len(stacks) >= len(names)
    assert [stack for stack in stacks if stack[1:] != ("0", "0")] == []


def _pooling(lines):
    """Return the machine code that pools: what comes before the fences and the description."""
    return sass.until(lines, "MEMBAR")


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("pool_rows<Maximum<FLOAT32>, 4, int>", 8),
        ("pool_rows<Maximum<FLOAT16>, 8, float>", 8),
        ("pool_channels<Maximum<FLOAT32>, 4, int>", 8),
        ("pool_channels<Maximum<FLOAT16>, 8, float>", 8),
        ("pool_rows<Mean<FLOAT32, float>, 4, float>", 8),
        ("pool_rows<Mean<FLOAT16, float>, 8, float>", 8),
        ("pool_channels<Mean<FLOAT32, float>, 4, float>", 8),
        ("pool_channels<Mean<FLOAT16, float>, 8, float>", 8),
        ("describe<float>", 8),
        ("describe<double>", 8),
        ("search_boxes<FLOAT32, float, 1>", 8),
        ("pool_rois_by_channels<FLOAT32, 4>", 4),
        ("pool_rois_by_channels<FLOAT32, 1>", 8),
        ("pool_rois_by_channels<FLOAT16, 8>", 4),
    ],
)
def test_a_thread_has_many_loads_in_flight(tmp_path, name, least):
    """With fewer, a GPU waits for its memory most of the time."""
    code = source.kernel_source()
    one = code
    for name_at_once in ("VECTORS_AT_ONCE", "VALUES_AT_ONCE", "CELLS_AT_ONCE", "LOADS_AT_ONCE"):
        one, count = re.subn(f"{name_at_once} = .*;", f"{name_at_once} = 1;", one)
        assert count == 1
    in_flight, with_one = (
        sass.loads_in_flight(_pooling(sass.machine_code(text, [name], tmp_path)[name]))
        for text in (code, one)
    )
    assert in_flight >= least > with_one


@pytest.mark.parametrize("dtype", sorted(DTYPE_TABLE))
def test_a_lane_loads_a_cell_of_many_channels_at_once(tmp_path, dtype):
    info = DTYPE_TABLE[dtype]
    count = rois.CHANNELS_AT_ONCE[info.itemsize]
    names = [f"pool_rois<{info.kind.name}, {one}>" for one in (count, 1)]
    code = sass.machine_code(source.kernel_source(), names, tmp_path)
    many, one = (sass.loads_in_flight(code[name]) for name in names)
    assert many == count > one


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("pool_rois<FLOAT32, 8>", 2.5),
        ("pool_rois<FLOAT16, 8>", 6),
        ("pool_rois_by_channels<FLOAT32, 4>", 2.5),
        ("pool_rois_by_channels<FLOAT16, 8>", 2.5),
    ],
)
def test_the_cells_of_bins_take_few_instructions(tmp_path, name, most):
    """Cells at the edges of bins are loaded twice, and lanes are idle at the end of a bin."""
    lines = sass.machine_code(source.kernel_source(), [name], tmp_path)[name]
    barriers = [i for i, line in enumerate(lines) if " BAR.SYNC" in line]
    of_cells = sass.instructions_per_byte(lines[barriers[-1] :])
    print(f"{name}: {of_cells:.2f} instructions for a byte")
    assert of_cells <= most


FENCES = "MEMBAR.SC.GPU", "CCTL.IVALL", "BAR.SYNC"


def test_the_last_block_in_flight_sees_what_the_others_have_written(tmp_path):
    """Fences around the counter empty the cache of the multiprocessor, see CUDA's memory model.

    They do not empty the cache of constants, so no load after them may use it.
    """
    kernels = (
        "pool_rows<Maximum<FLOAT32>, 4, int>",
        "pool_channels<Maximum<FLOAT32>, 4, int>",
        "pool_planes<Maximum<FLOAT32>, 4, int>",
        "pool_rows<Mean<FLOAT32, float>, 4, float>",
    )
    for lines in sass.machine_code(source.kernel_source(), kernels, tmp_path).values():
        names = [name for name, _ in sass.instructions(lines)]
        (counter,) = (i for i, name in enumerate(names) if name.startswith("ATOMG.E.INC"))
        before, after = names[:counter], names[counter:]
        barrier = max(i for i, name in enumerate(before) if name.startswith("BAR.SYNC"))
        assert "MEMBAR.SC.GPU" in before[barrier:]
        fences = [next(i for i, one in enumerate(after) if one.startswith(name)) for name in FENCES]
        assert fences == sorted(fences)
        assert not [name for name in after if name.startswith("LDG") and "CONSTANT" in name]


def test_planes_are_copied_without_registers(tmp_path):
    """Then all of them can be in flight, however many they are."""
    name = "pool_planes<Maximum<FLOAT32>, 4, float>"
    found = {}
    for arch in ("sm_75", "sm_80", "sm_90"):
        lines = sass.machine_code(source.kernel_source(), [name], tmp_path, arch)[name]
        copying = "".join(sass.until(lines, "BAR.SYNC"))
        found[arch] = [copy for copy in ("LDGSTS.E.BYPASS.128", "LDG.E.128") if copy in copying]
    assert found == {
        "sm_75": ["LDG.E.128"],
        "sm_80": ["LDGSTS.E.BYPASS.128"],
        "sm_90": ["LDGSTS.E.BYPASS.128"],
    }


@pytest.mark.parametrize("kernel", ["pool_rows", "pool_channels"])
@pytest.mark.parametrize(
    ("kind", "vector", "most"), [("FLOAT32", 4, 4), ("FLOAT16", 8, 6), ("UINT8", 8, 10)]
)
def test_a_kernel_has_few_instructions_for_a_byte(tmp_path, kernel, kind, vector, most):
    """An H100 runs 10 instructions in the time that it takes to read a byte from memory."""
    name = f"{kernel}<Maximum<{kind}>, {vector}, float>"
    code = source.kernel_source()
    one_by_one = code.replace("sizeof(BitsOf<kind>) <= 2 && count % 2 == 0", "false")
    in_pairs, alone = (
        sass.instructions_per_byte(_pooling(sass.machine_code(text, [name], tmp_path)[name]))
        for text in (code, one_by_one)
    )
    print(f"{name}: {in_pairs:.2f} instructions for a byte")
    assert in_pairs <= most
    assert alone > most or kind != "FLOAT16"


@pytest.mark.parametrize("kernel", ["pool_rows", "pool_channels"])
@pytest.mark.parametrize(
    ("kind", "vector", "most", "most_of_powers"),
    [("FLOAT32", 4, 4, 5), ("FLOAT16", 8, 6, 9), ("UINT8", 8, 14, 20)],
)
def test_means_have_few_instructions_for_a_byte(
    tmp_path, kernel, kind, vector, most, most_of_powers
):
    """All code in the loop counts. A warp runs less of it: most columns share a tile."""
    name = f"{kernel}<Mean<{kind}, float>, {vector}, float>"
    code, powers = source.kernel_source(), "if (launch.factors > 0)"
    assert code.count(powers) == 1
    means, both = (
        sass.instructions_per_byte(_pooling(sass.machine_code(text, [name], tmp_path)[name]))
        for text in (code.replace(powers, "if (false)"), code)
    )
    print(f"{name}: {means:.2f} instructions for a byte, {both:.2f} with those of powers")
    assert means <= most
    assert both <= most_of_powers
