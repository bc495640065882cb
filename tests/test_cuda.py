"""What only the GPU backend does. Other tests check its results too, through `xp`."""

import importlib
import math
import re
import subprocess
import sys
from enum import IntEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import reference
import sass
from helpers import (
    DTYPES,
    LAYOUTS,
    Tensor,
    assert_same_values,
    assert_within,
    check_array,
    random_map,
    to_host,
)

import rmac
from rmac import cuda
from rmac._dtypes import DTYPES as DTYPE_TABLE
from rmac._dtypes import Kind
from rmac._options import MAX_POOLING, Aggregate, AggregationOptions
from rmac.cuda import c_types, launches, plan, route, search, source
from rmac.cuda import rois as cuda_rois


@pytest.fixture
def many_images(monkeypatch):
    """A function: from so many images on, the last block that pools an image describes it."""

    def change(count):
        monkeypatch.setattr(launches, "MANY_IMAGES", count)
        launches._descriptors_call.cache.clear()

    yield change
    launches._descriptors_call.cache.clear()


def specialisations():
    """The names of all kernels that a call can launch."""
    for info in DTYPE_TABLE.values():
        kind = info.kind.name
        types = c_types.kernel_types(info)
        bits, real = c_types.c_name(types.bits), c_types.c_name(types.real)
        yield f"pool_rois<{kind}>"
        outs = {bits} if info.descriptor.name == info.name else {bits, real}
        vectors = [v for v in (1, 2, 4, 8) if v * info.itemsize <= route.WIDEST_LOAD]
        for out in outs:
            for vector in vectors:
                yield f"pool_rows<{kind}, {vector}, {out}>"
                yield f"pool_channels<{kind}, {vector}, {out}>"
            for many in route._PLANES_OF_LANE:
                yield f"pool_planes<{kind}, {many}, {out}>"
        for sums in sorted({real, "double"}):
            yield f"pool_means<{kind}, {sums}, {real}>"
        for tiling in search.tilings((1, 1, 1, 1), info):
            sums = c_types.c_name(tiling.sums)
            yield f"choose_boxes<{kind}, {sums}>"
            for many in (1, search._QUERIES_AT_ONCE):
                yield f"search_boxes<{kind}, {sums}, {many}>"
    for sums, score in (("float", "float"), ("double", "float"), ("double", "double")):
        yield f"compare_boxes<{sums}, {score}>"
    yield from ("describe<float>", "describe<double>", "write_rois", "scale_queries", "write_words")


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


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90", "sm_120"])
def test_every_specialisation_compiles_without_spills(arch):
    nvrtc = pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="needs CuPy and NVRTC")
    program = nvrtc.createProgram(source.kernel_source(), "rmac.cu", (), ())
    names = list(specialisations())
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
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", log)
    assert len(spills) >= len(names)
    assert set(spills) == {("0", "0")}


def _pooling(lines):
    """Return the machine code before the block of an image that is the last describes it."""
    return sass.until(lines, "MEMBAR")


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("pool_rows<FLOAT32, 4, int>", 8),
        ("pool_rows<FLOAT16, 8, float>", 8),
        ("pool_channels<FLOAT32, 4, int>", 8),
        ("pool_channels<FLOAT16, 8, float>", 8),
        ("describe<float>", 8),
        ("describe<double>", 8),
        ("search_boxes<FLOAT32, float, 1>", 8),
    ],
)
def test_a_thread_has_many_loads_in_flight(tmp_path, name, least):
    """Without that, a GPU waits for its memory most of the time."""
    code = source.kernel_source()
    one = code.replace("BATCH = sizeof(BitsOf<kind>) < 8 ? 8 : 4;", "BATCH = 1;").replace(
        "LOADS = 64 / sizeof(Real);", "LOADS = 1;"
    )
    one = one.replace("CELLS_AT_ONCE = 8;", "CELLS_AT_ONCE = 1;")
    in_flight, with_one = (
        sass.loads_in_flight(_pooling(sass.machine_code(text, [name], tmp_path)[name]))
        for text in (code, one)
    )
    assert in_flight >= least > with_one


FENCES = "MEMBAR.SC.GPU", "CCTL.IVALL", "BAR.SYNC"


def test_the_last_block_in_flight_sees_what_the_others_have_written(tmp_path):
    """By fences around its counter, which empty the cache of its multiprocessor; see CUDA's model.

    After that no load is from the cache of constants, which fences do not empty.
    """
    kernels = (
        "pool_rows<FLOAT32, 4, int>",
        "pool_channels<FLOAT32, 4, int>",
        "pool_planes<FLOAT32, 4, int>",
        "pool_means<FLOAT32, float, float>",
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
    """Such copies are all in flight, however many they are."""
    name = "pool_planes<FLOAT32, 4, float>"
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
    """An H100 runs 10 in the time that its memory takes for a byte."""
    name = f"{kernel}<{kind}, {vector}, float>"
    code = source.kernel_source()
    one_by_one = code.replace("sizeof(BitsOf<kind>) <= 2 && count % 2 == 0", "false")
    in_pairs, alone = (
        sass.instructions_per_byte(_pooling(sass.machine_code(text, [name], tmp_path)[name]))
        for text in (code, one_by_one)
    )
    print(f"{name}: {in_pairs:.2f} instructions for a byte")
    assert in_pairs <= most
    assert alone > most or kind != "FLOAT16"


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_every_shape_and_number_of_levels(gpu, rng, layout, dtype):
    for height, width in ((1, 1), (7, 7), (14, 14), (24, 32), (61, 3), (2, 40)):
        x = random_map(rng, (2, 20, height, width), DTYPES[dtype], 0.01)
        stored = gpu.asarray(np.ascontiguousarray(x.transpose(LAYOUTS[layout])))
        for levels in range(1, 7):
            boxes = rmac.region_grid(height, width, levels=levels).boxes
            result = rmac.region_pool(stored, layout=layout, levels=levels)
            expected = reference.region_pool(x, boxes)
            assert_same_values(check_array(result, gpu, expected.shape, x.dtype), expected)
            means, allowed = reference.region_mean(x, boxes, np.float32, pool="gem")
            pooled = rmac.region_pool(stored, layout=layout, levels=levels, pool="gem")
            assert_within(to_host(pooled), means, allowed)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_regions_that_take_many_launches(gpu, rng, layout):
    """Hundreds of boxes, on a map with more columns than shared memory holds tiles."""
    x = random_map(rng, (2, 3, 5, 900), DTYPES["float64"])
    corners = np.sort(rng.integers(0, (900, 5), (500, 2, 2)), axis=1)
    boxes = np.concatenate([corners[:, 0], corners[:, 1]], axis=1)
    assert len(plan.region_plans(boxes.tobytes(), 100, 1)) > 10
    stored = gpu.asarray(np.ascontiguousarray(x.transpose(LAYOUTS[layout])))
    result = rmac.region_pool(stored, boxes, layout=layout)
    expected = reference.region_pool(x, boxes)
    assert_same_values(check_array(result, gpu, expected.shape, x.dtype), expected)
    means, allowed = reference.region_mean(x, boxes, x.dtype, pool="mean")
    pooled = rmac.region_pool(stored, boxes, layout=layout, pool="mean")
    assert_within(to_host(pooled), means, allowed)


def test_loads_are_as_wide_as_memory_allows(gpu):
    def vector(x):
        spec = route.kernel_spec(x.dtype, MAX_POOLING, np.dtype(np.float32))
        boxes = rmac.region_grid(*x.shape[2:]).boxes.tobytes()
        misalignment = x.data.ptr % route.WIDEST_LOAD
        (found,) = route.region_routes(x.shape, x.strides, misalignment, boxes, 2, spec)
        return found.form, found.vector

    ROWS, CHANNELS, PLANES = route.Form  # noqa: N806
    x = gpu.zeros((2, 64, 24, 32), np.float32)
    last = gpu.zeros((2, 24, 32, 64), np.float32).transpose(0, 3, 1, 2)
    assert vector(x) == (ROWS, 4)
    assert vector(last) == (CHANNELS, 4)
    assert vector(x[..., 1:]) == (ROWS, 1)
    assert vector(x[..., 2:]) == (ROWS, 2)
    assert vector(x[..., ::2]) == (ROWS, 1)
    assert vector(x[:, :, ::-1]) == (ROWS, 4)
    assert vector(last[:, 1:]) == (CHANNELS, 1)
    assert vector(gpu.zeros((2, 64, 24, 32), np.uint8)) == (ROWS, 8)
    small = gpu.zeros((2, 64, 7, 7), np.float16)
    assert vector(small) == (PLANES, 8)
    assert vector(small[:, 1:]) == (ROWS, 1)  # planes at an address that is not a multiple of 16
    assert vector(small[:, :, 1:]) == (ROWS, 1)
    assert vector(gpu.zeros((2, 64, 14, 14), np.float16)) == (ROWS, 2)
    assert vector(gpu.zeros((2, 64, 17, 17), np.float32)) == (ROWS, 1)


def test_the_order_of_threads_does_not_matter(gpu, rng):
    x = gpu.asarray(random_map(rng, (2, 40, 9, 12), DTYPES["float32"]))
    assert len({to_host(rmac.rmac(x)).tobytes() for _ in range(5)}) == 1


def test_rois_that_are_on_no_map_have_empty_bins(gpu, rng):
    """They cannot be an error, because the host does not wait for the device."""
    x = gpu.asarray(random_map(rng, (2, 3, 6, 5), DTYPES["float32"]))
    rois = np.array([[0, 0, 0, 4, 4]] * 5, np.float32)
    rois[1:, 0] = -1, 2, np.nan, 1
    rois[4, 3] = np.inf
    pooled = to_host(rmac.roi_pool(x, gpu.asarray(rois), output_size=1))
    assert pooled[0].all()
    assert not pooled[1:].any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_subnormals_are_numbers(gpu, dtype):
    """CuPy compiles float32 arithmetic to take subnormals as 0; the kernels avoid it."""
    least = np.array(1, f"u{DTYPES[dtype].itemsize}").view(DTYPES[dtype])
    x = (np.arange(1, 21) % 7 + 1).astype(least.dtype).reshape(1, 20, 1, 1) * least
    plain = {"aggregate": "none", "normalize_regions": False}
    np.testing.assert_array_equal(
        to_host(rmac.rmac(gpu.asarray(x), **plain)), rmac.rmac(x, **plain)
    )
    np.testing.assert_allclose(to_host(rmac.rmac(gpu.asarray(x))), rmac.rmac(x), rtol=1e-6)


def test_a_norm_at_the_edge_of_its_range(gpu, rng):
    """A block and a warp add squares in different orders, so one sum may be in range alone."""
    x = rng.random((100, 1024, 1, 1)) + 0.5
    x *= 1e30 / np.linalg.norm(x, axis=1, keepdims=True)
    described = to_host(rmac.rmac(gpu.asarray(x), normalize_regions=False))
    np.testing.assert_allclose(np.linalg.norm(described, axis=1), 1, rtol=1e-12)


def test_workers_are_an_error(gpu):
    x = gpu.zeros((1, 2, 5, 5), np.float32)
    rois = gpu.zeros((1, 5), np.float32)
    for call in (
        lambda: rmac.rmac(x, workers=2),
        lambda: rmac.region_pool(x, workers=2),
        lambda: rmac.roi_pool(x, rois, workers=2),
        lambda: rmac.localize(x, gpu.zeros((2,), np.float32), workers=2),
    ):
        with pytest.raises(ValueError, match="workers: expected None with an array on the GPU"):
            call()


def test_arrays_on_several_devices_are_an_error(gpu):
    if gpu.__name__ != "shim":
        pytest.skip("only the shim pretends to have two devices")
    x, there = gpu.zeros((1, 4, 5, 5), np.float32), gpu.zeros((4, 5, 5), np.float32)
    there.data.device_id = 1
    out = gpu.zeros((1, 4), np.float32)
    out.data.device_id = 1
    with pytest.raises(ValueError, match="out: expected an array on device 0, where x is, got"):
        rmac.rmac(x, out=out)
    rois = gpu.zeros((1, 5), np.float32)
    rois.data.device_id = 1
    with pytest.raises(ValueError, match="rois: expected an array on device 0"):
        rmac.roi_pool(x, rois)
    query = gpu.zeros((4,), np.float32)
    query.data.device_id = 1
    with pytest.raises(ValueError, match="queries: expected an array on device 0, where x is, got"):
        rmac.localize(x, query)
    with pytest.raises(ValueError, match=r"x\[1\]: expected an array on device 0, where x\[0\] is"):
        rmac.rmac([x[0], there])


def test_overlapping_output(gpu, rng):
    memory = gpu.asarray(random_map(rng, (2, 8, 6, 6), DTYPES["float32"]))
    expected = to_host(rmac.region_pool(memory.copy()))
    out = memory.reshape(-1)[: expected.size].reshape(expected.shape)
    assert_same_values(to_host(rmac.region_pool(memory, out=out)), expected)


def test_a_misaligned_array_is_an_error(gpu):
    """On hardware it would end the context of the device."""
    x, out, rois = gpu.zeros((1, 2, 5, 5), "f4"), gpu.zeros((1, 2), "f4"), gpu.zeros((1, 5), "f4")

    def misaligned(array):
        raw = gpu.zeros(array.nbytes + 1, np.uint8)
        return raw[1:].view("f4").reshape(*array.shape)

    for name, call in (
        ("x", lambda: rmac.rmac(misaligned(x))),
        ("x", lambda: rmac.region_pool(misaligned(x), layout="NHWC")),
        (r"x\[1\]", lambda: rmac.rmac([x[0], misaligned(x)[0]])),
        ("out", lambda: rmac.rmac(x, out=misaligned(out))),
        ("rois", lambda: rmac.roi_pool(x, misaligned(rois))),
        ("descriptors", lambda: rmac.merge_scales(misaligned(out)[None])),
        ("queries", lambda: rmac.localize(x, misaligned(out))),
    ):
        with pytest.raises(TypeError, match=f"{name}: expected an aligned array, got misaligned"):
            call()
    assert rmac.rmac(misaligned(x)[:0]).shape == (0, 2)


def test_rois_are_not_copied_without_need(gpu, rng, monkeypatch):
    x = gpu.asarray(random_map(rng, (2, 3, 9, 9), DTYPES["float32"]))
    rois = gpu.asarray(np.array([[0, 1, 1, 5, 5], [1, 0, 2, 7, 8]], np.float32))
    seen = []
    monkeypatch.setattr(
        cuda_rois, "keep_for_graph", lambda array: seen.append(array.data.ptr) or array
    )
    expected = to_host(rmac.roi_pool(x, rois, output_size=1))
    assert seen == [rois.data.ptr]
    out = rois.reshape(-1)[:6].reshape(2, 3, 1, 1)  # in the memory of the RoIs
    assert_same_values(to_host(rmac.roi_pool(x, rois, output_size=1, out=out)), expected)


def test_calls_at_the_same_time_write_to_launches_of_their_own(gpu, rng, monkeypatch):
    """The second call runs when the first has written its addresses, but not launched yet."""
    first, second = (
        gpu.asarray(random_map(rng, (2, 40, 9, 12), DTYPES["float32"])) for _ in range(2)
    )
    expected = [to_host(rmac.region_pool(x)) for x in (first, second)]
    compiled, between = launches.kernel, []

    def kernel(*name):
        if not between:
            between.append(None)
            between[0] = to_host(rmac.region_pool(second))
        return compiled(*name)

    monkeypatch.setattr(launches, "kernel", kernel)
    assert_same_values(to_host(rmac.region_pool(first)), expected[0])
    assert_same_values(between[0], expected[1])


def test_a_result_in_out_is_handed_over_to_its_library(gpu, monkeypatch):
    """Else a stream of the library may read it before the kernels have run."""
    if gpu.__name__ != "shim":
        pytest.skip("needs a library that shares memory of the shim; .ci/gpu tries PyTorch")
    handed_over = []

    class OnDevice(Tensor):
        __module__ = "elsewhere"
        on_host = property(lambda self: self._array)

        def __dlpack_device__(self):
            return 2, 0

    library = ModuleType("elsewhere")
    library.from_dlpack = lambda array: handed_over.append(to_host(array))
    monkeypatch.setitem(sys.modules, "elsewhere", library)
    monkeypatch.setattr(gpu.ndarray, "__dlpack__", lambda self: self, raising=False)
    x, out = np.ones((2, 4, 5, 5), np.float32), np.zeros((2, 4), np.float32)
    tensor = OnDevice(out)
    assert rmac.rmac(OnDevice(x), out=tensor) is tensor
    np.testing.assert_array_equal(handed_over, [rmac.rmac(x)])


def test_a_deleted_barrier_is_found(gpu, rng, monkeypatch, many_images):
    """Without any one of the barriers, the shim gives another result or an error.

    But for the barrier before a block counts itself: the shim runs blocks one after the other.
    """
    if gpu.__name__ != "shim":
        pytest.skip("a device runs threads in an order of its own")
    code, barrier = source.kernel_source(), "__syncthreads();"
    maps = random_map(rng, (1, 300, 9, 12), DTYPES["float32"])
    small = gpu.asarray(random_map(rng, (1, 64, 7, 7), DTYPES["float32"]))
    inputs = gpu.asarray(maps), gpu.asarray(maps.transpose(0, 2, 3, 1).copy()), small
    vectors = rng.random((1, 20, 300), np.float32)
    many_images(1)

    def results():
        source.kernel.cache_clear()
        out = gpu.empty((1, 300), np.float32)
        try:
            cuda.describe(
                gpu.asarray(vectors.copy()), out, AggregationOptions(True, Aggregate.SUM, True, 0.0)
            )
            return [to_host(out).tobytes()] + [
                to_host(rmac.rmac(x, layout=layout, pool=pool)).tobytes()
                for x, layout in zip(inputs, ("NCHW", "NHWC", "NCHW"), strict=True)
                for pool in ("max", "mean")
            ]
        except RuntimeError:  # some threads wait for others that have finished
            return None
        finally:
            source.kernel.cache_clear()

    expected = results()
    stop = code.index('#line 1 "boxes.cu"')  # tests/test_cuda_search.py tries the others
    places = [match.start() for match in re.finditer(re.escape(barrier), code[:stop])]
    assert len(places) == 14
    for place in places:
        if code[place:].startswith(f"{barrier}\n    if (thread_of_block() == 0) {{"):
            continue
        mutated = code[:place] + code[place + len(barrier) :]
        with monkeypatch.context() as patch:
            patch.setattr(source, "kernel_source", lambda code=mutated: code)
            assert results() != expected, code[:place].rpartition("__global__")[2][:60]
    assert results() == expected


@pytest.mark.parametrize(
    ("right", "wrong", "shape", "layout"),
    [
        (
            "const int TILE_PITCH = CHANNEL_BLOCK + 1;",
            "const int TILE_PITCH = 1;",
            (24, 9, 12),
            "NCHW",
        ),
        ("tiles += pitch;", "tiles += pitch - 1;", (24, 9, 12), "NHWC"),
        ("y <= last; y =", "y + 7 <= last; y =", (24, 9, 12), "NCHW"),
        ("x <= last; x =", "x + 7 <= last; x =", (24, 9, 12), "NHWC"),
        ("for (int i = chunks * count", "for (int i = elements", (3, 7, 7), "NCHW"),
    ],
    ids=["pitch of rows", "pitch of channels", "last rows", "last pixels", "last elements"],
)
def test_a_planted_fault_is_found(gpu, monkeypatch, right, wrong, shape, layout):
    """A wrong pitch, and a batch of loads that is dropped at the end."""
    if gpu.__name__ != "shim":
        pytest.skip("a fault may end the context of a device")
    x = np.arange(math.prod(shape), dtype=np.float32).reshape(1, *shape)  # the last are largest
    stored = gpu.asarray(np.ascontiguousarray(x.transpose(LAYOUTS[layout])))
    expected = reference.region_pool(x, rmac.region_grid(*shape[1:]).boxes)
    code = source.kernel_source()
    assert code.count(right) == 1
    with monkeypatch.context() as patch:
        patch.setattr(source, "kernel_source", lambda: code.replace(right, wrong))
        source.kernel.cache_clear()
        result = to_host(rmac.region_pool(stored, layout=layout))
        source.kernel.cache_clear()
    assert (result != expected).any()
    assert_same_values(to_host(rmac.region_pool(stored, layout=layout)), expected)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("k < count ? values[k]", "k + 1 < count ? values[k]"),
        ("region) * groups_of(channels);", "region) * (groups_of(channels) - 1);"),
        ("i + j * WARP < n ? values", "i + WARP < n ? values"),
        ("if (i + j < count)", "if (i + j + 1 < count)"),
        ("channel < image.channels; channel", "channel + 1 < image.channels; channel"),
    ],
    ids=["last of four", "pitch of groups", "last groups", "last region", "last channel"],
)
def test_a_fault_planted_in_descriptors_is_found(gpu, rng, monkeypatch, many_images, right, wrong):
    if gpu.__name__ != "shim":
        pytest.skip("a fault may end the context of a device")
    x = gpu.asarray(random_map(rng, (2, 301, 5, 7), DTYPES["float32"]))

    def described(count):
        many_images(count)
        return to_host(rmac.rmac(x)).tobytes()

    expected, code = described(1), source.kernel_source()
    assert code.count(right) == 1
    with monkeypatch.context() as patch:
        patch.setattr(source, "kernel_source", lambda: code.replace(right, wrong))
        source.kernel.cache_clear()
        results = described(1), described(1000)
        source.kernel.cache_clear()
    assert expected not in results
    assert described(1) == described(1000) == expected


def test_a_captured_graph_replays_with_new_data(gpu, rng):
    if gpu.__name__ != "cupy":
        pytest.skip("needs a device")
    first, second = (random_map(rng, (2, 64, 24, 32), DTYPES["float32"]) for _ in range(2))
    x, out = gpu.asarray(first), gpu.empty((2, 64), np.float32)
    rmac.rmac(x, out=out)
    gpu.cuda.get_current_stream().synchronize()
    stream = gpu.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        rmac.rmac(x, out=out)
        graph = stream.end_capture()
        x.set(second)
        graph.launch(stream)
    stream.synchronize()
    np.testing.assert_array_equal(to_host(out), to_host(rmac.rmac(gpu.asarray(second))))


def test_another_device_than_the_current_one(gpu, rng):
    if gpu.__name__ != "cupy" or gpu.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two devices")
    with gpu.cuda.Device(1):
        x = gpu.asarray(random_map(rng, (2, 8, 9, 12), DTYPES["float32"]))
    result = rmac.rmac(x)
    assert result.device.id == 1
    with gpu.cuda.Device(1):
        np.testing.assert_allclose(to_host(result), rmac.rmac(to_host(x)), rtol=1e-5)


@pytest.mark.parametrize("pool", ["max", "gem"])
@pytest.mark.parametrize(
    ("shape", "layout", "dtype"),
    [
        ((3, 300, 7, 7), "NCHW", "float32"),
        ((3, 300, 7, 7), "NCHW", "float64"),
        ((2, 70, 6, 9), "NCHW", "float16"),
        ((2, 70, 6, 9), "NHWC", "float32"),
        ((2, 64, 9, 12), "NHWC", "uint8"),
    ],
)
def test_the_block_that_describes_does_not_matter(
    gpu, rng, many_images, shape, layout, dtype, pool
):
    """The last block of an image, or a kernel of its own, which may sum the squares itself."""
    x = random_map(rng, shape, DTYPES[dtype])
    stored = gpu.asarray(np.ascontiguousarray(x.transpose(LAYOUTS[layout])))

    def described(many):
        many_images(many)
        return [
            to_host(rmac.rmac(stored, layout=layout, pool=pool, aggregate=aggregate)).tobytes()
            for aggregate in ("sum", "mean", "concat")
        ]

    expected = described(1000)
    assert described(1) == expected
    plain = {"aggregate": "none", "normalize_regions": False}
    vectors = rmac.rmac(stored, layout=layout, pool=pool, **plain)
    out = gpu.empty(shape[:2], vectors.dtype)
    cuda.describe(vectors, out, AggregationOptions(True, Aggregate.SUM, True, 0.0))
    assert to_host(out).tobytes() == expected[0]


def test_more_elements_than_32_bits_count(gpu):
    if gpu.__name__ != "cupy":
        pytest.skip("needs a device")
    x = gpu.zeros((3, 1 << 15, 160, 160), np.uint8)
    x[2, -1, -1, -1] = 9
    pooled = rmac.region_pool(x, [[0, 0, 159, 159], [0, 0, 3, 3]])
    assert int(pooled[2, 0, -1]) == 9
    assert int(pooled.astype(np.int64).sum()) == 9


def test_the_package_has_its_kernels():
    names = re.findall(
        r"__global__ void (?:__launch_bounds__\(.*?\) )?(\w+)", source.kernel_source()
    )
    pools = ["pool_rows", "pool_channels", "pool_planes", "pool_means", "pool_rois", "write_rois"]
    boxes = ["search_boxes", "scale_queries", "write_words", "compare_boxes", "choose_boxes"]
    assert names == ["describe", *pools, *boxes]


@pytest.fixture
def benchmark(monkeypatch):
    """The module bench/gpu.py with a CuPy that only writes down what is called."""
    folder = Path(__file__).parents[1] / "bench"
    if not folder.is_dir():
        pytest.skip("needs the repository")
    called = []

    class Event:
        record = synchronize = lambda self: called.append(self)

    class Busy:
        def __imul__(self, _factor):
            called.append("busy")
            return self

    cuda_functions = SimpleNamespace(
        Event=Event,
        Device=lambda: SimpleNamespace(synchronize=lambda: called.append("wait")),
        get_elapsed_time=lambda _start, _stop: 1.0,
        runtime=SimpleNamespace(getDeviceProperties=lambda _device: {"name": b"none"}),
    )
    cupy = ModuleType("cupy")
    cupy.cuda, cupy.float32, cupy.ones = cuda_functions, np.float32, lambda *_: Busy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.syspath_prepend(str(folder))
    for name in ("gpu", "run", "peers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("gpu"), called
    for name in ("gpu", "run", "peers"):
        sys.modules.pop(name, None)


def test_the_benchmark_times_the_device_alone(benchmark):
    """Calls that wait for the host between two events would count as the time of kernels."""
    gpu, called = benchmark
    inputs = ["a", "b", "c"]
    gpu.milliseconds(called.append, inputs, gpu.CALLS)
    waited = called.index("wait")
    start, stop = (i for i, one in enumerate(called[:-1]) if isinstance(one, gpu.cp.cuda.Event))
    assert called[waited + 1 : start] == ["busy"] * gpu.HEAD_START
    timed = called[start + 1 : stop]
    assert len(timed) >= 50
    assert timed[:4] == ["a", "b", "c", "a"]
    assert called[stop + 1 :] == [called[stop]]


def test_the_benchmark_compiles_peers_for_two_shapes(benchmark, monkeypatch):
    """Each compilation takes most of a minute of a device that is there for ten."""
    gpu, _ = benchmark
    measured, peers = [], []
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(gpu, "inputs_for", lambda *case: [case])
    monkeypatch.setattr(gpu, "candidates_for", lambda *_: {})
    monkeypatch.setattr(gpu, "peers_for", lambda inputs, _options: peers.append(inputs[0]))
    monkeypatch.setattr(gpu, "measure", lambda _inputs, case, *_: measured.append(case))
    gpu.main()
    assert len(measured) > 10
    assert peers == measured[-2:]
    assert len(set(peers)) == 2 == len(gpu.PEER_SHAPES)
