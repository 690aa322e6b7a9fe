"""Question in, cited answer out: find passages, ask a model, check what it says against them.

Not here: the index (index.py), the wording of the prompt (prompt.py), the check (citations.py).
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from types import TracebackType
from typing import Self

from llmlab.errors import RetrievalError, ServerError, did_you_mean
from llmlab.rag.answer import Answer, Citation, Sources, TextDelta
from llmlab.rag.citations import cite
from llmlab.rag.client import Client, ServedModel
from llmlab.rag.config import Mode
from llmlab.rag.index import Index
from llmlab.rag.prompt import fit_messages

NOTHING_FOUND = "No passage of the index fits the question."
"""The answer when search finds nothing; the model is not asked."""


class Pipeline:
    """Answers questions from an index through an OpenAI-style server.

    Args:
        index: where passages come from.
        base_url: address up to and with `/v1`.
        model: name of the model; the first one the server lists when None.
        k: passages shown to the model, at most; fewer when they do not fit its context.
        mode: how passages are found.
        max_tokens: longest answer.
        temperature: 0 takes the likeliest token.
        context_len: tokens of prompt and answer together, where the server does not tell.
        timeout_s: seconds without a byte from the server after which a question fails.
        api_key: bearer token, where the server wants one.

    Raises:
        ServerError: no server answers there, or it has no such model.
    """

    def __init__(
        self,
        index: Index,
        base_url: str,
        model: str | None = None,
        *,
        k: int = 4,
        mode: Mode = "hybrid",
        max_tokens: int = 256,
        temperature: float = 0.0,
        context_len: int = 2048,
        timeout_s: float = 120.0,
        api_key: str | None = None,
    ) -> None:
        self.index = index
        self._client = Client(base_url, timeout_s=timeout_s, api_key=api_key)
        self._k = k
        self._mode: Mode = mode
        self._max_tokens = max_tokens
        self._temperature = temperature
        try:
            served = _choose(self._client, model)
        except ServerError:
            self._client.close()
            raise
        self.model = served.name
        self.context_len = served.context_len or context_len

    def close(self) -> None:
        """Close the connections; the index stays open."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def ask(self, question: str) -> Answer:
        """Answer a question.

        Raises:
            RetrievalError: the index or the question is empty, or no source fits the context.
            ServerError: the server refuses, fails or falls silent.
        """
        *_, answer = self.ask_stream(question)
        assert isinstance(answer, Answer)  # the last event always is
        return answer

    def ask_stream(self, question: str) -> Iterator[Sources | TextDelta | Answer]:
        """Answer a question as it is written: the sources, then text, then the whole Answer.

        Raises:
            RetrievalError: the index or the question is empty, or no source fits the context.
            ServerError: the server refuses, fails or falls silent.
        """
        if not question.strip():
            raise RetrievalError("the question is empty; ask something")
        if self.index.num_chunks == 0:
            raise RetrievalError(f"index {self.index.path} is empty; add documents to it first")
        began_s = time.perf_counter()
        hits = self.index.search(question, self._k, mode=self._mode)
        search_s = time.perf_counter() - began_s
        if not hits:
            yield Sources(())
            yield Answer(NOTHING_FOUND, (), (), (), {"search_s": search_s})
            return
        messages, shown = fit_messages(
            question,
            hits,
            budget=self.context_len - self._max_tokens,
            count=lambda text: self._client.count_tokens(text, self.model),
        )
        yield Sources(shown)
        asked_s = time.perf_counter()
        first_s: float | None = None
        pieces: list[str] = []
        for piece in self._client.stream_chat(
            self.model, messages, max_tokens=self._max_tokens, temperature=self._temperature
        ):
            first_s = first_s or time.perf_counter()
            pieces.append(piece)
            yield TextDelta(piece)
        done_s = time.perf_counter()
        text = "".join(pieces).strip()
        citations, unsupported = cite(text, question, shown, self.index.embedder.encode)
        citations = tuple(self._with_page(citation) for citation in citations)
        timings = {
            "search_s": search_s,
            "first_text_s": (first_s or done_s) - asked_s,
            "generate_s": done_s - asked_s,
            "check_s": time.perf_counter() - done_s,
        }
        yield Answer(text, citations, unsupported, shown, timings)

    def _with_page(self, citation: Citation) -> Citation:
        """Name the page of the quote, which may not be the page on which its chunk starts."""
        if citation.page is None:
            return citation
        return replace(citation, page=self.index.document(citation.doc).page(citation.start))


def _choose(client: Client, model: str | None) -> ServedModel:
    served = {listed.name: listed for listed in client.models()}
    if not served:
        raise ServerError(f"{client.base_url} serves no model; load one there")
    if model is None:
        return next(iter(served.values()))
    if model not in served:
        raise ServerError(f"{client.base_url} has no model {model!r}{did_you_mean(model, served)}")
    return served[model]
