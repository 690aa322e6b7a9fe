"""What is measured on a CPU: decoding's linear layers, attention over pages, the loss."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.kernels.bench.measure import Case
from llmlab.kernels.int4 import quantize_groups, w4a16_linear
from llmlab.kernels.int8 import int8_linear, quantize_rows
from llmlab.kernels.linear_cross_entropy import linear_cross_entropy
from llmlab.kernels.norm import rms_norm
from llmlab.kernels.packed_linear import PackedLinear, can_pack
from llmlab.kernels.paged_attention import paged_attention
from llmlab.kernels.pointwise import swiglu

_COLD_BYTES = 2**28
"""Of weights or pages that take turns, so that none is in a cache when its turn comes."""


def cpu_cases(*, is_small: bool = False) -> Iterator[Case]:
    """Make the cases one by one; small ones show that they run."""
    sizes = [(576, 1536), (1536, 1536), (4096, 4096)]
    for K, N in [(64, 128)] if is_small else sizes:
        yield from _linear(K, N, 2 if is_small else _copies(2 * K * N))
    yield from _paged(B=2, L=40) if is_small else _paged(B=8, L=1024)
    if not is_small:
        yield from _paged(B=1, L=4096)
        yield from _paged(B=32, L=300)
    yield _prompt(64 if is_small else 512)
    yield _loss(*(8, 64, 100) if is_small else (1024, 576, 49152))
    yield from _pointwise(*(4, 64) if is_small else (512, 1536))


def _linear(K: int, N: int, copies: int) -> Iterator[Case]:
    plain = [torch.randn(N, K).bfloat16() for _ in range(copies)]
    packed = [torch.ops.mkldnn._reorder_linear_weight(w, 16) for w in plain]
    ours = [PackedLinear(w) for w in plain] if can_pack(plain[0]) else []
    ours_int8 = [PackedLinear(w, scheme="int8") for w in plain] if ours else []
    int8 = [quantize_rows(w) for w in plain]
    int4 = [quantize_groups(w) for w in plain]
    scales = [scale.bfloat16() for _, scale in int8]
    for M in (1, 4, 8, 16, 64):
        x = torch.randn(M, K).bfloat16()
        baselines = {
            "oneDNN packed bf16": lambda i, x=x: _onednn(x, packed[i % copies]),
            "F.linear bf16": lambda i, x=x: F.linear(x, plain[i % copies]),
        }
        if M <= 16:
            baselines["_weight_int8pack_mm"] = lambda i, x=x: torch._weight_int8pack_mm(
                x, int8[i % copies][0], scales[i % copies]
            )
        for name, layers in (("PackedLinear", ours), ("PackedLinear int8", ours_int8)):
            if layers:
                yield Case(
                    name,
                    f"M={M} K={K} N={N}",
                    lambda i, x=x, layers=layers: layers[i % copies](x),
                    baselines,
                    num_bytes=N * K * layers[0].weight.itemsize + 2 * M * (N + K),
                    num_flops=2 * M * N * K if M > 16 else 0,
                )
        yield Case(
            "int8_linear",
            f"M={M} K={K} N={N}",
            lambda i, x=x: int8_linear(x, *int8[i % copies]),
            baselines,
            num_bytes=N * K + 2 * M * (N + K),
            num_flops=2 * M * N * K if M > 16 else 0,
        )
        if M == 1:
            yield Case(
                "w4a16_linear",
                f"M={M} K={K} N={N}",
                lambda i, x=x: w4a16_linear(x, *int4[i % copies]),
                {
                    "oneDNN packed bf16": lambda i, x=x: _onednn(x, packed[i % copies]),
                    "int8_linear": lambda i, x=x: int8_linear(x, *int8[i % copies]),
                },
                num_bytes=N * K // 2 + 4 * N * K // 32 + 2 * M * (N + K),
            )


def _onednn(x: Tensor, packed: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


def _paged(B: int, L: int) -> Iterator[Case]:
    H, G, D, P = 9, 3, 64, 16
    num_pages = -(-L // P)
    table = torch.randperm(B * num_pages, dtype=torch.int32).view(B, num_pages)
    lens, cu_new = torch.full((B,), L, dtype=torch.int32), torch.arange(B + 1, dtype=torch.int32)
    q = torch.randn(B, H, D).bfloat16()
    first = torch.randn(B * num_pages * P, 2, G, D).bfloat16()
    copies = _copies(2 * first.numel())
    caches = [first.clone() for _ in range(copies)]

    def attend(cache: Tensor, scale: Tensor | None = None) -> Tensor:
        return paged_attention(q, cache, scale, table, lens, cu_new, page_len=P)

    def gathered(cache: Tensor) -> Tensor:
        pages = cache.view(-1, P, 2, G, D)[table.long()]  # (B, pages, P, 2, G, D)
        k, v = pages.flatten(1, 2)[:, :L].permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q[:, :, None], k, v, enable_gqa=True)

    int8 = [torch.randint(-127, 128, first.shape, dtype=torch.int8) for _ in caches]
    scale = torch.rand(first.shape[:3])
    shape = f"B={B} L={L} H={H} G={G} D={D}"
    yield Case(
        "paged_attention",
        shape,
        lambda i: attend(caches[i % copies]),
        {"gather + SDPA": lambda i: gathered(caches[i % copies])},
        num_bytes=4 * B * L * G * D,
    )
    yield Case(
        "paged_attention int8",
        shape,
        lambda i: attend(int8[i % copies], scale),
        {"bf16 keys and values": lambda i: attend(caches[i % copies])},
        num_bytes=2 * B * L * G * (D + 4),
    )


def _copies(num_bytes: int) -> int:
    return max(2, _COLD_BYTES // num_bytes)


def _prompt(T: int) -> Case:
    H, G, D, P = 9, 3, 64, 16
    table = torch.arange(T // P, dtype=torch.int32)[None]
    lens, cu_new = torch.tensor([T], dtype=torch.int32), torch.tensor([0, T], dtype=torch.int32)
    q, cache = torch.randn(T, H, D).bfloat16(), torch.randn(T, 2, G, D).bfloat16()
    wide, (k, v) = q.transpose(0, 1)[None], cache.permute(1, 2, 0, 3)[:, None]
    return Case(
        "paged_attention, a prompt",
        f"T={T} H={H} G={G} D={D}",
        lambda _: paged_attention(q, cache, None, table, lens, cu_new, page_len=P),
        {
            "SDPA without pages": lambda _: F.scaled_dot_product_attention(
                wide, k, v, is_causal=True, enable_gqa=True
            )
        },
        num_flops=2 * T * T * H * D,
    )


def _loss(T: int, E: int, V: int) -> Case:
    states = torch.randn(T, E).bfloat16().requires_grad_()
    head = (torch.randn(V, E) / E**0.5).bfloat16().requires_grad_()
    labels = torch.randint(V, (T,))

    def plain(_: int) -> None:
        F.cross_entropy(F.linear(states, head).float(), labels).backward()

    return Case(
        "linear_cross_entropy, both ways",
        f"T={T} E={E} V={V}",
        lambda _: linear_cross_entropy(states, head, labels).backward(),
        {"F.linear, F.cross_entropy": plain},
        num_flops=6 * T * E * V,
    )


def _pointwise(rows: int, width: int) -> Iterator[Case]:
    x, up = (torch.randn(rows, width).bfloat16() for _ in range(2))
    weight = torch.ones(width).bfloat16()
    moved = 2 * rows * width
    yield Case(
        "rms_norm",
        f"{rows} x {width}",
        lambda _: rms_norm(x, weight, 1e-6),
        {"F.rms_norm": lambda _: F.rms_norm(x, (width,), weight, 1e-6)},
        num_bytes=2 * moved,
    )
    yield Case(
        "swiglu",
        f"{rows} x {width}",
        lambda _: swiglu(x, up),
        {"F.silu(gate) * up": lambda _: F.silu(x) * up},
        num_bytes=3 * moved,
    )
    yield Case(
        "quantize_rows",
        f"{rows} x {width}",
        lambda _: quantize_rows(x),
        num_bytes=moved + rows * width,
    )
