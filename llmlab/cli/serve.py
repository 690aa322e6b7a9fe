"""`llmlab serve`, and the way to `llmlab chat`.

Each verb imports what it needs when it runs: a chat needs no torch, a server no client.
"""

import sys
from dataclasses import replace

from llmlab.serve.config import ServeConfig
from llmlab.track import Progress

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def run(config: ServeConfig) -> None:
    """Serve until stopped: SIGTERM ends with status 0, ctrl-c with 130."""
    import torch

    from llmlab.hardware import pick_dtype
    from llmlab.serve.backend import Backend
    from llmlab.serve.server import serve_until_stopped

    progress = Progress(sys.stderr, "serve")
    progress.note(f"loading {config.model}")
    if config.dtype == "auto":
        dtype, reason = pick_dtype(config.device)
        config = replace(config, dtype="bfloat16" if dtype == torch.bfloat16 else "float32")
        progress.note(reason)

    def on_ready(url: str, engine: Backend) -> None:
        stats = engine.stats()
        progress.note(
            f"{config.served_name}: {engine.config.dtype}, context {engine.max_model_len} tokens, "
            f"{stats.num_pages} pages of {engine.config.page_len} tokens"
            + (f" in {stats.replicas} replicas" if stats.replicas > 1 else "")
        )
        if config.host not in _LOOPBACK and config.api_key_file is None:
            progress.note("anyone who reaches this machine may use it; see --api-key-file")
        progress.note(f"listening on {url}, stop with ctrl-c; try:")
        progress.note(_curl(url, config))

    serve_until_stopped(config, on_ready)


def _curl(url: str, config: ServeConfig) -> str:
    key = "" if config.api_key_file is None else ' -H "Authorization: Bearer $KEY"'
    return (
        f"curl {url}/v1/completions{key} -H 'Content-Type: application/json' "
        f'-d \'{{"prompt": "Once upon a time", "max_tokens": 32}}\''
    )
