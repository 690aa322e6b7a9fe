"""`llmlab generate`: text to stdout as it comes, what was chosen to stderr."""

import sys
import time
from dataclasses import dataclass

from llmlab.hardware import pick_device, pick_dtype
from llmlab.model.folder import load_model
from llmlab.model.generate_config import GenerateConfig
from llmlab.model.generation import generate
from llmlab.track import Progress


@dataclass(frozen=True)
class GenerateResult:
    """What `llmlab generate` wrote; its text is already on stdout."""

    text: str
    elapsed_s: float

    def __str__(self) -> str:
        return ""


def run(config: GenerateConfig) -> GenerateResult:
    """Load the model, stream the continuation, say how long it took."""
    progress = Progress(sys.stderr, "generate")
    device = pick_device(config.device)
    dtype, reason = pick_dtype(device) if config.dtype == "auto" else (config.dtype, config.dtype)
    progress.note(f"{device}, {reason}")
    model, tokenizer = load_model(config.model, dtype=dtype, device=device)
    prompt: str | list[int] = config.prompt
    if config.chat:
        prompt = tokenizer.encode_chat(_messages(config))
    start_s = time.perf_counter()
    pieces = []
    for piece in generate(
        model,
        tokenizer,
        prompt,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        min_p=config.min_p,
        repetition_penalty=config.repetition_penalty,
        seed=config.seed,
    ):
        pieces.append(piece)
        sys.stdout.write(piece)
        sys.stdout.flush()
    return GenerateResult("".join(pieces), time.perf_counter() - start_s)


def _messages(config: GenerateConfig) -> list[dict[str, str]]:
    system = [{"role": "system", "content": config.system}] if config.system else []
    return [*system, {"role": "user", "content": config.prompt}]
