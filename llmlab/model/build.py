"""From a config to a model with fresh weights."""

from llmlab.model.config import ModelConfig
from llmlab.model.gpt2 import GPT2
from llmlab.model.language_model import LanguageModel
from llmlab.model.recurrent import Recurrent
from llmlab.model.transformer import Transformer


def build_model(
    config: ModelConfig, *, z_loss: float = 0.0, recompute: bool = False
) -> LanguageModel:
    """Build the model `config.architecture` names, with weights from torch's default generator.

    Call `torch.manual_seed` before for the same weights again. Under `torch.device("meta")` no
    memory is taken.

    Args:
        config: the model's shape.
        z_loss: weight in training of the squared logarithm of the softmax's normaliser.
        recompute: keep only each layer's input for the backward pass (activation checkpointing).
    """
    kind = GPT2 if config.is_gpt2 else Recurrent if config.is_recurrent else Transformer
    return kind(config, z_loss=z_loss, recompute=recompute)
