"""Structured output: text that a JSON schema, a regex, a list of choices or a grammar allows.

A request's wish is a `GrammarSpec`; the engine's `GrammarCompiler` turns it into a
`CompiledGrammar`; each sequence has a `GrammarState`, whose bitmask of allowed tokens
`apply_bitmask` puts on the logits. Importing this package loads nothing heavy: the names below are
imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmlab.serve.grammar.bitmask import apply_bitmask
    from llmlab.serve.grammar.compiler import CompiledGrammar, GrammarCompiler
    from llmlab.serve.grammar.spec import GrammarSpec
    from llmlab.serve.grammar.state import GrammarState

_HOMES = {
    "CompiledGrammar": "llmlab.serve.grammar.compiler",
    "GrammarCompiler": "llmlab.serve.grammar.compiler",
    "GrammarSpec": "llmlab.serve.grammar.spec",
    "GrammarState": "llmlab.serve.grammar.state",
    "apply_bitmask": "llmlab.serve.grammar.bitmask",
}

__all__ = ["CompiledGrammar", "GrammarCompiler", "GrammarSpec", "GrammarState", "apply_bitmask"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'llmlab.serve.grammar' has no attribute {name!r}")
