import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.cli.main import main
from llmlab.data import PackConfig, Shards, encoding, iter_documents, pack
from llmlab.data.encoding import encode_documents
from llmlab.data.packing import cut_tail, is_held_out
from llmlab.data.shards import token_dtype
from llmlab.errors import ConfigError, DataError, LabError, OutputError
from llmlab.tokenizers import Tokenizer


def documents_of(shards: Shards, split: Literal["train", "val"]) -> list[list[int]]:
    tokens, starts = shards.split(split), shards.doc_starts(split)
    ends = [*starts[1:], len(tokens)]
    return [tokens[int(a) : int(b)].tolist() for a, b in zip(starts, ends, strict=True)]


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_every_document_comes_back_from_one_split(shards: Shards, corpus_folder: Path):
    tokenizer = Tokenizer.load(shards.tokenizer)
    expected = {"train": [], "val": []}
    for document in iter_documents([corpus_folder]):
        ids = [*tokenizer.encode(document.text), tokenizer.eos_token_id]
        expected["val" if is_held_out(document.text.encode(), 0.1) else "train"].append(ids)
    for split in ("train", "val"):
        assert documents_of(shards, split) == expected[split]
        assert shards.meta["splits"][split]["documents"] == len(expected[split]) > 5


def test_bytes_are_those_of_the_text(shards: Shards):
    tokenizer = Tokenizer.load(shards.tokenizer)
    for split in ("train", "val"):
        texts = [tokenizer.decode(ids[:-1]) for ids in documents_of(shards, split)]
        assert sum(len(text.encode()) for text in texts) == shards.num_bytes(split)


def test_meta_tells_where_the_tokens_come_from(shards: Shards, tokenizer_folder: Path):
    tokenizer = Tokenizer.load(tokenizer_folder)
    assert shards.meta["tokenizer_fingerprint"] == tokenizer.fingerprint
    assert shards.meta["vocab_size"] == tokenizer.vocab_size
    assert shards.meta["dtype"] == "<u2"
    assert shards.meta["held_out"] == "documents"
    (source,) = shards.meta["sources"]
    assert source["documents"] == 200
    assert source["bytes"] == shards.num_bytes("train") + shards.num_bytes("val")


def test_shard_size_and_threads_change_no_token(
    shards: Shards, tokenizer_folder: Path, corpus_folder: Path, tmp_path: Path
):
    config = PackConfig(
        sources=(str(corpus_folder),),
        tokenizer=tokenizer_folder,
        out=tmp_path / "small",
        val_fraction=0.1,
        shard_tokens=1000,
        num_threads=2,
    )
    pack(config)
    small = Shards(tmp_path / "small")
    assert len(list((tmp_path / "small").glob("train-*.bin"))) > 3
    for split in ("train", "val"):
        assert np.array_equal(small.split(split), shards.split(split))
        assert np.array_equal(small.doc_starts(split), shards.doc_starts(split))
    tokens = small.split("train")
    assert tokens[998:2003].tolist() == shards.split("train")[998:2003].tolist()
    assert tokens[-1] == tokens[len(tokens) - 1] == small.eos_token_id
    assert tokens[5:5].tolist() == []


def test_packing_twice_gives_the_same_bytes(
    shards: Shards, tokenizer_folder: Path, corpus_folder: Path, tmp_path: Path
):
    out = tmp_path / "again"
    pack(
        PackConfig(
            sources=(str(corpus_folder),), tokenizer=tokenizer_folder, out=out, val_fraction=0.1
        )
    )
    assert files_of(out) == files_of(shards.folder)


def test_one_document_holds_out_its_tail_and_says_so(tokenizer_folder: Path, tmp_path: Path):
    text = "".join(f"line {n} of the only file\n" for n in range(300))
    (tmp_path / "one.txt").write_text(text)
    rows: list = []
    config = PackConfig(
        sources=(str(tmp_path / "one.txt"),), tokenizer=tokenizer_folder, out=tmp_path / "out"
    )
    result = pack(config, rows.append)
    shards, tokenizer = Shards(tmp_path / "out"), Tokenizer.load(tokenizer_folder)
    (train,), (val,) = documents_of(shards, "train"), documents_of(shards, "val")
    head, tail = tokenizer.decode(train[:-1]), tokenizer.decode(val[:-1])
    assert head + tail == text
    assert tail.startswith("line ")
    assert 0.01 < len(tail) / len(text) < 0.03
    assert shards.meta["held_out"].startswith("tail")
    assert result.num_documents == 1
    assert any("held out" in row.get("note", "") for row in rows)


def test_nothing_is_held_out_on_request(tokenizer_folder: Path, tmp_path: Path):
    (tmp_path / "one.txt").write_text("some text")
    config = PackConfig(
        sources=(str(tmp_path / "one.txt"),),
        tokenizer=tokenizer_folder,
        out=tmp_path / "out",
        val_fraction=0.0,
    )
    assert pack(config).val_tokens == 0
    assert len(Shards(tmp_path / "out").split("val")) == 0


@given(st.text(min_size=2), st.floats(0.001, 0.5))
def test_a_tail_and_its_head_make_the_document(text: str, fraction: float):
    text = text.encode(errors="replace").decode()
    head, tail = cut_tail(text.encode(), fraction)
    assert head
    assert tail
    assert (head + tail).decode() == text


def test_held_out_share_is_the_fraction():
    share = sum(is_held_out(str(n).encode(), 0.02) for n in range(20_000)) / 20_000
    assert share == pytest.approx(0.02, abs=0.004)  # 4 standard deviations


def test_ids_above_65535_take_four_bytes():
    assert token_dtype(65_536).itemsize == 2
    assert token_dtype(65_537).itemsize == 4


def test_threads_keep_the_order(tokenizer_folder: Path, monkeypatch):
    monkeypatch.setattr(encoding, "_BATCH_CHARS", 2**18)  # several batches of a small corpus
    tokenizer = Tokenizer.load(tokenizer_folder)
    documents = [(n, f"text number {n} " * 2000) for n in range(60)]
    inline = list(encode_documents(documents, tokenizer, 1))
    spread = list(encode_documents(iter(documents), tokenizer, 2))
    assert [key for key, _ in spread] == list(range(60))
    for (number, one), (_, two) in zip(inline, spread, strict=True):
        assert one.tolist() == two.tolist() == tokenizer.encode(documents[number][1])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"sources": ()}, ConfigError, "no sources given"),
        ({"val_fraction": 0.9}, ConfigError, r"val_fraction=0.9 is not between 0 and 0.5; try"),
        ({"shard_tokens": 0}, ConfigError, "shard_tokens=0 is below 1"),
        ({"num_threads": 0}, ConfigError, "num_threads=0 is below 1"),
        ({"sources": ("nowhere/at/all",)}, DataError, "'nowhere/at/all' does not exist"),
        ({"tokenizer": Path("no/tokenizer")}, LabError, "no/tokenizer"),
    ],
)
def test_unusable_settings_leave_nothing_behind(
    tokenizer_folder: Path, corpus_folder: Path, tmp_path: Path, changes, error, message
):
    values = {
        "sources": (str(corpus_folder),),
        "tokenizer": tokenizer_folder,
        "out": tmp_path / "out",
    }
    with pytest.raises(error, match=message):
        pack(PackConfig(**(values | changes)))
    assert list(tmp_path.iterdir()) == []


def test_a_document_too_short_to_cut(tokenizer_folder: Path, tmp_path: Path):
    (tmp_path / "one.txt").write_text("x")
    config = PackConfig(
        sources=(str(tmp_path / "one.txt"),), tokenizer=tokenizer_folder, out=tmp_path / "out"
    )
    with pytest.raises(DataError, match=r"one document of 1 characters, too short.*val-fraction 0"):
        pack(config)


def test_existing_output_is_kept(shards: Shards, tokenizer_folder: Path, corpus_folder: Path):
    config = PackConfig(
        sources=(str(corpus_folder),), tokenizer=tokenizer_folder, out=shards.folder
    )
    with pytest.raises(OutputError, match="already exists"):
        pack(config)


def test_other_tokenizer_is_refused(shards: Shards):
    Shards(shards.folder, expect_fingerprint=shards.meta["tokenizer_fingerprint"])
    with pytest.raises(DataError, match=r"ids of the tokenizer \w{12}, but .*abc123.*pack the"):
        Shards(shards.folder, expect_fingerprint="abc123")


def test_damaged_shards_are_refused(tokenizer_folder: Path, corpus_folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    pack(PackConfig(sources=(str(corpus_folder),), tokenizer=tokenizer_folder, out=out))
    file = out / "train-00000.bin"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"has \d+ train tokens where meta.json says \d+; pack"):
        Shards(out)
    meta = json.loads((out / "meta.json").read_text())
    (out / "meta.json").write_text(json.dumps(meta | {"format_version": 99}))
    with pytest.raises(DataError, match="shards format 99, this version reads 1"):
        Shards(out)
    with pytest.raises(DataError, match=r"is not a shards folder \(no meta.json\)"):
        Shards(tmp_path)


def test_command_line(
    tokenizer_folder: Path, corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = str(tmp_path / "out")
    words = ["data", "pack", str(corpus_folder), "--tokenizer", str(tokenizer_folder)]
    assert main([*words, "--out", out]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == out
    assert shown.out.startswith("200 documents, ")
    assert main([*words, "--out", out]) == 1
    assert "already exists" in capsys.readouterr().err
    assert main([*words, "--out", out, "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 200
