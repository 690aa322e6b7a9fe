"""The report: numbers against hand counts, a page that hostile tokens cannot leave."""

import json
import re
from functools import cache
from html.parser import HTMLParser

import numpy as np
import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from llmlab.cli.tokenizer_report import run
from llmlab.errors import ConfigError, OutputError
from llmlab.tokenizers import Tokenizer
from llmlab.tokenizers.alphabet import CHARS
from llmlab.tokenizers.report.config import ReportConfig
from llmlab.tokenizers.report.page import as_page, write_report
from llmlab.tokenizers.report.run import VIEW_CHARS, YOUR_TEXT, make_report
from llmlab.tokenizers.report.samples import KINDS
from llmlab.tokenizers.report.tables import as_markdown, as_text
from llmlab.tokenizers.report.visible import hex_bytes, visible
from llmlab.tokenizers.report.vocabulary import KINDS_OF_TOKENS, kind_of
from llmlab.tokenizers.report.words import in_bytes, tokens_touching, word_spans
from tests.llmlab.tokenizers.samples import TORTURE, pipeline_of, trained

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</title></style></span>",
    "{{ 7 * 7 }}{% raw %}",
    "\x1b[31mred\x1b[0m",
    "\u202egnp.exe",
    "`|`` | ***",
)


def by_hand() -> Tokenizer:
    """Bytes, ` the`, `the` and ` cat`: small enough to count with a pencil."""
    merges = ["t h", "th e", "Ġ the", "Ġ c", "a t", "Ġc at"]
    tokens = [*sorted(CHARS), "th", "the", "Ġthe", "Ġc", "at", "Ġcat", "<|endoftext|>"]
    return Tokenizer.from_vocab(
        tokens, merges, split="gpt2", special_tokens=["<|endoftext|>"], eos_token="<|endoftext|>"
    )


@cache
def facts_by_hand():
    # the| cat|,|␣|n|o|t| the| cat|s   and   é (2 tokens)
    return make_report(["the cat, not the cats", "é"], {"hand": by_hand()}).tokenizers[0]


def test_measures_are_those_counted_by_hand():
    measures = facts_by_hand().texts[YOUR_TEXT]
    assert (measures.documents, measures.bytes, measures.chars) == (2, 23, 22)
    assert (measures.tokens, measures.words) == (12, 6)
    assert measures.bytes_per_token == pytest.approx(23 / 12)
    assert measures.chars_per_token == pytest.approx(22 / 12)
    # the 1, cat 1, not 3, the 1, cats 2, é 2
    assert measures.tokens_per_word == pytest.approx(10 / 6)
    assert measures.one_token_words == pytest.approx(3 / 6)
    assert (measures.unknown_tokens, measures.failed_documents) == (0, 0)
    assert measures.first_failure is None


def test_vocabulary_use_is_that_counted_by_hand():
    found = facts_by_hand().vocabulary
    assert found.tokens == 262
    # the, Ġcat, Ġthe, comma, space, n, o, t, s and the two bytes of é
    assert found.used == 11
    top = found.frequent[0]
    assert (top.text, top.count, top.num_bytes, top.hex) == ("␣cat", 2, 4, "20636174")
    assert top.share == pytest.approx(2 / 12)
    assert [token.text for token in found.longest[:3]] == ["␣the", "␣cat", "the"]
    assert {group.name: group.tokens for group in found.lengths} == {
        "1": 256,
        "2": 3,
        "3": 1,
        "4": 2,
    }


def test_groups_cover_the_vocabulary_and_the_text():
    tokenizer = trained("gpt2")
    report = make_report(TORTURE[1:], {"trained": tokenizer})
    found = report.tokenizers[0].vocabulary
    for groups in (found.deciles, found.lengths):
        assert sum(group.tokens for group in groups) == found.tokens
        assert sum(group.used for group in groups) == found.used
        assert sum(group.share for group in groups) == pytest.approx(1)
    assert sum(group.tokens for group in found.kinds) == tokenizer.vocab_size
    assert {group.name for group in found.kinds} <= set(KINDS_OF_TOKENS)


def test_texts_come_from_any_iterator_and_surrogates_are_replaced():
    report = make_report(iter(["a\ud800b"] * 3), {"trained": trained()})
    measures = report.tokenizers[0].texts[YOUR_TEXT]
    assert (measures.documents, measures.chars, measures.failed_documents) == (3, 9, 0)


def test_every_kind_is_measured_and_shown():
    facts = make_report(["a"], {"trained": trained()}).tokenizers[0]
    assert list(facts.texts) == list(facts.views) == [YOUR_TEXT, *KINDS]
    for kind, text in KINDS.items():
        assert 900 < len(text.encode()) < 2000
        assert facts.texts[kind].bytes == len(text.encode())
        assert facts.texts[kind].failed_documents == 0
        pieces = facts.views[kind].pieces
        assert [piece.id for piece in pieces] == trained().encode(text[:VIEW_CHARS])
    assert facts.texts["Chinese"].tokens_per_word is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("don't stop", ["don't", "stop"]),
        ("snake_case camelCase", ["snake", "case", "camelCase"]),
        ("3.14 x2", ["x"]),
        ("nai\u0308ve हिन्दी", ["nai\u0308ve", "हिन्दी"]),
        ("汉字 かな カナ ไทย 한글 abc漢", ["한글", "abc"]),
        ("''quoted''", ["quoted"]),
        ("", []),
    ],
)
def test_words(text, words):
    assert [text[start:end] for start, end in word_spans(text)] == words


@given(st.text())
def test_spans_in_bytes_cut_the_same_words(text):
    data = text.encode()
    spans = word_spans(text)
    for chars, places in zip(spans, in_bytes(spans, text, data), strict=True):
        assert data[slice(*places)].decode() == text[slice(*chars)]


@given(
    st.lists(st.integers(0, 3), min_size=1),
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5))),
)
def test_tokens_touching_is_the_plain_count(lens, words):
    ends = np.cumsum(lens)
    starts = ends - np.array(lens)
    spans = np.array([(at, at + size) for at, size in words], np.int64).reshape(-1, 2)
    plain = [
        sum(len(range(max(s, a), min(e, b))) > 0 for s, e in zip(starts, ends, strict=True))
        for a, b in spans
    ]
    counts = tokens_touching(spans, starts[ends > starts], ends[ends > starts])
    assert counts.tolist() == plain


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b" cat", "word or part of one"),
        ("日本".encode(), "word or part of one"),
        (b" .", "one character"),
        ("é".encode(), "one character"),
        (b"of the", "several words"),
        (b" 2024", "digits"),
        (b"::=", "punctuation and symbols"),
        (b"\n\t ", "white space"),
        (b" ", "white space"),
        (b"x2", "mixed"),
        (b"a\n", "mixed"),
        (b"\xe6\x97", "part of a character"),
    ],
)
def test_kinds_of_tokens(data, kind):
    assert kind_of(data) == kind
    assert kind in KINDS_OF_TOKENS


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b" a b\n", "␣a␣b\\n"),
        (b"\x1b[31m\t\x00", "\\x1b[31m\\t\\x00"),
        ("\u202eabc\u200b".encode(), "\\u202eabc\\u200b"),
        (b"\xe6\x97", "⟨E6⟩⟨97⟩"),
        (b"a\xff", "a⟨FF⟩"),
        ("👩\u200d🚀".encode(), "👩\u200d🚀"),
        ("\u200d".encode(), "\\u200d"),
        ("\u0301".encode(), "◌\u0301"),
        ("\U000e0001".encode(), "\\U000e0001"),
        ("\u3000".encode(), "\\u3000"),
    ],
)
def test_visible(data, shown):
    assert visible(data) == shown


@given(st.binary())
def test_what_is_visible_is_harmless(data):
    shown = visible(data, max_chars=30)
    joiners = re.compile("[\u200c\u200d\U000e0020-\U000e007f]")
    assert not regex.search(
        r"[\p{Cc}\p{Cs}\p{Zl}\p{Zp}\u200b\u202a-\u202e]", joiners.sub("", shown)
    )
    assert bytes.fromhex(hex_bytes(data)) == data


PLAIN = "The cat sat, and the dog sat. "


@pytest.mark.parametrize("algorithm", ["bpe", "unigram", "wordpiece", "char", "word"])
def test_every_algorithm_is_measured(algorithm):
    learnt = Tokenizer.train([PLAIN * 20], vocab_size=320, algorithm=algorithm)
    facts = make_report([PLAIN * 3, PLAIN * 2], {algorithm: learnt}).tokenizers[0]
    measures = facts.texts[YOUR_TEXT]
    assert measures.words == 7 * 5
    assert measures.tokens == sum(len(learnt.encode(PLAIN * n)) for n in (3, 2))
    assert facts.vocabulary.used == len({*learnt.encode(PLAIN * 3)} - {learnt.unk_token_id})
    if algorithm == "char":
        assert measures.tokens_per_word == pytest.approx(3)
    else:
        assert (measures.tokens_per_word, measures.one_token_words) == (1, 1)
    lost = algorithm == "wordpiece"  # the space at the end
    assert measures.failed_documents == 2 * lost
    assert (measures.first_failure is not None) == lost


def test_unknown_tokens_stand_beside_the_rate_they_spoil():
    learnt = Tokenizer.train(["abc " * 50], vocab_size=100, algorithm="char")
    facts = make_report(["abc abx"], {"char": learnt}).tokenizers[0]
    measures = facts.texts[YOUR_TEXT]
    assert (measures.tokens, measures.unknown_tokens, measures.failed_documents) == (7, 1, 1)
    assert measures.first_failure is not None
    assert "'abc abx' came back as" in measures.first_failure
    text = as_text(make_report(["abc abx"], {"char": learnt}))
    assert "1.00 (14% unknown)" in text
    assert "char does not give back 1 of 1 documents" in text


class Page(HTMLParser):
    """Elements, attribute names and text of a page; fails on an element that is never closed."""

    void = frozenset({"meta", "link"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@cache
def hostile_report():
    pipeline = pipeline_of(trained("gpt2"))
    learnt = Tokenizer.from_vocab(
        {**pipeline.vocab, **{text: 1000 + at for at, text in enumerate(HOSTILE)}},
        pipeline.model.merges,
        split="gpt2",
        special_tokens=[*trained("gpt2").special_tokens, HOSTILE[0]],
        added_tokens=HOSTILE[1:],
    )
    texts = [*HOSTILE, "".join(HOSTILE)]
    return make_report(texts, {"<b>'\"&": learnt, "plain | `x`": trained()})


def test_hostile_tokens_stay_text_on_the_page():
    raw = as_page(hostile_report(), ["<i>sources</i>"])
    page = Page(raw)
    assert page.elements.isdisjoint({"script", "img", "b'", "iframe", "object", "form"})
    assert not [name for name in page.attributes if name.startswith("on")]
    assert "\x1b" not in raw
    assert "\u202e" not in raw
    assert "<b>'\"&" in page.text
    assert "alert(1)" in page.text
    assert "{{␣7␣*␣7␣}}" in page.text


def test_the_page_loads_nothing():
    raw = as_page(hostile_report(), ["stdlib"])
    assert not re.search(
        r"https?://|//[a-z]|@import|url\(|<script|<iframe", raw.split("<h2>Texts")[0]
    )
    assert 'href="data:,"' in raw
    assert "prefers-color-scheme: dark" in raw


def test_tables_in_markdown_keep_their_columns():
    text = as_markdown(hostile_report())
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(bars) == 1, block
    assert "\x1b" not in text


def test_the_terminal_gets_no_control_characters():
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", as_text(hostile_report()))


def test_the_verb_writes_three_files_and_prints_the_folder_last(tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat\n" * 20, encoding="utf-8")
    trained().save(tmp_path / "a" / "mine")
    trained("gpt2").save(tmp_path / "b" / "mine")
    config = ReportConfig(
        sources=(str(tmp_path / "text.txt"),),
        tokenizer=tmp_path / "a" / "mine",
        against=(tmp_path / "b" / "mine",),
        out=tmp_path / "out",
    )
    result = run(config)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "report.html",
        "report.json",
        "report.md",
    ]
    assert str(result).splitlines()[-1] == str(tmp_path / "out")
    content = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert content == json.loads(json.dumps(result.tokenizers))
    assert [facts["name"] for facts in content] == [
        str(tmp_path / "a" / "mine"),
        str(tmp_path / "b" / "mine"),
    ]
    assert content[0]["texts"][YOUR_TEXT]["documents"] == 1
    with pytest.raises(OutputError, match="--overwrite"):
        run(config)


def test_reading_stops_at_the_limit(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text("word " * 4000, encoding="utf-8")  # 20 kB each
    trained().save(tmp_path / "tok")
    config = ReportConfig(
        sources=(str(tmp_path / "*.txt"),), tokenizer=tmp_path / "tok", limit_mb=0.05
    )
    result = run(config)
    assert result.tokenizers[0]["texts"][YOUR_TEXT]["documents"] == 3
    assert result.out is None


def test_settings_that_make_no_report_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no SOURCE given"):
        ReportConfig(sources=(), tokenizer=tmp_path)
    with pytest.raises(ConfigError, match="limit_mb=0"):
        ReportConfig(sources=("stdlib",), tokenizer=tmp_path, limit_mb=0)


def test_a_report_is_written_whole_or_not_at_all(tmp_path):
    report = make_report(["a"], {"trained": trained()})
    write_report(report, tmp_path / "out", sources=["x"])
    (tmp_path / "out" / "mine.txt").write_text("kept")
    with pytest.raises(OutputError):
        write_report(report, tmp_path / "out", sources=["x"])
    assert (tmp_path / "out" / "mine.txt").exists()
    write_report(report, tmp_path / "out", sources=["x"], overwrite=True)
    assert not (tmp_path / "out" / "mine.txt").exists()
