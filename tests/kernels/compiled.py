"""Compile kernels for a GPU that is not there: what a launcher would launch.

Triton's wheel brings NVIDIA's assembler. Registers that do not fit, shared memory that overflows
and products that miss the tensor cores show without a GPU.
"""

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from llmlab.kernels import tiles

SHARED_BYTES = {90: 227 * 1024, 80: 163 * 1024}
"""Most shared memory of a block by compute capability: Hopper's and Ampere's (A100)."""

_TYPES = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int8: "*i8",
    torch.uint8: "*u8", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip


@dataclass(frozen=True)
class Built:
    """A kernel as the GPU would run it."""

    name: str
    shared_bytes: int
    """Shared memory of a block of threads."""

    spilled_bytes: int
    """Stack of a thread: what did not fit into its registers."""

    wgmma: int
    """Products of a group of four warps, Hopper's own."""

    mma: int
    """Products of one warp."""


@contextlib.contextmanager
def built_for(capability: int) -> Iterator[list[Built]]:
    """Compile what is launched inside, instead of running it, with that GPU's tiles."""
    target = GPUTarget("cuda", capability, 32)
    found: list[Built] = []

    def run(
        self: JITFunction, *arguments: Any, grid: Any, warmup: bool, num_warps: int = 4,
        num_stages: int = 3, **named: Any,
    ) -> None:  # fmt: skip
        values = dict(zip(self.arg_names, arguments, strict=False)) | named
        options = {"num_warps": num_warps, "num_stages": num_stages}
        source = ASTSource(self, *_specialised(self, values))
        kernel = triton.compile(source, target=target, options=options)
        ptx = kernel.asm["ptx"]
        found.append(
            Built(
                name=self.fn.__name__,
                shared_bytes=kernel.metadata.shared,
                spilled_bytes=_stack(kernel.asm["cubin"]),
                wgmma=ptx.count("wgmma.mma_async"),
                mma=ptx.count("mma.sync"),
            )
        )

    with (
        patch.object(JITFunction, "run", run),
        patch.object(tiles, "device_name", lambda device: f"sm_{capability}"),
    ):
        yield found


def _specialised(
    function: JITFunction, values: dict[str, Any]
) -> tuple[dict[str, str], dict[tuple[int, ...], Any], dict[tuple[int, ...], Any]]:
    """Return types, constants and known divisors of the arguments, as Triton works them out."""
    types: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for parameter in function.params:
        value, place = values[parameter.name], (parameter.num,)
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            types[parameter.name], constants[place] = "constexpr", value
        elif isinstance(value, Tensor):
            types[parameter.name] = _TYPES[value.dtype]
            attributes[place] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            types[parameter.name] = "fp32"
        else:
            types[parameter.name] = "i32"
            if value % 16 == 0:
                attributes[place] = [["tt.divisibility", 16]]
    return types, constants, attributes


def _stack(cubin: bytes) -> int:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"STACK:(\d+)", said)
    assert found is not None, said
    return int(found[1])
