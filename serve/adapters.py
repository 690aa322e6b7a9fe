"""The adapters of an engine by name: loaded and unloaded while requests run, counted, limited.

A request holds its adapter from the moment it is queued to its end. An adapter that is unloaded
takes no new request, and its place is free once its last request has ended. Loading is all or
nothing. Not here: tensors (lora_slots.py), what a folder may hold (llmlab/model/adapter_folder.py).
"""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from llmlab.errors import ConfigError, ModelError, RequestError, did_you_mean
from llmlab.model import LanguageModel, ModelConfig
from llmlab.model.adapter_folder import StoredAdapter, base_fingerprint
from llmlab.serve.lora_slots import LoraSlots, layer_sizes
from llmlab.serve.params import EngineConfig

MAX_NAME_LEN = 200
"""Characters of an adapter's name."""


@dataclass(slots=True)
class _Held:
    """A loaded adapter; the key tells it from one that had the same name before."""

    key: str
    folder: Path
    slot: int
    num_users: int = 0
    is_leaving: bool = False


class AdapterStore:
    """Adapters of one model; every method may be called from any thread.

    Args:
        config: of the model.
        max_loras: L, adapters at a time.
        max_rank: R, the largest rank.
        memory_mb: most memory of all places in MB (1e6 bytes).
        dtype: of the model's weights.
        device: the model's.
        fingerprint: of the model, before it was made ready to serve (`base_fingerprint`).

    Raises:
        ConfigError: the places take more memory, or the model cannot be adapted.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        max_loras: int,
        max_rank: int,
        memory_mb: int,
        dtype: torch.dtype,
        device: torch.device,
        fingerprint: str,
    ) -> None:
        self.num_slots = max_loras
        self._max_rank = max_rank
        self._fingerprint = fingerprint
        self.num_bytes = _checked_bytes(config, max_loras, max_rank, memory_mb, dtype)
        """Memory of all places; on a CPU what has never been written to is not taken yet."""
        self.slots = LoraSlots(
            config, num_slots=max_loras, max_rank=max_rank, dtype=dtype, device=device
        )
        self._lock = threading.Lock()  # guards what follows
        self._names: dict[str, _Held | None] = {}  # that take requests; None while one is loaded
        self._held: dict[str, _Held] = {}  # by key, those that leave included
        self._free = list(range(max_loras))
        self._num_loaded = 0

    @classmethod
    def of(cls, config: EngineConfig, model: LanguageModel) -> Self | None:
        """Return the store of an engine whose model is not fused yet; None when it wants none."""
        if not config.num_lora_slots:
            return None
        weight = model.head_weight()
        return cls(
            model.config,
            max_loras=config.num_lora_slots,
            max_rank=config.max_lora_rank,
            memory_mb=config.lora_memory_mb,
            dtype=weight.dtype,
            device=weight.device,
            fingerprint=base_fingerprint(model),
        )

    @property
    def names(self) -> dict[str, Path]:
        """The adapters that take requests, and where they came from."""
        with self._lock:
            return {name: held.folder for name, held in self._names.items() if held is not None}

    def load(self, name: str, folder: Path | str) -> None:
        """Load an adapter folder; when it cannot be loaded, nothing has changed.

        Raises:
            ConfigError: the name is taken or no name, or as many adapters as allowed are loaded.
            ModelError: the folder is no adapter, a broken one, one of a higher rank, or not this
                model's.
        """
        slot = self._reserve(name)
        try:
            stored = StoredAdapter(Path(folder))
            self._fill(slot, stored)
        except BaseException:
            with self._lock:
                del self._names[name]
                self._free.append(slot)
            raise
        with self._lock:
            self._num_loaded += 1
            held = _Held(f"{name}#{self._num_loaded}", stored.folder, slot)
            self._names[name] = self._held[held.key] = held

    def unload(self, name: str) -> None:
        """Take no more requests for an adapter; its place is free when its last one has ended.

        Raises:
            RequestError: there is none of this name (status 404).
        """
        with self._lock:
            held = self._find(name)
            del self._names[name]
            held.is_leaving = True
            self._drop_unused(held)

    def check(self, name: str) -> None:
        """Refuse a name that takes no requests.

        Raises:
            RequestError: there is no adapter of this name (status 404).
        """
        with self._lock:
            self._find(name)

    def acquire(self, name: str) -> str:
        """Take an adapter for requests and return its key, for `slot_of` and `release`.

        The key is never used again, so that whatever is kept under it belongs to these weights.

        Raises:
            RequestError: there is no adapter of this name (status 404).
        """
        with self._lock:
            held = self._find(name)
            held.num_users += 1
            return held.key

    def release(self, key: str) -> None:
        """Give back what `acquire` took."""
        with self._lock:
            held = self._held[key]
            held.num_users -= 1
            self._drop_unused(held)

    def slot_of(self, key: str | None) -> int:
        """Return the place of a taken adapter; -1 for None."""
        return -1 if key is None else self._held[key].slot

    def _reserve(self, name: str) -> int:
        if not name or len(name) > MAX_NAME_LEN or not name.isprintable():
            raise ConfigError(
                f"{name[:60]!r} is no name for an adapter; use 1 to {MAX_NAME_LEN} printable "
                "characters"
            )
        with self._lock:
            if name in self._names:
                raise ConfigError(f"an adapter {name!r} is loaded already; unload it first")
            if not self._free:
                leaving = sum(held.is_leaving for held in self._held.values())
                left = f", {leaving} of them unloaded but still in use" if leaving else ""
                raise ConfigError(
                    f"max_loras={self.num_slots} adapters are loaded{left}; unload one first, or "
                    "start with a larger max_loras"
                )
            self._names[name] = None
            return self._free.pop()

    def _fill(self, slot: int, stored: StoredAdapter) -> None:
        stored.check_base(self._fingerprint)
        self.slots.check(stored)
        rank = max(layer.rank for layer in stored.layers.values())
        if rank > self._max_rank:
            raise ModelError(
                f"{stored.folder} has rank {rank}, above max_lora_rank={self._max_rank}; start "
                "with a larger max_lora_rank"
            )
        weights = stored.weights()
        for name, pair in weights.items():
            if not all(torch.isfinite(part).all() for part in pair):
                raise ModelError(
                    f"{stored.folder}: {name} has numbers that are not finite; train it again"
                )
        self.slots.write(slot, weights, stored)

    def _find(self, name: str) -> _Held:
        held = self._names.get(name)
        if held is None:
            known = [name for name, held in self._names.items() if held is not None]
            raise RequestError(
                f"no adapter {name!r} is loaded{did_you_mean(name, known)}",
                param="model",
                status=404,
            )
        return held

    def _drop_unused(self, held: _Held) -> None:
        if held.is_leaving and not held.num_users:
            del self._held[held.key]
            self._free.append(held.slot)


class AdapterHold:
    """An adapter, taken once for requests that come together and given back with the last of them.

    Args:
        store: of the adapter.
        name: the adapter's.
        num_requests: how many hold it.

    Raises:
        RequestError: there is no adapter of this name (status 404).
    """

    def __init__(self, store: AdapterStore, name: str, num_requests: int) -> None:
        self.key = store.acquire(name)
        self._store = store
        self._num_requests = num_requests

    def drop(self) -> None:
        """One of the requests has ended."""
        self._num_requests -= 1
        if not self._num_requests:
            self._store.release(self.key)


def wanted(store: AdapterStore | None) -> AdapterStore:
    """Return the store of an engine.

    Raises:
        RequestError: it was started without adapters (status 404).
    """
    if store is None:
        raise RequestError(
            "this engine was started without adapters; start it with max_loras above 0",
            param="model",
            status=404,
        )
    return store


def _checked_bytes(
    config: ModelConfig, max_loras: int, max_rank: int, memory_mb: int, dtype: torch.dtype
) -> int:
    """Return the bytes of all places, which are to fit the memory."""
    width = sum(sum(sizes) for sizes in layer_sizes(config).values())
    num_bytes = max_loras * max_rank * width * dtype.itemsize
    if num_bytes > memory_mb * 1e6:
        fitting = int(memory_mb * 1e6 / (max_loras * width * dtype.itemsize))
        raise ConfigError(
            f"max_loras={max_loras} adapters of max_lora_rank={max_rank} take "
            f"{num_bytes / 1e6:.0f} MB, above lora_memory_mb={memory_mb}; raise it, or lower one "
            f"of them (max_lora_rank={fitting} would fit)"
        )
    return num_bytes
