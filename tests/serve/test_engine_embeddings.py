"""Embeddings of prompts: the pooled states of transformers, however prompts are cut and shared."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from llmlab.errors import RequestError
from llmlab.serve import Engine, EngineConfig, SamplingParams
from tests.tiny import tiny_model_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randint(0, 256, (24,), generator=generator).tolist()
    return [
        *(torch.randint(0, 256, (n,), generator=generator).tolist() for n in (1, 5, 30)),
        *([*shared, *torch.randint(0, 256, (9,), generator=generator).tolist()] for _ in range(3)),
    ]


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"max_batch_tokens": 7, "max_running": 3}, {"num_pages": 14, "max_running": 6}],
    ids=["whole", "chunks", "few pages"],
)
def test_embeddings_are_the_pooled_states_of_transformers(folder, pooling, changes):
    config = replace(EngineConfig(model=folder, dtype="float32", page_len=4), **changes)
    params = SamplingParams(max_tokens=0, pooling=pooling)
    generating = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    with Engine(config) as engine:
        engine.submit([1, 2, 3], generating)
        found = [list(engine.generate(prompts(), params)) for _ in range(2)]
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for outputs in found:
        for output, prompt in zip(outputs, prompts(), strict=True):
            with torch.inference_mode():
                states = reference.model(torch.tensor([prompt])).last_hidden_state[0]
            pooled = states.mean(0) if pooling == "mean" else states[-1]
            assert output.embedding is not None
            assert output.token_ids == ()
            torch.testing.assert_close(
                torch.tensor(output.embedding), functional.normalize(pooled, dim=0),
                rtol=1e-4, atol=1e-5,
            )  # fmt: skip


def test_an_embedding_generates_nothing():
    with pytest.raises(RequestError, match="use max_tokens=0"):
        SamplingParams(pooling="mean")
    with pytest.raises(RequestError, match="use mean or last"):
        SamplingParams(pooling="first", max_tokens=0)  # type: ignore[arg-type]
