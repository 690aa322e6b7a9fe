"""A model made ready to serve: fewer and larger products, weights laid out for the processor.

Queries, keys and values come of one product instead of three, gate and up projection of one with
the gate inside, cosines and sines out of a table; linear layers and head are packed. The model's
code stays the same, and what it computes up to rounding, unless weights are rounded to int8.
Not here: files, adapters. Models whose layers are others than the transformer's keep them.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from llmlab.kernels.packed_linear import PackedLinear, Scheme, can_pack
from llmlab.kernels.quantized_linear import quantize_
from llmlab.model.language_model import LanguageModel
from llmlab.model.rope import RotaryEmbedding, RotaryTable
from llmlab.model.transformer import MLP, Attention, Transformer

_MOST_TABLE_BYTES = 64_000_000


def fuse_(
    model: LanguageModel,
    *,
    scheme: Scheme = "stored",
    max_len: int | None = None,
    gate_inside: bool = True,
) -> Callable[[Tensor], Tensor]:
    """Make a model ready to serve, in place; nothing is differentiable afterwards.

    Args:
        model: on its device, in its dtype.
        scheme: how the weights of linear layers are kept, and of the head where it is packed.
        max_len: most positions that will be asked for.
        gate_inside: whether gate and up projection become one product with the gate inside;
            adapters add to what goes into it.

    Returns:
        What turns hidden states (..., E) into logits (..., V): float32 where packed, else of the
        dtype of the states.
    """
    weight = model.head_weight()
    if not can_pack(weight):
        if scheme != "stored":
            quantize_(model, scheme)
        return model.logits
    head = PackedLinear(weight, scheme=scheme, is_wide=True)
    if isinstance(model, Transformer):
        _tabulate(model, max_len or model.config.max_position_embeddings)
        if model.lm_head is not None:
            del model.lm_head  # packed, its plain weight is not wanted any more
    _fuse(model, scheme, gate_inside)
    return head


def _fuse(module: nn.Module, scheme: Scheme, gate_inside: bool) -> None:
    if isinstance(module, Attention):
        parts = [module.q_proj, module.k_proj, module.v_proj]
        weight = torch.cat([part.weight for part in parts])
        bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
        module.qkv_proj = PackedLinear(weight, bias, scheme=scheme)
        del module.q_proj, module.k_proj, module.v_proj
    if isinstance(module, MLP) and gate_inside:
        gate, up = module.gate_proj.weight, module.up_proj.weight
        module.gate_up_proj = PackedLinear(up, scheme=scheme, gate=gate)
        del module.gate_proj, module.up_proj
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, PackedLinear(child.weight, child.bias, scheme=scheme))
        else:
            _fuse(child, scheme, gate_inside)


def _tabulate(model: Transformer, max_len: int) -> None:
    rotary, dtype = model.model.rotary_emb, model.head_weight().dtype
    if not isinstance(rotary, RotaryEmbedding) or not rotary.can_tabulate:
        return
    if 2 * max_len * model.config.head_dim * dtype.itemsize <= _MOST_TABLE_BYTES:
        model.model.rotary_emb = RotaryTable(rotary, max_len, dtype)
