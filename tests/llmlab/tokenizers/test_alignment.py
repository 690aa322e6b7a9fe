"""Offsets: equal to `tokenizers`, or wider where a character is made of several; monotone."""

import json
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import PreTokenizedString, Regex, models, trainers
from tokenizers import normalizers as peers

from llmlab.tokenizers.alignment import Alignment
from llmlab.tokenizers.bert import Bert
from llmlab.tokenizers.encoder import Encoder
from llmlab.tokenizers.files.tokenizer_json import read_pipeline
from llmlab.tokenizers.normalizers import Prepend, Replace, Strip, aligned, normalized
from llmlab.tokenizers.pipeline import Pipeline
from llmlab.tokenizers.unicode_forms import Lowercase, StripAccents, UnicodeForm
from llmlab.tokenizers.unicode_tables import MOVABLE, CharacterClass
from tests.llmlab.tokenizers.samples import CORPUS, TORTURE

MARKED = "ae\u0301\u0323\u0327각\u1100\u1161\u11a8éﬁ\u0344\ufdfaİΣ ½\U0001d15e\u08d4\t\u200d中🙂"
TEXTS = st.text() | st.text(alphabet=MARKED, max_size=12)

# Steps that take characters one by one: here `tokenizers` agrees to the last character.
SINGLE = [
    (Lowercase(), peers.Lowercase()),
    (StripAccents(), peers.StripAccents()),
    (Bert(), peers.BertNormalizer()),
    (Bert(strip_accents=False), peers.BertNormalizer(strip_accents=False)),
    (Prepend("▁x"), peers.Prepend("▁x")),
    (Replace(" ", "▁▁"), peers.Replace(" ", "▁▁")),
    (Strip(), peers.Strip()),
]
FORMS = [(UnicodeForm(form), getattr(peers, form)()) for form in ("NFC", "NFD", "NFKC", "NFKD")]

# Marks that BERT keeps and NFD may move; `tokenizers` aligns a moved one with its neighbour.
KEPT_MARKS = CharacterClass(MOVABLE)


def spans(alignment):
    return list(zip(alignment.starts.tolist(), alignment.ends.tolist(), strict=True))


def peer_spans(peer, text):
    """Where `tokenizers` says each character of a normalised text comes from."""
    whole = PreTokenizedString(text)
    whole.normalize(peer.normalize)
    whole.split(lambda _, part: part.split(Regex(r"[\s\S]"), "isolated"))
    return [span for _, span, _ in whole.get_splits("original", "char")]


# -- characters ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "peer"), SINGLE, ids=repr)
@given(text=TEXTS)
def test_characters_as_tokenizers(step, peer, text):
    alignment = aligned((step,), text)
    assert alignment.text == step.apply(text)
    if not KEPT_MARKS.is_in(UnicodeForm("NFD").apply(text)):
        assert spans(alignment) == peer_spans(peer, text)


@pytest.mark.parametrize(("step", "peer"), FORMS, ids=repr)
@given(text=TEXTS)
def test_forms_cover_what_a_character_is_made_of(step, peer, text):
    # `tokenizers` gives the first character of several, or one of a reordered pair: never less
    # here, and the same wherever a character became what it is alone.
    alignment = aligned((step,), text)
    ours, theirs = spans(alignment), peer_spans(peer, text)
    assert all(a <= c < d <= b for (a, b), (c, d) in zip(ours, theirs, strict=True))
    assert all(
        mine == other for mine, other in zip(ours, theirs, strict=True) if mine[1] - mine[0] == 1
    )
    for (start, end), char in zip(ours, alignment.text, strict=True):
        assert char in step.apply(text[start:end])


@given(text=TEXTS)
def test_steps_compose(text):
    steps = (Prepend("▁"), UnicodeForm("NFKD"), StripAccents(), Lowercase(), Replace("a", "bcd"))
    alignment = aligned(steps, text)
    assert alignment.text == normalized(steps, text)
    assert len(alignment.starts) == len(alignment.ends) == len(alignment.text)
    assert (alignment.starts < alignment.ends).all()
    assert (np.diff(alignment.starts) >= 0).all()
    assert (np.diff(alignment.ends) >= 0).all()


def test_what_one_step_inserts_the_next_one_moves():
    steps = (Prepend("É"), Bert())
    whole = json.loads(tokenizers.Tokenizer(models.BPE()).to_str())
    whole["normalizer"] = {"type": "Sequence", "normalizers": [step.component for step in steps]}
    peer = tokenizers.Tokenizer.from_str(json.dumps(whole)).normalizer
    for text in TORTURE:
        assert spans(aligned(steps, text)) == peer_spans(peer, text)


def test_segments_by_hand():
    alignment = Alignment.identity("abcdef").then([(2, "ab"), (2, "XYZ"), (1, ""), (1, "f")])
    assert alignment.text == "abXYZf"
    assert spans(alignment) == [(0, 1), (1, 2), (2, 4), (2, 4), (2, 4), (5, 6)]
    again = alignment.then([(0, "<"), (1, "a"), (1, "b"), (0, "|"), (4, "XYZf"), (0, ">")])
    assert again.text == "<ab|XYZf>"
    assert spans(again) == [
        (0, 0), (0, 1), (1, 2), (2, 2), (2, 4), (2, 4), (2, 4), (5, 6), (6, 6),
    ]  # fmt: skip


def test_a_composed_letter_comes_from_all_its_parts():
    assert spans(aligned((UnicodeForm("NFC"),), "e\u0301x")) == [(0, 2), (2, 3)]
    assert spans(aligned((UnicodeForm("NFC"),), "e\u0301\u0323x")) == [(0, 3), (0, 3), (3, 4)]
    assert spans(aligned((Replace("bcd", "X"),), "abcde")) == [(0, 1), (1, 4), (4, 5)]


def test_text_that_stays_is_cheap():
    alignment = aligned((UnicodeForm("NFC"), Lowercase(), StripAccents()), "plain")
    assert spans(alignment) == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    assert aligned((), "").starts.shape == (0,)


def test_a_mark_that_moved_comes_from_where_it_was():
    # U+1D15E is a note head and its stem; the cedilla between them in NFD is then dropped.
    alignment = aligned((Bert(),), "\U0001d15e\u0327")
    assert alignment.text == "\U0001d157\U0001d165"
    assert spans(alignment) == [(0, 1), (0, 1)]
    assert peer_spans(peers.BertNormalizer(), "\U0001d15e\u0327") == [(0, 1), (1, 2)]


# -- tokens of byte-level BPE --------------------------------------------------------------------


@cache
def byte_level(form: str | None) -> tokenizers.Tokenizer:
    """A vocabulary learnt by `tokenizers`, cut as GPT-2 cuts."""
    whole = tokenizers.Tokenizer(models.BPE())
    split = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.pre_tokenizer = split
    whole.decoder = tokenizers.decoders.ByteLevel()
    if form is not None:
        whole.normalizer = getattr(peers, form)()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=450, initial_alphabet=alphabet, show_progress=False)
    whole.train_from_iterator(CORPUS, trainer)
    return whole


@cache
def ours(form: str | None) -> Encoder:
    """The same pipeline here."""
    pipeline = read_pipeline(json.loads(byte_level(form).to_str()))
    assert isinstance(pipeline, Pipeline)
    return Encoder(pipeline)


def byte_level_offsets(form, text):
    """What `tokenizers` gives, and our offsets of the same ids."""
    theirs = byte_level(form).encode(text)
    encoding = ours(form).encode_with_offsets(text, allow_special=False)
    assert encoding.ids.tolist() == theirs.ids
    return theirs, list(map(tuple, encoding.offsets.tolist()))


def check_byte_level(text):
    theirs, found = byte_level_offsets(None, text)
    assert found == theirs.offsets
    for token, (start, end) in zip(theirs.ids, found, strict=True):
        decoded = byte_level(None).decode([token])
        assert text[start:end] == decoded or "\ufffd" in decoded
    assert all(a <= c and b <= d for (a, b), (c, d) in pairwise(found))


@settings(max_examples=200)
@given(text=TEXTS)
def test_tokens_of_bytes_as_tokenizers(text):
    check_byte_level(text)


@pytest.mark.parametrize("text", TORTURE)
def test_torture_of_bytes(text):
    check_byte_level(text)


@settings(max_examples=200)
@given(text=TEXTS)
def test_tokens_of_composed_text_as_tokenizers_or_wider(text):
    theirs, found = byte_level_offsets("NFC", text)
    if UnicodeForm("NFC").apply(text) == text:
        assert found == theirs.offsets
    assert all(a <= c and d <= b for (a, b), (c, d) in zip(found, theirs.offsets, strict=True))
    assert all(a <= c and b <= d for (a, b), (c, d) in pairwise(found))
    for token, (start, end) in zip(theirs.ids, found, strict=True):
        decoded = byte_level("NFC").decode([token])
        assert decoded in UnicodeForm("NFC").apply(text[start:end]) or "\ufffd" in decoded


def test_part_of_a_character_covers_the_character():
    encoding = ours(None).encode_with_offsets("a🙂é", allow_special=False)
    assert encoding.offsets[0].tolist() == [0, 1]
    assert {tuple(span) for span in encoding.offsets.tolist()[1:]} <= {(1, 2), (1, 3), (2, 3)}
