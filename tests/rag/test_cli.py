import json

import pytest

from llmlab.cli.main import main
from llmlab.rag import Embedder, Index
from tests.rag.openai_server import FakeServer


def test_index_then_ask(
    minilm: Embedder, corpus, tmp_path, server: FakeServer, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "index"
    assert main(["rag", "index", str(corpus), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("5 documents in ")
    assert lines[-1] == str(out)

    (corpus / "code.py").unlink()
    assert main(["rag", "index", str(corpus), "--out", str(out), "--json"]) == 0
    changes = json.loads(capsys.readouterr().out)["changes"]
    assert (changes["deleted"], changes["unchanged"], changes["embedded"]) == (1, 4, 0)

    ask = ["rag", "ask", "--index", str(out), "--base-url", server.url]
    question = ["When", "was", "the", "Miravel", "bridge", "opened?"]
    assert main([*ask, *question]) == 0
    text = capsys.readouterr().out
    assert text.startswith("The Miravel bridge was opened in 1937 [1].\n")
    assert "  [1] corpus/bridge.txt:0-38\n      “The Miravel bridge was opened in 1937.”" in text

    assert main([*ask, "--model", "liar", " ".join(question), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["question"] == " ".join(question)
    assert answer["grounded"] is False
    assert answer["unsupported"] == ["The committee of penguins decided it in 1802."]


def test_overwrite_replaces_an_index_and_nothing_else(
    minilm: Embedder, corpus, tmp_path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "index"
    words = ["rag", "index", str(corpus), "--out", str(out), "--overwrite"]
    assert main([*words, "--chunk-tokens", "50", "--overlap-tokens", "0"]) == 0
    assert main(words) == 0
    assert "5 added" in capsys.readouterr().out
    with Index.open(out) as index:
        index.verify()
    assert main(["rag", "index", str(corpus), "--out", str(corpus), "--overwrite"]) == 1
    assert "corpus is not an index folder" in capsys.readouterr().err
    assert (corpus / "bridge.txt").exists()


def test_mistakes_are_one_line_with_the_fix(tmp_path, capsys: pytest.CaptureFixture[str]):
    out = str(tmp_path / "index")
    assert main(["rag", "index", "--out", out]) == 1
    assert "no folder given" in capsys.readouterr().err
    assert main(["rag", "index", str(tmp_path / "none"), "--out", out]) == 1
    assert "is not a folder" in capsys.readouterr().err
    assert main(["rag", "ask", "--index", str(tmp_path), "--base-url", "http://x/v1", "Why?"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "is not an index folder; make one with `llmlab rag index FOLDER --out" in error
