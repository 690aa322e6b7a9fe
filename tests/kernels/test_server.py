"""The server's greedy tokens with and without kernels: C++ here, Triton under its interpreter."""

import pytest

from llmlab.kernels import op
from llmlab.kernels.op import INTERPRETED
from llmlab.model import save_model
from llmlab.serve import Engine, EngineConfig, SamplingParams
from tests.kernels.guards import WITH_AND_WITHOUT_INTERPRETER
from tests.tiny import tiny_model, tiny_tokenizer

pytestmark = [*WITH_AND_WITHOUT_INTERPRETER, *([pytest.mark.slow] if INTERPRETED else [])]

PROMPTS = [[5, 9, 200], [7] * 30, [250, 2]]


def tokens(folder):
    params = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
    config = EngineConfig(model=folder, dtype="float32", max_running=3, max_batch_tokens=16)
    with Engine(config) as engine:
        return [out.token_ids for out in engine.generate(PROMPTS, params)]


def test_two_hundred_greedy_tokens(tmp_path, monkeypatch):
    model = tiny_model("qwen3", num_hidden_layers=2, max_position_embeddings=256)
    save_model(model, tiny_tokenizer(), tmp_path / "model")
    found = tokens(tmp_path / "model")
    monkeypatch.setattr(op, "ENABLED", False)
    assert found == tokens(tmp_path / "model")
    assert [len(ids) for ids in found] == [200] * 3
