"""Mixture of experts: each token goes through the few feed-forward layers that a router chooses.

Tokens are sorted by expert, so that an expert is one matrix product over its tokens, however many
they are; none is dropped. Parameter names are those of transformers' Qwen3-MoE in memory, where the
experts of a layer are one tensor; on disk each has its own (expert_names.py). Sources:
arXiv:1701.06538 (the idea), arXiv:2101.03961 (the balancing loss), arXiv:2505.09388 (Qwen3-MoE).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.kernels.pointwise import swiglu
from llmlab.kernels.precision import product_dtype
from llmlab.model.config import ModelConfig
from llmlab.model.experts_config import Experts


class Router(nn.Module):
    """Chooses the experts of each token: the likeliest ones, weighed by their probability."""

    def __init__(self, hidden_size: int, experts: Experts) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts.num_experts, hidden_size))
        self._num_chosen = experts.num_experts_per_tok
        self._normalises = experts.norm_topk_prob

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Route tokens x (N, E).

        Returns:
            Probabilities (N, experts), float32; the ids of the K chosen ones and their weights,
            both (N, K).
        """
        probabilities = F.linear(x, self.weight).softmax(-1, dtype=torch.float32)
        weights, ids = probabilities.topk(self._num_chosen, dim=-1)
        if self._normalises:
            weights = weights / weights.sum(-1, keepdim=True)
        return probabilities, ids, weights.to(x.dtype)


class ExpertLayers(nn.Module):
    """The experts of one layer, each a SwiGLU."""

    def __init__(self, hidden_size: int, experts: Experts) -> None:
        super().__init__()
        n, F_, E = experts.num_experts, experts.moe_intermediate_size, hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(n, 2 * F_, E))
        self.down_proj = nn.Parameter(torch.empty(n, E, F_))

    def forward(self, x: Tensor, ids: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
        """Sum for each token what its experts make of it.

        Args:
            x: (N, E).
            ids: (N, K), the experts of each token.
            weights: (N, K).
            counts: (experts,), int64, how many of `ids` each expert is.

        Returns:
            (N, E).
        """
        N, K = ids.shape
        order = ids.flatten().argsort(stable=True)  # (N K,), by expert
        tokens = order // K
        gate, up = grouped_linear(x[tokens], self.gate_up_proj, counts).chunk(2, dim=-1)
        out = grouped_linear(swiglu(gate, up), self.down_proj, counts)  # (N K, E)
        out = out * weights.flatten()[order, None].to(out.dtype)
        place = torch.empty_like(order).scatter_(0, order, torch.arange(N * K, device=x.device))
        return out[place].view(N, K, -1).sum(dim=1)


class SparseMLP(nn.Module):
    """A feed-forward layer made of a router and experts."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.experts is not None
        self.gate = Router(config.hidden_size, config.experts)
        self.experts = ExpertLayers(config.hidden_size, config.experts)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, T, E) to (B, T, E).

        Returns:
            The result, and the router's load (2, experts), float32: how many tokens chose each
            expert, and the sum of its probabilities over tokens.
        """
        tokens = x.flatten(0, 1)  # (N, E)
        probabilities, ids, weights = self.gate(tokens)
        flat = ids.flatten()
        counts = torch.zeros_like(probabilities[0], dtype=torch.int64)
        counts = counts.scatter_add(0, flat, torch.ones_like(flat))  # (experts,)
        out = self.experts(tokens, ids, weights, counts).view_as(x)
        return out, torch.stack((counts.float(), probabilities.sum(0)))


def balancing_loss(load: Tensor, num_tokens: int) -> Tensor:
    """Return the load-balancing loss: `experts_per_token` when all are equally busy, else more.

    Args:
        load: (2, experts), the sum of what the layers' `SparseMLP` returned.
        num_tokens: tokens routed, times layers.
    """
    chosen, probabilities = load / num_tokens
    return load.shape[1] * (chosen * probabilities).sum()


def grouped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Multiply consecutive groups of rows with a matrix each, in autocast's dtype where it is on.

    Args:
        x: (M, in), the rows of group 0 first.
        weight: (groups, out, in).
        counts: (groups,), int64, rows of each group, M in total; may be 0.

    Returns:
        (M, out).
    """
    dtype = product_dtype(x)
    return _grouped_linear(x.to(dtype), weight.to(dtype), counts)


# One operation for the compiler: the sizes of the groups are data, its shapes must not be.
@torch.library.custom_op("llmlab::grouped_linear", mutates_args=())
def _grouped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    out = x.new_empty(x.shape[0], weight.shape[1])
    sizes = counts.tolist()
    for part, matrix, result in zip(x.split(sizes), weight, out.split(sizes), strict=True):
        torch.mm(part, matrix.t(), out=result)
    return out


@_grouped_linear.register_fake
def _(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@torch.library.custom_op("llmlab::grouped_linear_backward", mutates_args=())
def _grouped_linear_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor]:
    x_grad, weight_grad = torch.empty_like(x), torch.empty_like(weight)
    sizes = counts.tolist()
    parts = zip(
        *(tensor.split(sizes) for tensor in (gradient, x, x_grad)), weight, weight_grad, strict=True
    )
    for part_gradient, part, part_grad, matrix, matrix_grad in parts:
        torch.mm(part_gradient, matrix, out=part_grad)
        torch.mm(part_gradient.t(), part, out=matrix_grad)
    return x_grad, weight_grad


@_grouped_linear_backward.register_fake
def _(gradient: Tensor, x: Tensor, weight: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _input_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return *_grouped_linear_backward(gradient, *ctx.saved_tensors), None


_grouped_linear.register_autograd(_input_gradients, setup_context=_keep_inputs)
