"""The child process that tries grammars before the server does: a program, not to be imported.

A grammar that makes the library crash, hang or fill the memory does it here, where `Checker`
(checker.py) kills and replaces the process. It knows nothing but the standard library and
llguidance, so it starts in a fraction of a second.

stdin: a line of JSON with the token table and the limits, then one line a grammar. stdout: "ready",
then one line an answer, `{"lark": ...}` or `{"error": ...}`.
"""

import json
import resource
import sys
import threading
from pathlib import Path
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper, regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark

STACK_BYTES = 2**20
"""An eighth of what the server's threads have, so that what passes here does not crash there."""
TRIAL_TOKENS = 4
"""Tokens a grammar is followed for: some meet the limits of the library at once."""


class Table:
    """What llguidance asks of a tokenizer; its ids are not the tokenizer's, but no one sees them.

    Args:
        hello: the first line.
    """

    def __init__(self, hello: dict[str, Any]) -> None:
        self.tokens = [token.encode("latin-1") for token in hello["tokens"]]
        self.eos_token_id = hello["stop_ids"][0]
        self.bos_token_id = None
        self.special_token_ids = hello["special_ids"]
        self.tokenizer: LLTokenizer | None = None

    def __call__(self, data: bytes) -> list[int]:
        """Return the longest tokens that spell some bytes."""
        return [] if self.tokenizer is None else self.tokenizer.greedy_tokenize(data.decode())


def lark_of(kind: str, text: str) -> str:
    """Return a request's grammar in the library's own dialect."""
    if kind == "regex":
        return f"start: /{regex_to_lark(text, 'd')}/"
    return any_to_lark(text) if kind == "grammar" else text


def answer(request: dict[str, str], tokenizer: LLTokenizer, limits: LLParserLimits) -> dict:
    """Try a grammar: compile it and follow it for some tokens."""
    try:
        lark = lark_of(request["kind"], request["text"])
    except Exception as error:  # whatever a converter in Python meets in a hostile text
        return {"error": f"{type(error).__name__}: {error}"}
    matcher = LLMatcher(tokenizer, lark, log_level=0, limits=limits)
    if not matcher.is_error():
        follow(matcher, sum(1 << stop_id for stop_id in tokenizer.eos_tokens))
    return {"error": matcher.get_error()} if matcher.is_error() else {"lark": lark}


def follow(matcher: LLMatcher, stops: int) -> None:
    """Take the first token allowed, some times over; an error stays in the matcher.

    Args:
        matcher: at the start.
        stops: a bit for each stop token.
    """
    for _ in range(TRIAL_TOKENS):
        allowed = int.from_bytes(matcher.compute_bitmask(), "little") & ~stops
        if matcher.is_error() or not allowed:
            return
        matcher.consume_token((allowed & -allowed).bit_length() - 1)


def limit_memory(extra_bytes: int) -> None:
    """Let the process grow by so much from now on; an allocation beyond that ends it."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + extra_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def say(line: str) -> None:
    """Write a line to the parent, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Answer until stdin ends."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hello = json.loads(sys.stdin.readline())
    table = Table(hello)
    tokenizer = LLTokenizer(TokenizerWrapper(table), eos_token=hello["stop_ids"])
    table.tokenizer = tokenizer
    limits = LLParserLimits(**hello["limits"], verbose_errors=False)
    if Path("/proc/self/statm").exists():  # Linux
        limit_memory(hello["memory_bytes"])
    say("ready")
    threading.stack_size(STACK_BYTES)
    for line in sys.stdin:
        answers: list[dict] = []
        thread = threading.Thread(
            target=lambda line=line, answers=answers: answers.append(
                answer(json.loads(line), tokenizer, limits)
            )
        )
        thread.start()
        thread.join()
        say(json.dumps(answers[0]))


if __name__ == "__main__":
    main()
