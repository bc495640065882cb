"""Arrays of other libraries, through DLPack."""

import numpy as np
import pytest
from helpers import DTYPES, Tensor, optional_module, random_map

import rmac


@pytest.mark.usefixtures("elsewhere")
def test_the_kind_of_array_comes_back_out(rng):
    x = random_map(rng, (2, 20, 7, 9), DTYPES["float32"])
    rois = np.array([[1, 0, 0, 5, 5]], np.float32)
    for result, expected in (
        (rmac.rmac(Tensor(x)), rmac.rmac(x)),
        (rmac.rmac([Tensor(x[0]), Tensor(x[1])]), rmac.rmac(x)),
        (rmac.region_pool([Tensor(x[0])])[0], rmac.region_pool(x)[0]),
        (rmac.roi_pool(Tensor(x), Tensor(rois)), rmac.roi_pool(x, rois)),
        (rmac.operators.run_on_device("RMACRegions", Tensor(x)), rmac.rmac_regions(x)),
    ):
        assert type(result) is Tensor
        np.testing.assert_array_equal(result._array, expected)
    assert type(rmac.operators.run_on_device("RMAC", Tensor(x), "cpu")) is np.ndarray


@pytest.mark.usefixtures("elsewhere")
def test_memory_is_shared(rng):
    x = random_map(rng, (2, 20, 7, 9), DTYPES["float32"])
    out = Tensor(np.zeros((2, 20), np.float32))
    if not np.from_dlpack(out).flags.writeable:
        pytest.skip("this NumPy takes in all such memory as read-only")
    assert rmac.rmac(Tensor(x), out=out) is out
    np.testing.assert_array_equal(out._array, rmac.rmac(x))


@pytest.mark.usefixtures("elsewhere")
def test_whitening(rng):
    vectors = random_map(rng, (30, 5), DTYPES["float32"])
    expected = rmac.Whitening(3).fit(vectors)
    whitening = rmac.Whitening(3).fit(Tensor(vectors[:20])).partial_fit(Tensor(vectors[20:]))
    np.testing.assert_allclose(whitening.projection, expected.projection)
    result = expected.apply(Tensor(vectors))
    assert type(result) is Tensor
    np.testing.assert_array_equal(result._array, expected.apply(vectors))
    mean, projection = Tensor(expected.mean.copy()), Tensor(expected.projection.copy())
    made = rmac.Whitening.from_projection(mean, projection)
    np.testing.assert_array_equal(made.apply(vectors), expected.apply(vectors))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "uint8"])
def test_torch_tensors(dtype):
    torch = optional_module("torch")
    x = (torch.rand(2, 20, 9, 12) * 99).to(getattr(torch, dtype))
    last = x.to(memory_format=torch.channels_last)
    bits = torch.int16 if dtype == "bfloat16" else x.dtype
    plain = x.view(bits).numpy().view(DTYPES[dtype])
    for tensor in (x, last):
        pooled = rmac.region_pool(tensor)
        assert type(pooled) is torch.Tensor
        assert pooled.dtype == x.dtype
        expected = rmac.region_pool(plain)
        np.testing.assert_array_equal(pooled.view(bits).numpy().view(DTYPES[dtype]), expected)
        np.testing.assert_array_equal(rmac.rmac(tensor).numpy(), rmac.rmac(plain))
    if dtype == "float32":
        with pytest.raises(TypeError, match=r"x: got a torch\.Tensor that requires grad"):
            rmac.rmac(x.requires_grad_())
