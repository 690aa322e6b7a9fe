"""On a CPU a request gets the same numbers, bit for bit, alone or in any company."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llmlab.serve import Engine, EngineConfig, SamplingParams
from tests.tiny import tiny_model_folder

PARAMS = SamplingParams(
    temperature=0.8, top_p=0.9, seed=5, max_tokens=30, ignore_eos=True, logprobs=4
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    lengths = [37, *torch.randint(1, 60, (31,), generator=generator).tolist()]
    return [torch.randint(0, 256, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize("quantize", ["stored", "int8", "int8-dynamic", "int4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_alone_or_among_31_others(folder, dtype, quantize):
    config = EngineConfig(model=folder, dtype=dtype, quantize=quantize, page_len=4)
    with Engine(replace(config, max_running=1)) as engine:
        (alone,) = engine.generate(prompts()[:1], PARAMS)
    for company in (
        replace(config, max_running=32, max_batch_tokens=512),
        replace(config, max_running=32, max_batch_tokens=41),
        replace(config, max_running=32, num_pages=60, speculate="ngram", adapt_drafts=False),
    ):
        with Engine(company) as engine:
            together = next(iter(engine.generate(prompts(), PARAMS)))
        assert together.token_ids == alone.token_ids
        assert together.logprobs == alone.logprobs
