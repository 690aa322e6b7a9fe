"""Instruction pairs from the standard library: what a function does, to its signature.

Reads docstrings; writes a jsonl file that `llmlab finetune --data` takes.
"""

import json
import random
from pathlib import Path

from llmlab.data import stdlib_docstrings
from llmlab.outputs import whole_file

QUESTION = "Write the signature of a Python function. What it does: {summary}"


def write_instructions(path: Path, *, num_pairs: int, seed: int) -> int:
    """Write `num_pairs` chats of one question and one answer.

    Args:
        path: the jsonl file, one `{"messages": [...]}` a line.
        num_pairs: how many, at most.
        seed: of the choice among all documented functions.

    Returns:
        How many were written.
    """
    pairs = [
        (_summary(doc.text), doc.signature)
        for doc in stdlib_docstrings()
        if doc.signature.startswith("def ") and 20 <= len(_summary(doc.text)) <= 160
    ]
    random.Random(seed).shuffle(pairs)
    pairs = pairs[:num_pairs]
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        for summary, signature in pairs:
            chat = [
                {"role": "user", "content": QUESTION.format(summary=summary)},
                {"role": "assistant", "content": signature},
            ]
            file.write(json.dumps({"messages": chat}) + "\n")
    return len(pairs)


def _summary(docstring: str) -> str:
    return " ".join(docstring.strip().split("\n\n")[0].split())
