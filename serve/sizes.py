"""How long texts can be and how many pages there are: from the model, the memory and the config."""

from llmlab.errors import ConfigError
from llmlab.model import ModelConfig
from llmlab.serve.params import EngineConfig


def context_len(config: EngineConfig, model: ModelConfig) -> int:
    """Return the most tokens of prompt and answer together.

    Raises:
        ConfigError: more than the model can read, or a model that pages do not serve.
    """
    longest = model.max_position_embeddings
    if model.is_recurrent:
        raise ConfigError(
            f"{config.model} is a {model.architecture}, whose state does not lie in pages; "
            "use llmlab generate"
        )
    window = model.sliding_window
    if window is not None and window < (config.max_model_len or longest):
        raise ConfigError(
            f"{config.model} has a sliding_window of {window} tokens, and pages are attended to "
            f"whole; pass max_model_len={window}, up to which that is the same"
        )
    if config.max_model_len is not None and config.max_model_len > longest:
        raise ConfigError(
            f"max_model_len={config.max_model_len} is above the {longest} positions the model "
            "was trained for; lower it or leave it out"
        )
    return config.max_model_len or longest


def num_pages_for(config: EngineConfig, model: ModelConfig, dtype: str, max_len: int) -> int:
    """Return how many pages fit the memory, but no more than can ever be used.

    Raises:
        ConfigError: not a single one fits.
    """
    head_bytes = model.head_dim * (2 if dtype == "bfloat16" else 4)
    if config.kv_dtype == "int8":
        head_bytes = model.head_dim + 4  # and a scale
    token_bytes = 2 * model.num_hidden_layers * model.num_key_value_heads * head_bytes
    page_bytes = token_bytes * config.page_len
    usable = -(-max_len // config.page_len) * config.max_running
    num_pages = min(int(config.kv_memory_mb * 1e6 // page_bytes), usable)
    if num_pages < 1:
        raise ConfigError(
            f"kv_memory_mb={config.kv_memory_mb} holds no page: one takes {page_bytes / 1e6:.1f} "
            "MB; raise it or lower page_len"
        )
    return num_pages
