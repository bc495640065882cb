"""Compare rmac on a GPU with a copy and a read of its input on the device, and with its peers.

    python bench/gpu.py [--json FILE]

See bench/README.md for what the columns mean.
"""

import statistics
import time

import cupy as cp
import numpy as np
from run import add_no_peers, feature_maps, naive, options_of, write_json

import rmac
from rmac import cuda
from rmac._options import Aggregate, AggregationOptions

SHAPES = [
    (64, 2048, 24, 32),
    (32, 512, 48, 64),
    (256, 2048, 7, 7),
    (8, 2048, 24, 32),
    (1, 2048, 24, 32),
]
PEER_SHAPES = [(8, 2048, 24, 32), (256, 2048, 7, 7)]
CALLS = 50  # between two events, or more
MOST_CALLS = 200  # so that they, two launches each, fit in the queue; a search has ten
SAMPLE_BYTES = 2 << 30  # that the calls of a sample read, or as many calls as allowed
INPUT_BYTES = 512 << 20  # of inputs that take turns: more than any cache holds
BINS = 7, 7  # of each RoI that roi_pool pools
SMALL_ROIS = 8  # of each image, with one cell in a bin
SEARCHED = 8  # images at most whose boxes are searched, as that takes long
HEAD_START = 60  # passes over a large array before the first event, about 20 ms
ROI_POOL, SEARCH = "roi_pool 7x7", "localize"  # how the names of their candidates begin

READ = r"""
struct alignas(16) Chunk { unsigned int word[4]; };

/* Read everything once, with 8 loads in flight. Nothing is written unless all words are 0. */
extern "C" __global__ void read(const Chunk *data, long long chunks, unsigned int *out)
{
    const long long step = (long long)gridDim.x * blockDim.x;
    unsigned int seen = 0;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < chunks;
         i += 8 * step) {
        Chunk loaded[8];
#pragma unroll
        for (int k = 0; k < 8; k++)
            loaded[k] = data[min(i + k * step, chunks - 1)];
#pragma unroll
        for (int k = 0; k < 8; k++)
            seen |= loaded[k].word[0] | loaded[k].word[1] | loaded[k].word[2] | loaded[k].word[3];
    }
    if (seen == 0)
        *out = 1;
}
"""


def main():
    parser = options_of(__doc__, SHAPES, ["float32", "float16"], repeats=5)
    add_no_peers(parser)
    options = parser.parse_args()
    device = cp.cuda.runtime.getDeviceProperties(0)["name"].decode()
    print(f"{device}\n{'shape':>18} {'layout':>6} {'dtype':>8} {'candidate':<22} "
          f"{'ms':>9} {'GB/s':>8} {'of copy':>8} {'host us':>8}")  # fmt: skip
    results = []
    cases = [
        (shape, layout, dtype)
        for shape in options.shapes
        for layout in options.layouts
        for dtype in options.dtypes
    ]
    for case in cases:
        inputs = inputs_for(*case)
        measure(inputs, case, candidates_for(inputs, case, options), options, results, device)
    if not options.no_peers:
        for case in cases:
            if case[0] in PEER_SHAPES and case[1:] == ("NCHW", "float32"):
                inputs = inputs_for(*case)
                measure(inputs, case, peers_for(inputs, options), options, results, device)


def inputs_for(shape, layout, dtype):
    """Return equal inputs, each with memory of its own. All images of a batch are the same."""
    image = cp.asarray(feature_maps((1, *shape[1:]), layout, dtype))
    batch = cp.empty((shape[0], *image.shape[1:]), image.dtype)
    batch[...] = image
    return [batch] + [batch.copy() for _ in range(min(63, INPUT_BYTES // batch.nbytes))]


def candidates_for(inputs, case, options):
    """Return functions by name, each of an input."""
    shape, layout, _ = case
    settings = {"layout": layout, "levels": options.levels}
    target, seen = cp.empty_like(inputs[0]), cp.zeros(1, cp.uint32)
    vectors = rmac.rmac(inputs[0], aggregate="none", normalize_regions=False, **settings)
    descriptors = cp.empty((len(vectors), vectors.shape[2]), cp.float32)
    aggregation = AggregationOptions(True, Aggregate.SUM, True, 0.0)
    read, blocks = cp.RawKernel(READ, "read"), (132 * 8,)
    chunks, rois = inputs[0].nbytes // 16, whole_maps(inputs[0], layout)
    query = cp.asarray(np.random.default_rng(0).random(vectors.shape[2]))
    searches = {
        f"{SEARCH}, {name}": lambda x, name=name: rmac.localize(
            x, query, search=name, aspect=0.75, layout=layout
        )
        for name in ("best", "grid")
        if shape[0] <= SEARCHED
    }
    return {
        "copy": lambda x: target.data.copy_from_device_async(x.data, x.nbytes),
        "read": lambda x: read(blocks, (256,), (x, np.int64(chunks), seen)),
        "region_pool": lambda x: rmac.region_pool(x, **settings),
        "region_pool, mean": lambda x: rmac.region_pool(x, pool="mean", **settings),
        "region_pool, gem": lambda x: rmac.region_pool(x, pool="gem", **settings),
        f"{ROI_POOL}, whole maps": lambda x: rmac.roi_pool(
            x, rois, output_size=BINS, layout=layout
        ),
        "describe": lambda _: cuda.describe(vectors, descriptors, aggregation),
        "rmac": lambda x: rmac.rmac(x, **settings),
    } | searches


def whole_maps(x, layout):
    """Return a RoI for each map, which is all of it."""
    images, *_ = x.shape
    height, width = x.shape[2:] if layout == "NCHW" else x.shape[1:3]
    rois = np.zeros((images, 5), np.float32)
    rois[:, 0], rois[:, 3], rois[:, 4] = np.arange(images), width - 1, height - 1
    return cp.asarray(rois)


def small_rois(x):
    """Return RoIs with one cell in a bin, at random places in each map."""
    images, _, height, width = x.shape
    rng = np.random.default_rng(0)
    rois = np.zeros((images * SMALL_ROIS, 5), np.float32)
    rois[:, 0] = np.repeat(np.arange(images), SMALL_ROIS)
    for axis, (size, bins) in enumerate(((width, BINS[1]), (height, BINS[0])), 1):
        rois[:, axis] = rng.integers(0, size - bins + 1, len(rois))
        rois[:, axis + 2] = rois[:, axis] + bins - 1
    return cp.asarray(rois)


def peers_for(inputs, options):
    """Return functions by name, each of an input, of the libraries that are installed."""
    candidates = {"rmac": lambda x: rmac.rmac(x, levels=options.levels)}
    of_maps = {"whole maps": whole_maps(inputs[0], "NCHW"), "small RoIs": small_rois(inputs[0])}
    for name, some in of_maps.items():
        candidates[f"{ROI_POOL}, {name}"] = lambda x, some=some: rmac.roi_pool(
            x, some, output_size=BINS
        )
    try:
        import torch
        from peers import torch_loop, torchvision_pool
    except ImportError:
        return candidates
    tensors = {x.data.ptr: torch.from_dlpack(x) for x in inputs}
    boxes = rmac.region_grid(*inputs[0].shape[2:], levels=options.levels).boxes.tolist()
    compiled = torch.compile(torch_loop)
    candidates |= {"torch loop": lambda x: torch_loop(torch, tensors[x.data.ptr], boxes)}
    try:
        from torchvision.ops import roi_pool
    except ImportError:
        pass
    else:
        rois = torch.from_dlpack(rmac.rmac_regions(inputs[0], scales=options.levels))
        candidates["torchvision roi_pool"] = lambda x: torchvision_pool(
            roi_pool, tensors[x.data.ptr], rois
        )
        for name, some in of_maps.items():
            tensor = torch.from_dlpack(some)
            candidates[f"{ROI_POOL} of torchvision, {name}"] = lambda x, some=tensor: roi_pool(
                tensors[x.data.ptr], some, BINS
            )
    return candidates | {
        "torch loop, compiled": lambda x: compiled(torch, tensors[x.data.ptr], boxes)
    }


def measure(inputs, case, candidates, options, results, device):
    """Add a row for each candidate to the results, and write them all to the file."""
    shape, layout, dtype = case
    check(candidates, inputs[0], layout, options.levels)
    calls = max(CALLS, min(MOST_CALLS, SAMPLE_BYTES // inputs[0].nbytes))
    copy_rate = None
    for name, run in candidates.items():
        some = CALLS if name.startswith(SEARCH) else calls
        ms = statistics.median(milliseconds(run, inputs, some) for _ in range(options.repeats))
        rate = inputs[0].nbytes * (2 if name == "copy" else 1) / ms / 1e6
        copy_rate = rate if name == "copy" else copy_rate
        row = {
            "shape": list(shape),
            "layout": layout,
            "dtype": dtype,
            "candidate": name,
            "ms": ms,
            "GB/s": rate,
            "of copy": rate / copy_rate if copy_rate else None,
            "host us": host_microseconds(run, inputs),
        }
        results.append(row)
        share = f"{row['of copy']:8.2f}" if copy_rate else " " * 8
        print(
            f"{'x'.join(map(str, shape)):>18} {layout:>6} {dtype:>8} {name:<22} "
            f"{ms:9.4f} {rate:8.0f} {share} {row['host us']:8.1f}",
            flush=True,
        )
        write_json(options, results, device=device)


def check(candidates, x, layout, levels):
    """Compare the descriptors of rmac and its peers with those of a loop over regions."""
    host = cp.asnumpy(x[:1])
    expected = naive(host if layout == "NCHW" else host.transpose(0, 3, 1, 2), levels)
    for name, run in candidates.items():
        if not name.startswith(("copy", "read", "region_pool", "describe", SEARCH, ROI_POOL)):
            result = cp.asnumpy(cp.asarray(run(x)))[:1].astype(np.float64)
            np.testing.assert_allclose(result, expected, rtol=2e-3, atol=1e-5, err_msg=name)


def milliseconds(run, inputs, calls):
    """Return the mean time of a call on the device.

    The device is kept busy while the host queues the calls, so that none waits for the host.
    """
    busy = cp.ones(1 << 27, cp.float32)
    start, stop = cp.cuda.Event(), cp.cuda.Event()
    for x in inputs[:2]:
        run(x)
    cp.cuda.Device().synchronize()
    for _ in range(HEAD_START):
        busy *= 1
    start.record()
    for i in range(calls):
        run(inputs[i % len(inputs)])
    stop.record()
    stop.synchronize()
    return cp.cuda.get_elapsed_time(start, stop) / calls


def host_microseconds(run, inputs):
    """Return the least time that the host needs for a call."""
    least = float("inf")
    for _ in range(5):
        cp.cuda.Device().synchronize()
        started = time.perf_counter()
        for i in range(CALLS):
            run(inputs[i % len(inputs)])
        least = min(least, (time.perf_counter() - started) / CALLS)
    return least * 1e6


if __name__ == "__main__":
    main()
