"""Generating text: what comes out, when it ends, and the verb."""

from pathlib import Path

import pytest
import torch

from llmlab.cli.main import main
from llmlab.errors import ConfigError, ModelError
from llmlab.model import generate, load_model
from llmlab.model.generate_config import GenerateConfig
from llmlab.model.generation import generate_ids
from tests.tiny import tiny_model, tiny_model_folder, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("generation"))


def test_greedy_equals_the_argmax_of_the_whole_text():
    model = tiny_model()
    prompt_ids = [5, 17, 200, 3]
    found = list(generate_ids(model, prompt_ids, max_tokens=20))
    token_ids = list(prompt_ids)
    with torch.inference_mode():
        for _ in range(20):
            token_ids.append(int(model(torch.tensor([token_ids]))[0, -1].argmax()))
    assert found == token_ids[4:]


def test_a_seed_repeats_and_another_one_differs():
    def text_ids(seed: int) -> list[int]:
        return list(generate_ids(tiny_model(), [5, 6], max_tokens=20, temperature=1.0, seed=seed))

    assert text_ids(1) == text_ids(1)
    assert text_ids(1) != text_ids(2)


def test_a_stop_token_ends_it_and_is_not_text():
    tokenizer = tiny_tokenizer()
    model = tiny_model(vocab_size=tokenizer.vocab_size)
    token_ids = list(generate_ids(model, [5, 6], max_tokens=12))
    stop = token_ids[5]
    cut = token_ids.index(stop)
    assert (
        list(generate_ids(model, [5, 6], max_tokens=12, stop_token_ids={stop}))
        == (token_ids[: cut + 1])
    )


def test_pieces_join_to_the_decoded_text():
    tokenizer = tiny_tokenizer()
    model = tiny_model(vocab_size=tokenizer.vocab_size, seed=3)
    prompt_ids = tokenizer.encode("The cat")
    token_ids = list(generate_ids(model, prompt_ids, max_tokens=60, temperature=1.0, seed=4))
    stops = [i for i, token_id in enumerate(token_ids) if token_id in tokenizer.stop_token_ids]
    token_ids = token_ids[: stops[0]] if stops else token_ids
    pieces = list(generate(model, tokenizer, "The cat", max_tokens=60, temperature=1.0, seed=4))
    assert "".join(pieces) == tokenizer.decode(token_ids)
    assert all(pieces)


def test_the_context_is_the_limit():
    model = tiny_model(max_position_embeddings=16)
    assert len(list(generate_ids(model, [1] * 10, max_tokens=100))) == 6
    with pytest.raises(ModelError, match="the prompt has 16 tokens; pass between 1 and 15"):
        list(generate_ids(model, [1] * 16, max_tokens=1))
    with pytest.raises(ModelError, match="the prompt has 0 tokens"):
        list(generate_ids(model, [], max_tokens=1))


def test_the_verb_streams_the_text(folder: Path, capsys: pytest.CaptureFixture[str]):
    words = ["generate", "--model", str(folder), "--prompt", "The cat", "--max-tokens", "8"]
    assert main([*words, "--temperature", "0", "--dtype", "float32"]) == 0
    out = capsys.readouterr()
    model, tokenizer = load_model(folder)
    expected = "".join(generate(model, tokenizer, "The cat", max_tokens=8, temperature=0))
    assert out.out == expected + "\n"
    assert "cpu, float32" in out.err


def test_the_verb_applies_the_chat_template(folder: Path, capsys: pytest.CaptureFixture[str]):
    words = ["generate", "--model", str(folder), "--prompt", "Hello", "--max-tokens", "8"]
    words += ["--temperature", "0", "--dtype", "float32", "--chat", "--system", "Be brief."]
    assert main(words) == 0
    model, tokenizer = load_model(folder)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
    ]
    prompt_ids = tokenizer.encode_chat(messages)
    expected = "".join(generate(model, tokenizer, prompt_ids, max_tokens=8, temperature=0))
    assert capsys.readouterr().out == expected + "\n"


def test_the_verb_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["generate", "--model", str(tmp_path / "none"), "--prompt", "x"]) == 1
    assert "no model folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0 must be 0 or more"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0 and at most 1"),
        ({"max_tokens": 0}, "max_tokens=0 must be at least 1"),
        ({"system": "x"}, "needs --chat"),
    ],
)
def test_settings_that_cannot_be(changes: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        GenerateConfig(model=Path("m"), prompt="p", **changes)
