"""Normalisers and cuts: as `tokenizers` on every character and any text; tokenizer.json."""

import json
import random
import sys
import unicodedata
from collections import Counter
from functools import cache

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from llmlab.errors import UnsupportedPart
from llmlab.tokenizers.bert import Bert
from llmlab.tokenizers.compiled.counting import count_pieces
from llmlab.tokenizers.cuts import CUTS, cut_of_component
from llmlab.tokenizers.normalizers import (
    EXPRESSIONS,
    Prepend,
    Replace,
    Strip,
    normalizer_component,
    normalizer_steps,
)
from llmlab.tokenizers.scan_rules import BERT_RULES
from llmlab.tokenizers.unicode_forms import Lowercase, StripAccents, UnicodeForm
from tests.llmlab.tokenizers.samples import TORTURE, shakespeare

BERTS = [
    Bert(clean, chinese, strip, lower)
    for clean in (True, False)
    for chinese in (True, False)
    for strip in (None, True, False)
    for lower in (True, False)
]
STEPS = [
    *map(UnicodeForm, ("NFC", "NFD", "NFKC", "NFKD")),
    Lowercase(),
    StripAccents(),
    *BERTS,
    Prepend("▁x"),
    Replace(" ", "▁"),
    Replace("aa", ""),
    Replace(r"\s+", "$1", is_expression=True),
    Strip(),
    Strip(left=False),
    Strip(right=False),
    Strip(left=False, right=False),
]
BY_CHARACTER = [step for step in STEPS if not isinstance(step, Prepend | Replace | Strip)]

# Marks of several combining classes, jamo, what composes, characters younger than the tables of
# `tokenizers`, and white space of every kind: what goes wrong when it stands side by side.
HOT = (
    "aeoΣσİſ가각ᄀ\u1161\u11a8\u0301\u0323\u0334\u0345\u0344\u0327\u3099か\u1e9b\u0958\u09c7\u09be"
    "\u0488\ufe0f\u302e\u302f\U0001d157\U0001d165\U0001d16d\U0001d15e\u08d4\u08e3\U0001e000\u1b44"
    "\u08ca\u0898\U00011935\U00011930\U00011938\U000105d2\u1df6\ua7cb\U00010d50 \t\n\x0b\x0c\x1c"
    "\x85\xa0\u200b\u200d\u2028\u3000\ufeff\ufffd\x00中\uf900ﬁ㋿.,¡§\U00010fff"
)
TEXTS = (
    st.text()
    | st.text(alphabet=HOT, max_size=12)
    | st.text(alphabet=st.characters(codec="utf-8") | st.sampled_from(HOT))
)


@cache
def every_character() -> list[str]:
    return [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]


@cache
def peer(step):
    """The same step in `tokenizers`, made from our component."""
    whole = json.loads(tokenizers.Tokenizer(models.BPE()).to_str())
    whole["normalizer"] = step.component
    return tokenizers.Tokenizer.from_str(json.dumps(whole)).normalizer


def peer_of_cut(cut):
    whole = json.loads(tokenizers.Tokenizer(models.BPE()).to_str())
    whole["pre_tokenizer"] = cut.component or _isolated(cut.expression)
    return tokenizers.Tokenizer.from_str(json.dumps(whole)).pre_tokenizer


def _isolated(expression):
    pattern = {"Regex": expression}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


def check_step(step, text):
    normal = step.apply(text)
    assert normal == peer(step).normalize_str(text)
    segments = list(step.segments(text))
    assert "".join(replacement for _, replacement in segments) == normal
    assert sum(length for length, _ in segments) == len(text)


@pytest.mark.parametrize("step", STEPS, ids=repr)
@settings(max_examples=60)
@given(text=TEXTS)
@example(text="\U0001d16d\x1f\U0001d165")  # marks that change places over a dropped character
def test_as_tokenizers_and_in_segments(step, text):
    check_step(step, text)


@pytest.mark.parametrize("text", TORTURE)
def test_torture(text):
    for step in STEPS:
        check_step(step, text)


@pytest.mark.slow
@pytest.mark.parametrize(
    "step", [*map(UnicodeForm, ("NFC", "NFKD")), Lowercase(), StripAccents(), Bert()], ids=repr
)
def test_every_character(step):
    # No character is assigned beyond; each is tried alone by the slow test.
    chars = [
        char
        for char in every_character()
        if char < "\U00034000" or "\U000e0000" <= char < "\U000e0200"
    ]
    blocks = ["a".join(chars[at : at + 16]) for at in range(0, len(chars), 16)]
    wrong = [block for block in blocks if step.apply(block) != peer(step).normalize_str(block)]
    assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("step", BY_CHARACTER, ids=repr)
def test_every_character_alone_and_100k_texts(step):
    theirs = peer(step).normalize_str
    assert [char for char in every_character() if step.apply(char) != theirs(char)] == []
    draw = random.Random(3)
    for _ in range(100_000):
        text = "".join(
            draw.choice(HOT if draw.random() < 0.7 else every_character())
            for _ in range(draw.randint(1, 9))
        )
        assert step.apply(text) == theirs(text), ascii(text)


@given(text=TEXTS)
def test_table_of_bert_is_its_steps(text):
    for bert in BERTS:
        assert bert.apply(text) == bert.step_by_step(text)


def test_ascii_is_left_as_it_is_without_a_copy():
    text = "plain text, " * 50
    for step in (UnicodeForm("NFKC"), StripAccents(), Strip(left=False, right=False)):
        assert step.apply(text) is text


# -- cuts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", CUTS.values(), ids=lambda cut: cut.name)
@given(text=TEXTS)
def test_cuts_as_tokenizers(cut, text):
    expected = peer_of_cut(cut).pre_tokenize_str(text)
    # Words follow the newest Unicode here; `tokenizers` follows after.
    if cut.name in ("words", "whitespace") and any(map(_is_newer, text)):
        return
    assert cut.pieces(text) == [piece for piece, _ in expected]
    assert cut.spans(text) == [span for _, span in expected]


def _is_newer(char):
    return unicodedata.category(char) == "Cn"


@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("bert", pre_tokenizers.BertPreTokenizer()),
        ("whitespace_split", pre_tokenizers.WhitespaceSplit()),
    ],
)
def test_every_character_between_letters(name, peer):
    chars = every_character()
    for at in range(0, len(chars), 64):
        block = "a".join(chars[at : at + 64])
        assert CUTS[name].pieces(block) == [piece for piece, _ in peer.pre_tokenize_str(block)]


@pytest.mark.parametrize("name", ["words", "chars"])
@given(text=TEXTS)
def test_pieces_that_drop_nothing(name, text):
    assert "".join(CUTS[name].pieces(text)) == text


def test_how_each_cuts():
    text = "It's  3 cafés…\n"
    assert CUTS["bert"].pieces(text) == ["It", "'", "s", "3", "cafés", "…"]
    assert CUTS["words"].pieces(text) == ["It", "'", "s", "  ", "3", " ", "cafés", "…", "\n"]
    assert CUTS["whitespace_split"].pieces(text) == ["It's", "3", "cafés…"]
    assert CUTS["chars"].pieces("né\n") == ["n", "é", "\n"]


def test_components_of_cuts_lead_back():
    for cut in CUTS.values():
        assert cut_of_component(cut.component) is cut
    with pytest.raises(UnsupportedPart, match="pre_tokenizer Digits is not supported"):
        cut_of_component({"type": "Digits"})


# -- counting before normalising -----------------------------------------------------------------

SETTINGS = [bert for bert in BERTS if bert.clean_text and bert.handle_chinese_chars]
BERT = CUTS["bert"]


def recounted(texts, bert):
    """Normalise and cut what is counted by BERT_RULES."""
    pieces = Counter()
    for word, count in count_pieces(texts, BERT_RULES, num_threads=1).items():
        for piece in BERT.pieces(bert.apply(word.decode())):
            pieces[piece] += count
    return pieces


@pytest.mark.parametrize("bert", SETTINGS, ids=repr)
@settings(deadline=None)  # the first example may wait for the compiler
@given(text=TEXTS)
def test_counting_before_normalising_is_counting_after(bert, text):
    assert recounted([text], bert) == Counter(BERT.pieces(bert.apply(text)))


@pytest.mark.parametrize("bert", [Bert(), Bert(lowercase=False)], ids=repr)
def test_counting_many_characters_before_normalising(bert):
    chars = [*every_character()[:0x3400], *every_character()[0x3400::53]]
    texts = [f"a{char}\u0301{char}b\u302e {char}" for char in chars]
    assert recounted(texts, bert) == Counter(
        piece for text in texts for piece in BERT.pieces(bert.apply(text))
    )


@pytest.mark.parametrize("lowercase", [True, False])
def test_counted_words_are_those_of_tokenizers(lowercase):
    normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    splitter = pre_tokenizers.BertPreTokenizer()
    texts = [*TORTURE, HOT, HOT[::-1], shakespeare()]
    theirs = Counter(
        piece
        for text in texts
        for piece, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
    )
    assert recounted(texts, Bert(lowercase=lowercase)) == theirs


# -- tokenizer.json ------------------------------------------------------------------------------


def test_components_lead_back():
    for step in STEPS:
        assert normalizer_steps(step.component) == (step,)
    for steps in ((), (Bert(),), (UnicodeForm("NFD"), StripAccents(), Lowercase())):
        assert normalizer_steps(normalizer_component(steps)) == steps


def test_sequences_in_sequences():
    inner = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}
    outer = {"type": "Sequence", "normalizers": [inner, {"type": "StripAccents"}]}
    assert normalizer_steps(outer) == (UnicodeForm("NFC"), Lowercase(), StripAccents())


def test_components_are_those_of_tokenizers():
    for step in STEPS:
        whole = tokenizers.Tokenizer(models.BPE())
        whole.normalizer = peer(step)
        assert json.loads(whole.to_str())["normalizer"] == step.component


@pytest.mark.parametrize("expression", EXPRESSIONS)
@given(text=st.text(alphabet=" \n\t\x1c\u3000ab", max_size=12))
def test_expressions_as_tokenizers(expression, text):
    check_step(Replace(expression, "-", is_expression=True), text)


@pytest.mark.parametrize(
    ("component", "named"),
    [
        ({"type": "Nmt"}, "Nmt"),
        ({"type": "Replace", "pattern": {"Regex": "(?i)x"}, "content": ""}, "Replace with pattern"),
        ({"type": "Replace", "pattern": {"String": ""}, "content": "x"}, "Replace with pattern"),
        ({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Nmt"}]}, "Nmt"),
    ],
)
def test_other_components_are_named(component, named):
    with pytest.raises(UnsupportedPart, match=rf"normalizer {named}.*not supported yet"):
        normalizer_steps(component)
