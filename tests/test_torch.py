"""rmac inside PyTorch programs: the operators, the modules, and programs that PyTorch traces."""

import copy
import inspect

import numpy as np
import pytest
from helpers import optional_module

import rmac

torch = optional_module("torch")
from rmac import torch as rmac_torch  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

MAPS = torch.rand(3, 16, 9, 12, generator=torch.Generator().manual_seed(1))
ROIS = torch.tensor([[0, 0, 0, 5, 5], [2, 1.0, 2, 11, 8]])
LEARNING = rmac.Whitening()
WHITENING = rmac.Whitening(4).fit(rmac.rmac(MAPS, aggregate="none"))
GRID = rmac.region_grid(9, 12, preset="matlab")

CALLS = {
    "rmac": ({}, {"pool": "gem", "p": 2.5, "levels": 2}, {"aggregate": "none", "eps": 0.5}),
    "region_pool": ({}, {"pool": "mean"}, {"regions": GRID}, {"regions": [[0, 0, 3, 3]]}),
    "roi_pool": ({}, {"output_size": (2, 3), "spatial_scale": 0.5}),
    "rmac_regions": ({}, {"scales": 2, "overlap": 0.2}),
}
MODULES = {"rmac": "RMAC", "region_pool": "RegionPool", "roi_pool": "RoIPool"}
CASES = [(name, options) for name, calls in CALLS.items() for options in calls]
CASES += [("rmac", {"aggregate": "concat", "normalize_regions": False, "regions": GRID})]
CASES += [("rmac", {"layout": "NTC"}), ("region_pool", {"layout": "NCT", "regions": [[0, 3]]})]
OF_MODULES = [case for case in CASES if case[0] in MODULES]


def inputs(name, options):
    x = MAPS[:, :, 0] if "T" in options.get("layout", "") else MAPS
    return (x, ROIS) if name == "roi_pool" else (x,)


def shortened(x):
    x = x.clone()
    x.untyped_storage().resize_(16)
    return x


def negatives(x):
    return torch.complex(torch.zeros_like(x), x).conj().imag


@pytest.mark.parametrize(
    ("make", "message"), [(shortened, "no memory for all"), (negatives, r"resolve_neg\(\)")]
)
def test_tensors_whose_memory_is_not_that_of_their_values_are_refused(make, message):
    """DLPack would pass them."""
    out = torch.zeros(3, 20, 16)
    for call in (
        lambda: rmac.rmac(make(MAPS)),
        lambda: rmac.rmac([make(MAPS[0])]),
        lambda: rmac.region_pool(MAPS, out=make(out)),
        lambda: rmac.roi_pool(MAPS, make(ROIS)),
        lambda: rmac.Whitening().fit(make(out)),
    ):
        with pytest.raises(TypeError, match=message):
            call()
    with pytest.raises(TypeError, match="no memory for all"):
        rmac_torch.rmac(shortened(MAPS))
    for result in (rmac.rmac(negatives(MAPS).resolve_neg()), rmac_torch.rmac(negatives(MAPS))):
        np.testing.assert_array_equal(result, rmac.rmac(-MAPS))


def test_views_of_a_large_storage_are_taken():
    x = torch.rand(2, 17, 9, 13)
    np.testing.assert_array_equal(
        rmac.region_pool(x[1:, 1:, :, 1:]), rmac.region_pool(x.numpy()[1:, 1:, :, 1:])
    )
    assert rmac.region_pool(x[:0, :, :1, :1]).shape == (0, 1, 17)


def test_an_expanded_out_is_refused():
    with pytest.raises(ValueError, match="out: expected an array whose elements do not share"):
        rmac.region_pool(MAPS, out=torch.zeros(1, 20, 16).expand(3, 20, 16))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_operators_are_the_functions(name, options):
    x = inputs(name, options)
    result = getattr(rmac_torch, name)(*x, **options)
    assert torch.equal(result, getattr(rmac, name)(*x, **options))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "uint8", "int8"])
def test_dtypes(dtype):
    x = (MAPS * 99).to(getattr(torch, dtype)).to(memory_format=torch.channels_last)
    for pool in ("max", "mean"):
        pooled = rmac_torch.region_pool(x, pool=pool)
        assert torch.equal(pooled, rmac.region_pool(x, pool=pool))
        with torch.device("meta"):
            shape = torch.ops.rmac.region_pool(x.to("meta"), pool=pool)
        assert (shape.shape, shape.dtype) == (pooled.shape, pooled.dtype)
    assert torch.equal(rmac_torch.rmac(x), rmac.rmac(x))


@pytest.mark.parametrize("name", sorted(CALLS))
def test_options_are_those_of_the_functions(name):
    schema = getattr(torch.ops.rmac, name).default._schema
    declared = {one.name: one.default_value for one in schema.arguments if one.kwarg_only}
    parameters = inspect.signature(getattr(rmac, name)).parameters.values()
    expected = {one.name: one.default for one in parameters if one.default is not one.empty}
    expected = {one: expected[one] for one in expected if one not in ("out", "whitening")}
    if name == "roi_pool":
        assert declared.pop("output_size") == [expected.pop("output_size")] * 2
    assert declared == expected


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), CASES)
def test_pytorch_checks_the_operators(name, options):
    options = dict(options)
    if options.get("regions") is not None:
        boxes = getattr(options["regions"], "boxes", options["regions"])
        boxes = np.insert(boxes, [1, 2], 0, axis=1) if np.shape(boxes)[1] == 2 else boxes
        options["regions"] = np.ravel(boxes).tolist()
    operator = getattr(torch.ops.rmac, name).default
    torch.library.opcheck(operator, inputs(name, options), options)


def test_rois_of_each_image():
    boxes = [torch.tensor([[0, 0, 3, 3.0]]), torch.empty(0, 4), torch.tensor([[1, 1, 4, 4.0]] * 2)]
    rows = torch.tensor([[0, 0, 0, 3, 3], [2, 1, 1, 4, 4], [2, 1, 1, 4, 4.0]])
    expected = rmac.roi_pool(MAPS, rows)
    assert torch.equal(rmac_torch.roi_pool(MAPS, boxes), expected)
    assert torch.equal(rmac_torch.RoIPool()(MAPS, boxes), expected)
    assert torch.equal(rmac.roi_pool(MAPS, boxes), expected)


def test_modules_have_options_as_attributes():
    module = rmac_torch.RMAC(levels=2, pool="gem")
    assert (module.levels, module.pool, module.preset) == (2, "gem", "caffe2")
    assert repr(module) == "RMAC(pool='gem', levels=2)"
    assert torch.equal(module(MAPS), rmac.rmac(MAPS, levels=2, pool="gem"))
    module.levels = 3
    assert torch.equal(module(MAPS), rmac.rmac(MAPS, pool="gem"))
    assert repr(rmac_torch.RoIPool((2, 2), 0.5)) == "RoIPool(output_size=(2, 2), spatial_scale=0.5)"
    pool = rmac_torch.RegionPool(GRID)
    assert torch.equal(copy.deepcopy(pool)(MAPS), rmac.region_pool(MAPS, GRID))
    with pytest.raises(TypeError, match=r"expected options pool, p, .*, got level"):
        rmac_torch.RMAC(level=3)


def test_a_whitening_becomes_buffers():
    module = rmac_torch.RMAC(whitening=WHITENING, levels=2)
    expected = rmac.rmac(MAPS, whitening=WHITENING, levels=2)
    torch.testing.assert_close(module(MAPS), expected, atol=1e-6, rtol=0)
    assert {name: tuple(t.shape) for name, t in module.state_dict().items()} == {
        "mean": (16,),
        "projection": (4, 16),
    }
    other = rmac_torch.RMAC(whitening=rmac.Whitening(4).fit(torch.rand(99, 16)), levels=2)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(MAPS), module(MAPS))
    for change in (torch.nn.Module.double, torch.nn.Module.half, torch.nn.Module.bfloat16):
        close = change(copy.deepcopy(module))(MAPS)
        torch.testing.assert_close(close, expected, atol=0.1, rtol=0)
    double = rmac.rmac(MAPS.double(), whitening=WHITENING, levels=2)
    torch.testing.assert_close(module(MAPS.double()), double, atol=1e-5, rtol=0)
    assert rmac_torch.RMAC().state_dict() == {}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: rmac_torch.rmac(MAPS, whitening=WHITENING), TypeError, "RMAC.* takes one"),
        (lambda: rmac_torch.RMAC(whitening=3), TypeError, "expected a Whitening, got int"),
        (
            lambda: rmac_torch.rmac(MAPS, whitening=(MAPS[0, :, 0, 0], MAPS[0, 0])),
            ValueError,
            "expected shapes",
        ),
        (lambda: rmac_torch.rmac(MAPS[0]), ValueError, r"x\[None\]"),
        (lambda: rmac_torch.rmac(MAPS, levels=0), ValueError, "levels: expected"),
        (lambda: rmac_torch.region_pool(MAPS, rmac.region_grid(9, 9)), ValueError, "got one for"),
        (lambda: rmac_torch.region_pool(MAPS, [[0, 0, 12, 8]]), ValueError, "inclusive"),
        (lambda: rmac_torch.region_pool(MAPS, [0, 0, 1, 1]), ValueError, r"one box is \[\["),
        (lambda: rmac_torch.roi_pool(MAPS, ROIS + 9), IndexError, "rois: expected a batch index"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("name", ["rmac", "region_pool", "roi_pool"])
def test_there_is_no_gradient(name):
    x, *others = inputs(name, {})
    x = x.clone().requires_grad_()
    result = getattr(rmac_torch, name)(x, *others)
    assert torch.equal(result, getattr(rmac, name)(x.detach(), *others))
    with pytest.raises(rmac.operators.GradientNotDefinedError, match=f"rmac::{name} is for infer"):
        result.sum().backward()
    with torch.no_grad():
        assert not getattr(rmac_torch, name)(x, *others).requires_grad


class Model(torch.nn.Module):
    """A backbone, and rmac behind it."""

    def __init__(self, layer):
        super().__init__()
        self.backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3, stride=4), torch.nn.ReLU())
        self.layer = layer

    def forward(self, images, *rois):
        return self.layer(self.backbone(images), *rois) * 2


def model_of(name, options):
    torch.manual_seed(0)
    if "T" in options.get("layout", ""):
        options = {**options, "layout": "NCHW", "regions": None}
    return Model(getattr(rmac_torch, MODULES[name])(**options)).eval()


def images_for(name, number=3):
    images = torch.rand(number, 3, 37, 49, generator=torch.Generator().manual_seed(2))
    return (images, ROIS) if name == "roi_pool" else (images,)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "backend"),
    [(*case, "aot_eager") for case in OF_MODULES] + [("rmac", {}, "inductor")],
)
def test_torch_compile(name, options, backend):
    torch._dynamo.reset()
    model = model_of(name, options)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.inference_mode():
        for number in (3, 5, 4):  # the second makes N a symbol
            images = images_for(name, number)
            torch.testing.assert_close(compiled(*images), model(*images))


@pytest.mark.slow
def test_torch_compile_of_a_whitened_model():
    torch._dynamo.reset()
    model = Model(rmac_torch.RMAC(whitening=WHITENING)).eval()
    with torch.inference_mode():
        expected = model(*images_for("rmac"))
        result = torch.compile(model, fullgraph=True, backend="aot_eager")(*images_for("rmac"))
    assert torch.equal(result, expected)


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(("name", "options"), OF_MODULES)
def test_torch_export(name, options, strict):
    model = model_of(name, options)
    with torch.no_grad():
        program = torch.export.export(model, images_for(name), strict=strict)
        assert any("rmac" in str(node.target) for node in program.graph.nodes)
        torch.testing.assert_close(program.module()(*images_for(name)), model(*images_for(name)))


@pytest.mark.slow
def test_torch_export_of_images_of_any_size(tmp_path):
    model = Model(rmac_torch.RMAC(whitening=WHITENING)).eval()
    any_size = torch.export.Dim.DYNAMIC
    shapes = ({0: any_size, 2: any_size, 3: any_size},)
    with torch.no_grad():
        program = torch.export.export(model, images_for("rmac"), dynamic_shapes=shapes)
        torch.export.save(program, tmp_path / "model.pt2")
        loaded = torch.export.load(tmp_path / "model.pt2").module()
        for size in ((2, 3, 37, 49), (5, 3, 64, 40)):
            images = torch.rand(size)
            torch.testing.assert_close(loaded(images), model(images))


def test_torch_fx_and_jit_and_vmap():
    model = model_of("rmac", {})
    images = images_for("rmac")[0]
    with torch.no_grad():
        traced = torch.fx.symbolic_trace(model.layer)
        assert torch.equal(traced(MAPS), model.layer(MAPS))
        assert torch.equal(torch.jit.trace(model, (images,))(images / 2), model(images / 2))
        mapped = torch.vmap(rmac_torch.rmac)(MAPS.reshape(3, 1, 16, 9, 12))
        assert torch.equal(mapped[:, 0], rmac.rmac(MAPS))


# The functions of rmac itself, where PyTorch traces.

PLAIN = {
    "rmac": lambda x: rmac.rmac(x),
    "rmac of a list": lambda x: rmac.rmac([x[0], x[1]]),
    "region_pool": lambda x: rmac.region_pool(x),
    "roi_pool": lambda x: rmac.roi_pool(x, ROIS),
    "rmac_regions": lambda x: rmac.rmac_regions(x),
    "run_on_device": lambda x: rmac.operators.run_on_device("RMAC", x),
    "merge_scales": lambda x: rmac.merge_scales([x[:, :, 0, 0], x[:, :, 1, 1]]),
    "apply": lambda x: WHITENING.apply(x[:, :, 0, 0]),
    "partial_fit": lambda x: x + (LEARNING.partial_fit(x[:, :, 0, 0]) is LEARNING),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PLAIN))
def test_torch_compile_calls_the_functions_as_they_are(name):
    torch._dynamo.reset()

    def function(x):
        return PLAIN[name](torch.relu(x)) + 1

    compiled = torch.compile(function, backend="eager")
    for _ in range(2):
        assert torch.equal(compiled(MAPS), function(MAPS))


@pytest.mark.slow
def test_a_whole_graph_of_such_a_function_is_refused():
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"call it from rmac\.torch"):
        torch.compile(PLAIN["rmac"], backend="eager", fullgraph=True)(MAPS)


def fake_tensor():
    with torch._subclasses.fake_tensor.FakeTensorMode():
        return torch.zeros(2, 16, 9, 12)


@pytest.mark.parametrize(
    "trace",
    [
        lambda f: torch.fx.symbolic_trace(f),
        lambda f: torch.jit.trace(f, (MAPS,)),
        lambda f: torch.vmap(f)(MAPS[None]),
        lambda f: f(fake_tensor()),
        lambda f: torch.func.functionalize(f)(MAPS),
    ],
    ids=["fx", "jit.trace", "vmap", "fake tensor", "functionalize"],
)
def test_tensors_of_a_trace_are_refused(trace):
    for name in ("rmac", "region_pool", "roi_pool", "merge_scales", "apply"):
        with pytest.raises(TypeError, match=r"call it from rmac\.torch"):
            trace(PLAIN[name])
