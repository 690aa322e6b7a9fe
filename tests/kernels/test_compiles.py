"""Every kernel compiles for Hopper and Ampere as it is launched there: no spills, tensor cores."""

import pytest
import torch

pytest.importorskip("triton")
from llmlab.kernels import (
    attention_triton,
    int4_triton,
    int8_triton,
    linear_cross_entropy_triton,
    lora_triton,
    norm_triton,
    paged_attention_triton,
    pointwise_triton,
    sample_triton,
)
from tests.kernels.compiled import SHARED_BYTES, Built, built_for

MOST_SPILLED = 64
"""Bytes a thread: a few registers kept in the nearest cache cost nothing that can be measured.
Not asked of float32, which no tensor core multiplies exactly: it has to run, not to be fast."""


@pytest.fixture(params=[90, pytest.param(80, marks=pytest.mark.slow)])
def gpu(request):
    """Return the compute capability to compile for."""
    return request.param


def check(found, gpu):
    assert found
    for kernel in found:
        assert kernel.shared_bytes <= SHARED_BYTES[gpu], kernel
        assert kernel.spilled_bytes <= MOST_SPILLED, kernel


def multiplies(kernel: Built, gpu: int) -> int:
    """Return how many products of the GPU's tensor cores a kernel has: of four warps on Hopper."""
    return kernel.wgmma if gpu == 90 else kernel.mma


def halves(*shape):
    return torch.zeros(shape, dtype=torch.bfloat16)


def test_norm_and_pointwise(gpu):
    x, weight = halves(64, 4096), halves(4096)
    with built_for(gpu) as found:
        _, scale = norm_triton.rms_norm(x, weight, 1e-5)
        norm_triton.add_rms_norm(x, x, weight, 1e-5)
        norm_triton.rms_norm_backward(x, x, weight, scale)
        pointwise_triton.swiglu(x, x)
        pointwise_triton.swiglu_backward(x, x, x)
        angles = torch.zeros(1, 1, 64, 128)
        pointwise_triton.rotate(halves(2, 8, 64, 128), angles, angles)
    assert len(found) == 6
    check(found, gpu)


WIDTHS = [16, 32, 64, 128, 256]


@pytest.mark.parametrize("options", [(None, True, 0.1, 0, 0.0), (None, True, 0.1, 512, 20.0)])
@pytest.mark.parametrize(
    "D", [D if D in (64, 128) else pytest.param(D, marks=pytest.mark.slow) for D in WIDTHS]
)
def test_attention(D, options, gpu):
    q, k = halves(1, 4, 4096, D), halves(1, 2, 4096, D)
    with built_for(gpu) as found:
        out, lse = attention_triton.attention_forward(q, k, k, *options)
        attention_triton.attention_backward(q, q, k, k, out, lse, *options)
    assert len(found) == 3
    check(found, gpu)
    assert all(multiplies(kernel, gpu) for kernel in found)


@pytest.mark.slow
@pytest.mark.parametrize("D", WIDTHS)
def test_attention_in_float32(D, gpu):
    q, k = torch.zeros(1, 4, 4096, D), torch.zeros(1, 2, 4096, D)
    options = None, True, 0.1, 512, 20.0
    with built_for(gpu) as found:
        out, lse = attention_triton.attention_forward(q, k, k, *options)
        attention_triton.attention_backward(q, q, k, k, out, lse, *options)
    assert all(kernel.shared_bytes <= SHARED_BYTES[gpu] for kernel in found)


@pytest.mark.slow
@pytest.mark.parametrize("D", WIDTHS)
@pytest.mark.parametrize("num_new", [1, 64])
def test_paged_attention_in_float32(D, num_new, gpu):
    q, cache = torch.zeros(8 * num_new, 8, D), torch.zeros(1024, 2, 2, D)
    table, lens = torch.zeros(8, 64, dtype=torch.int32), torch.zeros(8, dtype=torch.int32)
    with built_for(gpu) as found:
        paged_attention_triton.paged_attention(
            q, cache, None, table, lens, torch.arange(9).int() * num_new, 16, 256, 0.1, 0, 0.0
        )
    assert all(kernel.shared_bytes <= SHARED_BYTES[gpu] for kernel in found)


@pytest.mark.slow
def test_linear_layers_in_float32(gpu):
    weight, scale = torch.zeros(4096, 4096, dtype=torch.int8), torch.zeros(4096)
    packed, scales = torch.zeros(4096, 2048, dtype=torch.uint8), torch.zeros(4096, 64)
    with built_for(gpu) as found:
        for rows in (1, 64):
            int8_triton.w8a16_linear(torch.zeros(rows, 4096), weight, scale)
            int4_triton.w4a16_linear(torch.zeros(rows, 4096), packed, scales)
    assert all(kernel.shared_bytes <= SHARED_BYTES[gpu] for kernel in found)


@pytest.mark.slow
@pytest.mark.parametrize("D", [64, 128])
def test_attention_of_documents(D, gpu):
    q, k = halves(1, 4, 4096, D), halves(1, 2, 4096, D)
    options = torch.zeros(5, dtype=torch.int32), True, 0.1, 0, 0.0
    with built_for(gpu) as found:
        out, lse = attention_triton.attention_forward(q, k, k, *options)
        attention_triton.attention_backward(q, q, k, k, out, lse, *options)
    check(found, gpu)


def test_loss_and_sampling(gpu):
    row = torch.zeros(4)
    with built_for(gpu) as found:
        labels = torch.zeros(4, dtype=torch.int64)
        linear_cross_entropy_triton.cross_entropy(halves(4, 49152), labels, -100, 0.0, 0.0)
        sample_triton.sample_tokens(halves(4, 49152), row, row.int(), row, row, row)
    check(found, gpu)


def test_adapters(gpu):
    x, down, up = halves(64, 4096), halves(4, 16, 4096), halves(4, 4096, 16)
    rows, starts = torch.arange(64), torch.zeros(5, dtype=torch.int32)
    with built_for(gpu) as found:
        lora_triton.add_lora(halves(64, 4096), x, down, up, torch.ones(4), rows, starts)
    check(found, gpu)
    assert found[0].mma


def test_int8(gpu):
    weight, scale = torch.zeros(4096, 4096, dtype=torch.int8), torch.zeros(4096)
    with built_for(gpu) as found:
        for rows in (4096, 64):
            x, x_scale = int8_triton.quantize_rows(halves(rows, 4096))
            int8_triton.w8a8_linear(x, x_scale, weight, scale, torch.bfloat16)
        int8_triton.w8a16_linear(halves(1, 4096), weight, scale)
    check(found, gpu)
    names = [kernel.name for kernel in found]
    assert names == ["_quantize_rows_kernel", "_w8a8_kernel"] * 2 + ["_w8a16_kernel"]
    assert all(multiplies(kernel, gpu) for kernel in found if kernel.name == "_w8a8_kernel")
    assert found[-1].mma


def test_int4(gpu):
    packed, scale = torch.zeros(4096, 2048, dtype=torch.uint8), torch.zeros(4096, 64)
    with built_for(gpu) as found:
        int4_triton.w4a16_linear(halves(4, 4096), packed, scale)
    check(found, gpu)
    assert found[0].mma


@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize(
    ("D", "num_new"), [(64, 1), (128, 1), (128, 64), pytest.param(256, 1, marks=pytest.mark.slow)]
)
def test_paged_attention(D, num_new, is_int8, gpu):
    q, k = halves(8 * num_new, 8, D), halves(8 * num_new, 2, D)
    cache = torch.zeros(1024, 2, 2, D, dtype=torch.int8 if is_int8 else torch.bfloat16)
    scale = torch.zeros(1024, 2, 2) if is_int8 else None
    table, lens = torch.zeros(8, 64, dtype=torch.int32), torch.zeros(8, dtype=torch.int32)
    with built_for(gpu) as found:
        paged_attention_triton.write_kv(cache, scale, torch.zeros(len(k)).long(), k, k)
        paged_attention_triton.paged_attention(
            q, cache, scale, table, lens, torch.arange(9).int() * num_new, 16, 256, 0.1, 0, 0.0
        )
    assert len(found) == 3
    check(found, gpu)
    assert found[1].mma or found[1].wgmma
