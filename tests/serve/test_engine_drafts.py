"""Drafts change when tokens come, never which: with everything else a request can ask for."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare

from llmlab.errors import ConfigError
from llmlab.model import load_model
from llmlab.serve import Engine, EngineConfig, SamplingParams
from llmlab.serve.deltas import Output
from llmlab.serve.grammar.spec import GrammarSpec
from llmlab.tokenizers import Tokenizer
from tests.serve.tiny_adapters import KINDS, write_adapter
from tests.tiny import tiny_model_folder

# peft 0.21 asks transformers 5.23 a question by its former name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

REPEATING = [[7, 8, 9, 10, 11] * 5 + [7, 8], [3, 4] * 9, [50, 60, 70, 50, 60]]
GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
LOGPROB_TOLERANCE = 1e-4  # float32, 3 layers: another order of the same sums

WISHES = {
    "greedy": GREEDY,
    "sampling": replace(GREEDY, temperature=0.8, top_p=0.95, seed=1),
    "penalties": replace(
        GREEDY, temperature=0.7, seed=2, repetition_penalty=1.1, frequency_penalty=0.2,
        presence_penalty=0.1,
    ),
    "bias": replace(GREEDY, logit_bias={9: 4.0, 20: -100}),
    "logprobs": replace(GREEDY, logprobs=3, prompt_logprobs=1),
    "schema": SamplingParams(
        temperature=0.9, seed=3, max_tokens=40,
        grammar=GrammarSpec(
            json_schema={
                "type": "object",
                "properties": {"a": {"enum": ["x", "yy"]}, "b": {"type": "boolean"}},
                "required": ["a", "b"], "additionalProperties": False,
            }
        ),
    ),
    "regex": SamplingParams(
        temperature=0, max_tokens=50, min_tokens=30, grammar=GrammarSpec(regex="(ab|cd){3,9}")
    ),
    "stop string": SamplingParams(temperature=0.9, seed=4, max_tokens=40, stop=("e", "th")),
}  # fmt: skip

SETTINGS = {
    "plain": {},
    "prefix hits": {"page_len": 2},
    "int8 keys and values": {"kv_dtype": "int8"},
    "an adapter": {"max_loras": 1},
    "few pages, chunks": {"page_len": 4, "num_pages": 20, "max_batch_tokens": 9, "max_running": 3},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory) -> Path:
    return write_adapter(folder, tmp_path_factory.mktemp("adapter"), 0, **KINDS["narrow"])


@pytest.fixture(scope="module")
def draft_folders(tmp_path_factory) -> dict[str, Path]:
    """The same model again, which always guesses right, and another one, which seldom does."""
    return {
        name: tiny_model_folder(tmp_path_factory.mktemp(name), architecture, seed=seed)
        for name, architecture, seed in (("same", "qwen3", 0), ("other", "llama", 5))
    }


def run(
    folder: Path, params: SamplingParams, adapter: Path | None = None, **changes
) -> tuple[list[Output], Engine]:
    """Generate, with an adapter for every prompt but the last if there is one."""
    config = replace(EngineConfig(model=folder, dtype="float32"), **changes)
    names = None
    with Engine(config) as engine:
        if adapter is not None:
            engine.load_adapter("a", adapter)
            names = ["a"] * (len(REPEATING) - 1) + [None]
        list(engine.generate(REPEATING, replace(params, max_tokens=2, min_tokens=0), adapter=names))
        return list(engine.generate(REPEATING, params, adapter=names)), engine


def told(output: Output) -> tuple:
    return output.token_ids, output.text, output.finish_reason


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("guesser", ["ngram", "same", "other"])
def test_the_same_tokens_with_and_without_drafts(
    folder, draft_folders, adapter, wish, setting, guesser
):
    params, changes = WISHES[wish], SETTINGS[setting]
    own = adapter if setting == "an adapter" else None
    expected, _ = run(folder, params, own, **changes)
    if wish == "greedy" and own is not None:
        plain, _ = run(folder, params)
        assert told(plain[0]) != told(expected[0]), "the adapter does something"
    how = {"speculate": "ngram"}
    if guesser != "ngram":
        how = {"speculate": "draft", "draft_model": draft_folders[guesser]}
    found, engine = run(folder, params, own, adapt_drafts=False, **how, **changes)
    assert [told(output) for output in found] == [told(output) for output in expected]
    stats = engine.stats()
    assert 0 <= stats.accepted_tokens <= stats.drafted_tokens
    assert stats.free_pages == stats.num_pages
    if wish == "greedy" and guesser != "other":
        assert stats.accepted_tokens > 10, "a text that repeats itself is guessed"
    if wish == "greedy" and guesser == "same" and setting == "plain":
        assert stats.accepted_tokens > 0.9 * stats.drafted_tokens
    for mine, right in zip(found, expected, strict=True):
        for name in ("logprobs", "prompt_logprobs"):
            pairs = zip(getattr(mine, name) or (), getattr(right, name) or (), strict=True)
            assert all(near(*pair) for pair in pairs if pair[1] is not None)
        assert len(mine.logprobs) == (len(mine.token_ids) if params.logprobs is not None else 0)


def near(mine, right) -> bool:
    return mine.token_id == right.token_id and math.isclose(
        mine.logprob, right.logprob, abs_tol=LOGPROB_TOLERANCE
    )


def test_groups_of_choices(folder):
    params = [replace(GREEDY, temperature=0.9, seed=seed, max_tokens=25) for seed in range(3)]

    def tokens(speculate) -> Sequence[tuple[int, ...]]:
        config = EngineConfig(
            model=folder, dtype="float32", page_len=4, speculate=speculate, adapt_drafts=False
        )
        with Engine(config) as engine:
            numbers = engine.submit_group(REPEATING[0], params)
            found: dict[int, tuple[int, ...]] = dict.fromkeys(numbers, ())
            while engine.has_work:
                for number, delta in engine.step():
                    found[number] += delta.token_ids
            return [found[number] for number in numbers]

    assert tokens("ngram") == tokens("none")


def test_texts_keep_to_their_grammar(folder):
    for wish, pattern in (("schema", "{"), ("regex", "ab|cd")):
        outputs, _ = run(folder, WISHES[wish], speculate="ngram", adapt_drafts=False)
        for output in outputs:
            assert output.text.startswith(tuple(pattern.split("|")))
            assert output.finish_reason == "stop"


def test_a_sampled_draft_leaves_the_distribution(folder):
    """Chi-square of the second and third token, which are drafted, against the model's own."""
    ids, num = [3, 5, 7], 2000
    prompt = [3, 5, 7, 3, 5, 7, 3, 5, 7, 3, 5]
    model, tokenizer = load_model(folder, dtype="float32")
    banned = {token_id: -100.0 for token_id in range(tokenizer.vocab_size) if token_id not in ids}
    chances = Counter()
    with torch.inference_mode():
        for first, second, third in product(ids, repeat=3):
            logits = model(torch.tensor([[*prompt, first, second]]))[0, -3:, ids] / 2
            steps = logits.softmax(-1).double()
            where = [ids.index(token) for token in (first, second, third)]
            chances[first, second, third] = steps[range(3), where].prod().item()
    params = [
        SamplingParams(temperature=2.0, max_tokens=3, seed=seed, logit_bias=banned, ignore_eos=True)
        for seed in range(num)
    ]
    config = EngineConfig(model=folder, dtype="float32", speculate="ngram", adapt_drafts=False)
    with Engine(config) as engine:
        outputs = list(engine.generate([prompt] * num, params))
        stats = engine.stats()
    assert 0 < stats.accepted_tokens < stats.drafted_tokens
    counts = Counter(output.token_ids for output in outputs)
    often = [key for key in chances if num * chances[key] >= 5]
    found = [counts[key] for key in often]
    expected = [num * chances[key] for key in often]
    assert len(often) > 5
    # All rare ones together are a class of their own.
    found.append(num - sum(found))
    expected.append(num - sum(expected))
    # Fixed seeds: a p-value below this would be seen once in a thousand engines that are right.
    assert chisquare(found, expected).pvalue > 1e-3


def test_a_draft_model_must_fit(folder, tmp_path):
    config = EngineConfig(model=folder, dtype="float32")
    short = tiny_model_folder(tmp_path / "short", max_position_embeddings=64)
    with pytest.raises(ConfigError, match="reads 64 tokens and the engine serves 128"):
        Engine(replace(config, speculate="draft", draft_model=short))
    Tokenizer.train(["another text, other words"], vocab_size=300).save(short)
    with pytest.raises(ConfigError, match="has another tokenizer"):
        Engine(replace(config, speculate="draft", draft_model=short, max_model_len=64))
    with pytest.raises(ConfigError, match="needs speculate=draft"):
        replace(config, draft_model=short)
    with pytest.raises(ConfigError, match="needs speculate=draft"):
        replace(config, speculate="draft")
