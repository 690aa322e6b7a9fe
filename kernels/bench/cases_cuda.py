"""What is measured on a GPU: attention, pages, norms, the loss, quantised products, sampling."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from llmlab.kernels.attention import attention
from llmlab.kernels.bench.measure import Case, Task
from llmlab.kernels.int4 import quantize_groups, w4a16_linear
from llmlab.kernels.int8 import quantize_rows, w8a8_linear, w8a16_linear
from llmlab.kernels.linear_cross_entropy import linear_cross_entropy
from llmlab.kernels.lora import add_lora_, add_lora_twin, group_by_adapter
from llmlab.kernels.norm import rms_norm
from llmlab.kernels.paged_attention import paged_attention
from llmlab.kernels.pointwise import rotate, swiglu
from llmlab.kernels.sample import sample_tokens, sample_tokens_twin

_BACKENDS = {"SDPA flash": SDPBackend.FLASH_ATTENTION, "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION}


class CudaCases:
    """The cases of a GPU; on a CPU, small, under Triton's interpreter, to see that they run.

    Args:
        device: where.
        is_small: makes all sizes tiny.
    """

    def __init__(self, device: torch.device, *, is_small: bool = False) -> None:
        self._device, self._is_small = device, is_small

    def __iter__(self) -> Iterator[Case]:
        """Make the cases one by one, so that one's memory is free for the next."""
        for D in (64, 128):
            for T in self._sizes((4096, 8192, 16384), 32):
                yield from self._attention(T, D)
        for B, L in [(2, 40)] if self._is_small else [(8, 8192), (64, 2048), (1, 65536)]:
            yield from self._paged(B, L)
        for E in self._sizes((1024, 4096), 64):
            yield from self._norm(self._size(16384, 8), E)
        yield from self._pointwise()
        yield self._loss()
        yield from self._int8()
        yield self._int4()
        yield self._sampling()
        yield self._adapters()

    def _sizes(self, large: tuple[int, ...], small: int) -> tuple[int, ...]:
        return (small,) if self._is_small else large

    def _size(self, large: int, small: int) -> int:
        return small if self._is_small else large

    def _rand(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self._device, dtype=torch.bfloat16)

    def _compiled(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return function if self._is_small else torch.compile(function)

    def _attention(self, T: int, D: int) -> Iterator[Case]:
        B, H = max(1, 16384 // T) if not self._is_small else 1, self._size(2048 // D, 2)
        q, k, v, d_out = (self._rand(B, H, T, D) for _ in range(4))
        for x in (q, k, v):
            x.requires_grad_()
        shape, products = f"B={B} H={H} T={T} D={D} causal", 2 * B * H * T * T * D

        def with_backend(backend: SDPBackend) -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True)

        def without_gradient(run: Callable[[], Tensor]) -> Task:
            def task(_: int) -> None:
                with torch.no_grad():
                    run()

            return task

        def backward(run: Callable[[], Tensor]) -> Task:
            kept: list[Tensor] = []

            def task(_: int) -> None:
                if not kept:
                    kept.append(run())
                torch.autograd.grad(kept[0], (q, k, v), d_out, retain_graph=True)

            return task

        yield Case(
            "attention, forward",
            shape,
            without_gradient(lambda: attention(q, k, v)),
            {
                name: without_gradient(lambda backend=backend: with_backend(backend))
                for name, backend in _BACKENDS.items()
            },
            num_flops=products,
        )
        yield Case(
            "attention, backward",
            shape,
            backward(lambda: attention(q, k, v)),
            {
                name: backward(lambda backend=backend: with_backend(backend))
                for name, backend in _BACKENDS.items()
            },
            num_flops=5 * products // 2,
        )

    def _paged(self, B: int, L: int) -> Iterator[Case]:
        H, G, D, P = 32, 8, self._size(128, 16), 16
        pages = -(-L // P)
        table = torch.randperm(B * pages, device=self._device).int().view(B, pages)
        lens = torch.full((B,), L, dtype=torch.int32, device=self._device)
        cu_new = torch.arange(B + 1, dtype=torch.int32, device=self._device)
        q, cache = self._rand(B, H, D), self._rand(B * pages * P, 2, G, D)
        int8 = torch.randint(-127, 128, cache.shape, dtype=torch.int8, device=self._device)
        scale = torch.rand(cache.shape[:3], device=self._device)
        shape = f"B={B} L={L} H={H} G={G} D={D}"

        def plain(_: int) -> Tensor:
            return paged_attention(q, cache, None, table, lens, cu_new, page_len=P)

        yield Case("paged_attention", shape, plain, num_bytes=4 * B * L * G * D)
        yield Case(
            "paged_attention int8",
            shape,
            lambda _: paged_attention(q, int8, scale, table, lens, cu_new, page_len=P),
            {"bf16 keys and values": plain},
            num_bytes=2 * B * L * G * (D + 4),
        )

    def _norm(self, rows: int, E: int) -> Iterator[Case]:
        x, weight, d_out = self._rand(rows, E), self._rand(E), self._rand(rows, E)
        x.requires_grad_()
        weight.requires_grad_()
        shape, moved = f"{rows} x {E}", 2 * rows * E

        def plain(x: Tensor, weight: Tensor) -> Tensor:
            return F.rms_norm(x, (E,), weight, 1e-6)

        ways = {"F.rms_norm": plain, "torch.compile": self._compiled(plain)}

        def backward(run: Callable[..., Tensor]) -> Task:
            kept: list[Tensor] = []

            def task(_: int) -> None:
                if not kept:
                    kept.append(run(x, weight))
                torch.autograd.grad(kept[0], (x, weight), d_out, retain_graph=True)

            return task

        def ours(x: Tensor, weight: Tensor) -> Tensor:
            return rms_norm(x, weight, 1e-6)

        a, b = x.detach(), weight.detach()
        yield Case(
            "rms_norm, forward",
            shape,
            lambda _: ours(a, b),
            {name: lambda _, way=way: way(a, b) for name, way in ways.items()},
            num_bytes=2 * moved,
        )
        yield Case(
            "rms_norm, backward",
            shape,
            backward(ours),
            {name: backward(way) for name, way in ways.items()},
            num_bytes=3 * moved,
        )

    def _pointwise(self) -> Iterator[Case]:
        rows, width = self._size(16384, 8), self._size(8192, 64)
        gate, up = self._rand(rows, width), self._rand(rows, width)

        def plain(gate: Tensor, up: Tensor) -> Tensor:
            return F.silu(gate) * up

        compiled = self._compiled(plain)
        yield Case(
            "swiglu",
            f"{rows} x {width}",
            lambda _: swiglu(gate, up),
            {"eager": lambda _: plain(gate, up), "torch.compile": lambda _: compiled(gate, up)},
            num_bytes=6 * rows * width,
        )
        B, H, T, D = 4, self._size(32, 2), self._size(4096, 8), 128
        x = self._rand(B, H, T, D)
        angles = torch.rand(1, 1, T, D, device=self._device)
        cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
        yield Case(
            "rotate",
            f"B={B} H={H} T={T} D={D}",
            lambda _: rotate(x, cos, sin),
            num_bytes=4 * x.numel(),
        )

    def _loss(self) -> Case:
        T, E, V = self._size(16384, 8), self._size(2048, 32), self._size(49152, 100)
        states, head = self._rand(T, E).requires_grad_(), self._rand(V, E) / E**0.5
        head.requires_grad_()
        labels = torch.randint(V, (T,), device=self._device)

        def plain(states: Tensor, head: Tensor) -> Tensor:
            return F.cross_entropy(F.linear(states, head).float(), labels)

        compiled = self._compiled(plain)

        def both_ways(run: Callable[..., Tensor]) -> Task:
            return lambda _: torch.autograd.grad(run(states, head), (states, head))

        return Case(
            "linear_cross_entropy, both ways",
            f"T={T} E={E} V={V}",
            both_ways(lambda states, head: linear_cross_entropy(states, head, labels)),
            {"eager": both_ways(plain), "torch.compile": both_ways(compiled)},
            num_flops=6 * T * E * V,
        )

    def _int8(self) -> Iterator[Case]:
        K = N = self._size(4096, 64)
        plain = self._rand(N, K)
        weight, scale = quantize_rows(plain)
        for M in self._sizes((2048, 4096, 8192), 32):
            x = self._rand(M, K)
            rows, x_scale = quantize_rows(x)
            shape, flops = f"M={M} K={K} N={N}", 2 * M * N * K
            yield Case(
                "quantize_rows + w8a8_linear",
                shape,
                lambda _, x=x: w8a8_linear(*quantize_rows(x), weight, scale, torch.bfloat16),
                {
                    "F.linear bf16": lambda _, x=x: F.linear(x, plain),
                    "_int_mm alone": lambda _, rows=rows: torch._int_mm(rows, weight.t()),
                },
                num_flops=flops,
            )
            yield Case(
                "w8a8_linear",
                shape,
                lambda _, rows=rows, x_scale=x_scale: w8a8_linear(
                    rows, x_scale, weight, scale, torch.bfloat16
                ),
                {"_int_mm alone": lambda _, rows=rows: torch._int_mm(rows, weight.t())},
                num_flops=flops,
            )
        for M in (1, 4, 16):
            x = self._rand(M, K)
            yield Case(
                "w8a16_linear",
                f"M={M} K={K} N={N}",
                lambda _, x=x: w8a16_linear(x, weight, scale),
                {"F.linear bf16": lambda _, x=x: F.linear(x, plain)},
                num_bytes=N * K + 2 * M * (N + K),
            )

    def _int4(self) -> Case:
        K = N = self._size(4096, 64)
        x, plain = self._rand(1, K), self._rand(N, K)
        packed, scale = quantize_groups(plain)
        return Case(
            "w4a16_linear",
            f"M=1 K={K} N={N}",
            lambda _: w4a16_linear(x, packed, scale),
            {"F.linear bf16": lambda _: F.linear(x, plain)},
            num_bytes=N * K // 2 + 4 * N * K // 32 + 2 * (N + K),
        )

    def _sampling(self) -> Case:
        B, V = self._size(64, 2), self._size(151936, 100)
        logits = self._rand(B, V).float()
        each = torch.ones(B, device=self._device)
        settings = (each, 50 * each.int(), 0.9 * each, 0.05 * each, 0.5 * each)
        return Case(
            "sample_tokens",
            f"B={B} V={V} top-k 50, top-p 0.9, min-p 0.05",
            lambda _: sample_tokens(logits, *settings),
            {"by sorting": lambda _: sample_tokens_twin(logits, *settings)},
            num_bytes=4 * B * V,
        )

    def _adapters(self) -> Case:
        N, E, R, A = self._size(64, 4), self._size(4096, 32), 16, 8
        x, out = self._rand(N, E), self._rand(N, E)
        down, up = self._rand(A, R, E), self._rand(A, E, R)
        scale = torch.ones(A, device=self._device)
        rows, starts = group_by_adapter(torch.arange(N, device=self._device) % A, A)
        return Case(
            "add_lora_",
            f"N={N} E={E} rank {R}, {A} adapters",
            lambda _: add_lora_(out, x, down, up, scale, rows, starts),
            {"one by one": lambda _: add_lora_twin(out, x, down, up, scale, rows, starts)},
            num_bytes=2 * A * R * 2 * E + 6 * N * E,
        )
