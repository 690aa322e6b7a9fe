"""Adapters over HTTP: models of their own, loaded out of one folder and nowhere else."""

import shutil
from pathlib import Path

import openai
import pytest

from llmlab.errors import ConfigError
from llmlab.serve import ServeConfig
from tests.serve.live import live
from tests.serve.tiny_adapters import expected, write_adapters
from tests.tiny import tiny_model_folder

# peft 0.21 asks transformers 5.23 a question by its former name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

PROMPT = [84, 104, 101, 32]
GREEDY = {"prompt": PROMPT, "temperature": 0, "max_tokens": 6, "ignore_eos": True, "logprobs": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def root(folder, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("adapters")
    write_adapters(folder, root)
    return root


@pytest.fixture(scope="module")
def server(folder, root):
    with live(folder, adapter=(f"own={root / 'narrow'}",), max_loras=2, lora_root=root) as server:
        yield server


@pytest.fixture
def texts(server, folder, root) -> dict[str, str]:
    decode = server.engine.tokenizer.decode
    found = {}
    for name, adapter in (("tiny", None), ("own", root / "narrow"), ("hot", root / "wide")):
        ids = expected(folder, adapter, PROMPT, GREEDY["max_tokens"]).token_ids
        found[name] = decode(ids, skip_special_tokens=True)
    assert len(set(found.values())) == 3
    return found


def refusal(response, status, param):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["param"] == param
    return error["message"]


def test_adapters_are_models(server, texts):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        cards = {card.id: card.model_dump() for card in client.models.list()}
        assert list(cards) == ["tiny", "own"]
        assert cards["own"]["parent"] == "tiny"
        assert "parent" not in cards["tiny"]
        assert client.models.retrieve("own").id == "own"
        for name in ("tiny", "own"):
            answer = server.post("/v1/completions", model=name, **GREEDY).json()
            assert answer["model"] == name
            assert answer["choices"][0]["text"] == texts[name]
            chunks = client.chat.completions.create(
                model=name, messages=[{"role": "user", "content": "hi"}], max_tokens=3, stream=True
            )
            assert {chunk.model for chunk in chunks} == {name}
    message = refusal(server.post("/v1/completions", model="x", **GREEDY), 404, "model")
    assert message == "the model 'x' does not exist; this server has 'tiny', 'own'"


def test_load_and_unload(server, texts):
    assert server.post("/v1/load_lora_adapter", lora_name="hot", lora_path="wide").is_success
    assert "hot" in [card["id"] for card in server.client.get("/v1/models").json()["data"]]
    answer = server.post("/v1/completions", model="hot", **GREEDY).json()
    assert answer["choices"][0]["text"] == texts["hot"]
    again = server.post("/v1/load_lora_adapter", lora_name="hot", lora_path="wide")
    assert refusal(again, 400, None) == "an adapter 'hot' is loaded already; unload it first"
    more = server.post("/v1/load_lora_adapter", lora_name="more", lora_path="mixed")
    assert "max_loras=2 adapters are loaded" in refusal(more, 400, None)
    base = server.post("/v1/load_lora_adapter", lora_name="tiny", lora_path="wide")
    assert "is the base model's name" in refusal(base, 400, "lora_name")
    assert server.post("/v1/unload_lora_adapter", lora_name="hot").is_success
    refusal(server.post("/v1/completions", model="hot", **GREEDY), 404, "model")
    refusal(server.post("/v1/unload_lora_adapter", lora_name="hot"), 404, "model")
    assert server.idle()


def test_nothing_outside_the_folder_is_read(server, root, tmp_path):
    shutil.copytree(root / "wide", tmp_path / "secret")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "circle").symlink_to(root / "circle")
    (root / "half").mkdir()
    shutil.copy(root / "wide" / "adapter_config.json", root / "half")
    weights = tmp_path / "secret" / "adapter_model.safetensors"
    (root / "half" / "adapter_model.safetensors").symlink_to(weights)
    outside = ["..", f"../{tmp_path.name}/secret", str(tmp_path / "secret"), "link", "half"]
    for path in [*outside, "circle", "nowhere", "a\0b", "x" * 5000, "wide/../../.."]:
        response = server.post("/v1/load_lora_adapter", lora_name="hot", lora_path=path)
        assert "is no folder inside" in refusal(response, 400, "lora_path")
    empty = server.post("/v1/load_lora_adapter", lora_name="hot", lora_path="")
    assert "is not an adapter folder" in refusal(empty, 400, None)
    assert list(server.engine.adapters) == ["own"]


def test_without_a_folder_there_are_no_such_routes(folder, root):
    with live(folder, adapter=(f"own={root / 'narrow'}",)) as server:
        for route in ("load_lora_adapter", "unload_lora_adapter"):
            assert server.post(f"/v1/{route}", lora_name="a", lora_path="wide").status_code == 404


def test_the_routes_need_the_key(folder, root):
    with live(folder, api_keys=("k",), max_loras=1, lora_root=root) as server:
        body = {"lora_name": "a", "lora_path": "wide"}
        assert server.post("/v1/load_lora_adapter", **body).status_code == 401
        key = {"Authorization": "Bearer k"}
        answer = server.client.post("/v1/load_lora_adapter", json=body, headers=key)
        assert answer.status_code == 200


def test_flags():
    config = ServeConfig(model=Path("m"), adapter=("a=x", "b=y/z=1"))
    assert config.engine.adapters == {"a": Path("x"), "b": Path("y/z=1")}
    assert config.engine.num_lora_slots == 2
    for entries in (("a",), ("=x",), ("a=",), ("a=x", "a=y")):
        with pytest.raises(ConfigError, match="is not NAME=DIR, with a name of its own"):
            ServeConfig(model=Path("m"), adapter=entries)
    with pytest.raises(ConfigError, match="adapter 'm' has the name of the model"):
        ServeConfig(model=Path("m"), adapter=("m=x",))
    with pytest.raises(ConfigError, match="lora_root=r has room for no adapter; set max_loras"):
        ServeConfig(model=Path("m"), lora_root=Path("r"))
