"""Several processes that train one model, started by torchrun; in a single process, nothing at all.

    with process_group():                      # reads what torchrun left in the environment
        shard(model)                           # FSDP2, or
        loss_sum = replicated(model, loss_sum)  # DDP
        (number,) = sum_over_ranks(number)              # the same on every rank

Under DDP each rank holds the whole model and sees its share of every batch. Under FSDP2 each also
holds a share of every weight, gradient and optimizer state only, and gathers a layer's weights
while it computes that layer. Both leave the mean of the ranks' gradients.

Not here: a launcher (torchrun is one), the loop (loop.py), which rank reads which sequence
(llmlab/data). FSDP: arXiv 2304.11277.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from llmlab.errors import LabError
from llmlab.model.language_model import LanguageModel
from llmlab.training.compilation import LossSum, layers

Result = TypeVar("Result")

_PATIENCE = timedelta(hours=1)  # the first rank may evaluate or export while the others wait


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun started with this one; leave them at the end.

    Collectives go over gloo on CPUs and over NCCL between GPUs, of which each rank takes the one
    that torchrun numbered for it. A group that exists already is left as it is.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    store, number, size = next(dist.rendezvous("env://", timeout=_PATIENCE))
    dist.init_process_group(
        backend,
        store=dist.PrefixStore(f"start {_start_number()}", store),
        rank=number,
        world_size=size,
        timeout=_PATIENCE,
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def _start_number() -> str:
    """Tell how often torchrun has started this process before.

    Its store outlives the processes, and they must not read there what those before them wrote. On
    several nodes the count differs from one to the other, so that it cannot keep them apart.
    """
    is_alone = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if is_alone else "0"


# Who am I


def world_size() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Tell whether this is the process that prints, logs, samples and exports."""
    return rank() == 0


def is_under_torchrun() -> bool:
    """Tell whether torchrun started this process; it may have done so before, and may again."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def max_restarts() -> int:
    """Return how often torchrun may start this process anew when one of them fails."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))


# What all know. Every rank must make these calls, in one order.


def sum_over_ranks(*numbers: float) -> list[float]:
    """Return the sums of the numbers over the ranks, in float64."""
    if world_size() == 1:
        return list(numbers)
    sums = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()


def on_first(action: Callable[[], Result], group: dist.ProcessGroup | None = None) -> Result:
    """Run `action` on rank 0; every rank gets its result, or raises its LabError.

    Args:
        action: its result must be picklable.
        group: what the ranks talk over; the default group when None.
    """
    if world_size() == 1:
        return action()
    outcome: list[Any] = [None, None]
    if is_first():
        try:
            outcome[0] = action()
        except LabError as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, group=group, device=torch.device("cpu"))
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


@contextlib.contextmanager
def first_ahead() -> Iterator[None]:
    """Let rank 0 through a block before the others, which raise its LabError if it meets one."""
    if not is_first():
        on_first(lambda: None)
        yield
        return
    try:
        yield
    except LabError as error:
        on_first(functools.partial(_raise, error))
    else:
        on_first(lambda: None)


def everyones(value: Result) -> list[Result]:
    """Return the values of all ranks, in their order."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def second_group() -> dist.ProcessGroup | None:
    """Return another group of all ranks, for a thread that must not talk into what others say.

    In a single process there is none.
    """
    group = dist.new_group(backend="gloo") if world_size() > 1 else None
    return group if isinstance(group, dist.ProcessGroup) else None


# One model on many processes


def shard(model: LanguageModel) -> None:
    """Leave each rank its share of the parameters of `model`, in place: FSDP2.

    Each layer is gathered by itself, the rest of the model together. The rank's share is what an
    optimizer built afterwards sees.
    """
    if world_size() == 1:
        return
    device = next(model.parameters()).device
    mesh = dist.init_device_mesh(device.type, (world_size(),))
    for layer in layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "loss_sum")
    # FSDP takes for its root what it sees run first, which must not be a layer alone.
    token = torch.zeros((1, 1), dtype=torch.int64, device=device)
    with torch.no_grad():
        model.loss_sum(token, token)
    scatter(model)


def is_sharded(model: nn.Module) -> bool:
    """Tell whether `shard` was applied to `model`."""
    return isinstance(model, FSDPModule)


def gather(model: nn.Module) -> None:
    """Give every rank all weights of a sharded model, for use and not for training.

    Until `scatter`, each rank can call any method of the model by itself.
    """
    for module in _sharded_modules(model):
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()


def scatter(model: nn.Module) -> None:
    """Undo `gather`: leave each rank its share."""
    if isinstance(model, FSDPModule):
        model.reset_iter_state()  # what a rank ran by itself is no part of the order of a step
    for module in _sharded_modules(model):
        module.reshard()
        # The root's weights are needed again as soon as the backward pass begins.
        module.set_reshard_after_forward(module is not model, recurse=False)


@contextlib.contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """`gather` for the length of a block."""
    gather(model)
    try:
        yield
    finally:
        scatter(model)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor of which each rank may hold a share, in full on every rank."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class _LossSum(nn.Module):
    """What DDP wraps: a loss as the forward of a module."""

    def __init__(self, model: nn.Module, loss_sum: LossSum) -> None:
        super().__init__()
        self.model, self.loss_sum = model, loss_sum

    def forward(self, *arguments: Tensor) -> tuple[Tensor, Tensor]:
        """Call the loss."""
        return self.loss_sum(*arguments)


def replicated(model: nn.Module, loss_sum: LossSum) -> LossSum:
    """Return `loss_sum` such that its backward passes average gradients over the ranks: DDP.

    In a single process, or for a sharded model, which does so itself, it comes back as it is.
    """
    if world_size() == 1 or is_sharded(model):
        return loss_sum
    device = next(model.parameters()).device
    return DistributedDataParallel(
        _LossSum(model, loss_sum),
        device_ids=[torch.cuda.current_device()] if device.type == "cuda" else None,
        forward_sync_buffers=False,  # they are constants
        gradient_as_bucket_view=True,
    )


def exchange(loss_sum: LossSum, *, last: bool) -> contextlib.AbstractContextManager[Any]:
    """Exchange gradients in the backward pass of a step's last micro-batch only.

    A sharded model exchanges them in each: a rank has no room for all of them.
    """
    if isinstance(loss_sum, DistributedDataParallel) and not last:
        return loss_sum.no_sync()
    return contextlib.nullcontext()


def _raise(error: LabError) -> None:
    raise error


def _sharded_modules(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
