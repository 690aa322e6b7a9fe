from pathlib import Path

import pytest

from llmlab.data import PackConfig, Shards, pack
from llmlab.tokenizers import Tokenizer

CORPUS = [
    f"Document {n}: {'the cat sat on the mat. ' * (1 + n % 7)}é {n * n}\n" for n in range(200)
]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    Tokenizer.train(CORPUS, vocab_size=320).save(folder)
    return folder


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number, text in enumerate(CORPUS):
        (folder / f"{number:03d}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def shards(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path, corpus_folder: Path
) -> Shards:
    out = tmp_path_factory.mktemp("packed") / "shards"
    pack(
        PackConfig(
            sources=(str(corpus_folder),), tokenizer=tokenizer_folder, out=out, val_fraction=0.1
        )
    )
    return Shards(out)
