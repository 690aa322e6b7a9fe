"""python_signatures: given what a standard library function does, pick its signature among four.

The wrong choices are functions of the same module, so the module's name is no hint. Functions of a
module are not independent: the module is the cluster of an example. The examples come from the
Python that runs; another version of Python gives another fingerprint.
"""

import random
import sys
from collections import defaultdict
from functools import cache

from llmlab.data import Docstring, stdlib_docstrings
from llmlab.evals.task import ChoiceExample, Task

_NUM_EXAMPLES = 200
_NUM_CHOICES = 4
_PARAGRAPH_CHARS = range(25, 300)
_SIGNATURE_CHARS = range(10, 120)

VERSION = 1


def python_signatures(seed: int = 0) -> Task:
    """Make the task: 200 functions drawn by `seed`, three wrong choices each."""
    rng = random.Random(seed)
    modules = _modules()
    pool = [function for functions in modules.values() for function in functions]
    drawn = rng.sample(pool, min(_NUM_EXAMPLES, len(pool)))
    return Task(
        name="python_signatures",
        version=VERSION,
        description=(
            "signatures of standard library functions from their docstrings, four choices "
            f"(Python {sys.version_info.major}.{sys.version_info.minor}, seed {seed})"
        ),
        examples=tuple(_example(function, modules[function.module], rng) for function in drawn),
    )


@cache
def _modules() -> dict[str, list[Docstring]]:
    """Group usable functions by module, one a signature and paragraph, four a module at least."""
    modules: dict[str, list[Docstring]] = defaultdict(list)
    seen: set[str] = set()
    for item in stdlib_docstrings():
        paragraph = _first_paragraph(item)
        usable = (
            item.signature.startswith("def ")
            and len(item.signature) in _SIGNATURE_CHARS
            and len(paragraph) in _PARAGRAPH_CHARS
        )
        if usable and not seen & {item.signature, f"{item.module} {paragraph}"}:
            seen |= {item.signature, f"{item.module} {paragraph}"}
            modules[item.module].append(item)
    return {name: items for name, items in modules.items() if len(items) >= _NUM_CHOICES}


def _example(function: Docstring, others: list[Docstring], rng: random.Random) -> ChoiceExample:
    wrong = rng.sample([item for item in others if item is not function], _NUM_CHOICES - 1)
    choices = [function, *wrong]
    rng.shuffle(choices)
    return ChoiceExample(
        id=function.name,
        context=f"Documentation: {_first_paragraph(function)}\nPython function:",
        choices=tuple(f" {item.signature}" for item in choices),
        answer=choices.index(function),
        cluster=function.module,
    )


def _first_paragraph(item: Docstring) -> str:
    return " ".join(item.text.split("\n\n")[0].split())
