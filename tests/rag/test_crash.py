"""A writer that is killed at any moment leaves a sound index."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from llmlab.rag import Document, Index
from tests.rag.words_embedder import words_embedder

_KILLS = 8


def write_for_ever(path: Path, tell: int) -> None:
    """Add, change and delete documents until somebody kills this process."""

    def documents(step: int) -> Iterator[Document]:
        text = " ".join(f"Step {step} sentence {n}." for n in range(30))
        for n in range(10):
            os.write(tell, b"!")
            yield Document(f"{n}.txt", f"Doc {n}. {text}")

    with Index(path, words_embedder(), chunk_tokens=20, overlap_tokens=4) as index:
        for step in count():
            index.add(documents(step))
            index.delete(f"{step % 10}.txt")
            index.search("sentence", k=2)
            if step % 5 == 4:
                index.compact()


def test_killed_writers_leave_a_sound_index(tmp_path):
    path = tmp_path / "index"
    chance = random.Random(0)
    program = f"from tests.rag.test_crash import write_for_ever; write_for_ever({str(path)!r}, 1)"
    for _ in range(_KILLS):
        # A process of its own, not a fork: the threads of the libraries here would not survive it.
        with subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
        ) as writer:
            assert writer.stdout is not None
            for _ in range(chance.randrange(1, 60)):
                assert writer.stdout.read(1) == b"!"
            writer.kill()  # while it cuts, embeds, writes, searches or compacts
        assert writer.returncode == -signal.SIGKILL
        with Index.open(path, words_embedder()) as index:
            index.verify()
            for hit in index.search("sentence", k=5):
                assert index.document(hit.doc).text[hit.start : hit.end] == hit.text
