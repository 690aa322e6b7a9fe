"""Find the fastest tiles on a GPU and write them into the table: `python -m llmlab.kernels.tune`.

    python -m llmlab.kernels.tune [--ops attention_forward,w8a8] [--out tiles.json]

Every candidate is compiled and timed at one typical size in bfloat16; one that does not fit the GPU
is left out. The rows of this GPU are replaced, all others stay. Commit the table afterwards: its
rows have to pass the tests that compile them.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from llmlab.kernels.bench.measure import gpu_times
from llmlab.kernels.int4 import quantize_groups, w4a16_linear
from llmlab.kernels.int8 import quantize_rows, w8a8_linear, w8a16_linear
from llmlab.kernels.paged_attention import paged_attention
from llmlab.kernels.tiles import TABLE, Row, device_name, on_trial, read_table, write_table

Run = Callable[[], object]

WIDTHS = (64, 128)
_ROUNDS = 15


def candidates(op: str) -> list[tuple[int, ...]]:
    """Return the tiles that are tried; their numbers are those of the operator's launcher."""
    blocks = {
        "attention_forward": ((64, 128), (32, 64, 128), (4, 8), (2, 3, 4)),
        "attention_backward_queries": ((64, 128), (32, 64, 128), (4, 8), (1, 2, 3)),
        "attention_backward_keys": ((32, 64, 128), (32, 64, 128), (4, 8), (1, 2, 3)),
        "paged_attention": ((32, 64, 128), (2, 4, 8), (2, 3, 4, 5)),
        "w8a8": ((128, 256), (128, 256), (64, 128), (4, 8), (3, 4)),
        "w8a8_few_rows": ((32, 64), (64, 128), (128, 256), (4, 8), (3, 4)),
        "w8a16": ((32, 64, 128), (128, 256, 512), (2, 4, 8), (3, 4, 5)),
        "w4a16": ((32, 64, 128), (32, 64, 128), (2, 4, 8)),
    }
    return list(itertools.product(*blocks[op]))


OPS = (
    "attention_forward",
    "attention_backward_queries",
    "attention_backward_keys",
    "paged_attention",
    "w8a8",
    "w8a8_few_rows",
    "w8a16",
    "w4a16",
)


def tune(
    device: torch.device,
    ops: Sequence[str] = OPS,
    *,
    is_small: bool = False,
    say: Callable[[str], object],
) -> list[Row]:
    """Time the candidates of some operators.

    Args:
        device: a GPU, or a CPU under Triton's interpreter.
        ops: which.
        is_small: tiny sizes and two candidates, to see that it works.
        say: takes a line for each choice.

    Returns:
        The fastest tile of each operator and width.
    """
    found: list[Row] = []
    for op in ops:
        tried = candidates(op)[:2] if is_small else candidates(op)
        for width, run in _tasks(op, device, is_small=is_small):
            times = {numbers: _ms(op, numbers, run, device) for numbers in tried}
            fitting = {numbers: ms for numbers, ms in times.items() if ms is not None}
            if not fitting:
                raise RuntimeError(f"none of {len(tried)} tiles of {op} fits this GPU")
            best = min(fitting, key=fitting.__getitem__)
            say(f"{op} {width or ''}: {list(best)} {fitting[best]:.3f} ms, {len(fitting)} tried")
            found.append(
                Row(
                    op=op,
                    device=device_name(device),
                    dtype="bfloat16",
                    width=width,
                    tile=list(best),
                )
            )
    return found


def _ms(op: str, numbers: tuple[int, ...], run: Run, device: torch.device) -> float | None:
    """Return the time of a tile; None where it does not fit."""
    from triton.runtime.errors import OutOfResources  # noqa: PLC0415  (a GPU's tool has Triton)

    with on_trial(op, numbers):
        try:
            run()
        except (OutOfResources, RuntimeError):
            return None
        if device.type != "cuda":
            return 0.0
        return gpu_times({"it": lambda _: run()}, _ROUNDS)["it"].median


def _tasks(op: str, device: torch.device, *, is_small: bool) -> Iterator[tuple[int, Run]]:
    """Make what runs an operator, for each width its tiles depend on; 0 where on none."""

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=torch.bfloat16)

    def size(large: int, small: int) -> int:
        return small if is_small else large

    if op.startswith("attention"):
        for D in WIDTHS:
            yield D, _attention(op, rand, size(4, 1), size(2048 // D, 2), size(4096, 20), D)
    elif op == "paged_attention":
        for D in WIDTHS:
            yield D, _pages(rand, size(16, 1), size(8192, 40), D)
    else:
        yield 0, _linear(op, rand, size(4096, 64))


def _attention(op: str, rand: Callable[..., Tensor], B: int, H: int, T: int, D: int) -> Run:
    q, k, v, d_out = (rand(B, H, T, D) for _ in range(4))
    options = None, True, D**-0.5, 0, 0.0
    forward = torch.ops.llmlab.attention.default
    if op == "attention_forward":
        return lambda: forward(q, k, v, *options)
    out, lse = forward(q, k, v, *options)
    backward = torch.ops.llmlab.attention_backward.default
    return lambda: backward(d_out, q, k, v, out, lse, *options)


def _pages(rand: Callable[..., Tensor], B: int, L: int, D: int) -> Run:
    H, G, P = 32, 8, 16
    num_pages = -(-L // P)
    q, cache = rand(B, H, D), rand(B * num_pages * P, 2, G, D)
    table = torch.randperm(B * num_pages, device=q.device).int().view(B, num_pages)
    lens = torch.full((B,), L, dtype=torch.int32, device=q.device)
    cu_new = torch.arange(B + 1, dtype=torch.int32, device=q.device)
    return lambda: paged_attention(q, cache, None, table, lens, cu_new, page_len=P)


def _linear(op: str, rand: Callable[..., Tensor], K: int) -> Run:
    plain = rand(K, K)
    if op == "w4a16":
        x, packed, scales = rand(1, K), *quantize_groups(plain)
        return lambda: w4a16_linear(x, packed, scales)
    weight, scale = quantize_rows(plain)
    if op == "w8a16":
        x = rand(1, K)
        return lambda: w8a16_linear(x, weight, scale)
    rows, x_scale = quantize_rows(rand(K if op == "w8a8" else min(128, K), K))
    return lambda: w8a8_linear(rows, x_scale, weight, scale, torch.bfloat16)


def main(words: Sequence[str]) -> None:
    """Tune on this machine's GPU."""
    parser = argparse.ArgumentParser(prog="python -m llmlab.kernels.tune", description=__doc__)
    parser.add_argument("--ops", default=",".join(OPS), help="operators, with commas between")
    parser.add_argument("--out", type=Path, default=TABLE, help="the table to write")
    flags = parser.parse_args(words)
    unknown = [op for op in flags.ops.split(",") if op not in OPS]
    if unknown:
        parser.error(f"no operator {unknown[0]!r} has tiles; they are {', '.join(OPS)}")
    if not torch.cuda.is_available():
        parser.error("tiles are tuned on a GPU, and there is none")
    found = tune(torch.device("cuda"), flags.ops.split(","), say=print)
    replaced = {(row["op"], row["device"], row["dtype"], row["width"]) for row in found}
    kept = [
        row
        for row in read_table()
        if (row["op"], row["device"], row["dtype"], row["width"]) not in replaced
    ]
    write_table(kept + found, flags.out)


if __name__ == "__main__":
    main(sys.argv[1:])
