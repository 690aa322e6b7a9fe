"""`llmlab tokenizer train`, `encode` and `decode`, end to end."""

import io
import json
import sys
from pathlib import Path

import pytest

from llmlab.cli.main import main
from llmlab.tokenizers import Tokenizer

TEXT = "The cat sat on the mat – ça va? 汉字 🙂\r\n<|im_end|>\n"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.txt").write_text(f"{TEXT * 20} number {number}", encoding="utf-8")
    return folder


@pytest.fixture
def trained(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    out = tmp_path / "tokenizer"
    assert main(["tokenizer", "train", str(corpus), "--vocab-size", "300", "--out", str(out)]) == 0
    capsys.readouterr()
    return out


def feed(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def test_train_writes_a_folder_and_says_what(corpus, tmp_path, capsys):
    out = tmp_path / "tokenizer"
    args = ["tokenizer", "train", str(corpus), "--split", "gpt2", "--vocab-size", "300"]
    assert main([*args, "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("300 tokens from 4 documents, 0.0 MB")
    assert captured.out.rstrip().endswith(str(out))
    assert Tokenizer.load(out).split == "gpt2"
    assert sorted(path.name for path in out.iterdir()) == [
        "chat_template.jinja",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert main([*args, "--out", str(out)]) == 1
    assert "already exists" in capsys.readouterr().err
    assert main([*args, "--out", str(out), "--overwrite", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["fingerprint"] == Tokenizer.load(out).fingerprint
    assert (row["vocab_size"], row["documents"]) == (300, 4)


def test_a_text_too_small_for_the_vocabulary_is_said(corpus, tmp_path, capsys):
    out = tmp_path / "tokenizer"
    assert main(["tokenizer", "train", str(corpus), "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert "8,192 were asked for" in captured.out
    size = Tokenizer.load(out).vocab_size
    assert captured.out.startswith(f"{size:,} tokens")


def test_limit_stops_reading(corpus, tmp_path, capsys):
    out = tmp_path / "tokenizer"
    args = ["tokenizer", "train", str(corpus), "--out", str(out), "--limit-mb", "0.002", "--json"]
    assert main(args) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--vocab-size", "100"], "vocab_size=100"),
        (["--limit-mb", "0"], "limit_mb=0"),
    ],
)
def test_unusable_settings(corpus, tmp_path, capsys, flags, message):
    out = tmp_path / "tokenizer"
    assert main(["tokenizer", "train", str(corpus), "--out", str(out), *flags]) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_no_source(tmp_path, capsys):
    assert main(["tokenizer", "train", "--out", str(tmp_path / "tokenizer")]) == 1
    assert "no SOURCE given" in capsys.readouterr().err


@pytest.mark.parametrize("special", [[], ["--allow-special"]])
def test_encode_then_decode_is_the_text(trained, monkeypatch, capsys, special):
    feed(monkeypatch, TEXT.encode())
    assert main(["tokenizer", "encode", "--tokenizer", str(trained), *special]) == 0
    line = capsys.readouterr().out
    expected = Tokenizer.load(trained).encode(TEXT, allow_special=bool(special))
    assert [int(word) for word in line.split()] == expected
    feed(monkeypatch, line.encode())
    assert main(["tokenizer", "decode", "--tokenizer", str(trained)]) == 0
    assert capsys.readouterr().out == TEXT


def test_json_and_skipped_special_tokens(trained, monkeypatch, capsys):
    feed(monkeypatch, b"hi<|im_end|>")
    flags = ["--tokenizer", str(trained), "--json"]
    assert main(["tokenizer", "encode", "--allow-special", *flags]) == 0
    ids = json.loads(capsys.readouterr().out)["ids"]
    feed(monkeypatch, str(ids).strip("[]").encode())
    assert main(["tokenizer", "decode", "--skip-special-tokens", *flags]) == 0
    assert json.loads(capsys.readouterr().out) == {"text": "hi"}


@pytest.mark.parametrize("word", ["300", "-1", "x", "1.5", "٣"])
def test_what_is_no_id(trained, monkeypatch, capsys, word):
    feed(monkeypatch, f"1 {word}".encode())
    assert main(["tokenizer", "decode", "--tokenizer", str(trained)]) == 1
    assert f"'{word}' on stdin is not a token id; ids are whole numbers from 0 to 299" in (
        capsys.readouterr().err
    )


def test_stdin_that_is_not_utf8(trained, monkeypatch, capsys):
    feed(monkeypatch, b"abc\xe9")
    assert main(["tokenizer", "encode", "--tokenizer", str(trained)]) == 1
    assert "stdin is not UTF-8 (byte 3)" in capsys.readouterr().err


def test_a_folder_without_a_tokenizer(tmp_path, monkeypatch, capsys):
    feed(monkeypatch, b"")
    assert main(["tokenizer", "encode", "--tokenizer", str(tmp_path)]) == 1
    assert "has no tokenizer.json" in capsys.readouterr().err
