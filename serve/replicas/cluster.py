"""Ray for one server: started with it, seen by nobody else, and gone with it.

Ray runs whatever Python it is sent by anyone who reaches one of its ports and has its token. So
it listens on 127.0.0.1 only; the token is made for this process and stands in the environment of
it and its children alone; its files lie in a folder that only this user may open. It has no
dashboard and reports no usage. To have replicas on several machines its ports must be open between
them: then none but trusted machines may be in that network (Ray's own advice), and this module
does not offer it.

Ray's helpers take about 0.6 GB of memory beside the replicas.
Not here: what a replica does (replica.py), and when one is started (crew.py).
Reference: Ray's documentation, "Configuring Ray" and "Security".
"""

import asyncio
import os
import secrets
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from types import ModuleType
from typing import Any, NoReturn

import torch

from llmlab.errors import ConfigError, LabError, MissingExtraError, ServerError
from llmlab.hardware import physical_cores, pick_device, pick_dtype
from llmlab.serve.params import EngineConfig
from llmlab.serve.replicas.engine import ReplicaEngine
from llmlab.serve.replicas.replica import Batch, Job, Replica, ReplicaInfo

_LOOPBACK = "127.0.0.1"
_BATCHES_PER_CALL = 10_000
"""A call that never ended would never let Ray forget what it has returned."""
_STORE_BYTES = 80_000_000
"""Ray's shared memory: close to the least it takes, for what passes here is small."""


@contextmanager
def running_replicas(config: EngineConfig, num_replicas: int) -> Iterator[ReplicaEngine]:
    """Start Ray and the replicas, and yield their engine; no process is left after the block.

    On a CPU each replica gets its share of the physical cores (all get `OMP_NUM_THREADS` threads
    where that is set), on GPUs one of them.

    Args:
        config: what each replica's engine is started with.
        num_replicas: how many, each with its own weights and cache.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: there are fewer GPUs than replicas.
        LabError: the model cannot be loaded.
        ServerError: Ray does not start, or runs in this process already.
    """
    device = pick_device(config.device)
    num_gpus = 1 if device.type == "cuda" else 0
    if num_gpus and torch.cuda.device_count() < num_replicas:
        raise ConfigError(
            f"replicas={num_replicas}, but this machine has {torch.cuda.device_count()} GPUs and "
            "each replica takes one; lower --replicas"
        )
    if config.dtype == "auto":  # chosen once: replicas must not differ
        dtype = pick_dtype(device)[0]
        config = replace(config, dtype="bfloat16" if dtype == torch.bfloat16 else "float32")
    threads = str(max(1, physical_cores() // num_replicas))
    with _local_ray() as ray:
        actor = ray.remote(Replica).options(
            num_cpus=0,
            num_gpus=num_gpus,
            max_concurrency=2,  # one for the batches, one for all calls in their order
            runtime_env={
                "env_vars": {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
            },
        )

        def start() -> _RayReplica:
            return _RayReplica(ray, actor.remote(config))

        with ReplicaEngine(config, start, num_replicas) as engine:
            yield engine


@contextmanager
def _local_ray() -> Iterator[ModuleType]:
    """Start Ray on this machine for this process, and end it after the block."""
    # Ray reads these when it is imported and hands them to its processes. The one about clusters
    # is what makes it take the loopback address, which it replaces by an outer one otherwise.
    os.environ.update(
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
        RAY_USAGE_STATS_ENABLED="0",
        RAY_AUTH_MODE="token",
    )
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # Ray reads it only once
    try:
        ray = import_module("ray")
    except ImportError as error:
        raise MissingExtraError("ray", "ray") from error
    if ray.is_initialized():
        raise ServerError("Ray runs in this process already; call ray.shutdown() first")
    address = ray.util.get_node_ip_address()
    if address != _LOOPBACK:
        raise ServerError(
            f"Ray would listen on {address}, for it was imported before the server could tell it "
            "otherwise; leave the import to the server"
        )
    before = signal.getsignal(signal.SIGTERM)  # Ray puts a handler of its own there
    with tempfile.TemporaryDirectory(prefix="llmlab-", dir="/tmp") as folder:  # a short path
        try:
            _init(ray, folder)
            yield ray
        finally:
            ray.shutdown()
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _init(ray: ModuleType, folder: str) -> None:
    try:
        ray.init(
            address="local",
            num_cpus=0,
            include_dashboard=False,
            configure_logging=False,
            object_store_memory=_STORE_BYTES,
            _node_ip_address=_LOOPBACK,
            _temp_dir=f"{folder}/ray",  # Ray opens this one to everybody; not the one around it
        )
    except Exception as error:  # Ray raises many kinds here, `Exception` itself among them
        raise ServerError(
            f"Ray did not start: {error}; free memory or ports may be short"
        ) from error


class _RayReplica:
    """A `Replica` as a Ray actor.

    Batches come through one streaming call, read by a thread of its own: that takes half the
    processor time of asking for each batch through Ray's asyncio interface (1 ms instead of 2,
    both ends together).

    Args:
        ray: the package.
        actor: handle of the actor.
    """

    def __init__(self, ray: ModuleType, actor: Any) -> None:
        self._ray = ray
        self._actor = actor
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="llmlab-replica")

    async def load(self) -> ReplicaInfo:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reader, self._get, self._actor.load.remote())

    async def listen(self, deliver: Callable[[Batch], None]) -> NoReturn:
        loop = asyncio.get_running_loop()
        while True:
            batches = self._actor.batches.remote(_BATCHES_PER_CALL)
            await loop.run_in_executor(self._reader, self._read, batches, loop, deliver)

    def submit(self, job: Job) -> None:
        self._actor.submit.remote(job)

    def abort(self, number: int) -> None:
        self._actor.abort.remote(number)

    def kill(self) -> None:
        self._ray.kill(self._actor)
        self._reader.shutdown()  # a call to a killed actor fails

    def _read(
        self,
        batches: Iterable[Any],
        loop: asyncio.AbstractEventLoop,
        deliver: Callable[[Batch], None],
    ) -> None:
        for ref in batches:
            loop.call_soon_threadsafe(deliver, self._get(ref))

    def _get(self, ref: Any) -> Any:
        """Wait for what a call returns, or raise what it raised there."""
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, LabError):
                raise error.cause from error
            raise ServerError(f"it failed: {error.cause!r}") from error
        except self._ray.exceptions.RayError as error:
            raise ServerError(f"its process died ({type(error).__name__})") from error
