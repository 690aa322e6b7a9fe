"""The parent's side of the child process that tries grammars: deadlines, and a new one for a dead.

Not here: what the child does (worker.py). Nothing but lines of JSON passes between the two.
"""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from llmlab.errors import RequestError, ServerError
from llmlab.serve.grammar.lark import library_text
from llmlab.serve.grammar.spec import GrammarSpec
from llmlab.serve.grammar.vocabulary import Vocabulary

_START_S = 60.0


class Checker:
    """Tries grammars in a child process, one at a time. One thread may use it, any may close it.

    Args:
        vocabulary: the token table.
        limits: of the library's parser, by its names.
        deadline_s: seconds for one grammar.
        memory_mb: MB (1e6 bytes) that the child may grow by.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        limits: dict[str, int],
        deadline_s: float,
        memory_mb: int,
    ) -> None:
        self._hello = {
            "tokens": [token.decode("latin-1") for token in vocabulary.tokens],
            "stop_ids": sorted(vocabulary.stop_ids),
            "special_ids": sorted(vocabulary.special_ids),
            "limits": limits,
            "memory_bytes": memory_mb * 1_000_000,
        }
        self._deadline_s = deadline_s
        self._memory_mb = memory_mb
        self._child: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._closed = False

    def check(self, spec: GrammarSpec) -> str:
        """Return the grammar in the library's dialect, once the child has compiled it.

        Raises:
            RequestError: the library refuses the grammar, or it takes more time, memory or stack
                than it may.
            ServerError: the child cannot start, or this is closed.
        """
        child = self._started()
        kind, text = library_text(spec)
        line, late = _ask(child, {"kind": kind, "text": text}, self._deadline_s)
        if line.endswith("\n"):
            answer = json.loads(line)
            if "lark" in answer:
                return answer["lark"]
            reason = _shortened(answer["error"])
        else:
            reason = self._cause_of_death(self._bury(child), late=late)
            if self._closed:
                raise ServerError("the grammar compiler was closed")
        raise RequestError(f"{spec.kind} cannot be used: {reason}", param=spec.kind)

    def _cause_of_death(self, status: int, *, late: bool) -> str:
        if late:
            return f"it takes more than {self._deadline_s:g} s to compile; make it simpler"
        if status in (-signal.SIGSEGV, -signal.SIGBUS):  # the stack is full
            return "its rules or references nest too deeply; flatten it"
        return f"it takes more than {self._memory_mb} MB to compile; make it smaller"

    def close(self) -> None:
        """End the child. May be called twice; a check that runs meanwhile fails."""
        with self._lock:
            self._closed = True
            child = self._child
        if child is not None:
            self._bury(child)

    def _started(self) -> "subprocess.Popen[str]":
        if self._child is not None and self._child.poll() is not None:
            self._bury(self._child)  # it died since the last answer
        with self._lock:
            if self._closed:
                raise ServerError("the grammar compiler is closed; start the server again")
            if self._child is not None:
                return self._child
            program = str(Path(__file__).with_name("worker.py"))
            # -P keeps this folder, with its plain names, out of the child's imports.
            self._child = child = subprocess.Popen(
                [sys.executable, "-P", program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C is for the server, which ends it in its own time
            )
        line, _ = _ask(child, self._hello, _START_S)
        if line != "ready\n":
            self._bury(child)
            raise ServerError(
                f"the process that checks grammars did not start; try `{sys.executable} -P "
                f"{program}` by hand"
            )
        return child

    def _bury(self, child: "subprocess.Popen[str]") -> int:
        """End a child, and return how it ended."""
        with self._lock:
            if self._child is child:
                self._child = None
        child.kill()
        status = child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                _close(pipe)
        return status


def _ask(
    child: "subprocess.Popen[str]", message: dict[str, Any], limit_s: float
) -> tuple[str, bool]:
    """Return the child's next line, "" when it ended, and whether it was ended for being late."""
    late = threading.Event()

    def end() -> None:
        late.set()
        child.kill()

    timer = threading.Timer(limit_s, end)
    timer.start()
    try:
        assert child.stdin is not None
        assert child.stdout is not None  # both were asked for
        child.stdin.write(json.dumps(message) + "\n")
        child.stdin.flush()
        return child.stdout.readline(), late.is_set()
    except (OSError, ValueError):  # it died before it had read all, or its pipes are closed
        return "", late.is_set()
    finally:
        timer.cancel()


def _close(pipe: Any) -> None:
    try:
        pipe.close()
    except OSError:  # what was not written yet has no reader any more
        return


def _shortened(error: str) -> str:
    """Return the library's message on one line, its middle left out when it is long."""
    said = error.replace("<non-verbose/>", "").split("\n   1 | ")[0]  # the grammar follows
    text = " ".join(said.split())
    if text == "NoExtensionBias":
        return "no text satisfies it; check its references and bounds"
    return text if len(text) <= 320 else f"{text[:160]} ... {text[-160:]}"
