"""The HTTP routes over a running engine.

    GET  /health                 200 while the engine runs, 503 after
    GET  /v1/models, /v1/models/NAME
    POST /v1/completions         text or token ids; echo and logprobs
    POST /v1/chat/completions    messages, through the model's chat template
    POST /tokenize, /detokenize
    GET  /tokenizer_info         special tokens and chat template

Adapters are models of their own here: listed, and named by `model`. They are loaded and unloaded in
adapter_routes.py.
Not here: sockets and processes (`server.py`), what the bodies mean (`schema.py`).
Reference: OpenAI's published API description; the last three routes follow vLLM's.
"""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmlab.errors import LabError, MissingExtraError, ServerError
from llmlab.serve import chat_completions, completions
from llmlab.serve.adapter_routes import AdapterRoutes
from llmlab.serve.answer import Answer
from llmlab.serve.async_engine import AsyncEngine
from llmlab.serve.backend import Backend
from llmlab.serve.envelope import ApiError, handle
from llmlab.serve.guards import LimitBody, RequireKey
from llmlab.serve.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from llmlab.serve.sse import ClientGone, EventStream, unless_gone

try:
    from fastapi import FastAPI, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException
except ImportError as error:
    raise MissingExtraError("fastapi", "serve") from error

_CLIENT_CLOSED = 499
"""nginx's status for a client that left; only a log ever sees it."""


def create_app(
    engine: Backend,
    *,
    name: str,
    api_keys: Sequence[str] = (),
    lora_root: Path | None = None,
) -> FastAPI:
    """Return the ASGI application.

    Args:
        engine: runs the requests; the caller closes it.
        name: what requests call the model.
        api_keys: one of these is asked for on every route but /health; none asks for nothing.
        lora_root: folder whose adapters may be loaded over HTTP; None refuses that.
    """
    routes = Routes(engine, name)
    # Its own pages of documentation would load scripts from the network.
    app = FastAPI(
        title="llmlab", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )
    app.add_api_route("/health", routes.health)
    app.add_api_route("/v1/models", routes.models)
    app.add_api_route("/v1/models/{name:path}", routes.model)
    app.add_api_route("/v1/completions", routes.complete, methods=["POST"])
    app.add_api_route("/v1/chat/completions", routes.chat, methods=["POST"])
    app.add_api_route("/tokenize", routes.tokenize, methods=["POST"])
    app.add_api_route("/detokenize", routes.detokenize, methods=["POST"])
    app.add_api_route("/tokenizer_info", routes.tokenizer_info)
    if lora_root is not None and isinstance(engine, AsyncEngine):  # replicas have no adapters
        AdapterRoutes(engine, name, lora_root).add_to(app)
    for kind in (LabError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, handle)
    app.add_middleware(LimitBody)
    app.add_middleware(RequireKey, keys=api_keys)
    return app


class Routes:
    """The routes of one served model.

    Args:
        engine: runs the requests.
        name: what requests call the model.
    """

    def __init__(self, engine: Backend, name: str) -> None:
        self._engine = engine
        self._name = name
        self._created = int(time.time())

    async def health(self) -> Response:
        """Say whether requests can be answered, and how busy the engine is."""
        if not self._engine.alive:
            raise ServerError("no engine runs; try again soon, or restart the server")
        stats = self._engine.stats()
        return JSONResponse(
            {
                "status": "ok",
                "running": stats.running,
                "waiting": stats.waiting,
                "replicas": stats.replicas,
            }
        )

    async def models(self) -> Response:
        """List the model and its adapters."""
        names = [self._name, *self._engine.adapters]
        return JSONResponse({"object": "list", "data": [self._card(name) for name in names]})

    async def model(self, name: str) -> Response:
        """Describe the model or an adapter by its name."""
        self._adapter(name)
        return JSONResponse(self._card(name))

    async def complete(self, body: CompletionRequest, request: Request) -> Response:
        """Continue prompts."""
        adapter = self._adapter(body.model)
        engine = self._engine
        prompts = await asyncio.to_thread(completions.read_prompts, engine.tokenizer, body.prompt)
        choices = completions.completion_choices(
            body, prompts, engine.tokenizer, engine.max_model_len
        )
        answer = Answer(
            engine,
            choices,
            completions.FORM,
            model=adapter or self._name,
            adapter=adapter,
            num_prompt_tokens=sum(len(prompt.ids) for prompt in prompts),
            client=request.state.client,
            structure=body.structure,
        )
        return await _respond(answer, body, request)

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        adapter = self._adapter(body.model)
        engine = self._engine
        prompt_ids = await asyncio.to_thread(
            chat_completions.read_chat, engine.tokenizer, body.messages
        )
        answer = Answer(
            engine,
            chat_completions.chat_choices(body, prompt_ids, engine.max_model_len),
            chat_completions.FORM,
            model=adapter or self._name,
            adapter=adapter,
            num_prompt_tokens=len(prompt_ids),
            client=request.state.client,
            structure=body.structure,
        )
        return await _respond(answer, body, request)

    async def tokenize(self, body: TokenizeRequest) -> Response:
        """Turn text into token ids; special tokens written in it are read as such."""
        self._adapter(body.model)
        tokenizer = self._engine.tokenizer
        ids = await asyncio.to_thread(tokenizer.encode, body.prompt, allow_special=True)
        if body.add_special_tokens:
            ids = [*tokenizer.bos_ids, *ids]
        return JSONResponse(
            {"tokens": ids, "count": len(ids), "max_model_len": self._engine.max_model_len}
        )

    async def detokenize(self, body: DetokenizeRequest) -> Response:
        """Turn token ids into text."""
        self._adapter(body.model)
        text = await asyncio.to_thread(
            completions.decode, self._engine.tokenizer, body.tokens, param="tokens"
        )
        return JSONResponse({"prompt": text})

    async def tokenizer_info(self) -> Response:
        """Name the special tokens and give the chat template."""
        tokenizer = self._engine.tokenizer
        return JSONResponse(
            {
                "bos_token": self._special(tokenizer.bos_token_id),
                "eos_token": self._special(tokenizer.eos_token_id),
                "pad_token": self._special(tokenizer.pad_token_id),
                "chat_template": tokenizer.chat_template,
            }
        )

    def _special(self, token_id: int | None) -> str | None:
        return None if token_id is None else self._engine.tokenizer.decode([token_id])

    def _card(self, name: str) -> dict[str, Any]:
        parent = {} if name == self._name else {"parent": self._name}
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "llmlab",
            "max_model_len": self._engine.max_model_len,
            **parent,
        }

    def _adapter(self, name: str | None) -> str | None:
        """Return the adapter that a request names as its model; None for the model itself."""
        if name is None or name == self._name:
            return None
        if name not in self._engine.adapters:
            known = ", ".join(repr(each) for each in (self._name, *self._engine.adapters))
            raise ApiError(
                f"the model {name!r} does not exist; this server has {known}",
                param="model",
                status=404,
                code="model_not_found",
            )
        return name


async def _respond(
    answer: Answer, body: CompletionRequest | ChatRequest, request: Request
) -> Response:
    if body.stream:
        return EventStream(answer.events(with_usage=body.wants_usage))
    try:
        return JSONResponse(await unless_gone(request.receive, answer.whole()))
    except ClientGone:
        return Response(status_code=_CLIENT_CLOSED)
