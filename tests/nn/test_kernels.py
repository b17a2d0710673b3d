"""Every kernel, on every instruction set of this machine, equals the products it stands for."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from diffit.nn import packed
from diffit.nn.kernels import native, rounded
from diffit.nn.packed import PackedTernary
from diffit.nn.tiles import pack_tiles

SHAPES = [(16, 16), (48, 40), (17, 300), (100, 1152), (3, 5), (64, 512)]  # outputs, inputs
ROWS = [1, 2, 3, 6, 7, 13, 14, 15, 29, 64]

needs_library = pytest.mark.skipif(native.levels() == 0, reason="built without a C++ compiler")


def drawn(outputs: int, inputs: int, granularity: str = "row"):
    draw = torch.Generator().manual_seed(outputs + inputs)
    codes = torch.randint(-1, 2, (outputs, inputs), generator=draw, dtype=torch.int8)
    shape = {"tensor": (1,), "row": (outputs,), "group": (outputs, inputs // 16)}[granularity]
    return codes, torch.randn(shape, generator=draw), torch.randn(outputs, generator=draw)


def exactly(x, codes, scale, bias):
    """The formula, in float64, of what rounding in float32 made of x."""
    integers, row_scale = rounded.round_rows(x)
    groups = scale.shape[1] if scale.ndim == 2 else 1
    q = integers.double().reshape(len(x), groups, -1)
    w = codes.double().reshape(len(codes), groups, -1)
    a = scale.double().reshape(len(scale), groups).expand(len(codes), groups)
    return torch.einsum("mgk,ogk,og->mo", q, w, a) * row_scale.double() + bias.double()


def test_rounded_rows_are_the_nearest_integers_of_127_parts():
    x = torch.tensor([[2.0, -1.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0], [127.0, 0.5, 1.5, -2.5]])
    integers, scale = rounded.round_rows(x)
    assert integers.tolist() == [[127, -64, 32, 0], [0, 0, 0, 0], [127, 0, 2, -2]]
    torch.testing.assert_close(scale, torch.tensor([[2 / 127], [0], [1.0]]))


def test_rounding_costs_half_a_part_at_most():
    x = torch.randn(50, 300)
    integers, scale = rounded.round_rows(x)
    assert ((integers * scale - x).abs() <= scale * 0.5001).all()


@pytest.mark.parametrize("granularity", ["tensor", "row", "group"])
def test_the_product_of_pytorch_is_the_formula(granularity):
    codes, scale, bias = drawn(64, 512, granularity)
    x = torch.randn(9, 512)
    right = exactly(x, codes, scale, bias)
    torch.testing.assert_close(
        rounded.rounded_product(x, codes, scale, bias).double(), right, atol=1e-4, rtol=1e-6
    )


def test_integer_products_are_exact_with_and_without_instructions_for_them(monkeypatch):
    left = torch.randint(-127, 128, (20, 72), dtype=torch.int8)
    right = torch.randint(-1, 2, (40, 72), dtype=torch.int8)
    exact = left.double() @ right.double().t()
    assert torch.equal(rounded.integer_product(left, right).double(), exact)
    for flag in (False, True):
        monkeypatch.setattr(rounded, "_has_integer_product", lambda *_, flag=flag: flag)
        assert torch.equal(rounded.integer_product(left, right).double(), exact)


@needs_library
@pytest.mark.parametrize("level", range(native.levels()))
@pytest.mark.parametrize("granularity", ["tensor", "row", "group"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_library_equals_the_formula(shape, granularity, level):
    outputs, inputs = shape
    if granularity == "group" and inputs % 16:
        pytest.skip("such groups go to PyTorch")
    codes, scale, bias = drawn(outputs, inputs, granularity)
    tiles = pack_tiles(codes)
    for rows in ROWS:
        x = torch.randn(rows, inputs)
        for b in (None, bias):
            y = native.rounded_product(x, tiles, scale, b, outputs=outputs, level=level)
            right = exactly(x, codes, scale, torch.zeros(1) if b is None else b)
            torch.testing.assert_close(y.double(), right, atol=1e-5 * right.std(), rtol=1e-6)


@needs_library
@pytest.mark.parametrize("level", range(native.levels()))
def test_the_library_rounds_rows_as_pytorch_does_bit_for_bit(level):
    # One output that is the sum of a row: any other integer would show.
    x = torch.randn(400, 96) * torch.logspace(-30, 30, 400)[:, None]
    x[:5, 3] = x[:5].abs().amax(1) * torch.tensor([0.5, 1.5, 2.5, 3.5, -4.5]) / 127  # halves
    tiles = pack_tiles(torch.ones(1, 96, dtype=torch.int8))
    one = torch.ones(1)
    y = native.rounded_product(x, tiles, one, None, outputs=1, level=level)
    integers, scale = rounded.round_rows(x)
    assert torch.equal(y, integers.sum(1, keepdim=True, dtype=torch.float32) * scale)


@needs_library
@pytest.mark.parametrize("level", range(native.levels()))
def test_the_library_takes_and_gives_other_precisions(level):
    codes, scale, bias = drawn(40, 64)
    tiles = pack_tiles(codes)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        x = torch.randn(9, 64).to(dtype)
        y = native.rounded_product(x, tiles, scale, bias, outputs=40, level=level)
        assert y.dtype == dtype
        same = native.rounded_product(x.float(), tiles, scale, bias, outputs=40, level=level)
        assert torch.equal(y, same.to(dtype))


@needs_library
@pytest.mark.parametrize("level", range(native.levels()))
def test_sums_at_their_bound_do_not_overflow(level):
    inputs = native.LARGEST_INPUTS
    codes = torch.ones(2, inputs, dtype=torch.int8)
    codes[1] = -1
    for rows in (1, 9):
        x = torch.full((rows, inputs), -3.0)
        y = native.rounded_product(
            x, pack_tiles(codes), torch.ones(1), None, outputs=2, level=level
        )
        torch.testing.assert_close(y, torch.tensor([[-3.0, 3.0]]).expand(rows, 2) * inputs)
    assert not native.serves(torch.device("cpu"), inputs=inputs + 1, groups=1)


@needs_library
@pytest.mark.parametrize("level", range(native.levels()))
@pytest.mark.parametrize("granularity", ["tensor", "row", "group"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_library_writes_the_weights_of_tiles(dtype, granularity, level):
    for outputs, inputs in SHAPES:
        if granularity == "group" and inputs % 16:
            continue
        codes, scale, _ = drawn(outputs, inputs, granularity)
        groups = scale.reshape(len(scale), -1)
        right = codes * groups.repeat_interleave(inputs // groups.shape[1], dim=1)
        full = native.weights(
            pack_tiles(codes), scale, outputs=outputs, inputs=inputs, dtype=dtype, level=level
        )
        assert torch.equal(full, right.to(dtype))


def back_ends():
    return [*range(native.levels()), "pytorch"]


@pytest.mark.parametrize("back_end", back_ends())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_zeros_stay_and_rows_without_a_number_show(back_end, dtype):
    codes, scale, bias = drawn(40, 64)
    x = torch.randn(6, 64)
    x[1], x[2, 7], x[3, 9], x[4, 63] = 0, torch.nan, torch.inf, -torch.inf
    x[5] = 1e-42
    x = x.to(dtype)
    if back_end == "pytorch":
        y = rounded.rounded_product(x, codes, scale, bias)
    else:
        y = native.rounded_product(x, pack_tiles(codes), scale, bias, outputs=40, level=back_end)
    assert y[[2, 3, 4]].isnan().all()
    assert not y[[0, 1, 5]].isnan().any()
    torch.testing.assert_close(y[1], bias.to(dtype))
    torch.testing.assert_close(y[5], bias.to(dtype))


@needs_library
def test_neither_threads_nor_neighbours_change_a_row():
    codes, scale, _ = drawn(200, 256)
    tiles, x = pack_tiles(codes), torch.randn(300, 256)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(native.rounded_product(x, tiles, scale, None, outputs=200))
    finally:
        torch.set_num_threads(before)
    alone = torch.cat(
        [native.rounded_product(row[None], tiles, scale, None, outputs=200) for row in x]
    )
    assert all(torch.equal(result, alone) for result in results)


def layer_of(granularity="row", activations="int8"):
    codes, scale, bias = drawn(64, 512, granularity)
    return PackedTernary.from_codes(codes, scale, bias, activations=activations)


@pytest.mark.parametrize("granularity", ["tensor", "row", "group"])
@pytest.mark.parametrize("with_library", [True, False])
def test_a_layer_works_with_and_without_the_library(monkeypatch, granularity, with_library):
    if not with_library:
        monkeypatch.setattr(native, "_library", lambda: None)
    layer = layer_of(granularity)
    x = torch.randn(2, 17, 512)
    right = exactly(x.view(-1, 512), layer.unpack(), layer.scale, layer.bias)
    y = layer(x)
    torch.testing.assert_close(y.view(-1, 64).double(), right, atol=1e-4, rtol=1e-6)
    # Nearly the function of full activations: 8 bits leave an error below 1 %.
    full = layer_of(granularity, "full")(x)
    assert 0 < (y - full).norm() < 0.01 * full.norm()
    assert layer(x[:0]).shape == (0, 17, 64)


def test_gradients_are_exact_whatever_the_activations():
    x = torch.randn(3, 512, requires_grad=True)
    layer = layer_of()
    y = layer(x)
    y.square().sum().backward()
    weight = layer.unpack().float() * layer.scale[:, None]
    right = F.linear(x.detach(), weight, layer.bias)
    torch.testing.assert_close(y.detach(), right)
    torch.testing.assert_close(x.grad, 2 * right @ weight)


@pytest.mark.parametrize("granularity", ["tensor", "row", "group"])
@pytest.mark.parametrize("activations", ["full", "int8"])
def test_a_layer_is_traced_whole_and_counts_without_memory(activations, granularity):
    layer, x = layer_of(granularity, activations), torch.randn(20, 512)
    torch._dynamo.reset()
    with torch.no_grad():
        traced = torch.compile(layer, backend="eager", fullgraph=True)(x)
        torch.testing.assert_close(traced, layer(x), atol=1e-4, rtol=1e-5)
    assert layer.to("meta")(x.to("meta")).shape == (20, 64)


def test_a_bias_that_learns_gets_its_gradient():
    layer = layer_of()
    layer.bias.requires_grad_(True)
    layer(torch.randn(3, 512)).sum().backward()
    torch.testing.assert_close(layer.bias.grad, torch.full((64,), 3.0))


def test_groups_that_are_no_whole_tiles_are_multiplied_by_pytorch():
    codes = torch.randint(-1, 2, (8, 24), dtype=torch.int8)
    layer = PackedTernary.from_codes(codes, torch.rand(8, 3), activations="int8")
    x = torch.randn(5, 24)
    assert not native.serves(x.device, inputs=24, groups=3)
    right = exactly(x, codes, layer.scale, torch.zeros(1))
    torch.testing.assert_close(layer(x).double(), right, atol=1e-5, rtol=1e-5)


def test_a_library_of_another_version_is_not_used(monkeypatch):
    monkeypatch.setattr(native, "VERSION", native.VERSION + 1)
    assert native._library.__wrapped__() is None


def test_without_the_library_its_product_says_so(monkeypatch):
    monkeypatch.setattr(native, "_library", lambda: None)
    assert native.levels() == 0
    with pytest.raises(RuntimeError, match="without its C\\+\\+ library"):
        native.rounded_product(
            torch.ones(1, 16), torch.zeros(1, 1, 64), torch.ones(1), None, outputs=1
        )


has_triton = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not has_triton, reason="Triton is not installed")

COMPARE = """
import sys, torch
from diffit.nn.kernels import gpu, rounded
from diffit.nn.tiles import pack_tiles
device = sys.argv[1]
for rows, outputs, inputs in [(3, 40, 24), (17, 100, 200), (70, 64, 160)]:
    codes = torch.randint(-1, 2, (outputs, inputs), dtype=torch.int8, device=device)
    tiles, x = pack_tiles(codes), torch.randn(rows, inputs, device=device)
    for scale in (torch.randn(1, device=device), torch.randn(outputs, device=device)):
        for bias in (None, torch.randn(outputs, device=device)):
            y = gpu.rounded_product(x, tiles, scale, bias, outputs=outputs)
            right = rounded.rounded_product(x, codes, scale, bias)
            torch.testing.assert_close(y, right, atol=1e-4, rtol=1e-5)
            y = gpu.product(x, tiles, scale, bias, outputs=outputs)
            right = torch.nn.functional.linear(x, codes * scale.reshape(-1, 1), bias)
            torch.testing.assert_close(y, right, atol=1e-4, rtol=1e-5)
"""

COMPILE = """
import sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from diffit.nn.kernels.gpu import COLUMNS, OUTPUTS, ternary_kernel
pointers = {"x": sys.argv[1], "tiles": "i32", "scale": "fp32", "row_scale": "fp32",
            "bias": "fp32", "y": "fp16"}
constants = {"ROUNDED": sys.argv[1] == "i8", "SCALE_A_ROW": True, "BIAS": True,
             "ROWS": 64, "OUTPUTS": OUTPUTS, "COLUMNS": COLUMNS}
signature = {name: "*" + kind for name, kind in pointers.items()}
signature |= dict.fromkeys("MNKT", "i32") | dict.fromkeys(constants, "constexpr")
places = {(list(signature).index(name),): value for name, value in constants.items()}
source = ASTSource(fn=ternary_kernel, signature=signature, constexprs=places)
print(triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["ptx"])
"""


def run_triton(script, *arguments, **settings):
    # A process of its own: Triton reads its settings when it is imported.
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, **settings}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_triton
def test_the_kernels_for_gpus_are_right_in_tritons_interpreter():
    run_triton(COMPARE, "cpu", TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.parametrize(("kind", "products"), [("i8", "s32.s8.s8.s32"), ("bf16", "bf16.bf16")])
def test_the_kernels_for_gpus_compile_to_tensor_cores(tmp_path, kind, products):
    code = run_triton(COMPILE, kind, TRITON_CACHE_DIR=str(tmp_path))
    assert any("mma.sync" in line and products in line for line in code.splitlines())


@pytest.mark.gpu
@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_the_kernels_for_gpus_are_right_on_one():
    run_triton(COMPARE, "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("rows", [1, 40, 300])
@pytest.mark.parametrize("granularity", ["tensor", "row", "group"])
@pytest.mark.parametrize("activations", ["full", "int8"])
def test_a_layer_on_a_gpu_equals_that_on_a_cpu(activations, granularity, rows):
    layer, x = layer_of(granularity, activations), torch.randn(rows, 512)
    right = layer(x)
    y = layer.cuda()(x.cuda())
    torch.testing.assert_close(y.cpu(), right, atol=1e-3, rtol=1e-4)


def test_without_triton_there_are_no_kernels_for_gpus(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "diffit.nn.kernels.gpu", raising=False)
    assert packed._triton_kernels.__wrapped__() is None


ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="not in the repository")
@pytest.mark.parametrize("compiler", ["", "/nonexistent/c++"])
def test_the_package_builds_with_and_without_a_compiler(tmp_path, compiler):
    if not compiler and not shutil.which("g++"):
        pytest.skip("no compiler here")
    (tmp_path / "src/diffit").mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "src/diffit/__init__.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    kernels = Path("src/diffit/nn/kernels")
    shutil.copytree(ROOT / kernels, tmp_path / kernels, ignore=shutil.ignore_patterns("*.so"))
    settings = {"CXX": compiler, "CC": compiler} if compiler else {}
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=tmp_path, env={**os.environ, **settings}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    built = list((tmp_path / kernels).glob("_ternary.*"))
    assert len(built) == (0 if compiler else 1)
