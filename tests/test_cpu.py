"""What is particular to the CPU backend: plans, paths through the kernels, instruction sets."""

import os
import pathlib
import re
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import reference
from helpers import (
    DTYPES,
    assert_same_values,
    assert_within,
    outputs_of_isas,
    peak_memory,
    random_map,
    run_python,
)
from hypothesis import given

import rmac
from rmac import _dtypes, _options, cpu
from rmac._options import AggregationOptions, Pool, PoolingOptions
from rmac.cpu import isa, plan, tables
from rmac.cpu import route as routing
from rmac.cpu.isa import kernels
from rmac.cpu.tables import LINE_BYTES, Path

CPU = pathlib.Path(__file__).parent.parent / "rmac" / "cpu"


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(1, 12)), min_size=1, max_size=12, unique=True
    ),
    st.booleans(),
)
def test_a_program_computes_every_interval(pairs, overlapping):
    intervals = np.array([(start, start + length) for start, length in pairs], np.intp)
    program = plan._program(intervals.tobytes(), overlapping)
    values = np.random.default_rng(0).permutation(50)
    reduce, combine = (np.max, max) if overlapping else (np.sum, np.add)
    slots = {slot: reduce(values[start:stop]) for start, stop, slot in program.segments.tolist()}
    for written, left, right in program.steps.tolist():
        slots[written] = combine(slots[left], slots[right])
    assert program.slots == len(slots)
    assert program.intervals == len(intervals)
    for slot, (start, stop) in enumerate(intervals):
        assert slots[slot] == reduce(values[start:stop])
    covered = {cell for start, stop in intervals for cell in range(start, stop)}
    read = [cell for start, stop, _ in program.segments for cell in range(start, stop)]
    assert sorted(read) == sorted(covered)


def test_a_program_is_short():
    """Less than half the steps of one interval at a time, where windows overlap as R-MAC's do.

    And slots for little more than the intervals, since segments are done with by and by.
    """
    grid = rmac.region_grid(24, 32)
    columns = np.unique(grid.boxes[:, [0, 2]] + [0, 1], axis=0).astype(np.intp)
    program = plan._program(columns.tobytes(), True)
    starts = program.segments[:, 0]
    alone = sum(np.count_nonzero((a <= starts) & (starts < b)) - 1 for a, b in columns)
    assert len(program.steps) < alone / 2
    assert program.slots < program.intervals + len(program.segments) / 2


def test_intervals_of_any_size():
    """Whatever a map's side, which no index of 32 bits limits."""
    pairs = [(2**31 + 8, 2**31 + 11), (3, 2**33), (3, 2**32), (2**31 + 8, 2**31 + 11), (0, 3)]
    starts, stops = np.array(pairs, np.intp).T
    unique, which = plan._unique_intervals(starts, stops)
    assert unique.tolist() == [list(pair) for pair in sorted(set(pairs))]
    np.testing.assert_array_equal(unique[which], pairs)


def spec_of(x, pool):
    return routing.kernel_spec(
        x.dtype, PoolingOptions(Pool(pool), 3.0 if pool == "gem" else 0.0, 0)
    )


def route_of(x, boxes, pool="max", threads=1):
    spec = spec_of(x, pool)
    return routing.region_route.__wrapped__(boxes.tobytes(), x.shape, x.strides, spec, threads)


def workspace_of(x, boxes, pool="max", threads=1):
    """Bytes that a thread needs."""
    route, spec = route_of(x, boxes, pool, threads), spec_of(x, pool)
    return kernels.workspace_bytes(route, spec)


def path_of(x, pool="max"):
    return route_of(x, rmac.region_grid(*x.shape[2:]).boxes, pool).path


def test_paths_are_chosen_by_shape_and_strides():
    large = np.empty((2, 64, 24, 32), np.float32)
    small = np.empty((2, 64, 7, 7), np.float32)
    channels_last = np.empty((2, 24, 32, 64), np.float32).transpose(0, 3, 1, 2)
    assert path_of(large) == Path.ROWS
    assert path_of(large[:, :, 3:, 5:]) == Path.ROWS
    assert path_of(small) == Path.PLANES
    assert path_of(small[..., :6]) == Path.ROWS
    assert path_of(small[..., :3]) == Path.GATHER
    assert path_of(small[:, :15]) == Path.ROWS
    assert path_of(channels_last) == Path.CHANNELS
    assert path_of(channels_last[:, :, ::2, ::2]) == Path.CHANNELS
    assert path_of(large[..., ::2]) == Path.GATHER
    assert path_of(np.empty((2, 64, 1, 1), np.float32)) == Path.CHANNELS
    assert path_of(small[..., 3:], "mean") == Path.ROWS
    assert path_of(small[:, :15], "gem") == Path.ROWS
    assert path_of(np.empty((2, 16, 7, 7), np.uint8), "gem") == Path.PLANES


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(_dtypes.Kind, tables.Kind), (_options.Aggregate, tables.Aggregate)],
    ids=["Kind", "Aggregate"],
)
def test_kernels_have_the_same_numbers(ours, theirs):
    assert {member.name: int(member) for member in theirs} == {
        member.name: int(member) for member in ours
    }


def test_searches_know_what_cells_of_every_dtype_hold():
    text = (CPU / "scores.h").read_text()
    table = re.search(r"cells_of_kind\[\] = \{\n(.*?)^\};", text, re.MULTILINE | re.DOTALL)[1]
    numbers = [int(row) for row in re.findall(r"^ *\[(\d+)\] = ", table, re.MULTILINE)]
    assert numbers == sorted(_dtypes.Kind)


@pytest.mark.parametrize(
    "part",
    ["buffers", "candidates", "describe", "keys", "paths", "stores", "tiles", "values"],
)
def test_parts_of_the_kernels_divide_as_c_does(part):
    """Directives of a .pyx do not hold there; without its own, a division by zero raises."""
    text = (CPU / f"{part}.pxd").read_text()
    assert text.startswith("# cython: language_level=3, cdivision=True\n")


@pytest.mark.parametrize("kind", [0, max(_dtypes.Kind) + 1, -1])
def test_an_unknown_kind_is_an_error(kind):
    with pytest.raises(ValueError, match=f"kind: expected a Kind, got {kind}"):
        tables.KernelSpec(1, kind, sums=False, p=0, zero_point=0, shift=0, itemsize=1)


@pytest.mark.parametrize(("sums", "itemsize"), [(False, 4), (True, 2)], ids=["maxima", "sums"])
def test_keys_of_another_size_are_an_error(sums, itemsize):
    kind = tables.Kind.FLOAT16
    with pytest.raises(ValueError, match=f"itemsize: got {itemsize} for values of 2 bytes"):
        tables.KernelSpec(2, kind, sums=sums, p=0, zero_point=0, shift=0, itemsize=itemsize)


@pytest.mark.parametrize("aggregate", [max(_options.Aggregate) + 1, -1])
def test_an_unknown_aggregate_is_an_error(rng, aggregate):
    """Before anything is written."""
    options = AggregationOptions(True, aggregate, True, 0.0)
    x = random_map(rng, (2, 8, 5, 5), DTYPES["float32"])
    vectors, out = np.ones((2, 3, 8), np.float32), np.zeros((2, 8), np.float32)
    boxes = rmac.region_grid(5, 5).boxes
    message = f"aggregate: expected an Aggregate, got {aggregate}"
    with pytest.raises(ValueError, match=message):
        cpu.rmac([x], [boxes], out, _options.MAX_POOLING, options, workers=1)
    with pytest.raises(ValueError, match=message):
        cpu.describe(vectors, out, options)
    assert (out == 0).all()
    assert (vectors == 1).all()


@pytest.mark.parametrize("path", [4, -1])
def test_an_unknown_path_is_an_error(path):
    empty = plan.region_plan(b"", 5, 5, True)
    with pytest.raises(ValueError, match=f"path: expected a Path, got {path}"):
        tables.Route(empty, path, 16, keep_bands=True, prefetch=1)


@pytest.mark.usefixtures("both_ways_to_share")
@pytest.mark.parametrize("path", list(Path))
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_path_gives_the_same(monkeypatch, rng, path, dtype):
    """Each one that a map's memory allows, whatever would be chosen."""
    for shape in [(2, 70, 9, 12), (1, 5, 6, 5), (1, 64, 2, 31), (2, 300, 4, 7), (2, 31, 4, 7)]:
        x = random_map(rng, shape, DTYPES[dtype], 0.05)
        boxes = rmac.region_grid(*shape[2:], levels=4).boxes
        expected = reference.region_pool(x, boxes)
        means, allowed = reference.region_mean(x, boxes, np.float32, pool="gem")
        if path == Path.PLANES and shape[1] * x.itemsize < LINE_BYTES:
            continue  # it takes whole lines of channels
        if path == Path.ROWS and (shape[2] + 1) * shape[3] * x.itemsize < LINE_BYTES:
            continue  # it reads whole lines, of two planes at most
        if path == Path.CHANNELS:
            x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        monkeypatch.setattr(routing, "_path", lambda *_: path)
        routing.region_route.cache.clear()
        assert_same_values(rmac.region_pool(x, boxes), expected)
        assert_within(rmac.region_pool(x, boxes, pool="gem"), means, allowed)
    routing.region_route.cache.clear()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")
def test_nothing_past_the_end_of_a_map_is_read():
    """Maps that end where memory ends, of rows short and long: a read past them is a crash."""
    code = """if True:
        import ctypes, mmap, numpy as np, rmac
        page, size = mmap.PAGESIZE, 512 * mmap.PAGESIZE
        memory = mmap.mmap(-1, size + page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(start + size), ctypes.c_size_t(page), 0) == 0
        for dtype in (np.uint8, np.float16, np.float32, np.float64):
            for channels in (1, 3, 16, 64, 65, 150):
                for height in (1, 2, 5, 12):
                    for width in (1, 2, 4, 7, 8, 12, 15, 16, 17, 40):
                        shape = 2, channels, height, width
                        count = np.prod(shape)
                        offset = size - int(count) * np.dtype(dtype).itemsize
                        x = np.frombuffer(memory, dtype, count, offset).reshape(shape)
                        last = x.reshape(2, height, width, channels).transpose(0, 3, 1, 2)
                        for y in (x, x[..., 1:], x[:, :, 1:], x[:, 1:], x[..., ::2], last):
                            if y.size:
                                rmac.region_pool(y)
                                rmac.region_pool(y, pool="gem")
                                rmac.region_pool(y, [[0, 0, y.shape[3] - 1, y.shape[2] - 1]])
                                query = np.ones(y.shape[1])
                                for search in ("best", "grid", "aml")[: 2 + (dtype is np.uint8)]:
                                    rmac.localize(y, query, search=search, aspect=1, refine=1)
        print("done")
    """
    assert run_python(code).stdout == "done\n"


def test_no_copy_of_the_map(rng):
    """Peak memory in every path, for a map that is much larger than any workspace."""
    x = random_map(rng, (64, 256, 16, 32), DTYPES["float32"])
    for view in (
        x,
        x[..., ::2],
        x.transpose(0, 1, 3, 2),
        x.reshape(64, 16, 32, 256).transpose(0, 3, 1, 2),
    ):
        rmac.rmac(view)
        assert peak_memory(lambda view=view: rmac.rmac(view)) < x.nbytes / 4


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_read_reads_every_word(rng, workers):
    words = rng.integers(-(2**62), 2**62, 100_003)
    assert kernels.read(words, workers) == np.bitwise_xor.reduce(words)


@pytest.mark.skipif(not os.path.exists("/proc/cpuinfo"), reason="needs Linux's list of flags")
def test_isas_are_those_that_the_machine_has():
    """Whatever the compiler: the build ships all of them."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        flags = set(file.read().split())
    needed = {"x86-64-v3": {"abm", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}}
    needed["x86-64-v4"] = needed["x86-64-v3"] | {f"avx512{part}" for part in ("bw", "dq", "vl")}
    assert isa.available_isas() == [name for name in isa.ISAS if needed.get(name, set()) <= flags]
    assert set(isa.ISAS) == {"baseline", *needed}
    assert not kernels.machine_has("avx1024")


@pytest.mark.parametrize("isa", isa.available_isas())
def test_every_isa_can_be_asked_for(isa):
    code = "import rmac; print(rmac.show_config('dicts')['ISA'])"
    assert run_python(code, RMAC_ISA=isa).stdout.strip() == isa


def test_an_isa_that_is_not_there_is_an_error():
    result = run_python("import rmac", RMAC_ISA="avx1024")
    assert "ImportError: RMAC_ISA: expected one of baseline" in result.stderr


@pytest.mark.slow
def test_isas_agree(rng):
    """Maxima bit for bit; descriptors too, as sums have one order, unless values are subnormal."""
    x = random_map(rng, (2, 100, 24, 33), DTYPES["float32"], 0.001)
    code = (
        "import sys, numpy as np, rmac\n"
        "x = np.frombuffer(sys.stdin.buffer.read(), 'f4').reshape(2, 100, 24, 33)\n"
        "for layout in ('NCHW', 'NHWC'):\n"
        "    y = x.transpose(0, 2, 3, 1).copy() if layout == 'NHWC' else x\n"
        "    sys.stdout.buffer.write(rmac.region_pool(y, layout=layout).tobytes())\n"
        "    y = np.nan_to_num(y, posinf=9, neginf=-9)\n"
        "    sys.stdout.buffer.write(rmac.rmac(y, layout=layout).tobytes())\n"
    )
    outputs = set(outputs_of_isas(code, x.tobytes()))
    assert len(outputs) == 1
    assert len(outputs.pop()) > 0


def test_many_boxes_need_no_more_workspace_than_regions(rng):
    """Bands of all intervals would take hundreds of MB here; the result is the same."""
    corners = np.sort(rng.integers(0, 300, (600, 2, 2)), axis=1)
    boxes = corners.reshape(-1, 4)
    x = random_map(rng, (1, 16, 300, 300), DTYPES["float32"])
    expected = reference.region_pool(x, boxes)
    for stored in (x, np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)):
        assert workspace_of(stored, boxes) < 3 << 20
        assert workspace_of(stored, boxes, "mean") < 4 << 20
        assert_same_values(rmac.region_pool(stored, boxes), expected)


@pytest.mark.parametrize("shape", [(8, 2048, 24, 32), (1, 5000, 60, 90), (4, 3, 7, 7)])
@pytest.mark.parametrize("dtype", ["int8", "float16", "float64"])
@pytest.mark.parametrize("pool", ["max", "gem"])
@pytest.mark.parametrize(("levels", "cache"), [(3, 768 << 10), (6, 768 << 10), (6, 192 << 10)])
def test_workspace_memory_is_bounded_by_the_cache(shape, dtype, pool, levels, cache, monkeypatch):
    """It fits, but for long pixels and, with many levels, where one line of channels may not."""
    monkeypatch.setattr(routing, "_CACHE", cache)
    grid = rmac.region_grid(*shape[2:], levels=levels)
    for order in ((0, 1, 2, 3), (0, 2, 3, 1)):
        x = np.empty([shape[axis] for axis in order], dtype).transpose(np.argsort(order))
        route = route_of(x, grid.boxes, pool, threads=2)
        line = spec_of(x, pool).line
        most = 6 if route.path == Path.CHANNELS else 1 if route.lanes > line or levels == 3 else 4
        assert workspace_of(x, grid.boxes, pool, threads=2) <= most * cache
        assert route.lanes >= line


def test_many_boxes_are_still_reduced_along_rows(monkeypatch):
    monkeypatch.setattr(routing, "_CACHE", 768 << 10)
    x = np.empty((1, 512, 48, 64), np.float32)
    corners = np.random.default_rng(0).integers(0, (64, 48), (2, 1000, 2))
    boxes = np.concatenate([corners.min(0), corners.max(0)], axis=1)
    assert route_of(x, boxes).path == Path.ROWS
