"""What `llmlab serve` and `llmlab chat` are started with; torch-free.

Not here: what one request may ask for (`schema.py`, `params.py`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmlab.errors import ConfigError
from llmlab.serve.params import EngineConfig, Scheme


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Serve a model folder behind the OpenAI HTTP API."""

    model: Path
    """Model folder (config.json, model.safetensors, tokenizer.json)."""
    name: str | None = None
    """Model name that requests use; the folder's name when left out."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 listens on every interface of the machine."""
    port: int = 8000
    """TCP port; 0 takes any free one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of weights and cache; auto takes what this machine multiplies faster."""
    device: str = "cpu"
    """Torch device the model runs on."""
    max_model_len: int | None = None
    """Most tokens of prompt and answer together; the model's own limit when left out."""
    kv_memory_mb: int = 1024
    """Memory of the key/value cache in MB (1e6 bytes)."""
    max_batch_tokens: int = 512
    """Most tokens computed in one step, prompts and decodes together."""
    max_running: int = 32
    """Most requests computed side by side."""
    max_waiting: int = 256
    """Most requests that wait for their turn; one more is refused with status 429."""
    quantize: Scheme = "stored"
    """How weights are kept on a CPU: as they are stored, or rounded when the server starts."""
    kv_dtype: Literal["auto", "int8"] = "auto"
    """How keys and values are kept: as the model's numbers, or rounded to int8."""
    speculate: Literal["none", "ngram", "draft"] = "none"
    """Guess tokens and check several in one step, as long as it pays: from the text so far, or by
    a draft model."""
    draft_model: Path | None = None
    """Folder of a smaller model with the same tokenizer, for `speculate=draft`."""
    draft_len: int = 8
    """Most tokens guessed at a time."""
    prefix_cache: bool = True
    """Keep what was computed until its memory is needed, for prompts that begin the same."""
    itl_ratio: float | None = 1.75
    """Longest step while streams run, in times of a step that reads no prompt; None: no limit."""
    tensor_parallel: int = 1
    """Processes, on CPUs or a GPU each, that compute the model together, a share each."""
    replicas: int = 1
    """Processes that run the model, each with weights, cache and limits of its own; more than one
    need the extra `ray`."""
    adapter: tuple[str, ...] = ()
    """LoRA adapters in PEFT's format, NAME=DIR each; requests choose one by `model: NAME`."""
    max_loras: int = 0
    """Most adapters loaded at a time; at least as many as `adapter` names."""
    max_lora_rank: int = 64
    """Largest rank of an adapter."""
    lora_memory_mb: int = 512
    """Most memory of adapters in MB (1e6 bytes)."""
    lora_root: Path | None = None
    """Folder whose adapters may be loaded and unloaded over HTTP; not at all when left out."""
    api_key_file: Path | None = None
    """File with one API key a line; every route but /health then asks for one of them."""
    shutdown_timeout_s: int = 5
    """Seconds that running requests get to finish when the server is told to stop."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(
                f"port={self.port} is no TCP port; use 1 to 65535, or 0 for a free one"
            )
        if self.replicas < 1:
            raise ConfigError(f"replicas={self.replicas} must be at least 1")
        if self.replicas > 1 and (self.adapter or self.lora_root is not None):
            raise ConfigError(
                f"replicas={self.replicas} with adapters; replicas have none: use one process, or "
                "merge the adapter into the model"
            )
        if self.shutdown_timeout_s < 0:
            raise ConfigError(f"shutdown_timeout_s={self.shutdown_timeout_s} must be at least 0")
        if self.served_name in self.adapters:
            raise ConfigError(
                f"adapter {self.served_name!r} has the name of the model; choose another"
            )
        if self.lora_root is not None and not self.engine.num_lora_slots:
            raise ConfigError(
                f"lora_root={self.lora_root} has room for no adapter; set max_loras, such as 4"
            )

    @property
    def adapters(self) -> dict[str, Path]:
        """The folders of `adapter` by name."""
        found: dict[str, Path] = {}
        for entry in self.adapter:
            name, _, folder = entry.partition("=")
            if not name or not folder or name in found:
                raise ConfigError(f"adapter={entry!r} is not NAME=DIR, with a name of its own")
            found[name] = Path(folder)
        return found

    @property
    def served_name(self) -> str:
        """The name requests use for the model."""
        return self.name or self.model.resolve().name

    @property
    def engine(self) -> EngineConfig:
        """The engine's part of these fields."""
        return EngineConfig(
            model=self.model,
            dtype=self.dtype,
            device=self.device,
            max_model_len=self.max_model_len,
            kv_memory_mb=self.kv_memory_mb,
            max_batch_tokens=self.max_batch_tokens,
            max_running=self.max_running,
            max_waiting=self.max_waiting,
            quantize=self.quantize,
            kv_dtype=self.kv_dtype,
            speculate=self.speculate,
            draft_model=self.draft_model,
            draft_len=self.draft_len,
            prefix_cache=self.prefix_cache,
            itl_ratio=self.itl_ratio,
            tensor_parallel=self.tensor_parallel,
            adapters=self.adapters,
            max_loras=self.max_loras,
            max_lora_rank=self.max_lora_rank,
            lora_memory_mb=self.lora_memory_mb,
        )


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """Talk to any server that speaks the OpenAI API."""

    base_url: str = "http://127.0.0.1:8000"
    """URL of the server, with or without /v1."""
    model: str | None = None
    """Model name; the first one the server lists when left out."""
    system: str | None = None
    """System message that opens the conversation."""
    temperature: float = 0.7
    """Divides the logits, 0 to 2; 0 is greedy."""
    max_tokens: int | None = None
    """Most tokens of one answer; the server's own limit when left out."""
    api_key_file: Path | None = None
    """File whose first line is the API key; the variable OPENAI_API_KEY when left out."""
