"""What a reader would compute before a run: sizes, FLOPs, memory, the loss at step 0.

Not here: measurements (metrics.jsonl has them).
"""

import math

from llmlab.model.config import ModelConfig

FLOAT32_BYTES = 4

_HEAD_ROWS = 512
_ALLOCATED = 1.15
_WORKING_LAYERS, _RECOMPUTED_LAYERS = 2, 4
_RECURRENT_WIDTHS = {"RNNForCausalLM": 4, "GRUForCausalLM": 10, "LSTMForCausalLM": 10}


def memory_bytes(
    config: ModelConfig,
    *,
    tokens: int,
    optimizer: str = "adamw",
    recompute: bool = False,
    averaged: bool = False,
) -> int:
    """Estimate the memory of training in float32, beyond that of Python and torch themselves.

    Weights and their gradients, the optimizer's state, and either what the backward pass reads or
    what the optimizer's step needs, whichever is more. Measured on the quickstart preset as peak
    resident memory: within 11 % for 16 to 4,096 tokens, with activations computed again, and for
    each optimizer. bfloat16 needs less: three quarters of it there.

    Args:
        config: the model's shape.
        tokens: tokens in a micro-batch, B x T.
        optimizer: adamw, muon or lion.
        recompute: whether layers keep their input only.
        averaged: whether an average of the weights is kept.
    """
    E, L, V = config.hidden_size, config.num_hidden_layers, config.vocab_size
    floats = layer_floats(config)
    kept = L * (E if recompute else floats) * _ALLOCATED
    working = floats * (_RECOMPUTED_LAYERS if recompute else _WORKING_LAYERS)
    head = min(tokens, _HEAD_ROWS) * V * 3 + V * E
    activations = tokens * (kept + working) + head
    tables = config.num_embedding_parameters + V * E
    matrices = config.num_parameters - tables
    if optimizer == "muon":
        # The step holds what it adds to the matrices, and what it orthogonalises three times.
        state, step = 2 * tables + matrices, 4 * matrices
    else:
        state, step = config.num_parameters * (2 if optimizer == "adamw" else 1), 0
    weights = config.num_parameters * (3 if averaged else 2)
    return round((weights + state + max(activations, step)) * FLOAT32_BYTES)


def layer_floats(config: ModelConfig) -> int:
    """Return how many numbers one layer keeps for the backward pass of one token.

    Widths E of norms, projections, rotations and attention, and F of the feed-forward layer: gate,
    up, their activation and product. Experts also keep their copies of what goes in and comes out.
    """
    E, F = config.hidden_size, config.intermediate_size
    if config.is_recurrent:
        return _RECURRENT_WIDTHS[config.architecture] * E
    if config.is_gpt2:
        return 8 * E + 2 * F
    heads = config.num_attention_heads * config.head_dim
    groups = config.num_key_value_heads * config.head_dim
    floats = 6 * E + (heads + groups) * (4 if config.qk_norm else 2)
    if config.experts is None:
        return floats + 4 * F
    chosen = config.experts.num_experts_per_tok
    return floats + chosen * (4 * config.experts.moe_intermediate_size + 2 * E)


def outlook(config: ModelConfig, *, context_len: int, tokens: int, memory: int) -> list[str]:
    """Return sentences about the run to come.

    Args:
        config: the model's shape.
        context_len: tokens in a window, T.
        tokens: tokens in a micro-batch, B x T.
        memory: what `memory_bytes` returned.
    """
    size = f"{config.num_parameters / 1e6:.2f}M parameters"
    if config.experts is not None:
        size += f", {config.num_active_parameters / 1e6:.2f}M of them active for a token"
    flops = config.flops_per_token(context_len)
    cache = f"{config.kv_bytes_per_token()} bytes of KV cache per token (bfloat16)"
    if config.is_recurrent:
        cache = "no KV cache; its folder is read by llmlab only, transformers has no such class"
    return [
        f"{config.architecture}: {size}, {flops / 1e6:.1f} MFLOP per token (forward and backward, "
        f"T={context_len}), {cache}",
        f"memory: up to about {memory / 1e9:.2f} GB for weights, gradients, the optimizer and the "
        f"activations of {tokens} tokens",
        f"expected loss at step 0: ln {config.vocab_size} = {math.log(config.vocab_size):.3f}",
    ]
