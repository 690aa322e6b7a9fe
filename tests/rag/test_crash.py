"""A writer that is killed at any moment leaves a sound index."""

import os
import random
import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from llmlab.rag import Document, Index
from tests.rag.words_embedder import words_embedder

_KILLS = 8


def _write_for_ever(path: Path, tell: int) -> None:
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_writers_leave_a_sound_index(tmp_path):
    path = tmp_path / "index"
    chance = random.Random(0)
    for _ in range(_KILLS):
        hear, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                _write_for_ever(path, tell)
            finally:
                os._exit(1)
        os.close(tell)
        for _ in range(chance.randrange(1, 60)):
            assert os.read(hear, 1) == b"!"
        os.kill(pid, signal.SIGKILL)  # while it cuts, embeds, writes, searches or compacts
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        os.close(hear)
        with Index.open(path, words_embedder()) as index:
            index.verify()
            for hit in index.search("sentence", k=5):
                assert index.document(hit.doc).text[hit.start : hit.end] == hit.text
