"""The engine against transformers: the same tokens, however requests are batched."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmlab.errors import ConfigError, RequestError
from llmlab.serve import Engine, EngineConfig, SamplingParams
from llmlab.serve.grammar import GrammarSpec
from llmlab.tokenizers import Tokenizer
from tests.tiny import tiny_model_folder

LENGTHS = (1, 2, 15, 16, 17, 31, 40, 70)
NEW_TOKENS = 20
LOGPROB_TOLERANCE = 1e-4  # float32, 3 layers: another order of the same sums

# How a request meets the others: each must give what it gives alone.
SETTINGS = {
    "one by one": {"max_running": 1},
    "one batch": {"max_running": 8},
    "chunked prompts": {"max_running": 8, "max_batch_tokens": 11},
    "few pages": {"max_running": 8, "num_pages": 26, "page_len": 4},
    "odd pages": {"page_len": 3, "max_running": 5, "max_batch_tokens": 23},
}


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def folder(request, tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"), "qwen3")


@pytest.fixture(scope="module")
def engine(qwen3):
    with Engine(EngineConfig(model=qwen3, dtype="float32")) as engine:
        yield engine


def start(folder: Path, **changes) -> Engine:
    return Engine(replace(EngineConfig(model=folder, dtype="float32"), **changes))


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (n,), generator=generator).tolist() for n in LENGTHS]


@torch.inference_mode()
def reference(folder: Path) -> list[tuple[list[int], torch.Tensor]]:
    """Greedy tokens and the log-probabilities of every position, by transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    num_tokens = Tokenizer.load(folder).vocab_size  # ids above have no text: never generated
    found = []
    for prompt in prompts():
        ids = list(prompt)
        for _ in range(NEW_TOKENS):
            logits = model(torch.tensor([ids])).logits[0]
            ids.append(int(logits[-1, :num_tokens].argmax()))
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)  # (S, V)
        found.append((ids[len(prompt) :], logprobs))
    return found


GREEDY = SamplingParams(
    temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=3, prompt_logprobs=1
)


@pytest.fixture(scope="module")
def expected(folder):
    return reference(folder)


@pytest.mark.parametrize("setting", SETTINGS)
def test_greedy_tokens_and_logprobs_are_those_of_transformers(folder, expected, setting):
    with start(folder, **SETTINGS[setting]) as engine:
        outputs = list(engine.generate(prompts(), GREEDY))
        stats = engine.stats()
    assert (stats.preemptions > 0) == (setting == "few pages")
    assert stats.free_pages == stats.num_pages
    assert stats.generated_tokens == NEW_TOKENS * len(LENGTHS)
    for prompt, output, (tokens, logprobs) in zip(prompts(), outputs, expected, strict=True):
        assert output.finish_reason == "length"
        assert output.prompt_token_ids == tuple(prompt)
        assert list(output.token_ids) == tokens
        assert output.text == engine.tokenizer.decode(tokens, skip_special_tokens=True)
        assert output.prompt_logprobs is not None
        assert output.prompt_logprobs[0] is None
        entries = [entry for entry in output.prompt_logprobs if entry] + list(output.logprobs)
        ids = [*prompt, *tokens]
        assert [entry.token_id for entry in entries] == ids[1:]
        for position, entry in enumerate(entries):
            row = logprobs[position]
            assert entry.token_bytes == engine.tokenizer.token_bytes(entry.token_id)
            assert abs(entry.logprob - row[entry.token_id]) < LOGPROB_TOLERANCE
            top = row[: engine.tokenizer.vocab_size].topk(1 if position < len(prompt) - 1 else 3)
            assert len(entry.top) == len(top.values)
            for alternative, value in zip(entry.top, top.values.tolist(), strict=True):
                assert abs(alternative.logprob - value) < LOGPROB_TOLERANCE


def test_a_prompt_can_be_scored_without_generating(engine, expected, qwen3):
    prompt = prompts()[5]
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)
    (output,) = engine.generate([prompt], params)
    assert (output.text, output.token_ids, output.finish_reason) == ("", (), "length")
    assert output.prompt_logprobs is not None
    assert [entry.top for entry in output.prompt_logprobs[1:]] == [()] * (len(prompt) - 1)
    assert output.first_token_s is None
    (without,) = engine.generate([prompt], SamplingParams(max_tokens=0))
    assert without.prompt_logprobs is None


def test_sampling_is_reproducible_alone_and_in_any_company(qwen3):
    ids = prompts()
    every = [
        SamplingParams(max_tokens=12, temperature=1.3, top_p=0.95, seed=seed, ignore_eos=True)
        for seed in range(len(ids))
    ]
    with start(qwen3) as engine:
        together = [output.token_ids for output in engine.generate(ids, every)]
    with start(qwen3, **SETTINGS["few pages"]) as engine:
        backwards = [output.token_ids for output in engine.generate(ids[::-1], every[::-1])]
    with start(qwen3, max_running=1) as engine:
        alone = [
            next(engine.generate([prompt], params)).token_ids
            for prompt, params in zip(ids, every, strict=True)
        ]
    assert together == backwards[::-1] == alone
    with start(qwen3) as engine:
        seeded = SamplingParams(max_tokens=12, seed=7)
        same = [output.token_ids for output in engine.generate([ids[3]] * 2, seeded)]
        fresh = [
            output.token_ids
            for output in engine.generate([ids[3]] * 4, SamplingParams(max_tokens=12))
        ]
    assert same[0] == same[1]
    assert len(set(fresh)) > 1


def test_sampled_tokens_follow_the_model(engine):
    """400 draws of one token: each frequency within 5 standard deviations of its probability."""
    prompt, count = prompts()[2], 400
    (scored,) = engine.generate([prompt], SamplingParams(max_tokens=1, temperature=0, logprobs=5))
    drawn = Counter(
        output.token_ids[0]
        for output in engine.generate(
            [prompt] * count, [SamplingParams(max_tokens=1, seed=seed) for seed in range(count)]
        )
    )
    for entry in scored.logprobs[0].top:
        p = math.exp(entry.logprob)
        assert abs(drawn[entry.token_id] - count * p) < 5 * math.sqrt(count * p * (1 - p)) + 1


def test_a_stop_token_ends_the_request_and_has_no_text(engine):
    prompt = prompts()[4]
    (full,) = engine.generate([prompt], GREEDY)
    stop = full.token_ids[6]
    first = full.token_ids.index(stop)
    params = SamplingParams(
        temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, stop_token_ids=(stop,)
    )
    (output,) = engine.generate([prompt], params)
    assert output.finish_reason == "stop"
    assert output.token_ids == full.token_ids[: first + 1]
    assert output.text == engine.tokenizer.decode(full.token_ids[:first], skip_special_tokens=True)


def test_the_tokenizers_stop_token_ends_the_request_unless_ignored(engine):
    eos = engine.tokenizer.eos_token_id
    biased = {"max_tokens": 5, "logit_bias": {eos: 100}, "temperature": 0}
    (output,) = engine.generate([prompts()[4]], SamplingParams(**biased))
    assert (output.token_ids, output.text, output.finish_reason) == ((eos,), "", "stop")
    (output,) = engine.generate([prompts()[4]], SamplingParams(**biased, min_tokens=3))
    assert output.token_ids[3:] == (eos,)
    assert eos not in output.token_ids[:3]
    (output,) = engine.generate([prompts()[4]], SamplingParams(**biased, ignore_eos=True))
    assert (output.token_ids, output.text, output.finish_reason) == ((eos,) * 5, "", "length")


def ascii_only(engine) -> dict[int, float]:
    """A bias that leaves single printable characters: every token has a text of its own."""
    V = engine.model_config.vocab_size
    texts = {i: engine.tokenizer.token_bytes(i) for i in range(min(V, engine.tokenizer.vocab_size))}
    return {
        i: -100.0
        for i, text in texts.items()
        if not (text.decode("latin1").isalpha() and text.isascii())
    }


@pytest.mark.parametrize("at", [0, 3, 9])
@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_stop_string_is_cut_wherever_it_lies(engine, at, length):
    bias = ascii_only(engine)
    base = {"seed": 5, "logit_bias": bias, "max_tokens": 24, "temperature": 1.5}
    (full,) = engine.generate([prompts()[2]], SamplingParams(**base))
    stop = full.text[at : at + length]
    number = engine.submit(prompts()[2], SamplingParams(**base, stop=("\n\n", stop)))
    pieces, reasons = [], []
    while engine.has_work:
        for _, delta in engine.step():
            pieces.append(delta.text)
            reasons.append(delta.finish_reason)
    text = "".join(pieces)
    assert number >= 0
    assert text == full.text[: full.text.index(stop)]
    assert reasons[-1] == "stop"
    assert set(reasons[:-1]) <= {None}


def test_penalties_and_bias_reach_the_sampler(engine):
    prompt = prompts()[3]
    (plain,) = engine.generate([prompt], GREEDY)
    (output,) = engine.generate(
        [prompt],
        SamplingParams(
            temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, repetition_penalty=1e6
        ),
    )
    assert len(set(output.token_ids) | set(prompt)) == len(output.token_ids) + len(set(prompt))
    banned = {plain.token_ids[0]: -100.0}
    (output,) = engine.generate(
        [prompt], SamplingParams(temperature=0, max_tokens=1, logit_bias=banned)
    )
    assert output.token_ids != plain.token_ids[:1]


def test_aborting_frees_the_pages_and_disturbs_nobody(qwen3):
    ids = prompts()
    with start(qwen3, max_batch_tokens=33) as engine:
        alone = [output.token_ids for output in engine.generate(ids[:3], GREEDY)]
        numbers = [engine.submit(prompt, GREEDY) for prompt in ids]
        tokens: dict[int, list[int]] = {number: [] for number in numbers}
        gone = set()
        steps = 0
        while engine.has_work:
            steps += 1
            if steps in (1, 2, 5, 6, 9):
                number = numbers[-1 - len(gone)]
                engine.abort(number)
                engine.abort(number)  # twice does no harm
                gone.add(number)
            for number, delta in engine.step():
                assert number not in gone
                tokens[number] += delta.token_ids
        assert [tuple(tokens[number]) for number in numbers[:3]] == alone
        assert len(gone) == 5
        assert engine.stats().free_pages == engine.stats().num_pages
        assert engine.stats().running == engine.stats().waiting == 0


def test_leaving_a_generation_early_aborts_the_rest(qwen3):
    with start(qwen3) as engine:
        outputs = engine.generate(prompts(), GREEDY)
        next(outputs)
        outputs.close()
        assert not engine.has_work
        assert engine.stats().free_pages == engine.stats().num_pages


def test_a_grammar_that_does_not_compile_leaves_nothing_behind(engine):
    good, bad = (SamplingParams(grammar=GrammarSpec(regex=text)) for text in ("[ab]{4}", "(("))
    with pytest.raises(RequestError, match="unclosed group"):
        list(engine.generate([[1], [2], [3]], [good, SamplingParams(), bad]))
    assert not engine.has_work
    assert engine.stats().free_pages == engine.stats().num_pages
    (output,) = engine.generate([[1]], good)
    assert len(output.text) == 4


def test_two_generations_can_be_read_in_turns(engine):
    ids = prompts()
    alone = [output.token_ids for output in engine.generate(ids[:4], GREEDY)]
    first, second = engine.generate(ids[:2], GREEDY), engine.generate(ids[2:4], GREEDY)
    turns = [next(first), next(second), next(first), next(second)]
    assert [turns[at].token_ids for at in (0, 2, 1, 3)] == alone


def test_text_prompts_get_what_every_prompt_starts_with(engine):
    (output,) = engine.generate(["The cat"], SamplingParams(max_tokens=1))
    assert list(output.prompt_token_ids) == [
        *engine.tokenizer.bos_ids,
        *engine.tokenizer.encode("The cat"),
    ]


def test_without_max_tokens_the_context_is_filled(qwen3):
    with start(qwen3, max_model_len=50) as engine:
        (output,) = engine.generate([[1] * 20], SamplingParams(ignore_eos=True))
        assert (len(output.token_ids), output.finish_reason) == (30, "length")


@pytest.mark.parametrize(
    ("prompt", "params", "param", "message"),
    [
        ([], {}, "prompt", "no tokens"),
        ([1] * 128, {}, "prompt", "has 128 tokens and the context holds 128"),
        ([1] * 129, {"max_tokens": 0}, "prompt", "has 129 tokens"),
        ([1] * 100, {"max_tokens": 29}, "max_tokens", "use at most 28"),
        ([5000], {}, "prompt", "5000"),
        ([-1], {}, "prompt", "-1"),
        ([1], {"logit_bias": {9999: 1.0}}, "logit_bias", "9999"),
        ([1], {"stop_token_ids": (9999,)}, "stop_token_ids", "9999"),
    ],
)
def test_what_can_never_be_done_is_refused(engine, prompt, params, param, message):
    with pytest.raises(RequestError, match=message) as caught:
        engine.generate([prompt], SamplingParams(**params))
    assert caught.value.param == param
    assert not engine.has_work


def test_the_pool_bounds_the_context(qwen3):
    with start(qwen3, num_pages=5, page_len=8) as engine:
        assert engine.max_model_len == 40
        with pytest.raises(RequestError, match="context holds 40"):
            engine.generate([[1] * 40], SamplingParams())
        (output,) = engine.generate([[1] * 30], SamplingParams(ignore_eos=True))
        assert len(output.token_ids) == 10


def test_params_must_match_the_prompts(engine):
    with pytest.raises(ConfigError, match="2 params for 1 prompts"):
        engine.generate([[1]], [SamplingParams()] * 2)


def test_a_cache_without_a_page_is_refused(qwen3):
    with pytest.raises(ConfigError, match="kv_memory_mb=1 holds no page"):
        start(qwen3, kv_memory_mb=1, page_len=4096)


def test_a_context_beyond_the_models_is_refused(qwen3):
    with pytest.raises(ConfigError, match="max_model_len=129 is above the 128 positions"):
        start(qwen3, max_model_len=129)


def test_models_that_pages_do_not_serve(tmp_path):
    with pytest.raises(
        ConfigError, match="is a LSTMForCausalLM, whose state does not lie in pages"
    ):
        start(tiny_model_folder(tmp_path, "lstm"))
    folder = tiny_model_folder(tmp_path, "mistral", sliding_window=32)
    with pytest.raises(ConfigError, match=r"a sliding_window of 32 tokens.*pass max_model_len=32"):
        start(folder)
    start(folder, max_model_len=32).close()


def test_a_device_that_is_not_there_is_refused(qwen3):
    with pytest.raises(ConfigError, match="device='tpu' is not supported"):
        start(qwen3, device="tpu")


def test_bfloat16_gives_nearly_the_same_distribution(qwen3, engine):
    prompt = prompts()[5]
    with start(qwen3, dtype="bfloat16") as narrow:
        (rounded,) = narrow.generate([prompt], SamplingParams(max_tokens=0, prompt_logprobs=0))
    (exact,) = engine.generate([prompt], SamplingParams(max_tokens=0, prompt_logprobs=0))
    assert rounded.prompt_logprobs is not None
    assert exact.prompt_logprobs is not None
    gaps = [
        abs(left.logprob - right.logprob)
        for left, right in zip(rounded.prompt_logprobs[1:], exact.prompt_logprobs[1:], strict=True)
        if left is not None and right is not None
    ]
    # 8 bits of mantissa through three layers of large random weights.
    assert sum(gaps) / len(gaps) < 0.15
