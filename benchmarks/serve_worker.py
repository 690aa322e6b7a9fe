"""One engine in a process of its own for benchmarks/serve.py: ours, or transformers.

Reads a command a line from stdin, answers with a line of JSON on stdout, ends with stdin. Commands
are {"prompts": [[id, ...], ...], "max_tokens": n} and {"limits": true}; the first line it writes
says what it is, or why it is not there.

    python -m benchmarks.serve_worker llmlab|transformers '{"model": "DIR", ...}'
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from llmlab.errors import LabError
from llmlab.kernels.bench.measure import as_json, limits_of
from llmlab.serve import Engine, EngineConfig, SamplingParams

Answer = dict[str, Any]


def llmlab_engine(fields: dict[str, Any]) -> tuple[str, Callable[[list[list[int]], int], Answer]]:
    """Load our engine with fields of EngineConfig."""
    known = {field.name for field in dataclasses.fields(EngineConfig)}
    if unknown := sorted(set(fields) - known):
        raise LookupError(f"this engine has no {', '.join(unknown)}")
    values: dict[str, Any] = {**fields, "model": Path(fields["model"])}
    engine = Engine(EngineConfig(**values))

    def generate(prompts: list[list[int]], max_tokens: int) -> Answer:
        params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
        began_s = time.perf_counter()
        outputs = list(engine.generate(prompts, params))
        return {
            "seconds": time.perf_counter() - began_s,
            "first_s": [output.first_token_s for output in outputs],
            "total_s": [output.total_s for output in outputs],
            "token_ids": [output.token_ids for output in outputs],
        }

    return "llmlab", generate


def transformers_model(
    fields: dict[str, Any],
) -> tuple[str, Callable[[list[list[int]], int], Answer]]:
    """Load a model with transformers; it reads one prompt and gives its first token."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - ours is measured without it

    model: Any = AutoModelForCausalLM.from_pretrained(
        fields["model"], dtype=getattr(torch, fields["dtype"])
    ).eval()

    def generate(prompts: list[list[int]], max_tokens: int) -> Answer:
        (prompt,) = prompts
        if max_tokens != 1:
            raise LookupError("transformers is compared in reading prompts only")
        began_s = time.perf_counter()
        with torch.inference_mode():
            logits = model(torch.tensor([prompt]), use_cache=True, logits_to_keep=1).logits
            token_id = int(logits[0, -1].argmax())
        seconds = time.perf_counter() - began_s
        return {
            "seconds": seconds,
            "first_s": [seconds],
            "total_s": [seconds],
            "token_ids": [[token_id]],
        }

    return f"transformers {version('transformers')}", generate


def main(kind: str, fields: dict[str, Any]) -> None:
    """Load, then answer until stdin ends."""
    load = {"llmlab": llmlab_engine, "transformers": transformers_model}[kind]
    try:
        name, generate = load(fields)
    except (LookupError, LabError) as error:
        say({"unavailable": str(error)})
        return
    say({"name": name, "threads": torch.get_num_threads()})
    for line in sys.stdin:
        command = json.loads(line)
        if "limits" in command:
            say(as_json(limits_of(torch.device(fields.get("device", "cpu")))))
        else:
            say(generate(command["prompts"], command["max_tokens"]))


def say(value: Answer) -> None:
    """Answer with one line."""
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
