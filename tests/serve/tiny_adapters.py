"""Adapters that PEFT writes for a tiny model folder, and what it makes of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from llmlab.tokenizers import Tokenizer

KINDS: dict[str, dict[str, Any]] = {
    "narrow": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "wide": {"r": 21, "lora_alpha": 4, "target_modules": "all-linear", "use_rslora": True},
    "mixed": {
        "r": 3,
        "lora_alpha": 5,
        "target_modules": ["o_proj", "gate_proj", "down_proj", "k_proj"],
        "rank_pattern": {"down_proj": 6, "layers.1.self_attn.o_proj": 2},
        "alpha_pattern": {"^model.layers.0.mlp.gate_proj": 9, "k_proj": 1},
    },
}
"""Three adapters that differ in rank, in the layers they act on, and in how they are scaled."""


def write_adapter(base: Path, out: Path, seed: int, **fields: Any) -> Path:
    """Write one with random weights."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **fields)
    peft.get_peft_model(model, config).save_pretrained(out)
    return out


def write_adapters(base: Path, out: Path) -> dict[str, Path]:
    """Write one of each kind."""
    return {
        name: write_adapter(base, out / name, seed, **fields)
        for seed, (name, fields) in enumerate(KINDS.items())
    }


@dataclass(frozen=True)
class Expected:
    """What a model says after a prompt."""

    token_ids: list[int]
    logprobs: Tensor  # of every position of prompt and answer, (S, V)


@torch.inference_mode()
def expected(base: Path, adapter: Path | None, prompt: list[int], num_tokens: int) -> Expected:
    """Generate greedily with transformers, through PEFT where there is an adapter."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, adapter)
    model.eval()
    vocab_size = Tokenizer.load(base).vocab_size
    ids = list(prompt)
    for _ in range(num_tokens):
        logits = model(torch.tensor([ids])).logits[0]
        ids.append(int(logits[-1, :vocab_size].argmax()))
    logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return Expected(ids[len(prompt) :], logprobs)
