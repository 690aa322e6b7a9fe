"""Processes that train together on this machine, as torchrun would start them.

They fork from a server that has loaded torch once, so that a test of two ranks takes little longer
than one of a single process. torchrun itself is tried in test_torchrun.py.
"""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing import connection
from typing import Any

import torch
import torch.distributed as dist

from llmlab.training.distributed import process_group

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["tests.llmlab.training.ranks", "llmlab.training.loop", "torch._dynamo"]
)

WITHIN_S = 300
"""Seconds after which ranks that have not answered are killed."""


class Ranks:
    """Processes that run one function; `join` returns what each returned.

    Args:
        world_size: number of processes.
        function: a function of a module, called in each.
        arguments: picklable.
    """

    def __init__(self, world_size: int, function: Callable[..., Any], *arguments: Any) -> None:
        # As torchrun's agent does, this process keeps the store through which the ranks meet.
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.processes, self._answers = [], []
        for rank in range(world_size):
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(self._store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
            }
            answer, pipe = _CONTEXT.Pipe(duplex=False)
            process = _CONTEXT.Process(
                target=_run, args=(pipe, environment, function, arguments), daemon=True
            )
            process.start()
            pipe.close()
            self.processes.append(process)
            self._answers.append(answer)

    def join(self) -> list[Any]:
        """Wait for all and return their results in the order of the ranks."""
        results: dict[int, Any] = {}
        try:
            while len(results) < len(self.processes):
                open_pipes = {pipe for r, pipe in enumerate(self._answers) if r not in results}
                ready = connection.wait(open_pipes, WITHIN_S)
                if not ready:
                    raise TimeoutError(f"only ranks {list(results)} answered within {WITHIN_S} s")
                for pipe in ready:
                    rank = self._answers.index(pipe)
                    results[rank], error = self._answers[rank].recv()
                    if error is not None:
                        raise RuntimeError(f"rank {rank}: {error}")
            return [results[rank] for rank in range(len(self.processes))]
        finally:
            for process in self.processes:
                process.kill()
                process.join()


def on_ranks(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Run a function on each of `world_size` ranks and return what they returned."""
    return Ranks(world_size, function, *arguments).join()


def _run(
    pipe: connection.Connection,
    environment: dict[str, str],
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        with process_group():
            answer = function(*arguments), None
    except Exception:
        answer = None, traceback.format_exc()
    pipe.send(answer)
