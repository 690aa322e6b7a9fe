"""What processes that compute one model together say to one another.

Two ways. Commands, a few whole numbers each, go from the first process to each of the others by a
pipe, in which one can wait for as long as there is no work. Tensors go between all of them by
collectives: gloo over the loopback interface between CPUs, NCCL between GPUs.
Not here: who starts whom (tensor_parallel.py), what is computed (rank_worker.py).
"""

import struct
from datetime import timedelta
from enum import IntEnum
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE_S = 60
"""Seconds that a process waits in a collective for the others before it gives up."""

_HEADER = struct.Struct("<BQ")


class Command(IntEnum):
    """What the first process asks for, and what goes with it."""

    STOP = 0  # end
    CONNECT = 1  # join the group, first of all
    STEP = 2  # compute the states of some tokens; `StepInputs.sizes`, whose tensors follow
    LOGITS = 3  # take part in the head's product; the number of rows
    COPY = 4  # copy pages of the cache; from, to, from, to ...


def write_command(stream: IO[bytes], command: Command, *numbers: int) -> None:
    """Write one command.

    Raises:
        BrokenPipeError: nobody reads any more.
    """
    stream.write(_HEADER.pack(command, len(numbers)) + struct.pack(f"<{len(numbers)}q", *numbers))
    stream.flush()


def read_command(stream: IO[bytes]) -> tuple[Command, tuple[int, ...]]:
    """Wait for a command and return it with its numbers.

    Raises:
        EOFError: the writer is gone.
    """
    command, count = _HEADER.unpack(_exactly(stream, _HEADER.size))
    return Command(command), struct.unpack(f"<{count}q", _exactly(stream, 8 * count))


class RankGroup:
    """Collectives between the processes; each must be called by all, in the same order.

    It is no part of torch's default group, so that engines do not meet training, nor one another.

    Args:
        store: a file through which they find one another.
        rank: number of this process, from 0.
        size: how many there are.
        device: where the tensors lie.

    Raises:
        ConnectionError: the others did not come; so does every method when one of them is gone or
            silent for `PATIENCE_S` seconds.
    """

    def __init__(self, store: Path, rank: int, size: int, device: torch.device) -> None:
        self._rank, self._size = rank, size
        try:
            self._group = _group(store, rank, size, device)
        except RuntimeError as error:
            raise _lost(error) from error

    def sum_(self, x: Tensor) -> None:
        """Replace x by its sum over the processes, the same bits in all."""
        try:
            self._group.allreduce([x]).wait()
        except RuntimeError as error:
            raise _lost(error) from error

    def broadcast_(self, x: Tensor) -> None:
        """Replace x by that of the first process."""
        options = dist.BroadcastOptions()
        options.rootRank = 0
        try:
            self._group.broadcast([x], options).wait()
        except RuntimeError as error:
            raise _lost(error) from error

    def gather(self, x: Tensor) -> list[Tensor]:
        """Return the x of all processes in the first one, and nothing in the others."""
        options = dist.GatherOptions()
        options.rootRank = 0
        found = [[torch.empty_like(x) for _ in range(self._size)]] if self._rank == 0 else []
        try:
            self._group.gather(found, [x], options).wait()
        except RuntimeError as error:
            raise _lost(error) from error
        return found[0] if found else []


def _group(store: Path, rank: int, size: int, device: torch.device) -> Any:
    """Return torch's own group; its backends have one interface, which no type declares."""
    patience = timedelta(seconds=PATIENCE_S)
    file = dist.FileStore(str(store), size)
    file.set_timeout(patience)
    if device.type == "cuda":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = patience
        return dist.ProcessGroupNCCL(file, rank, size, options)
    gloo: Any = dist.ProcessGroupGloo
    options = gloo._Options()
    # By address: gloo would else listen on whatever interface the machine's own name stands for.
    options._devices = [gloo.create_device(hostname="127.0.0.1")]
    options._timeout = patience
    return gloo(file, rank, size, options)


def _lost(error: RuntimeError) -> ConnectionError:
    return ConnectionError(f"the processes of the model lost one another ({error})")


def _exactly(stream: IO[bytes], length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data
