"""How the deltas of a request reach whoever reads them: mailboxes, and the streams over them.

The thread that computes puts letters into mailboxes, with one call into each event loop; a stream
takes them out of its own.
Not here: what is in a delta (deltas.py), who computes it (async_engine.py, replicas/engine.py).
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from llmlab.errors import ServerError
from llmlab.serve.deltas import Delta


@dataclass(frozen=True, slots=True, eq=False)
class Mailbox:
    """Where the deltas of one request go.

    The engine refers to this and not to the stream, so that a stream can notice that nobody reads
    it any more.
    """

    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[Delta | ServerError]

    @classmethod
    def here(cls) -> Self:
        """Return an empty one for the event loop that runs."""
        return cls(asyncio.get_running_loop(), asyncio.Queue())


Letter = tuple[Mailbox, Delta | ServerError]
"""What goes into which mailbox; an error is the last thing that does."""


def post(letters: Iterable[Letter]) -> list[Mailbox]:
    """Put letters into their mailboxes, in order, with one call for each event loop; any thread.

    Returns:
        The mailboxes whose loop is closed: nobody reads them any more.
    """
    by_loop: dict[asyncio.AbstractEventLoop, list[Letter]] = {}
    for letter in letters:
        by_loop.setdefault(letter[0].loop, []).append(letter)
    lost: list[Mailbox] = []
    for loop, own in by_loop.items():
        try:
            loop.call_soon_threadsafe(_put, own)
        except RuntimeError:  # the loop is closed
            lost += [mailbox for mailbox, _ in own]
    return lost


def _put(letters: Sequence[Letter]) -> None:
    for mailbox, item in letters:
        mailbox.queue.put_nowait(item)


class Stream(AsyncIterator[Delta]):
    """The deltas of one request; `async for` ends after the delta with a finish_reason.

    Closing it (`await stream.aclose()`, leaving `async with`, cancelling the task that waits for
    a delta, or dropping the last reference) aborts the request and frees its pages.

    Args:
        mailbox: where the deltas arrive.
        abort: aborts the request; harmless when it is over.
    """

    def __init__(self, mailbox: Mailbox, abort: Callable[[Mailbox], None]) -> None:
        self._mailbox = mailbox
        self._abort = abort
        self._done = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        """Wait for the next delta.

        Raises:
            RequestError: the request cannot go on; its grammar ran into a limit.
            ServerError: the engine failed; every stream gets this error.
        """
        if self._done:
            raise StopAsyncIteration
        try:
            item = await self._mailbox.queue.get()
        except asyncio.CancelledError:
            self._end()
            raise
        if isinstance(item, ServerError):
            self._done = True
            raise item
        self._done = item.finish_reason is not None
        if item.error is not None:
            raise item.error
        return item

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    async def aclose(self) -> None:
        """Abort the request if it still runs; calling it twice does no harm."""
        self._end()

    def __del__(self) -> None:
        self._end()

    def _end(self) -> None:
        if not self._done:
            self._done = True
            self._abort(self._mailbox)
