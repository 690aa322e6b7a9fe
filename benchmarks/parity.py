"""Claim: the same logits, greedy tokens and token ids as transformers.

For each architecture a small random model goes both ways through a model folder: saved by
transformers and loaded here, saved here and loaded by transformers. SmolLM2-135M-Instruct is
imported from its GGUF file and continues 20 prompts by 32 tokens, alone and 8 side by side. A
freshly trained tokenizer's folder is read by AutoTokenizer.

    python -m benchmarks.parity
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.rows import append_row
from llmlab import load_model, save_model
from llmlab.model import import_gguf
from llmlab.model.gguf_wheels import smollm2_gguf
from llmlab.serve import Engine, EngineConfig, SamplingParams
from tests.llmlab.tokenizers.samples import TORTURE
from tests.serve.test_smollm2 import NEW_TOKENS, QUESTIONS, TEXTS, greedy
from tests.tiny import tiny_model, tiny_tokenizer

ARCHITECTURES = ("qwen3", "llama", "qwen2", "gpt2")


def logits_differences(architecture: str, folder: Path) -> dict[str, float]:
    """Return the largest |difference| of float32 logits, each way through a model folder."""
    input_ids = torch.randint(0, 384, (2, 64), generator=torch.Generator().manual_seed(0))
    ours, tokenizer = tiny_model(architecture), tiny_tokenizer()
    save_model(ours, tokenizer, folder / "ours")
    theirs = AutoModelForCausalLM.from_pretrained(folder / "ours", dtype=torch.float32).eval()
    with torch.inference_mode():
        written = (ours(input_ids) - theirs(input_ids).logits).abs().max().item()
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        theirs.save_pretrained(folder / "theirs")
        tokenizer.save(folder / "theirs")
        back, _ = load_model(folder / "theirs")
        read = (back(input_ids) - theirs(input_ids).logits).abs().max().item()
    return {"ours_to_transformers": written, "transformers_to_ours": read}


def smollm2_greedy(folder: Path) -> dict[str, Any]:
    """Return how many of 20 prompts give transformers' greedy tokens, alone and in batches of 8."""
    model = import_gguf(smollm2_gguf(), folder / "smollm2")
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    with Engine(EngineConfig(model=model, dtype="float32", max_running=8)) as engine:
        chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
        prompts = [engine.tokenizer.encode_chat(chat) for chat in chats]
        prompts += [engine.encode(text) for text in TEXTS]
        expected = [greedy(reference, prompt)[len(prompt) :].tolist() for prompt in prompts]
        alone = [next(iter(engine.generate([prompt], params))).token_ids for prompt in prompts]
        batched = [out.token_ids for out in engine.generate(prompts, params)]
    return {
        "prompts": len(prompts),
        "new_tokens": NEW_TOKENS,
        "equal_alone": sum(list(a) == b for a, b in zip(alone, expected, strict=True)),
        "equal_in_batch_of_8": sum(list(a) == b for a, b in zip(batched, expected, strict=True)),
    }


def tokenizer_ids(folder: Path) -> dict[str, int]:
    """Return on how many difficult texts AutoTokenizer gives the same ids from our folder."""
    tokenizer = tiny_tokenizer()
    tokenizer.save(folder)
    theirs: Any = AutoTokenizer.from_pretrained(folder)
    texts = list(TORTURE)
    ids = [theirs.encode(text, add_special_tokens=False) for text in texts]
    equal = [tokenizer.encode(t, allow_special=True) == i for t, i in zip(texts, ids, strict=True)]
    return {"texts": len(texts), "equal": sum(equal)}


def main() -> None:
    """Measure everything and append one row."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        logits = {arch: logits_differences(arch, folder / arch) for arch in ARCHITECTURES}
        row = {
            "dtype": "float32",
            "max_abs_logit_difference": logits,
            "smollm2_greedy": smollm2_greedy(folder),
            "tokenizer_ids": tokenizer_ids(folder / "tokenizer"),
        }
    print(append_row("parity", row), row)


if __name__ == "__main__":
    main()
