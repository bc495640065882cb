"""Compare rmac on a GPU with a copy of its input on the device, and with its peers.

    python bench/gpu.py [--json FILE]

See bench/README.md for what the columns mean.
"""

import statistics

import cupy as cp
import numpy as np
from run import add_no_peers, feature_maps, naive, options_of, write_json

import rmac

SHAPES = [
    (64, 2048, 24, 32),
    (32, 512, 48, 64),
    (256, 2048, 7, 7),
    (1, 2048, 24, 32),
]
INPUT_BYTES = 512 << 20  # of copies of the input, used in turn: more than any cache holds


def main():
    parser = options_of(__doc__, SHAPES, ["float32", "float16"])
    add_no_peers(parser)
    options = parser.parse_args()
    results = []
    print(
        f"{'shape':>18} {'layout':>6} {'dtype':>8} {'candidate':<22} "
        f"{'ms':>9} {'GB/s':>8} {'of copy':>8} {'x rmac':>7}"
    )
    for shape in options.shapes:
        for layout in options.layouts:
            for dtype in options.dtypes:
                results += measure_case(shape, layout, dtype, options)
    device = cp.cuda.runtime.getDeviceProperties(0)["name"].decode()
    write_json(options, results, device=device)


def measure_case(shape, layout, dtype, options):
    host = feature_maps(shape, layout, dtype)
    inputs = [cp.asarray(host)]
    inputs += [inputs[0].copy() for _ in range(min(63, INPUT_BYTES // host.nbytes))]
    candidates = candidates_for(inputs, layout, options)
    check(candidates, host, layout, options.levels)
    times = {name: [] for name in candidates}
    for _ in range(options.repeats):
        for name, run in candidates.items():
            times[name].append(milliseconds(run, len(inputs)))
    rows = []
    medians = {name: statistics.median(samples) for name, samples in times.items()}
    copy_rate = 2 * host.nbytes / medians["copy"]
    for name, ms in medians.items():
        moved = host.nbytes * (2 if name == "copy" else 1)
        row = {
            "shape": list(shape),
            "layout": layout,
            "dtype": dtype,
            "candidate": name,
            "ms": ms,
            "GB/s": moved / ms / 1e6,
            "of copy": moved / ms / copy_rate,
        }
        rows.append(row)
        print(
            f"{'x'.join(map(str, shape)):>18} {layout:>6} {dtype:>8} {name:<22} "
            f"{ms:9.4f} {row['GB/s']:8.0f} {row['of copy']:8.2f} {ms / medians['rmac']:7.2f}",
            flush=True,
        )
    return rows


def candidates_for(inputs, layout, options):
    """Return functions by name, each of the number of an input."""
    target = cp.empty_like(inputs[0])
    settings = {"layout": layout, "levels": options.levels}
    candidates = {
        "copy": lambda i: target.data.copy_from_device_async(inputs[i].data, target.nbytes),
        "rmac": lambda i: rmac.rmac(inputs[i], **settings),
    }
    if not options.no_peers:
        candidates |= torch_peers(inputs, layout, options.levels)
    return candidates


def torch_peers(inputs, layout, levels):
    try:
        import torch
        from peers import torch_loop, torchvision_pool
    except ImportError:
        return {}
    tensors = [torch.from_dlpack(x) for x in inputs]
    if layout == "NHWC":
        tensors = [tensor.permute(0, 3, 1, 2) for tensor in tensors]
    boxes = rmac.region_grid(*tensors[0].shape[2:], levels=levels).boxes.tolist()
    compiled = torch.compile(torch_loop)
    peers = {
        "torch loop": lambda i: torch_loop(torch, tensors[i], boxes),
        "torch loop, compiled": lambda i: compiled(torch, tensors[i], boxes),
    }
    try:
        from torchvision.ops import roi_pool
    except ImportError:
        return peers
    images = tensors[0].shape[0]
    corners = torch.tensor(boxes, dtype=tensors[0].dtype, device="cuda").repeat(images, 1)
    index = torch.arange(images, device="cuda").repeat_interleave(len(boxes))
    rois = torch.cat([index[:, None].to(corners.dtype), corners], dim=1)
    peers["torchvision roi_pool"] = lambda i: torchvision_pool(roi_pool, tensors[i], rois)
    return peers


def check(candidates, host, layout, levels):
    """Compare the descriptors of every candidate with those of a loop over regions."""
    nchw = host if layout == "NCHW" else host.transpose(0, 3, 1, 2)
    expected = naive(nchw[:2], levels)
    for name, run in candidates.items():
        if name != "copy":
            result = cp.asnumpy(cp.asarray(run(0)))[:2].astype(np.float64)
            np.testing.assert_allclose(result, expected, rtol=2e-3, atol=1e-5, err_msg=name)


def milliseconds(run, inputs):
    """Return the mean time of a call, measured on the device over all inputs."""
    start, stop = cp.cuda.Event(), cp.cuda.Event()
    run(0)
    start.record()
    for i in range(inputs):
        run(i)
    stop.record()
    stop.synchronize()
    return cp.cuda.get_elapsed_time(start, stop) / inputs


if __name__ == "__main__":
    main()
