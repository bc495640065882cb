"""PyTorch's tensors on a GPU: memory formats, bfloat16, side streams, `out=` and graphs."""

import cupy
import numpy as np
import torch

import rmac

SLOW = 2_000_000  # cycles of a kernel that comes first on a stream
ROUNDS = 100


def main():
    """Check all of it; the first that is wrong raises."""
    host = np.random.default_rng(0).random((8, 256, 24, 32), dtype=np.float32)
    expected = rmac.rmac(host)
    x = torch.from_numpy(host).cuda()
    print("one device:", torch.cuda.get_device_name(), flush=True)
    same("contiguous", rmac.rmac(x), expected)
    same("channels_last", rmac.rmac(x.to(memory_format=torch.channels_last)), expected)
    same("bfloat16", rmac.rmac(x.bfloat16()), expected, 2e-2)
    out = torch.zeros(8, 256, device="cuda")
    assert rmac.rmac(x, out=out) is out
    same("out=", out, expected)
    on_a_side_stream(x, expected, with_out=False)
    on_a_side_stream(x, expected, with_out=True)
    in_a_graph(x, host, expected)


def same(name, result, expected, tolerance=2e-6):
    """Raise unless a result on the GPU is a tensor of the expected values."""
    assert isinstance(result, torch.Tensor), (name, type(result))
    assert result.is_cuda, name
    np.testing.assert_allclose(
        result.float().cpu().numpy(), expected, atol=tolerance, rtol=0, err_msg=name
    )
    print(name, "is right", flush=True)


def on_a_side_stream(x, expected, with_out):
    """Check that rmac waits for what the stream did before, and the stream for rmac."""
    stream = torch.cuda.Stream()
    totals = []
    with torch.cuda.stream(stream):
        for _ in range(ROUNDS):
            late = torch.zeros_like(x)
            torch.cuda._sleep(SLOW)
            late.copy_(x)
            out = torch.zeros(8, 256, device="cuda") if with_out else None
            totals.append(rmac.rmac(late, out=out) + 0)
    stream.synchronize()
    for total in totals:
        np.testing.assert_allclose(total.cpu().numpy(), expected, atol=2e-6, rtol=0)
    print(f"{ROUNDS} calls on a side stream are right, with out={with_out}", flush=True)


def in_a_graph(x, host, expected):
    """Check a graph. The stream that captures is used before: no kernel is loaded in a capture.

    CuPy keeps the memory that it has freed for the stream that used it, and PyTorch allows no new
    memory in a capture.
    """
    out = torch.zeros(8, 256, device="cuda")
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with cupy.cuda.ExternalStream(stream.cuda_stream):
        rmac.rmac(x, out=out)
        with torch.cuda.graph(graph, stream=stream):
            rmac.rmac(x, out=out)
    x.copy_(torch.from_numpy(host[::-1].copy()))
    graph.replay()
    same("a replayed graph", out, expected[::-1])


if __name__ == "__main__":
    main()
