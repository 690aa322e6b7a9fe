"""The state of a run as named tensors, written and read by any number of ranks.

    model.NAME                a trained parameter
    optimizer.NAME.SLOT       a moment, step count or average of the optimizer for that parameter
    generators.RANK.WHICH     the random generators of a rank

torch.distributed.checkpoint puts them into safetensors files, one a rank, and reads them back on
another number of ranks: each takes its share from wherever it lies. Tensors are all such a file can
hold, so reading one runs no code. The settings of the optimizer are not state: the plan has them.

Not here: folders, steps, integrity (checkpoint.py). Frozen parameters and buffers are not stored:
they are those of the model that training started from.
"""

import contextlib
import random
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor, nn, optim
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from llmlab.errors import ModelError
from llmlab.training.distributed import rank
from llmlab.training.optimizer import trainable_parameters


def state_tensors(model: nn.Module, optimizer: optim.Optimizer) -> dict[str, Tensor]:
    """Return this rank's part of the state, sharing memory with the run."""
    tensors = {f"generators.{rank()}.{which}": t for which, t in _generators().items()}
    for name, parameter in trainable_parameters(model).items():
        tensors[f"model.{name}"] = parameter.detach()
        for slot, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{name}.{slot}"] = value
    return tensors


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return copies in the memory of the CPU, which training leaves alone."""
    return HuggingFaceStorageWriter("").stage(tensors)


def write_tensors(
    tensors: dict[str, Tensor], folder: Path, group: dist.ProcessGroup | None = None
) -> None:
    """Write the tensors of all ranks into `folder`; every rank must call it.

    Args:
        tensors: this rank's part; what several ranks hold alike is written once.
        folder: empty, and the same for all ranks.
        group: what the ranks talk over; the default group when None.

    Raises:
        CheckpointException: something failed on some rank; all ranks raise it.
    """
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with _quiet():
        dcp.save(tensors, storage_writer=writer, process_group=group)


def restore_tensors(folder: Path, model: nn.Module, optimizer: optim.Optimizer) -> None:
    """Put what `state_tensors` returned back where it came from; every rank must call it.

    A rank that the checkpoint does not know keeps its random generators.

    Raises:
        ModelError: the parameters are not those of `model`, or the files are not of tensors.
    """
    stored = _stored(folder)
    parameters = trainable_parameters(model)
    _check_parameters(folder, stored, parameters)
    tensors = {f"model.{name}": p.detach() for name, p in parameters.items()}
    for key, entry in stored.items():
        kind, _, rest = key.partition(".")
        if kind == "optimizer":
            name, _, slot = rest.rpartition(".")
            tensors[key] = optimizer.state[parameters[name]][slot] = _room(entry, parameters[name])
        elif key.startswith(f"generators.{rank()}."):
            tensors[key] = torch.empty(entry.size, dtype=entry.properties.dtype)
    _read(folder, tensors)
    prefix = f"generators.{rank()}."
    _set_generators({k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)})


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of a checkpoint, whole, in the memory of the CPU."""
    tensors = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in _stored(folder).items()
    }
    _read(folder, tensors)
    return tensors


def _stored(folder: Path) -> dict[str, TensorStorageMetadata]:
    try:
        found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except SafetensorError as error:
        raise ModelError(
            f"{folder} has a file that holds something else than tensors ({error}), so it is not "
            "loaded; resume from a checkpoint that llmlab wrote"
        ) from error
    return {key: entry for key, entry in found.items() if isinstance(entry, TensorStorageMetadata)}


def _read(folder: Path, tensors: dict[str, Tensor]) -> None:
    with _quiet():
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)))


def _check_parameters(
    folder: Path, stored: dict[str, TensorStorageMetadata], parameters: dict[str, nn.Parameter]
) -> None:
    mine = {name: tuple(p.shape) for name, p in parameters.items()}
    theirs = {
        key.removeprefix("model."): tuple(entry.size)
        for key, entry in stored.items()
        if key.startswith("model.")
    }
    if mine != theirs:
        name = next(n for n in [*mine, *theirs] if mine.get(n) != theirs.get(n))
        raise ModelError(
            f"{folder}: parameter {name} is {theirs.get(name)} in the checkpoint and "
            f"{mine.get(name)} in the model; resume with the model settings the run began with"
        )


def _room(entry: TensorStorageMetadata, parameter: Tensor) -> Tensor:
    """Room for one slot of the optimizer, sharded as the parameter where it has its shape."""
    dtype = entry.properties.dtype
    if entry.size == parameter.shape:
        return torch.empty_like(parameter, dtype=dtype, requires_grad=False)
    return torch.empty(entry.size, dtype=dtype, device=parameter.device)


def _generators() -> dict[str, Tensor]:
    """The state of the random generators; Python's is its version and 625 words of 32 bits."""
    version, words, _ = random.getstate()
    states = {"torch": torch.get_rng_state(), "python": torch.tensor([version, *words])}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_generators(states: dict[str, Tensor]) -> None:
    if not states:
        return
    torch.set_rng_state(states["torch"])
    version, *words = states["python"].tolist()
    random.setstate((version, tuple(words), None))
    if torch.cuda.is_available() and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the warning that there is one process only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
