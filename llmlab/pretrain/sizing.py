"""What follows from the size of the model where the settings leave it open. Torch-free.

The learning rate falls with the width E of the model, as c (256 / E)^p:

    adamw   c = 2e-3   p = 1
    muon    c = 4e-3   p = 1/2
    lion    c = 4e-4   p = 1

A step takes 2048 tokens at 8M parameters and grows with their number to the power 2/3: a larger
model is given more to read, over which its gradient is averaged. It is a power of two, at least
1024 and at most 2^19.

Not here: budgets. A run of hours wants a larger batch than one of minutes.
"""

import dataclasses
import math

from llmlab.model.config import ModelConfig
from llmlab.pretrain.config import PretrainConfig

_RATES = {"adamw": (2e-3, 1.0), "muon": (4e-3, 0.5), "lion": (4e-4, 1.0)}
_WIDTH = 256
_PARAMETERS, _TOKENS = 8e6, 2**11
_FEWEST_TOKENS, _MOST_TOKENS = 2**10, 2**19


def learning_rate_for(optimizer: str, hidden_size: int) -> float:
    """Return the peak learning rate for a width E, to two digits."""
    rate, power = _RATES[optimizer]
    return float(f"{rate * (_WIDTH / hidden_size) ** power:.1e}")


def batch_tokens_for(num_parameters: int, *, unit: int) -> int:
    """Return the tokens of an optimizer step.

    Args:
        num_parameters: of the model; of a mixture of experts those one token goes through.
        unit: the result is a multiple of it: context_len x accumulation.
    """
    tokens = _TOKENS * (num_parameters / _PARAMETERS) ** (2 / 3)
    rounded = 2 ** round(math.log2(tokens))
    return max(1, round(min(max(rounded, _FEWEST_TOKENS), _MOST_TOKENS) / unit)) * unit


def sized(config: PretrainConfig, shape: ModelConfig) -> PretrainConfig:
    """Return the settings with nothing left open."""
    unit = config.context_len * config.accumulation
    return dataclasses.replace(
        config,
        learning_rate=config.learning_rate
        if config.learning_rate is not None
        else learning_rate_for(config.optimizer, shape.hidden_size),
        batch_tokens=config.batch_tokens
        if config.batch_tokens is not None
        else batch_tokens_for(shape.num_active_parameters, unit=unit),
    )


def recipe(config: PretrainConfig) -> str:
    """Return a sentence with the settings that `sized` may have chosen."""
    return (
        f"{config.optimizer} at a learning rate of {config.learning_rate:g}, {config.schedule}; "
        f"{config.batch_tokens} tokens a step"
    )
