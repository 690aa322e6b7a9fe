"""What a reader would compute before a run: sizes, FLOPs, memory, the loss at step 0.

Not here: measurements (metrics.jsonl has them).
"""

import math

from llmlab.model.config import ModelConfig

ADAMW_BYTES_PER_PARAMETER = 16
"""float32 weight, gradient, first and second moment."""

FLOAT32_BYTES = 4


def memory_bytes(config: ModelConfig, *, tokens: int) -> int:
    """Estimate the memory of one training step in float32; bfloat16 needs less.

    Counted for a token and layer: what the backward pass reads, about 24 tensors of width E (norms
    and rotations keep several copies) and 5 of width F. The head keeps no logits. Measured on the
    quickstart preset in float32: within 20 %, for 1,024 and for 4,096 tokens.

    Args:
        config: the model's shape.
        tokens: tokens in a micro-batch, B x T.
    """
    E, F = config.hidden_size, config.intermediate_size
    per_token = config.num_hidden_layers * (24 * E + 5 * F) * FLOAT32_BYTES
    return config.num_parameters * ADAMW_BYTES_PER_PARAMETER + tokens * per_token


def outlook(config: ModelConfig, *, context_len: int, tokens: int) -> list[str]:
    """Return sentences about the run to come.

    Args:
        config: the model's shape.
        context_len: tokens in a window, T.
        tokens: tokens in a micro-batch, B x T.
    """
    flops = config.flops_per_token(context_len)
    memory = memory_bytes(config, tokens=tokens)
    return [
        f"{config.architecture}: {config.num_parameters / 1e6:.2f}M parameters, "
        f"{flops / 1e6:.1f} MFLOP per token (forward and backward, T={context_len}), "
        f"{config.kv_bytes_per_token()} bytes of KV cache per token (bfloat16)",
        f"memory: up to about {memory / 1e9:.2f} GB for weights, gradients, AdamW and the "
        f"activations of {tokens} tokens",
        f"expected loss at step 0: ln {config.vocab_size} = {math.log(config.vocab_size):.3f}",
    ]
