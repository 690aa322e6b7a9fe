"""Who may ask, and how much at a time."""

import asyncio

import httpx
import openai
import pytest

from llmlab.errors import ConfigError
from llmlab.serve.guards import PUBLIC_PATHS, read_api_keys
from tests.serve.live import live
from tests.tiny import tiny_model_folder

KEY = {"Authorization": "Bearer right"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tiny_model_folder(tmp_path_factory.mktemp("model"))
    with live(folder, api_keys=("other", "right")) as server:
        yield server


ROUTES = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/tokenizer_info"),
    ("GET", "/nothing"),
    ("GET", "/"),
    ("GET", "//health"),
    ("GET", "/health/"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_but_health_asks_for_the_key(server, method, path):
    assert path not in PUBLIC_PATHS
    response = server.client.request(method, path)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"
    assert server.client.request(method, path, headers=KEY).status_code != 401


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Bearer wrong", "Bearer rig", "Bearer right right", "Basic right"],
)
def test_wrong_keys(server, value):
    response = server.client.get("/v1/models", headers={"Authorization": value})
    assert response.status_code == 401


def test_two_headers_are_no_key(server):
    both = [("Authorization", "Bearer right"), ("Authorization", "Bearer right")]
    assert server.client.get("/v1/models", headers=both).status_code == 401


def test_any_of_the_keys_opens(server):
    for key in ("right", "other"):
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key) as client:
            assert client.models.list().data[0].id == "tiny"


def test_each_key_is_a_client_of_its_own(tmp_path):
    """With one place, a key that asks for much does not keep the other one waiting."""
    folder = tiny_model_folder(tmp_path)
    with live(folder, api_keys=("greedy", "modest"), max_running=1) as server:
        prompts = [[number] * 5 for number in range(20)]
        asked = {"max_tokens": 40, "ignore_eos": True, "temperature": 0}
        headers = [{"Authorization": f"Bearer {key}"} for key in ("greedy", "modest")]

        async def race() -> tuple[int, int]:
            async with httpx.AsyncClient(base_url=server.url) as client, asyncio.timeout(60):

                async def post(key: dict[str, str], prompt) -> int:
                    body = {"prompt": prompt, **asked}
                    answer = await client.post("/v1/completions", json=body, headers=key)
                    assert answer.status_code == 200
                    return server.engine.stats().generated_tokens

                many = asyncio.create_task(post(headers[0], prompts))
                while server.engine.stats().requests < len(prompts):
                    await asyncio.sleep(0.001)
                return await asyncio.gather(many, post(headers[1], prompts[0]))

        all_greedy, one_modest = asyncio.run(race())
    assert all_greedy == 21 * 40
    assert one_modest < 20 * 40


def test_health_is_public(server):
    assert server.client.get("/health").status_code == 200


def test_the_host_header_opens_nothing(server):
    """The path is taken from the request line, not from a URL put together with the Host."""
    for host in ("x/health?", "x/health#", "health"):
        with httpx.Client(base_url=server.url) as client:
            assert client.get("/v1/models", headers={"Host": host}).status_code in (400, 401)


def test_reading_keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text("one\n\n  two \n")
    assert read_api_keys(path) == ("one", "two")
    path.write_text("\n")
    with pytest.raises(ConfigError, match="has no key; write one a line"):
        read_api_keys(path)
    with pytest.raises(ConfigError, match="missing"):
        read_api_keys(tmp_path / "missing")
