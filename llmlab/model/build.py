"""From a config to a model with fresh weights."""

from llmlab.model.config import ModelConfig
from llmlab.model.gpt2 import GPT2
from llmlab.model.language_model import LanguageModel
from llmlab.model.transformer import Transformer


def build_model(config: ModelConfig) -> LanguageModel:
    """Build the model `config.architecture` names, with weights from torch's default generator.

    Call `torch.manual_seed` before for the same weights again. Under `torch.device("meta")` no
    memory is taken.
    """
    return GPT2(config) if config.is_gpt2 else Transformer(config)
