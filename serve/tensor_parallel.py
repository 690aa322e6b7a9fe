"""One model in several processes, as the first of them sees it: it starts, feeds and ends the rest.

Requests, pages and sampling are the first process's alone. The others get the numbers of each step,
so that all use the same pages, and the results of their layers meet in collectives.
Not here: what the others run (rank_worker.py), how a model is cut (llmlab/model/sharding.py).
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from multiprocessing import connection
from pathlib import Path
from typing import IO, NoReturn, TypeVar

import torch
from torch import Tensor

import llmlab
from llmlab.errors import ConfigError, ServerError
from llmlab.hardware import physical_cores
from llmlab.serve.paged_cache import StepInputs
from llmlab.serve.rank_group import Command, RankGroup, write_command
from llmlab.serve.rank_worker import READY, RankSettings

Result = TypeVar("Result")

_LOADING_S = 900
"""Seconds that a process may take to load its share."""
_ENDING_S = 5
"""Seconds that a process gets to end by itself."""


@dataclass(frozen=True)
class _Process:
    name: str
    popen: subprocess.Popen[bytes]
    commands: IO[bytes]
    answers: IO[bytes]

    def fate(self) -> str:
        """Tell how a process that has answered for the last time ends."""
        status = _ended(self.popen)
        said = self.answers.read().decode().strip()
        if status < 0:
            return f"{self.name} was killed by {signal.Signals(-status).name}"
        return f"{self.name} ended with status {status}: {said or 'see what it wrote to stderr'}"


class Workers:
    """The processes beside this one, until `close()`.

    They load their shares while this process loads its own; then `connect` makes them `Ranks`.

    Args:
        settings: of this process, whose rank is 0, without a `store`.
        device: where all compute: the CPU, or as many GPUs as there are processes.

    Raises:
        ConfigError: there are fewer GPUs.
    """

    def __init__(self, settings: RankSettings, device: torch.device) -> None:
        if device.type == "cuda" and torch.cuda.device_count() < settings.size:
            raise ConfigError(
                f"tensor_parallel={settings.size}, but torch finds {torch.cuda.device_count()} "
                "CUDA devices; use at most as many"
            )
        folder = Path(tempfile.mkdtemp(prefix="llmlab-ranks-"))  # no other user may look into it
        self.settings = replace(settings, store=str(folder / "store"))
        self.device = device
        self._threads_before = torch.get_num_threads()
        self.num_threads = max(1, min(self._threads_before, physical_cores()) // settings.size)
        """Threads of each process."""
        self._processes: list[_Process] = []
        self._end = weakref.finalize(self, _end, self._processes, folder)
        for rank in range(1, settings.size):
            self._processes.append(_start(replace(self.settings, rank=rank), self.num_threads))

    def close(self) -> None:
        """End all processes. May be called twice."""
        if self._end.alive:
            torch.set_num_threads(self._threads_before)
        self._end()

    def kill(self) -> None:
        """End all processes, in whatever they may wait."""
        for process in self._processes:
            process.popen.kill()
        self.close()

    def connect(self) -> "Ranks":
        """Wait until every share is loaded and return the processes, ready to compute.

        Raises:
            ServerError: a process failed, and why.
        """
        for process in self._processes:
            if not _readable([process], timeout_s=_LOADING_S):
                self._give_up(f"{process.name} has not loaded its share after {_LOADING_S} s")
            line = process.answers.readline()
            if line != READY:
                said = line.decode().strip()
                self._give_up(f"{process.name} could not start: {said}" if said else process.fate())
        self.send(Command.CONNECT)
        try:
            group = RankGroup(Path(self.settings.store), 0, self.settings.size, self.device)
        except ConnectionError as error:
            self.fail(str(error), error)
        return Ranks(self, group)

    def send(self, command: Command, *numbers: int) -> None:
        """Tell all processes what to do.

        Raises:
            ServerError: one of them is gone.
        """
        if not self._end.alive:
            raise ServerError("the processes of the model have ended; start the engine again")
        for process in self._processes:
            try:
                write_command(process.commands, command, *numbers)
            except ConnectionError as error:
                self.fail(f"{process.name} takes no commands any more", error)

    def fail(self, reason: str, cause: ConnectionError | None = None) -> NoReturn:
        """End all processes, for they cannot go on without one another.

        Args:
            reason: what to say unless a process has ended by itself, which then is the reason.
            cause: the error met.

        Raises:
            ServerError: always.
        """
        fates = [process.fate() for process in _readable(self._processes, timeout_s=1)]
        self._give_up("; ".join(fates) or reason, cause)

    def _give_up(self, reason: str, cause: ConnectionError | None = None) -> NoReturn:
        self.kill()
        raise ServerError(f"{reason}; start the engine again") from cause


class Ranks:
    """All processes of a model, ready to compute; made by `Workers.connect`.

    Every method raises ServerError when a process is gone, or silent for a minute, and then has
    ended all others.
    """

    def __init__(self, workers: Workers, group: RankGroup) -> None:
        self._workers = workers
        self._group = group

    def close(self) -> None:
        """End the other processes. May be called twice."""
        self._workers.close()

    @contextlib.contextmanager
    def whole_or_over(self) -> Iterator[None]:
        """End the others when a block is left halfway, Ctrl-C included: they would wait inside."""
        try:
            yield
        except BaseException:
            self._workers.kill()
            raise

    def step(self, inputs: StepInputs) -> None:
        """Let the others compute a step; this process must do the same next."""
        # A thread has a number of its own, and who started the engine need not be who steps it.
        if torch.get_num_threads() != self._workers.num_threads:
            torch.set_num_threads(self._workers.num_threads)
        self._workers.send(Command.STEP, *inputs.sizes)
        for numbers in inputs.tensors:
            self._do(self._group.broadcast_, numbers)

    def sum_(self, x: Tensor) -> None:
        """Replace x by its sum over the processes."""
        self._do(self._group.sum_, x)

    def logits(self, states: Tensor, head: Callable[[Tensor], Tensor], vocab_size: int) -> Tensor:
        """Return the logits (B, V) of states (B, E).

        Args:
            states: in this process; the others get them.
            head: gives this process's share of the logits.
            vocab_size: V.
        """
        states = states.contiguous()
        self._workers.send(Command.LOGITS, len(states))
        self._do(self._group.broadcast_, states)
        parts = self._do(self._group.gather, head(states))
        return torch.cat(parts, dim=-1)[:, :vocab_size]

    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole pages in the caches of the others, `(from, to)` each."""
        self._workers.send(Command.COPY, *chain.from_iterable(pairs))

    def _do(self, collective: Callable[[Tensor], Result], x: Tensor) -> Result:
        try:
            return collective(x)
        except ConnectionError as error:
            self._workers.fail(str(error), error)


def _start(settings: RankSettings, num_threads: int) -> _Process:
    """Start one process, of this interpreter and this llmlab, whatever the current folder holds."""
    home = str(Path(llmlab.__file__).parents[1])
    path = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
    popen = subprocess.Popen(
        [sys.executable, "-P", "-m", "llmlab.serve.rank_worker", settings.to_json()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(num_threads)},
    )
    assert popen.stdin is not None
    assert popen.stdout is not None
    name = f"process {settings.rank} of tensor_parallel={settings.size}"
    return _Process(name, popen, popen.stdin, popen.stdout)


def _readable(processes: Sequence[_Process], *, timeout_s: float) -> list[_Process]:
    """Wait for the first processes that have answered or ended; none when it takes too long."""
    ready = connection.wait([process.answers.fileno() for process in processes], timeout_s)
    return [process for process in processes if process.answers.fileno() in ready]


def _end(processes: list[_Process], folder: Path) -> None:
    for process in processes:
        with contextlib.suppress(BrokenPipeError):  # it is gone already
            write_command(process.commands, Command.STOP)
    for process in processes:
        _ended(process.popen)
        process.answers.close()
        with contextlib.suppress(BrokenPipeError):
            process.commands.close()
    shutil.rmtree(folder, ignore_errors=True)


def _ended(popen: subprocess.Popen[bytes]) -> int:
    """Return the status of a process that is about to end, and see to it that it does."""
    try:
        return popen.wait(_ENDING_S)
    except subprocess.TimeoutExpired:
        popen.kill()
        return popen.wait()
