"""What only the GPU backend does. Other tests check its results too, through `xp`."""

import re
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import reference
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
from rmac._options import MAX_POOLING, Aggregate, AggregationOptions
from rmac.cuda import plan, route, source


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
        return found.path, found.vector

    ROWS, CHANNELS, PLANES = route.Path  # noqa: N806
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
    for pool in ("max", "mean"):
        assert len({to_host(rmac.rmac(x, pool=pool)).tobytes() for _ in range(5)}) == 1


@pytest.mark.parametrize("p", [None, 1, 2, 2.5, 6, 7])
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_sums_depend_on_the_map_alone(gpu, rng, dtype, p):
    """Not on its batch, its layout, the width of loads, the path or the order of threads."""
    pool = {"pool": "mean"} if p is None else {"pool": "gem", "p": p}
    for size in ((9, 24), (7, 7), (2, 300), (20, 3), (5, 28)):
        x = random_map(rng, (3, 80, *size), DTYPES[dtype])
        boxes = rmac.region_grid(*size, levels=4).boxes
        last = np.ascontiguousarray(x.transpose(LAYOUTS["NHWC"]))
        wide = gpu.zeros((*x.shape[:3], x.shape[3] + 1), x.dtype)
        wide[...] = gpu.asarray(np.pad(x, ((0, 0), (0, 0), (0, 0), (1, 0))))
        inputs = {
            "batch": gpu.asarray(x),
            "image": gpu.asarray(x[1:2].copy()),
            "not aligned": wide[..., 1:],
            "channels last": gpu.asarray(last).transpose(0, 3, 1, 2),
            "image of few channels": gpu.asarray(last[1:2, :, :, :7].copy()).transpose(0, 3, 1, 2),
        }
        expected = to_host(rmac.region_pool(inputs["batch"], boxes, **pool))[1]
        for name, maps in inputs.items():
            vectors = to_host(rmac.region_pool(maps, boxes, **pool))
            one = vectors[1 if len(vectors) > 1 else 0]
            assert one.tobytes() == expected[:, : one.shape[1]].tobytes(), (name, size)
        as_list = rmac.region_pool([inputs["batch"][1], inputs["image"][0, :, :1, :1]], **pool)
        grid = to_host(rmac.region_pool(inputs["image"], **pool))[0]
        assert to_host(as_list[0])[:, :80].tobytes() == grid.tobytes()


def test_sums_of_any_regions_are_in_few_tiles():
    """A plan for one region always has room, so regions are not split for ever."""
    for width in (1, 4, 5, 256, 257, 5000, 2**31 - 1):
        chunk = plan.chunk_width(width)
        assert chunk >= 1
        assert -(-width // chunk) <= 64
        box = np.array([[width // 3, 5, width - 1, 2**31 - 2]]).tobytes()
        (one,) = plan.region_plans(box, route._MOST_SUMS, 0, width)
        bands, segments, _ = one.words[:3]
        assert bands == 1
        assert segments <= 65
        edges = one.words[5 : 5 + 2 * segments].reshape(-1, 2)
        assert (edges[1:, 0] == edges[:-1, 1]).all()
        assert (edges[0, 0], edges[-1, 1]) == (0, width)
        assert (edges[:, 0] // chunk == (edges[:, 1] - 1) // chunk).all()


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
        (r"x\[0\]", lambda: rmac.rmac([misaligned(x)[0], x[0]])),
        ("out", lambda: rmac.rmac(x, out=misaligned(out))),
        ("rois", lambda: rmac.roi_pool(x, misaligned(rois))),
        ("descriptors", lambda: rmac.merge_scales(misaligned(out)[None])),
        ("queries", lambda: rmac.localize(x, misaligned(out))),
    ):
        with pytest.raises(TypeError, match=f"{name}: expected an aligned array, got misaligned"):
            call()
    assert rmac.rmac(misaligned(x)[:0]).shape == (0, 2)


def test_calls_at_the_same_time_write_to_launches_of_their_own(gpu, rng, planted_kernels):
    """The second call runs when the first has written its addresses, but not launched yet."""
    first, second = (
        gpu.asarray(random_map(rng, (2, 40, 9, 12), DTYPES["float32"])) for _ in range(2)
    )
    expected = [to_host(rmac.region_pool(x)) for x in (first, second)]
    waiting, between = [], []

    def plant(launched, _device):
        def launch(*arguments):
            if waiting:
                waiting.clear()
                between.append(to_host(rmac.region_pool(second)))
            launched(*arguments)

        return launch

    planted_kernels(plant)
    rmac.region_pool(first)  # so that there are arguments that no call uses
    waiting.append("for the second call")
    assert_same_values(to_host(rmac.region_pool(first)), expected[0])
    assert_same_values(between[0], expected[1])


def test_a_call_launches_the_kernels_of_its_device(gpu, rng, planted_kernels, monkeypatch):
    if gpu.__name__ != "shim":
        pytest.skip("needs devices that are not there")
    x = gpu.asarray(random_map(rng, (2, 40, 9, 12), DTYPES["float32"]))
    launched_on = []

    def plant(launched, device):
        return lambda *arguments: launched_on.append(device) or launched(*arguments)

    planted_kernels(plant)
    for device in (0, 1, 0):
        monkeypatch.setattr(gpu.cuda.runtime, "getDevice", lambda device=device: device)
        rmac.region_pool(x)
    assert launched_on == [0, 1, 0]


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
    pools = ["pool_rows", "pool_channels", "pool_planes"]
    rois = ["pool_rois", "pool_rois_by_channels", "write_rois"]
    boxes = ["search_boxes", "scale_queries", "write_words", "compare_boxes", "choose_boxes"]
    assert names == ["describe", *pools, *rois, *boxes]


def test_an_array_that_is_reshaped_while_it_is_read_is_refused():
    """CuPy's arrays have a shape that can be set."""

    class Reshaped:
        shapes = iter([(2, 3, 4, 5), (2, 3, 5, 4)])
        shape = property(lambda self: next(self.shapes))
        strides = (60, 20, 5, 1)
        data = SimpleNamespace(ptr=512)

    with pytest.raises(ValueError, match=r"^x: was reshaped by another thread"):
        cuda.batches([Reshaped()], "NCHW", "x")
