"""The shape of the model that a run trains: a preset's, the ladder's or a file's.

Not here: the sizes themselves (llmlab/model/presets.py).
"""

import dataclasses
import json
from pathlib import Path

from llmlab.errors import ConfigError
from llmlab.model import ModelConfig, load_config
from llmlab.model.window_config import mostly_sliding
from llmlab.pretrain.config import PretrainConfig
from llmlab.tokenizers import Tokenizer


def model_config(config: PretrainConfig, tokenizer: Tokenizer) -> ModelConfig:
    """Return the shape of the model, with the tokenizer's ids.

    Raises:
        ConfigError: the file's vocabulary or context is smaller than needed.
        ModelError: no such preset or depth, a config.json that is not supported, or a window that
            the architecture has not.
    """
    shape = _sized(config, tokenizer.vocab_size)
    if config.sliding_window is not None:
        types = mostly_sliding(shape.architecture, shape.num_hidden_layers)
        shape = dataclasses.replace(shape, sliding_window=config.sliding_window, layer_types=types)
    return dataclasses.replace(
        shape,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _sized(config: PretrainConfig, vocab_size: int) -> ModelConfig:
    if config.model_config is not None:
        shape = _read(config.model_config)
        for name, needed in (
            ("vocab_size", vocab_size),
            ("max_position_embeddings", config.context_len),
        ):
            if getattr(shape, name) < needed:
                raise ConfigError(
                    f"{config.model_config} has {name}={getattr(shape, name)}, less than the "
                    f"{needed} this run needs; raise it"
                )
        return shape
    if config.depth is not None:
        return ModelConfig.of_depth(
            config.depth,
            vocab_size=vocab_size,
            max_position_embeddings=config.context_len,
            architecture=config.arch,
        )
    return ModelConfig.preset(
        config.preset,
        vocab_size=vocab_size,
        max_position_embeddings=config.context_len,
        architecture=config.arch,
    )


def _read(path: Path) -> ModelConfig:
    if path.is_dir():
        return load_config(path)
    try:
        return ModelConfig.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ConfigError(f"model_config={path} does not exist; pass a config.json") from error
    except ValueError as error:
        raise ConfigError(f"model_config={path} is not JSON: {error}; correct it") from error
