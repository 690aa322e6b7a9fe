"""Loading and unloading adapters over HTTP, out of one folder and nowhere else.

    POST /v1/load_lora_adapter      {"lora_name": NAME, "lora_path": FOLDER}
    POST /v1/unload_lora_adapter    {"lora_name": NAME}

The routes are there only when the server was started with that folder. A path is taken as one
inside of it; what leads out, through `..` or a link, is refused. Routes and fields are vLLM's.
"""

from pathlib import Path

from llmlab.errors import MissingExtraError
from llmlab.serve.async_engine import AsyncEngine
from llmlab.serve.envelope import ApiError
from llmlab.serve.schema import Body, Text

try:
    from fastapi import FastAPI, Response
    from fastapi.responses import PlainTextResponse
except ImportError as error:
    raise MissingExtraError("fastapi", "serve") from error

_FILES = ("adapter_config.json", "adapter_model.safetensors")


class LoadAdapterRequest(Body):
    """The body of POST /v1/load_lora_adapter."""

    lora_name: Text
    """What requests will call it."""
    lora_path: Text
    """Its folder, inside the one that the server loads adapters from."""


class UnloadAdapterRequest(Body):
    """The body of POST /v1/unload_lora_adapter."""

    lora_name: Text


class AdapterRoutes:
    """The two routes of a running engine.

    Args:
        engine: what loads them.
        model_name: of the base model; no adapter may have it.
        root: the folder they are loaded from.
    """

    def __init__(self, engine: AsyncEngine, model_name: str, root: Path) -> None:
        self._engine = engine
        self._model_name = model_name
        self._root = root

    def add_to(self, app: FastAPI) -> None:
        """Make an application answer them."""
        app.add_api_route("/v1/load_lora_adapter", self.load, methods=["POST"])
        app.add_api_route("/v1/unload_lora_adapter", self.unload, methods=["POST"])

    async def load(self, body: LoadAdapterRequest) -> Response:
        """Load an adapter beside the running requests."""
        if body.lora_name == self._model_name:
            raise ApiError(
                f"lora_name={body.lora_name!r} is the base model's name; choose another",
                param="lora_name",
            )
        await self._engine.load_adapter(body.lora_name, inside(self._root, body.lora_path))
        return PlainTextResponse(f"adapter {body.lora_name!r} is loaded")

    async def unload(self, body: UnloadAdapterRequest) -> Response:
        """Take no more requests for an adapter; running ones go on to their end."""
        self._engine.unload_adapter(body.lora_name)
        return PlainTextResponse(f"adapter {body.lora_name!r} takes no more requests")


def inside(root: Path, path: str) -> Path:
    """Return the adapter folder that a request names.

    Raises:
        ApiError: it is not there, or it or one of its files lies outside of `root`.
    """
    refusal = ApiError(
        f"lora_path={path[:200]!r} is no folder inside the one this server loads adapters from; "
        "give its path from there",
        param="lora_path",
    )
    root = root.resolve()
    try:
        folder = (root / path).resolve(strict=True)
        files = [place / name for place in (folder, folder / "adapter") for name in _FILES]
        is_inside = all(place.resolve().is_relative_to(root) for place in (folder, *files))
    except (OSError, RuntimeError, ValueError) as error:  # not there, links in a circle, no path
        raise refusal from error
    if not is_inside:
        raise refusal
    return folder
