"""From a model folder to a runner: the whole model in this process, or shares of it in several.

Not here: where the sizes come from (engine.py).
"""

from functools import partial

import torch

from llmlab.model import ModelConfig, load_model
from llmlab.model.sharding import Share, check_shares
from llmlab.serve.adapters import AdapterStore
from llmlab.serve.params import EngineConfig
from llmlab.serve.rank_worker import RankSettings
from llmlab.serve.runner import Runner
from llmlab.serve.tensor_parallel import Workers
from llmlab.tokenizers import Tokenizer


def load_runner(
    config: EngineConfig,
    model_config: ModelConfig,
    *,
    device: torch.device,
    dtype: str,
    num_pages: int,
    max_len: int,
) -> tuple[Runner, Tokenizer, AdapterStore | None]:
    """Load a model folder, ready to run steps.

    Args:
        config: names the folder, and in how many processes the model shall be.
        model_config: of the folder.
        device: where it shall live; with several processes the first GPU stands for as many.
        dtype: of weights and cache, float32 or bfloat16.
        num_pages: of the cache.
        max_len: most tokens of a sequence.

    Returns:
        The runner, whose `close` ends the other processes, the folder's tokenizer, and the store
        of the adapters that sequences may have; None when they may have none.

    Raises:
        ModelError: the model cannot be loaded.
        ConfigError: it does not divide among the processes, there are too few GPUs, or adapters
            would take more than their memory.
        ServerError: a process could not start.
    """
    size = config.tensor_parallel
    new_runner = partial(
        Runner,
        num_pages=num_pages,
        page_len=config.page_len,
        max_len=max_len,
        scheme=config.quantize,
        has_int8_kv=config.kv_dtype == "int8",
    )
    if size == 1:
        model, tokenizer = load_model(config.model, dtype=dtype, device=device)
        adapters = AdapterStore.of(config, model)  # while the model's weights are as stored
        return new_runner(model, tokenizer, adapters=adapters), tokenizer, adapters
    check_shares(model_config, size)  # before any process is started for nothing
    settings = RankSettings(
        rank=0,
        size=size,
        model=str(config.model),
        dtype=dtype,
        device=device.type,
        num_pages=num_pages,
        page_len=config.page_len,
        scheme=config.quantize,
        has_int8_kv=config.kv_dtype == "int8",
    )
    workers = Workers(settings, device)
    try:
        model, tokenizer = load_model(
            config.model, dtype=dtype, device=device, share=Share(0, size)
        )
        ranks = workers.connect()
        runner = new_runner(model, tokenizer, ranks=ranks)
    except BaseException:
        workers.close()
        raise
    return runner, tokenizer, None
