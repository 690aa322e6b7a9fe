"""Adapters while serving: as PEFT computes them, several in a batch, loaded as requests run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmlab.errors import ConfigError, ModelError, RequestError
from llmlab.finetune import MergeConfig, merge
from llmlab.kernels.native import function_of
from llmlab.serve import Engine, EngineConfig, SamplingParams
from llmlab.serve.deltas import Output
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
    return function_of("run_tape", "pi") is not None


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
