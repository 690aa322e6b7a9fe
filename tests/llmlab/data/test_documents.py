import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmlab.data import iter_documents
from llmlab.data.formats import MAX_DOCUMENT_BYTES
from llmlab.data.hub import parse_hub
from llmlab.data.markup import html_text
from llmlab.errors import DataError


def texts(*sources: str | Path) -> list[str]:
    return [document.text for document in iter_documents(sources)]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def test_folder_is_walked_sorted_without_hidden_binary_and_blank_files(tmp_path: Path):
    write(tmp_path / "b.md", "# bee")
    write(tmp_path / "a" / "z.py", "print()")
    write(tmp_path / "a.txt", "ant")
    write(tmp_path / ".hidden", "no")
    write(tmp_path / ".git" / "x.txt", "no")
    write(tmp_path / "p.png", b"\x89PNG\r\n\0\0")
    write(tmp_path / "empty.txt", "\n \n")
    rows: list = []
    documents = list(iter_documents([tmp_path], on_progress=rows.append))
    assert [document.text for document in documents] == ["ant", "# bee", "print()"]
    assert documents[0].source == str(tmp_path / "a.txt")
    assert rows[-1]["note"].endswith("skipped 1 binary, 1 blank, 1 hidden")


def test_glob_takes_matching_files_sorted(tmp_path: Path):
    for name in ("2.txt", "1.txt", "3.md"):
        write(tmp_path / "deep" / name, name)
    assert texts(f"{tmp_path}/**/*.txt") == ["1.txt", "2.txt"]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_jsonl_records_of_all_shapes(tmp_path: Path, suffix: str):
    records = [
        {"text": "plain", "id": 1},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]},
        {"prompt": "2+2=", "completion": "4"},
    ]
    lines = "\n\n".join(json.dumps(record) for record in records)
    path = write(tmp_path / f"data.jsonl{suffix}", lines)
    assert texts(path) == ["plain", "hi\n\nyo", "2+2=4"]
    assert [document.source for document in iter_documents([path])][1] == f"{path}:3"


def test_json_is_records_or_text(tmp_path: Path):
    rows = write(tmp_path / "rows.json", json.dumps([{"text": "a"}, {"text": "b"}], indent=1))
    lines = write(tmp_path / "lines.json.gz", '{"text": "c"}\n{"text": "d"}\n')
    other = write(tmp_path / "package.json", '{\n"name": "x"\n}')
    assert texts(rows, lines, other) == ["a", "b", "c", "d", '{\n"name": "x"\n}']


def test_parquet_column_text(tmp_path: Path):
    pq.write_table(pa.table({"text": ["one", None, "two"], "n": [1, 2, 3]}), tmp_path / "d.parquet")
    assert texts(tmp_path) == ["one", "two"]
    pq.write_table(pa.table({"body": ["one"]}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r"columns \['body'\].*needs a column 'text'"):
        texts(tmp_path)


def test_html_keeps_text_only():
    page = (
        "<html><head><title>T &amp; t</title><style>p{}</style></head><body><p>One\n two</p>"
        "<script>var x = '<p>no</p>';</script><pre>  a\n  b</pre>x<br/>y</body></html>"
    )
    assert html_text(page).split("\n") == ["T & t", "", "One two", "", "  a", "  b", "x", "y"]


def test_long_text_is_cut_at_line_ends_and_nothing_is_lost(tmp_path: Path):
    line = "é" * 999 + "\n"
    content = line * (2 * MAX_DOCUMENT_BYTES // len(line.encode()))
    documents = list(iter_documents([write(tmp_path / "big.txt", content)]))
    assert len(documents) == 2
    assert "".join(document.text for document in documents) == content
    assert all(document.text.endswith("\n") for document in documents)


def test_byte_order_mark_is_dropped(tmp_path: Path):
    assert texts(write(tmp_path / "a.txt", b"\xef\xbb\xbfhello")) == ["hello"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"ol\xe9 ol\xe9", r"a.txt is not UTF-8: byte 0xe9 at offset 2; convert.*iconv"),
        ("a.txt", b"\xef\xbb\xbfx\xe9", r"byte 0xe9 at offset 4"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": "\xe9"}', r"byte 0xe9 at offset 25"),
        ("a.jsonl", b'{"text": "ok"}\n{"body": 1}', r"a.jsonl:2 has \['body'\]; a record needs"),
        ("a.jsonl", b'{"text": "ok"}\n{oops', r"a.jsonl line 2 is not JSON .*'\{oops'"),
        ("a.jsonl", b"[1]", r"a.jsonl:1 has list; a record needs"),
        ("a.txt", b"", r"holds no text \(it is empty\)"),
        ("a.txt", b"  \n", r"holds no text \(1 blank\)"),
        ("a.txt", b"a\0b", r"is a binary file"),
        ("a.parquet", b"PAR0", r"is not a parquet file"),
    ],
)
def test_unusable_files(tmp_path: Path, name: str, content: bytes, message: str):
    with pytest.raises(DataError, match=message):
        texts(write(tmp_path / name, content))


def test_damaged_gzip(tmp_path: Path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"hello world" * 100)[:-12])
    with pytest.raises(DataError, match=r"cannot read .*a\.txt\.gz: .*check that it is complete"):
        texts(path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("stdlb", r"source 'stdlb' is neither a path nor a built-in name; did you mean 'stdlib'"),
        ("no/such/place", r"source 'no/such/place' does not exist; check the path"),
        ("nothing*.txt", r"no file matches 'nothing\*.txt'"),
        ("hf:squad", r"'hf:squad' is not of the form hf:OWNER/DATASET"),
    ],
)
def test_unusable_sources(source: str, message: str):
    with pytest.raises(DataError, match=message):
        texts(source)


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("hf:a/b", ("a/b", None, "train")),
        ("hf:a/b:test", ("a/b", None, "test")),
        ("hf:a/b:en", ("a/b", "en", "train")),
        ("hf:a/b:en:dev", ("a/b", "en", "dev")),
    ],
)
def test_hub_addresses(source: str, parts: tuple):
    assert parse_hub(source) == parts


def test_hub_streams_a_data_set_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write(tmp_path / "owner" / "set" / "train.jsonl", '{"text": "a"}\n{"text": "b"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert texts("hf:owner/set") == ["a", "b"]


def test_hub_without_network_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # fails without retries
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"cannot stream hf:nobody/nothing: .*check the name"):
        texts("hf:nobody/nothing")
