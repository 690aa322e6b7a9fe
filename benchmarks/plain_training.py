"""A plain PyTorch training loop, the baseline of train.py: what one writes in an afternoon.

The same decoder as llmlab's default (RMSNorm, rotary positions, norm of q and k, grouped queries,
SwiGLU, tied head), float32, eager, full logits, torch's own AdamW, batches cut at random places.
Nothing of llmlab is imported, so that nothing of it can speed this up or slow it down.

    python -m benchmarks.plain_training TOKENS.bin --shape '{"layers": 4, ...}' --seconds 20
"""

import argparse
import json
import math
import resource
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Attention and feed-forward, each added back."""

    def __init__(self, width: int, heads: int, kv_heads: int, ffn: int) -> None:
        super().__init__()
        self.size, self.heads, self.kv_heads = width // heads, heads, kv_heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, kv_heads * self.size, bias=False)
        self.v = nn.Linear(width, kv_heads * self.size, bias=False)
        self.o = nn.Linear(width, width, bias=False)
        self.q_norm, self.k_norm = nn.RMSNorm(self.size), nn.RMSNorm(self.size)
        self.gate = nn.Linear(width, ffn, bias=False)
        self.up = nn.Linear(width, ffn, bias=False)
        self.down = nn.Linear(ffn, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        B, T, C = x.shape
        h = self.norm1(x)
        q = self.q_norm(self.q(h).view(B, T, self.heads, self.size)).transpose(1, 2)
        k = self.k_norm(self.k(h).view(B, T, self.kv_heads, self.size)).transpose(1, 2)
        v = self.v(h).view(B, T, self.kv_heads, self.size).transpose(1, 2)
        y = F.scaled_dot_product_attention(
            _rotate(q, cos, sin), _rotate(k, cos, sin), v, is_causal=True, enable_gqa=True
        )
        x = x + self.o(y.transpose(1, 2).reshape(B, T, C))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class GPT(nn.Module):
    """The whole model."""

    def __init__(self, shape: dict[str, int]) -> None:
        super().__init__()
        width, heads = shape["width"], shape["heads"]
        self.embed = nn.Embedding(shape["vocab"], width)
        self.blocks = nn.ModuleList(
            Block(width, heads, shape["kv_heads"], shape["ffn"]) for _ in range(shape["layers"])
        )
        self.norm = nn.RMSNorm(width)
        size = width // heads
        rates = 10_000.0 ** (-torch.arange(0, size, 2) / size)
        angles = torch.arange(shape["context"])[:, None] * rates  # (T, D/2)
        self.register_buffer("cos", torch.cat([angles, angles], -1).cos())
        self.register_buffer("sin", torch.cat([angles, angles], -1).sin())
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of (B, T) targets."""
        x = self.embed(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, cos, sin)
        logits = F.linear(self.norm(x), self.embed.weight)
        return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.flatten())


def train(tokens: np.ndarray, shape: dict[str, int], seconds: float) -> dict[str, Any]:
    """Train for a while and return the rate after the first tenth of the time, and the memory."""
    torch.manual_seed(0)
    model = GPT(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    B, T = shape["batch"], shape["context"]
    rates, loss = [], math.nan
    began_s = time.perf_counter()
    while time.perf_counter() - began_s < seconds:
        step_s = time.perf_counter()
        places = torch.randint(len(tokens) - T - 1, (B,)).tolist()
        rows = np.stack([tokens[at : at + T + 1] for at in places]).astype(np.int64)
        batch = torch.from_numpy(rows)
        loss_tensor = model(batch[:, :-1], batch[:, 1:])
        optimizer.zero_grad(set_to_none=True)
        loss_tensor.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss = float(loss_tensor.detach())
        rates.append(B * T / (time.perf_counter() - step_s))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": len(rates),
        "loss": loss,
        "tok_per_s": float(np.median(rates[len(rates) // 10 :])),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], -1) * sin


def main() -> None:
    """Train on a file of token ids and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tokens", help="file of uint16 token ids")
    parser.add_argument("--shape", type=json.loads, required=True)
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()
    tokens = np.memmap(args.tokens, np.uint16, mode="r")
    print(json.dumps(train(tokens, args.shape, args.seconds)))


if __name__ == "__main__":
    main()
