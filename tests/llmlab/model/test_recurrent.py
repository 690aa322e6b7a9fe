"""The recurrent baselines: state, folders, what others say to them. Cells: foundations."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmlab.errors import ModelError
from llmlab.model import load_model, save_model
from llmlab.model.generation import generate_ids
from tests.tiny import tiny_config, tiny_model, tiny_tokenizer

ATOL = 1e-5


@pytest.fixture(params=["rnn", "lstm", "gru"])
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


def test_reading_on_equals_reading_at_once(architecture: str):
    model = tiny_model(architecture)
    input_ids = torch.randint(0, 384, (2, 20))
    read = model.reader(batch_size=2, max_len=20)
    with torch.inference_mode():
        parts = torch.cat([read(part) for part in input_ids.split([7, 1, 1, 11], dim=1)], dim=1)
        torch.testing.assert_close(parts, model.hidden(input_ids), atol=ATOL, rtol=0)


def test_greedy_text_equals_reading_everything_anew(architecture: str):
    model = tiny_model(architecture)
    ids = [5, 6, 7]
    for _ in range(10):
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert list(generate_ids(model, [5, 6, 7], max_tokens=10)) == ids[3:]


def test_a_token_does_not_see_the_future(architecture: str):
    model = tiny_model(architecture)
    input_ids = torch.randint(0, 384, (1, 20))
    changed = input_ids.clone()
    changed[0, 12:] = (changed[0, 12:] + 1) % 384
    with torch.inference_mode():
        torch.testing.assert_close(model(input_ids)[:, :12], model(changed)[:, :12])


def test_model_folder(architecture: str, tmp_path: Path):
    tokenizer = tiny_tokenizer()
    model = tiny_model(architecture, vocab_size=max(384, tokenizer.vocab_size))
    folder = tmp_path / "model"
    save_model(model, tokenizer, folder)
    again, same_tokenizer = load_model(folder)
    input_ids = torch.randint(0, 384, (1, 9))
    with torch.inference_mode():
        assert torch.equal(again(input_ids), model(input_ids))
    assert same_tokenizer.fingerprint == tokenizer.fingerprint
    raw = json.loads((folder / "config.json").read_text())
    assert raw["model_type"] == architecture
    assert "num_attention_heads" not in raw
    with pytest.raises(ValueError, match=f"model type `{architecture}` but Transformers does not"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_an_lstm_begins_by_remembering():
    model = tiny_model("lstm")
    bias = model.get_parameter("layers.1.cell.bias_ih_l0")
    assert torch.equal(bias[48:96], torch.ones(48))


def test_sizes_that_a_recurrent_model_has_not():
    with pytest.raises(ModelError, match="LSTMForCausalLM has no head_dim=16; set it to 0"):
        tiny_config("lstm", head_dim=16)
    assert tiny_config("lstm").kv_bytes_per_token() == 0
