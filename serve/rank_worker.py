"""A process that holds one share of a model and computes what the first process tells it to.

    python -m llmlab.serve.rank_worker SETTINGS

Commands come on the standard input; one line on the standard output says that the share is loaded,
or why not. The process ends with its input, whatever it is doing: however its parent dies, it does
not stay. It samples nothing and knows no request. Not here: its parent (tensor_parallel.py).
"""

import json
import os
import signal
import sys
import threading
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import IO

import torch

from llmlab.errors import LabError
from llmlab.hardware import pick_device
from llmlab.kernels.op import serving
from llmlab.kernels.packed_linear import Scheme
from llmlab.model import load_model
from llmlab.model.fused import fuse_
from llmlab.model.sharding import Share, sum_shares_
from llmlab.serve.paged_cache import PagedCache, StepInputs
from llmlab.serve.rank_group import Command, RankGroup, read_command

READY = b"ready\n"

Inbox = SimpleQueue[tuple[Command, tuple[int, ...]]]


@dataclass(frozen=True, kw_only=True)
class RankSettings:
    """What all processes of a model must agree on; rank and size stand for the share of one."""

    rank: int
    size: int
    model: str
    """The model folder."""
    dtype: str
    device: str
    num_pages: int
    page_len: int
    store: str = ""
    """A file through which the processes find one another."""
    scheme: Scheme = "stored"
    has_int8_kv: bool = False

    def to_json(self) -> str:
        """Return it as one argument of a command line."""
        return json.dumps(asdict(self))


class Worker:
    """The share of a model and its part of the cache.

    Args:
        settings: those of this process.

    Raises:
        LabError: the model cannot be loaded, or the device is not there.
    """

    def __init__(self, settings: RankSettings) -> None:
        self._settings = settings
        self._device = pick_device(settings.device)
        if self._device.type == "cuda":
            torch.cuda.set_device(settings.rank)
        share = Share(settings.rank, settings.size)
        self._model, _ = load_model(
            settings.model, dtype=settings.dtype, device=self._device, share=share
        )
        self._dtype = self._model.head_weight().dtype
        self._head = fuse_(self._model, scheme=settings.scheme)
        self._cache = PagedCache(
            self._model.config,
            num_pages=settings.num_pages,
            page_len=settings.page_len,
            dtype=torch.int8 if settings.has_int8_kv else self._dtype,
            device=self._device,
        )

    @torch.inference_mode()
    def run(self, inbox: Inbox) -> None:
        """Carry out commands until the one to stop; the first one is to connect.

        Raises:
            ConnectionError: another process is gone or does not answer.
        """
        command, _ = inbox.get()
        if command == Command.STOP:
            return
        settings = self._settings
        group = RankGroup(Path(settings.store), settings.rank, settings.size, self._device)
        sum_shares_(self._model, group.sum_)
        with serving():
            while (received := inbox.get())[0] != Command.STOP:
                command, numbers = received
                if command == Command.STEP:
                    self._step(group, *numbers)
                elif command == Command.LOGITS:
                    self._logits(group, *numbers)
                else:
                    self._cache.copy_pages(list(zip(numbers[::2], numbers[1::2], strict=True)))

    def _step(self, group: RankGroup, num_tokens: int, num_seqs: int, most_pages: int) -> None:
        inputs = StepInputs(num_tokens, num_seqs, most_pages, self._cache)
        for numbers in inputs.tensors:
            group.broadcast_(numbers)
        self._model.hidden(inputs.token_ids, inputs.positions, self._cache.attend(inputs))

    def _logits(self, group: RankGroup, num_rows: int) -> None:
        shape = num_rows, self._model.config.hidden_size
        states = torch.empty(shape, dtype=self._dtype, device=self._device)  # (B, E)
        group.broadcast_(states)
        group.gather(self._head(states))


def main() -> None:
    """Load, say so, and compute until told to stop or left alone."""
    # Ctrl-C and a service manager's SIGTERM reach every process; the parent says when to stop.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what else is printed must not be an answer
    inbox: Inbox = SimpleQueue()
    threading.Thread(target=_receive, args=(sys.stdin.buffer, inbox), daemon=True).start()
    try:
        worker = Worker(RankSettings(**json.loads(sys.argv[1])))
        answers.write(READY)
        worker.run(inbox)
    except Exception as error:
        # Whatever it is, the parent is to hear of it: it decides what becomes of the model.
        is_known = isinstance(error, (LabError, ConnectionError))
        if not is_known:
            traceback.print_exc()
        kind = "" if is_known else f"{type(error).__name__}: "
        answers.write(f"{kind}{' '.join(str(error).split())}\n".encode())
        os._exit(1)
    os._exit(0)  # taking torch down in good order would take half a second


def _receive(stream: IO[bytes], inbox: Inbox) -> None:
    """Put commands into the inbox; end the process when nobody can send any more."""
    command = None
    while command != Command.STOP:
        try:
            received = read_command(stream)
        except EOFError:
            os._exit(1)  # at once: the main thread may wait for processes that are gone
        inbox.put(received)
        command = received[0]


if __name__ == "__main__":
    main()
