"""Grammars compiled beside the event loop, with a deadline, and remembered.

A grammar is compiled twice: first in a child process, where it may hang, fill the memory or crash
(checker.py), then, when it has passed, here. Remembered is the text that passed, not what it
compiles to: that grows while sequences use it, and compiling takes about 1 ms. So memory is bounded
by what runs, and no sequence suffers from what another one did to a shared grammar.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Self

from llmlab.errors import RequestError, ServerError
from llmlab.serve.grammar.checker import Checker
from llmlab.serve.grammar.spec import GrammarSpec
from llmlab.serve.grammar.state import GrammarState
from llmlab.serve.grammar.vocabulary import Vocabulary
from llmlab.tokenizers import Tokenizer


class CompiledGrammar:
    """A grammar ready for the sequences of one request.

    Args:
        spec: what it was compiled from.
        matcher: the library's own, at the start.
        vocabulary: the token table.
    """

    def __init__(self, spec: GrammarSpec, matcher: Any, vocabulary: Vocabulary) -> None:
        self.spec = spec
        """What it was compiled from."""
        self.num_words: int = vocabulary.num_words
        """32-bit words of a bitmask row."""
        self._start = GrammarState(matcher, vocabulary, param=spec.kind)

    def state(self) -> GrammarState:
        """Return a state at the start; call it once for each sequence, on any thread.

        The states of one compiled grammar share what the library learns about it.
        """
        return self._start.fork()


@dataclass(frozen=True, slots=True)
class _Tools:
    """What is made when the first grammar comes."""

    vocabulary: Vocabulary
    checker: Checker
    library: Any


class GrammarCompiler:
    """Compiles grammars for one tokenizer. Threads may share it; close it at the end.

    The first grammar starts the child process and loads the token table, in about half a second;
    compile one early to have that behind you.

    Args:
        tokenizer: the model's.
        stop_ids: ids that end a text, beside the tokenizer's own.
        deadline_s: seconds that compiling one grammar may take.
        memory_mb: MB (1e6 bytes) of address space that compiling may take.
        max_entries: grammars remembered at most.
        max_bytes: bytes of their texts at most.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop_ids: Iterable[int] = (),
        deadline_s: float = 5.0,
        memory_mb: int = 256,
        max_entries: int = 512,
        max_bytes: int = 16_000_000,
    ) -> None:
        self._tokenizer = tokenizer
        self._stop_ids = frozenset(stop_ids)
        self._deadline_s = deadline_s
        self._memory_mb = memory_mb
        self._passed = _Passed(max_entries=max_entries, max_bytes=max_bytes)
        self._lock = threading.Lock()
        self._pending: dict[GrammarSpec, Future[CompiledGrammar]] = {}
        self._tools: _Tools | None = None
        self._closed = False
        # Two threads, so that a grammar known to be good never waits for one that is not.
        self._checks = ThreadPoolExecutor(1, "llmlab-grammar-check")
        self._builds = ThreadPoolExecutor(1, "llmlab-grammar-build")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def num_remembered(self) -> int:
        """Grammars that have passed and are remembered."""
        return len(self._passed.larks)

    def compile(self, spec: GrammarSpec) -> CompiledGrammar:
        """Compile a grammar and wait for it.

        Raises:
            RequestError: the library refuses it, or it takes more time or memory than it may.
            ServerError: the compiler is closed, or the child process cannot start.
            MissingExtraError: the library is not installed.
        """
        return self.submit(spec).result()

    def submit(self, spec: GrammarSpec) -> "Future[CompiledGrammar]":
        """Start to compile a grammar; the future raises what `compile` does.

        It cannot be cancelled: whoever asks for the same grammar meanwhile gets the same future.

        Raises:
            ServerError: the compiler is closed.
        """
        with self._lock:
            if self._closed:
                raise ServerError("the grammar compiler is closed; start the server again")
            if spec in self._pending:
                return self._pending[spec]
            future: Future[CompiledGrammar] = Future()
            future.set_running_or_notify_cancel()
            self._pending[spec] = future
            lark = self._passed.get(spec)
            pool = self._checks if lark is None else self._builds
            pool.submit(self._finish, future, spec, lark)
        return future

    def close(self) -> None:
        """End the child process; what is not compiled by now fails. May be called twice."""
        with self._lock:
            self._closed = True
            tools = self._tools
        for pool in (self._checks, self._builds):
            pool.shutdown(wait=False, cancel_futures=True)
        if tools is not None:
            tools.checker.close()
        for pool in (self._checks, self._builds):
            pool.shutdown(wait=True)
        with self._lock:
            left, self._pending = self._pending, {}
        for future in left.values():
            future.set_exception(ServerError("the grammar compiler was closed"))

    # What follows runs on the two threads.

    def _finish(
        self, future: "Future[CompiledGrammar]", spec: GrammarSpec, lark: str | None
    ) -> None:
        try:
            compiled = self._compiled(spec, lark)
        except Exception as error:  # whatever it is, the one who waits must hear of it
            self._settle(spec)
            future.set_exception(error)
        else:
            self._settle(spec)
            future.set_result(compiled)

    def _settle(self, spec: GrammarSpec) -> None:
        with self._lock:
            del self._pending[spec]

    def _compiled(self, spec: GrammarSpec, lark: str | None) -> CompiledGrammar:
        tools = self._tools or self._load()
        if lark is None:
            lark = tools.checker.check(spec)
            with self._lock:
                self._passed.put(spec, lark)
        try:
            matcher = tools.library.matcher(lark)
        except ValueError as error:  # the child sees the same grammar and the same tokens
            raise RequestError(
                f"{spec.kind} cannot be used: {str(error)[:300]}", param=spec.kind
            ) from error
        return CompiledGrammar(spec, matcher, tools.vocabulary)

    def _load(self) -> _Tools:
        """Make the tools; only the thread that checks can be the first to need them."""
        # Loaded late: the library is an extra that most requests do without.
        library = import_module("llmlab.serve.grammar.library")
        vocabulary = Vocabulary(self._tokenizer, self._stop_ids)
        checker = Checker(
            vocabulary,
            limits=library.LIMITS,
            deadline_s=self._deadline_s,
            memory_mb=self._memory_mb,
        )
        tools = _Tools(vocabulary, checker, library.Library(vocabulary))
        with self._lock:
            self._tools = tools
            closed = self._closed
        if closed:
            checker.close()
        return tools


class _Passed:
    """The grammars that passed, the ones not asked for longest forgotten first; not thread-safe."""

    def __init__(self, *, max_entries: int, max_bytes: int) -> None:
        self.larks: OrderedDict[GrammarSpec, str] = OrderedDict()
        self.num_bytes = 0
        self._max_entries = max_entries
        self._max_bytes = max_bytes

    def get(self, spec: GrammarSpec) -> str | None:
        """Return the text that passed, if it is remembered."""
        if spec in self.larks:
            self.larks.move_to_end(spec)
        return self.larks.get(spec)

    def put(self, spec: GrammarSpec, lark: str) -> None:
        """Remember a text, and forget others for it."""
        self.larks[spec] = lark
        self.num_bytes += _num_bytes(spec, lark)
        while len(self.larks) > self._max_entries or self.num_bytes > self._max_bytes:
            self.num_bytes -= _num_bytes(*self.larks.popitem(last=False))


def _num_bytes(spec: GrammarSpec, lark: str) -> int:
    return spec.num_bytes + len(lark.encode())
