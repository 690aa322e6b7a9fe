"""What a reader would compute before a run: sizes, FLOPs, memory, the loss at step 0.

Not here: measurements (metrics.jsonl has them).
"""

import math

from llmlab.model.config import ModelConfig

ADAMW_BYTES_PER_PARAMETER = 16
"""float32 weight, gradient, first and second moment."""


def memory_bytes(config: ModelConfig, *, tokens: int, number_bytes: int) -> int:
    """Estimate the memory of one training step.

    Counted for a token: per layer the tensors that the backward pass reads (about 12 of width E and
    4 of width F), and of the head the logits in float32, their softmax and its gradient.

    Args:
        config: the model's shape.
        tokens: tokens in a micro-batch, B x T.
        number_bytes: bytes of the compute dtype.
    """
    E, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    layers = config.num_hidden_layers * (12 * E + 4 * F) * number_bytes
    head = V * (number_bytes + 3 * 4)
    return config.num_parameters * ADAMW_BYTES_PER_PARAMETER + tokens * (layers + head)


def outlook(config: ModelConfig, *, context_len: int, tokens: int) -> list[str]:
    """Return sentences about the run to come.

    Args:
        config: the model's shape.
        context_len: tokens in a window, T.
        tokens: tokens in a micro-batch, B x T.
    """
    flops = config.flops_per_token(context_len)
    memory = memory_bytes(config, tokens=tokens, number_bytes=4)
    return [
        f"{config.architecture}: {config.num_parameters / 1e6:.2f}M parameters, "
        f"{flops / 1e6:.1f} MFLOP per token (forward and backward, T={context_len}), "
        f"{config.kv_bytes_per_token()} bytes of KV cache per token (bfloat16)",
        f"memory: at most about {memory / 1e9:.2f} GB for weights, gradients, AdamW and the "
        f"activations of {tokens} tokens",
        f"expected loss at step 0: ln {config.vocab_size} = {math.log(config.vocab_size):.3f}",
    ]
