"""Adapters while serving: as PEFT computes them, several in a batch, loaded as requests run."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llmlab.errors import ConfigError, ModelError, RequestError
from llmlab.finetune import MergeConfig, merge
from llmlab.kernels.native import function_of
from llmlab.kernels.op import ENABLED
from llmlab.model import load_model
from llmlab.serve import AsyncEngine, Engine, EngineConfig, SamplingParams
from llmlab.serve.adapters import AdapterStore
from llmlab.serve.deltas import Output
from llmlab.serve.runner import Runner
from llmlab.serve.sequence import Sequence, Slice
from tests.serve.tiny_adapters import Expected, expected, write_adapter, write_adapters
from tests.tiny import tiny_model_folder

# peft 0.21 asks transformers 5.23 a question by its former name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

LENGTHS = (5, 33, 1, 17, 60, 12)
NAMES = ("narrow", None, "wide", "mixed", "wide", "narrow")
NEW_TOKENS = 12
LOGPROB_TOLERANCE = 1e-4  # float32, 3 layers: another order of the same sums
GREEDY = SamplingParams(
    temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=1, prompt_logprobs=0
)

# How a request meets the others: each must give what it gives alone.
SETTINGS = {
    "one by one": {"max_running": 1},
    "one batch": {"max_running": 8},
    "chunked prompts": {"max_running": 8, "max_batch_tokens": 11},
    "long steps": {"max_running": 8, "max_batch_tokens": 512, "max_lora_rank": 40},
    "few pages": {"max_running": 8, "num_pages": 22, "page_len": 4},
}


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (n,), generator=generator).tolist() for n in LENGTHS]


@pytest.fixture(scope="module", params=["qwen3", "llama", "qwen2"])
def folder(request, tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture(scope="module")
def folders(folder, tmp_path_factory) -> dict[str, Path]:
    return write_adapters(folder, tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def references(folder, folders) -> list[Expected]:
    return [
        expected(folder, None if name is None else folders[name], prompt, NEW_TOKENS)
        for prompt, name in zip(prompts(), NAMES, strict=True)
    ]


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"), "qwen3")


@pytest.fixture(scope="module")
def for_qwen3(qwen3, tmp_path_factory) -> dict[str, Path]:
    return write_adapters(qwen3, tmp_path_factory.mktemp("adapters"))


def start(folder: Path, **changes) -> Engine:
    return Engine(replace(EngineConfig(model=folder, dtype="float32", kv_memory_mb=8), **changes))


def check(output: Output, reference: Expected) -> None:
    assert list(output.token_ids) == reference.token_ids
    assert output.prompt_logprobs is not None
    entries = [entry for entry in output.prompt_logprobs if entry] + list(output.logprobs)
    for position, entry in enumerate(entries):
        row = reference.logprobs[position]
        assert abs(entry.logprob - row[entry.token_id]) < LOGPROB_TOLERANCE


def has_tapes() -> bool:
    return ENABLED and function_of("run_tape", "pi") is not None


def can_record(runner: Runner) -> bool:
    return runner._tapes is not None and runner._tapes._can_record


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_batch_of_three_adapters_and_none_is_what_peft_computes_one_by_one(
    folder, folders, references, setting
):
    with start(folder, adapters=folders, **SETTINGS[setting]) as engine:
        outputs = list(engine.generate(prompts(), GREEDY, adapter=NAMES))
        stats = engine.stats()
        tapes = engine._runner._tapes
    assert (stats.preemptions > 0) == (setting == "few pages")
    assert stats.free_pages == stats.num_pages
    for output, reference in zip(outputs, references, strict=True):
        check(output, reference)
    if has_tapes():
        assert tapes is not None
        assert tapes._can_record, "every operation of a step is native"
        assert any(is_adapted for _, _, is_adapted in tapes._recorded)
    assert len({tuple(each.token_ids) for each in references}) == len(references)


def test_a_merged_model_gives_the_same(qwen3, for_qwen3, tmp_path):
    merged = merge(MergeConfig(adapter=for_qwen3["wide"], model=qwen3, out=tmp_path / "merged"))
    with start(qwen3, adapters=for_qwen3) as engine, start(merged) as plain:
        for ours, theirs in zip(
            engine.generate(prompts(), GREEDY, adapter="wide"),
            plain.generate(prompts(), GREEDY),
            strict=True,
        ):
            assert ours.token_ids == theirs.token_ids
            for one, two in zip(ours.logprobs, theirs.logprobs, strict=True):
                assert abs(one.logprob - two.logprob) < LOGPROB_TOLERANCE


def test_rows_are_the_same_alone_and_among_others_to_the_last_bit_in_bfloat16(qwen3, for_qwen3):
    with start(qwen3, adapters=for_qwen3, dtype="bfloat16") as engine:
        together = list(engine.generate(prompts(), GREEDY, adapter=NAMES))
        for prompt, name, output in zip(prompts(), NAMES, together, strict=True):
            (alone,) = engine.generate([prompt], GREEDY, adapter=name)
            assert alone.token_ids == output.token_ids
            assert alone.logprobs == output.logprobs
            assert alone.prompt_logprobs == output.prompt_logprobs


def test_adapters_are_loaded_and_unloaded_while_requests_run(qwen3, for_qwen3, references_of_qwen3):
    """Every request sees the adapter that had its name when it came, whatever happens after."""
    prompt = prompts()[3]
    tokens: dict[int, list[int]] = {}

    def step() -> None:
        for number, delta in engine.step():
            tokens[number] += delta.token_ids

    def submit(name: str | None) -> int:
        number = engine.submit(prompt, GREEDY, adapter=name)
        tokens[number] = []
        return number

    with start(qwen3, max_loras=2) as engine:
        base = submit(None)
        step()
        engine.load_adapter("x", for_qwen3["narrow"])
        first = submit("x")
        step()
        engine.unload_adapter("x")
        assert engine.adapters == {}
        with pytest.raises(RequestError, match="no adapter 'x' is loaded") as refused:
            engine.submit(prompt, GREEDY, adapter="x")
        assert refused.value.status == 404
        engine.load_adapter("x", for_qwen3["wide"])
        second = submit("x")
        step()
        with pytest.raises(ConfigError, match=r"max_loras=2 .*, 1 of them unloaded but still in"):
            engine.load_adapter("y", for_qwen3["mixed"])
        while len(tokens[first]) < NEW_TOKENS:
            step()
        engine.load_adapter("y", for_qwen3["mixed"])
        third = submit("y")
        assert engine.adapters == {"x": for_qwen3["wide"], "y": for_qwen3["mixed"]}
        while engine.has_work:
            step()
        assert not has_tapes() or can_record(engine._runner)
    for number, name in zip(
        (base, first, second, third), (None, "narrow", "wide", "mixed"), strict=True
    ):
        assert tokens[number] == references_of_qwen3[name].token_ids, name


@pytest.fixture(scope="module")
def references_of_qwen3(qwen3, for_qwen3) -> dict[str | None, Expected]:
    return {
        name: expected(qwen3, for_qwen3.get(name or ""), prompts()[3], NEW_TOKENS)
        for name in (None, *for_qwen3)
    }


def test_a_place_keeps_nothing_of_the_adapter_before(qwen3, for_qwen3, references_of_qwen3):
    with start(qwen3, max_loras=1) as engine:
        for name in ("wide", "narrow", "mixed", "wide"):
            engine.load_adapter("only", for_qwen3[name])
            (output,) = engine.generate([prompts()[3]], GREEDY, adapter="only")
            check(output, references_of_qwen3[name])
            engine.unload_adapter("only")


def test_an_adapter_unloaded_before_its_requests_could_start_ends_their_streams_only(
    qwen3, for_qwen3, references_of_qwen3
):
    prompt = prompts()[3]
    config = EngineConfig(model=qwen3, dtype="float32", adapters=for_qwen3, kv_memory_mb=8)

    async def test(engine: AsyncEngine) -> None:
        with engine._wake:  # the engine's thread cannot take requests in here
            lost = engine.stream(prompt, GREEDY, adapter="wide")
            both = engine.streams(prompt, [GREEDY, GREEDY], adapter="wide")
            kept = engine.stream(prompt, GREEDY, adapter="narrow")
            engine.unload_adapter("wide")
        for stream in (lost, *both):
            with pytest.raises(RequestError, match="no adapter 'wide' is loaded"):
                await anext(stream)
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
        ids = [token_id async for delta in kept for token_id in delta.token_ids]
        assert ids == references_of_qwen3["narrow"].token_ids
        await engine.load_adapter("wide", for_qwen3["wide"])
        again = engine.stream(prompt, GREEDY, adapter="wide")
        ids = [token_id async for delta in again for token_id in delta.token_ids]
        assert ids == references_of_qwen3["wide"].token_ids

    with AsyncEngine(config) as engine:
        asyncio.run(asyncio.wait_for(test(engine), 30))


def test_an_aborted_request_gives_its_adapter_back(qwen3, for_qwen3):
    with start(qwen3, max_loras=1) as engine:
        engine.load_adapter("a", for_qwen3["narrow"])
        running = engine.submit(prompts()[0], GREEDY, adapter="a")
        engine.submit(prompts()[1], GREEDY, adapter="a")
        engine.step()
        engine.unload_adapter("a")
        engine.abort(running)
        with pytest.raises(ConfigError, match="1 of them unloaded but still in use"):
            engine.load_adapter("b", for_qwen3["mixed"])
        while engine.has_work:
            engine.step()
        engine.load_adapter("b", for_qwen3["mixed"])


def test_choices_of_one_prompt_hold_their_adapter_until_the_last_has_ended(
    qwen3, for_qwen3, references_of_qwen3
):
    with start(qwen3, max_loras=1) as engine:
        engine.load_adapter("a", for_qwen3["wide"])
        with pytest.raises(RequestError, match="no adapter 'b' is loaded"):
            engine.submit_group(prompts()[3], [GREEDY], adapter="b")
        params = [replace(GREEDY, prompt_logprobs=None, max_tokens=most) for most in (1, 12, 4)]
        numbers = engine.submit_group(prompts()[3], params, adapter="a")
        engine.unload_adapter("a")
        tokens: dict[int, list[int]] = {number: [] for number in numbers}
        while engine.has_work:
            with pytest.raises(ConfigError, match="1 of them unloaded but still in use"):
                engine.load_adapter("b", for_qwen3["mixed"])
            for number, delta in engine.step():
                tokens[number] += delta.token_ids
        engine.load_adapter("b", for_qwen3["mixed"])
    reference = references_of_qwen3["wide"].token_ids
    assert [tokens[number] for number in numbers] == [reference[:1], reference, reference[:4]]


def test_nothing_that_one_adapter_computed_serves_another(qwen3, for_qwen3, references_of_qwen3):
    """Not even one loaded later under the same name."""
    prompt, params = prompts()[3], replace(GREEDY, prompt_logprobs=None)
    with start(qwen3, adapters=for_qwen3, page_len=4) as engine:
        for name in (None, "narrow", "wide", "narrow"):
            (output,) = engine.generate([prompt], params, adapter=name)
            assert list(output.token_ids) == references_of_qwen3[name].token_ids, name
        assert engine.stats().prefix_hits == len(prompt) // 4 * 4, "of the second time only"
        engine.unload_adapter("narrow")
        engine.load_adapter("narrow", for_qwen3["mixed"])
        (output,) = engine.generate([prompt], params, adapter="narrow")
        assert list(output.token_ids) == references_of_qwen3["mixed"].token_ids
        assert engine.stats().prefix_hits == len(prompt) // 4 * 4


def test_without_adapters_the_model_is_as_it_was(qwen3, for_qwen3):
    with start(qwen3) as engine:
        layers = {type(module).__name__ for module in engine._runner._model.modules()}
        assert "_AdaptedLinear" not in layers
        assert engine.adapters == {}
        for refused in (
            lambda: engine.load_adapter("a", for_qwen3["narrow"]),
            lambda: engine.submit([1, 2], GREEDY, adapter="a"),
        ):
            with pytest.raises(RequestError, match="was started without adapters; start it with"):
                refused()


def test_limits(qwen3, for_qwen3):
    with pytest.raises(ModelError, match="has rank 21, above max_lora_rank=8; start with a larger"):
        start(qwen3, adapters={"wide": for_qwen3["wide"]}, max_lora_rank=8)
    with pytest.raises(ConfigError, match=r"take 92 MB, above lora_memory_mb=9; .*rank=97 would"):
        start(qwen3, max_loras=10, max_lora_rank=1000, lora_memory_mb=9)
    with pytest.raises(ConfigError, match="3 adapters with tensor_parallel=2; adapters run in one"):
        start(qwen3, adapters=for_qwen3, tensor_parallel=2)
    with start(qwen3, adapters=for_qwen3, max_loras=1) as engine:
        for name, message in (("narrow", "is loaded already"), ("x", "max_loras=3 adapters are")):
            with pytest.raises(ConfigError, match=message):
                engine.load_adapter(name, for_qwen3["narrow"])
        for name in ("", "a" * 201, "a\nb"):
            with pytest.raises(ConfigError, match="is no name for an adapter"):
                engine.load_adapter(name, for_qwen3["narrow"])
        with pytest.raises(ConfigError, match="2 adapters for 1 prompts"):
            engine.generate([[1]], GREEDY, adapter=["narrow", "wide"])
        with pytest.raises(RequestError, match="no adapter 'wid' is loaded; did you mean 'wide'"):
            engine.generate([[1]], GREEDY, adapter="wid")
        with pytest.raises(RequestError, match="no adapter 'gone' is loaded"):
            engine.unload_adapter("gone")


def test_attention_beside_experts_can_be_adapted(tmp_path):
    folder = tiny_model_folder(tmp_path, "qwen3_moe")
    fields = {"r": 4, "target_modules": ["q_proj", "o_proj"]}
    adapter = write_adapter(folder, tmp_path / "adapter", 0, **fields)
    reference = expected(folder, adapter, prompts()[3], NEW_TOKENS)
    with start(folder, adapters={"a": adapter}) as engine:
        (output,) = engine.generate([prompts()[3]], GREEDY, adapter="a")
    check(output, reference)


@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic", "int4"])
def test_rounded_weights_take_adapters_too(qwen3, for_qwen3, scheme):
    model, tokenizer = load_model(qwen3, dtype="bfloat16")
    adapters = AdapterStore.of(EngineConfig(model=qwen3, max_loras=1), model)
    assert adapters is not None
    adapters.load("a", for_qwen3["wide"])
    runner = Runner(model, tokenizer, num_pages=8, page_len=8, scheme=scheme, adapters=adapters)
    chosen = []
    for number, adapter in enumerate((None, adapters.acquire("a"))):
        seq = Sequence(
            number=number,
            prompt_len=17,
            token_ids=prompts()[3],
            params=replace(GREEDY, prompt_logprobs=None),
            max_len=128,
            seed=0,
            pages=[4 * number + page for page in range(3)],
            adapter=adapter,
        )
        chosen.append(runner.run([Slice(seq, 0, 17)])[0].logprobs)
    assert chosen[0] != chosen[1]
    assert not has_tapes() or can_record(runner)


def test_models_of_other_kinds_are_refused(tmp_path):
    folder = tiny_model_folder(tmp_path, "gpt2")
    with pytest.raises(ConfigError, match="this model is a GPT2LMHeadModel; merge the adapter"):
        start(folder, max_loras=1)
