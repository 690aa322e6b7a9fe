"""Kernels on a GPU, in half precision, against their twins: `pytest -m gpu`.

The twin in float64 is the truth, and the twin in half precision says how far rounding alone leads:
a kernel may be twice as far (the rule of flash-attention's tests).
"""

import pytest
import torch
from torch import Tensor

from llmlab.kernels import (
    attention,
    int4,
    int8,
    linear_cross_entropy,
    norm,
    paged_attention,
    pointwise,
)
from llmlab.kernels.lora import add_lora_, add_lora_twin, group_by_adapter
from llmlab.kernels.sample import sample_tokens, sample_tokens_twin

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICE = "cuda"
FLOOR = 1e-5
"""Relative error that is none."""


@pytest.fixture(params=[torch.bfloat16, torch.float16])
def dtype(request):
    return request.param


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


def check(function, twin, inputs, gradients):
    """Compare results and gradients of a kernel with those of its twin."""

    def run(called, dtype):
        leaves = [x.detach().to(dtype or x.dtype).requires_grad_() for x in inputs]
        out = called(*leaves)
        outs = out if isinstance(out, tuple) else (out,)
        wanted = [g.to(o.dtype) for g, o in zip(gradients, outs, strict=True)]
        return *outs, *torch.autograd.grad(outs, leaves, wanted)

    exact, found = run(twin, torch.float64), run(function, None)
    for mine, plain, right in zip(found, run(twin, None), exact, strict=True):
        assert torch.isfinite(mine).all()
        mine_off, plain_off = ((x.double() - right).norm() / right.norm() for x in (mine, plain))
        assert mine_off <= 2 * plain_off + FLOOR
    for first, again in zip(found, run(function, None), strict=True):
        assert torch.equal(first, again)  # whichever program comes first


@pytest.mark.parametrize("shape", [(3, 64), (2, 1000, 576), (4096, 4096), (7, 8192)])
def test_norm(shape, dtype):
    x, residual, weight = rand(*shape, dtype=dtype), rand(*shape, dtype=dtype), rand(shape[-1])
    gradient = rand(*shape, dtype=dtype)

    def twin(x, weight):
        return norm.rms_norm_twin(x, weight, 1e-5)[0]

    check(lambda x, w: norm.rms_norm(x, w, 1e-5), twin, (x, weight), (gradient,))
    check(
        lambda x, r, w: norm.add_rms_norm(x, r, w, 1e-5),
        lambda x, r, w: (twin(r + x, w), r + x),
        (x, residual, weight),
        (gradient, rand(*shape, dtype=dtype)),
    )


def test_pointwise(dtype):
    x, y, gradient = (rand(2, 8, 300, 128, dtype=dtype) for _ in range(3))
    angle = rand(1, 1, 300, 64).repeat(1, 1, 1, 2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    check(pointwise.swiglu, pointwise.swiglu_twin, (x, y), (gradient,))
    check(
        lambda x: pointwise.rotate(x, cos, sin),
        lambda x: pointwise.rotate_twin(x, cos.to(x.dtype), sin.to(x.dtype)),
        (x,),
        (gradient,),
    )


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 4, 2, 1024, 64), {}),
        ((2, 8, 8, 777, 128), {}),
        ((1, 9, 3, 2048, 64), {"window": 300}),
        ((1, 4, 1, 600, 128), {"softcap": 20.0}),
        ((1, 2, 2, 513, 256), {"causal": False}),
        ((2, 3, 1, 130, 40), {}),
        ((2, 4, 2, 500, 64), {"cu_seqlens": [0, 1, 1, 300, 500, 900, 1000]}),
    ],
)
def test_attention(shape, options, dtype):
    B, H, G, T, D = shape
    q, k, v = (rand(B, heads, T, D, dtype=dtype) for heads in (H, G, G))
    cu = options.get("cu_seqlens")
    cu = None if cu is None else torch.tensor(cu, dtype=torch.int32, device=DEVICE)
    given = {name: value for name, value in options.items() if name != "cu_seqlens"}

    def twin(q, k, v):
        return attention.attention_twin(
            q, k, v, cu, given.get("causal", True), D**-0.5, given.get("window", 0),
            given.get("softcap", 0.0),
        )[0]  # fmt: skip

    check(
        lambda q, k, v: attention.attention(q, k, v, cu_seqlens=cu, **given),
        twin,
        (q, k, v),
        (rand(B, H, T, D, dtype=dtype),),
    )


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_linear_cross_entropy(softcap, dtype):
    hidden, weight = rand(3000, 256, dtype=dtype), rand(49152, 256, dtype=dtype) / 16
    labels = torch.randint(49152, (3000,), device=DEVICE)
    labels[::7] = -100

    def whole(hidden, weight):
        logits = (hidden @ weight.t()).to(torch.promote_types(hidden.dtype, torch.float32))
        if softcap:
            logits = softcap * torch.tanh(logits / softcap)
        return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")

    check(
        lambda h, w: linear_cross_entropy.linear_cross_entropy(h, w, labels, softcap=softcap),
        whole,
        (hidden, weight),
        (torch.ones((), device=DEVICE),),
    )


@pytest.mark.parametrize("shape", [(1, 4096, 4096), (5, 576, 1536), (300, 1000, 520)])
def test_int8(shape, dtype):
    M, K, N = shape
    x = rand(M, K, dtype=dtype)
    weight, scale = int8.quantize_rows_twin(rand(N, K))
    rounded, x_scale = int8.quantize_rows(x)
    expected, expected_scale = int8.quantize_rows_twin(x)
    assert (rounded.int() - expected.int()).abs().max() <= 1  # a quotient rounded the other way
    torch.testing.assert_close(x_scale, expected_scale)
    exact = (rounded.double() @ weight.double().t()) * x_scale[:, None] * scale
    found = int8.w8a8_linear(rounded, x_scale, weight, scale, torch.float32)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)
    exact = (x.double() @ weight.double().t()) * scale
    off = (int8.w8a16_linear(x, weight, scale).double() - exact).norm() / exact.norm()
    assert off <= 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("rows", [1, 20, 200])
def test_int4(rows, dtype):
    x = rand(rows, 4096, dtype=dtype)
    packed, scale = int4.quantize_groups(rand(1000, 4096), 128)
    exact = x.double() @ int4.dequantize_groups(packed, scale).double().t()
    off = (int4.w4a16_linear(x, packed, scale).double() - exact).norm() / exact.norm()
    assert off <= 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("split_len", [0, 256])
@pytest.mark.parametrize("is_int8", [False, True])
def test_paged_attention(is_int8, split_len, dtype):
    H, G, D, P = 8, 2, 128, 16
    new, total = [1, 1, 300, 17], [1, 3000, 700, 17]
    counts = [-(-length // P) for length in total]
    pages = torch.randperm(sum(counts), device=DEVICE).int().split(counts)
    table = torch.nn.utils.rnn.pad_sequence(list(pages), batch_first=True)
    slots = sum(counts) * P
    cache = torch.zeros(
        slots, 2, G, D, dtype=torch.int8 if is_int8 else dtype, device=DEVICE
    )  # fmt: skip
    scale = torch.zeros(slots, 2, G, device=DEVICE) if is_int8 else None
    everywhere = torch.arange(slots, device=DEVICE)
    k, v = rand(2, slots, G, D, dtype=dtype)
    paged_attention.write_kv(cache, scale, everywhere, k, v)
    q = rand(sum(new), H, D, dtype=dtype)
    cu = torch.tensor([0, *torch.tensor(new).cumsum(0)], dtype=torch.int32, device=DEVICE)
    lens = torch.tensor(total, dtype=torch.int32, device=DEVICE)
    arguments = q, cache, scale, table.contiguous(), lens, cu
    found = paged_attention.paged_attention(*arguments, page_len=P, split_len=split_len)
    expected = paged_attention.paged_attention_twin(*arguments, P, 0, D**-0.5, 0, 0.0)
    assert (found - expected).double().norm() / expected.double().norm() <= 4 * torch.finfo(
        dtype
    ).eps


def test_sampling(dtype):
    logits = 3 * rand(64, 49152, dtype=dtype)
    ones = torch.ones(64, device=DEVICE)
    settings = ones, (50 * ones).int(), 0.9 * ones, 0.01 * ones, torch.rand(64, device=DEVICE)
    found, expected = sample_tokens(logits, *settings), sample_tokens_twin(logits, *settings)
    assert (found != expected).sum() <= 1  # a sum that meets the draw to the last bit


def test_adapters(dtype):
    adapter = torch.randint(-1, 4, (100,), device=DEVICE)
    x, down = rand(100, 4096, dtype=dtype), rand(4, 16, 4096, dtype=dtype)
    up, out = rand(4, 2000, 16, dtype=dtype), rand(100, 2000, dtype=dtype)
    expected = out.double()
    grouped, scale = group_by_adapter(adapter, 4), torch.rand(4, device=DEVICE)
    add_lora_twin(expected, x, down, up, scale, *grouped)
    add_lora_(out, x, down, up, scale, *grouped)
    assert (out - expected).norm() / expected.norm() <= 2 * torch.finfo(dtype).eps
