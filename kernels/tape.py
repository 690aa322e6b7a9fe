"""A tape of native calls: what a model does once on a CPU, to be done again in one call.

For a small model the time between operators is most of a step. A tape is to a CPU what a CUDA graph
is to a GPU: it is recorded from the model's own code, and runs again on the numbers that then lie
in the same memory. Only native functions can be recorded; views need not be, and a few operations
of PyTorch are written down as the native function that does the same. Anything else is refused, so
that nothing is left out in silence.
"""

import ctypes
import functools
import math
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llmlab.kernels import pointwise_native
from llmlab.kernels.native import Recorder, function_of, recorder

Result = TypeVar("Result")
_LINE = 64


class NotRecordable(Exception):
    """An operation that is no native function was met while recording."""


class Tape:
    """The calls of one run. `record` makes it; it keeps the memory its calls write to."""

    def __init__(self, calls: list[tuple[int, bytes]], memory: "TapeMemory") -> None:
        self._words = [words for _, words in calls]
        self._memory = memory
        self._calls = (ctypes.c_void_p * (2 * len(calls)))()
        for at, (function, words) in enumerate(calls):
            self._calls[2 * at] = function
            self._calls[2 * at + 1] = ctypes.cast(ctypes.c_char_p(words), ctypes.c_void_p).value
        run = function_of("run_tape", "pi")
        assert run is not None, "calls were recorded, so there is a library"
        self._run = run

    def __len__(self) -> int:
        return len(self._words)

    def run(self) -> None:
        """Do all of it again."""
        self._run(ctypes.addressof(self._calls), len(self))


def record(
    function: Callable[[], Result], memory: "TapeMemory | None" = None
) -> tuple[Tape, Result]:
    """Run a function and write down its native calls.

    Args:
        function: reads and writes memory that outlives the tape.
        memory: for what lies between; tapes that never run at the same time can share one.

    Returns:
        The tape, and what the function returned: a run of the tape changes these same tensors.

    Raises:
        NotRecordable: it does something that is no native call.
    """
    calls = _Calls(memory or TapeMemory())
    token = recorder.set(calls)
    try:
        with _OnlyNative():
            result = function()
    finally:
        recorder.reset(token)
    return Tape(calls.calls, calls.memory), result


class TapeMemory:
    """Memory for results, used again once nobody refers to a result any more."""

    def __init__(self) -> None:
        self._free: dict[int, list[bytearray]] = {}

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a dense tensor whose numbers are not set."""
        count = math.prod(shape)
        num_bytes = 1 << (max(count * dtype.itemsize, _LINE) - 1).bit_length()
        free = self._free.setdefault(num_bytes, [])
        store = free.pop() if free else bytearray(num_bytes + _LINE)
        start = -ctypes.addressof(ctypes.c_char.from_buffer(store)) % _LINE
        block = _block(num_bytes).from_buffer(store, start)
        # The tensor's storage holds the block, through views too, and lets go of it in the end.
        weakref.finalize(block, free.append, store)
        return torch.frombuffer(block, dtype=dtype)[:count].view(shape)


@functools.cache
def _block(num_bytes: int) -> type:
    return type("Block", (ctypes.c_uint8 * num_bytes,), {})


class _Calls(Recorder):
    """The calls as they come."""

    def __init__(self, memory: TapeMemory) -> None:
        self.calls: list[tuple[int, bytes]] = []
        self.memory = memory

    def called(self, address: int, words: bytes) -> None:
        self.calls.append((address, words))

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self.memory.tensor(shape, dtype)


class _OnlyNative(TorchDispatchMode):
    """Lets views pass, does some operations natively, and refuses every other one."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.is_view or func in _HARMLESS:
            return func(*args, **(kwargs or {}))
        native = _NATIVE.get(func)
        found = native(*args) if native and not kwargs else NotImplemented
        if found is NotImplemented:
            raise NotRecordable(f"{func} is no native call")
        return found


_HARMLESS = {torch.ops.aten.detach.default, torch.ops.aten.promote_types.default}
_NATIVE: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.add.Tensor: pointwise_native.add,
    torch.ops.aten.embedding.default: lambda table, ids, *_: pointwise_native.embed(table, ids),
}
