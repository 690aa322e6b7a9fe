"""The textbook loop of WordPiece: greedy matching as `tokenizers` does it, hand-made training."""

import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models

from llmlab.foundations.wordpiece import encode_wordpiece, glue, join, spell, train_wordpiece
from llmlab.tokenizers.models.wordpiece import WordPiece

TEXT = st.text(alphabet="abé", min_size=1, max_size=8)


def test_words_are_spelled_with_continuations():
    assert spell("word") == ("w", "##o", "##r", "##d")
    assert spell("") == ()
    assert glue(("w", "##o")) == "wo"
    assert glue(("##o", "##r")) == "##or"
    assert join(("a", "##b", "##b", "##b"), ("##b", "##b")) == ("a", "##bb", "##b")


def test_training_by_hand():
    counts = {"abab": 3, "bab": 2, "c": 1}
    # ##a ##b occurs 3 + 2 times, then a ##b, then ab ##ab, b ##ab.
    learnt = ["##ab", "ab", "abab", "bab"]
    assert train_wordpiece(counts, 20) == ["a", "b", "c", "##a", "##b", *learnt]


def test_training_ends_when_pairs_are_rare():
    assert train_wordpiece({"ab": 1}, 9) == ["a", "b", "##b"]
    assert train_wordpiece({"ab": 1}, 9, min_frequency=1) == ["a", "b", "##b", "ab"]
    assert train_wordpiece({}, 9) == []


def test_longest_match_first():
    vocab = {"un", "##aff", "##able", "##a", "u", "[UNK]"}
    assert encode_wordpiece("unaffable", vocab) == ["un", "##aff", "##able"]
    assert encode_wordpiece("unaffected", vocab) == ["[UNK]"]
    assert encode_wordpiece("u" * 101, {"u", "##u"}) == ["[UNK]"]
    assert encode_wordpiece("u" * 100, {"u", "##u"}) == ["u", *["##u"] * 99]
    assert encode_wordpiece("", vocab) == []


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(TEXT, st.integers(1, 9), max_size=6), st.integers(0, 20), TEXT)
def test_tokens_are_those_of_tokenizers_and_of_the_library(counts, vocab_size, word):
    vocab = [*train_wordpiece(counts, vocab_size), "[UNK]"]
    ids = {token: number for number, token in enumerate(vocab)}
    reference = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    model = WordPiece(ids)
    for text in (*counts, word):
        tokens = encode_wordpiece(text, ids)
        assert tokens == reference.encode(text).tokens
        assert tokens == [vocab[number] for number in model.encode(text)]
