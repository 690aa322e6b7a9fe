"""WordPiece, character and word vocabularies: `tokenizers`, the textbook, limits, errors."""

from collections import Counter
from functools import cache

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, trainers

from llmlab.errors import ConfigError, DataError
from llmlab.foundations.wordpiece import train_wordpiece
from llmlab.tokenizers import Tokenizer
from llmlab.tokenizers.trainers.wordpiece import SPECIAL_TOKENS, learn_wordpiece
from llmlab.tokenizers.trainers.words import learn_characters, learn_words
from tests.llmlab.tokenizers.samples import CORPUS, shakespeare

WORDS = st.dictionaries(
    st.text(alphabet="abcé", min_size=1, max_size=10), st.integers(1, 9), min_size=1
)


def bert_words(texts):
    """The words that BERT's normaliser and splitter make, counted."""
    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    counts = Counter()
    for text in texts:
        pieces = splitter.pre_tokenize_str(normalizer.normalize_str(text))
        counts.update(piece for piece, _ in pieces)
    return counts


def train_reference(texts, **options):
    """The vocabulary that `tokenizers` learns, in the order of its ids."""
    reference = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    reference.normalizer = normalizers.BertNormalizer()
    reference.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        special_tokens=list(SPECIAL_TOKENS), show_progress=False, **options
    )
    reference.train_from_iterator(texts, trainer)
    vocab = reference.get_vocab()
    return sorted(vocab, key=vocab.__getitem__)


@cache
def trained_on_shakespeare(vocab_size):
    return train_reference([shakespeare()], vocab_size=vocab_size, min_frequency=2)


@cache
def words_of_shakespeare():
    return bert_words([shakespeare()])


def characters_of(vocab):
    """The tokens of one character, the first ones that are not special."""
    singles = [token for token in vocab if len(token.removeprefix("##")) == 1]
    assert vocab[len(SPECIAL_TOKENS) :][: len(singles)] == singles
    return singles


@pytest.mark.parametrize("vocab_size", [1000, 8000])
def test_vocabulary_is_that_of_tokenizers_on_shakespeare_in_its_order(vocab_size):
    # `tokenizers` numbers continued characters in the order of a hash map: it has to be taken over.
    reference = trained_on_shakespeare(vocab_size)
    vocab = learn_wordpiece(
        words_of_shakespeare(), vocab_size=vocab_size, alphabet=characters_of(reference)
    )
    assert vocab == reference


def test_vocabulary_is_that_of_tokenizers_on_hard_text_in_its_order():
    reference = train_reference(CORPUS, vocab_size=2000, min_frequency=2)
    vocab = learn_wordpiece(
        bert_words(CORPUS),
        vocab_size=2000,
        alphabet=characters_of(reference),
        max_word_chars=10_000,
    )
    assert vocab == reference
    assert len(vocab) < 2000


def test_a_form_feed_is_no_white_space():
    tokenizer = Tokenizer.train(["one\x0ctwo\x85 six"] * 5, vocab_size=99, algorithm="wordpiece")
    assert [len(tokenizer.encode(word)) for word in ("onetwo", "six")] == [1, 1]


def test_first_difference_to_tokenizers_is_the_order_of_the_continued_characters():
    reference = trained_on_shakespeare(1000)
    vocab = learn_wordpiece(words_of_shakespeare(), vocab_size=1000)
    num_plain = len(SPECIAL_TOKENS) + sum(len(token) == 1 for token in vocab)
    assert vocab[:num_plain] == reference[:num_plain]
    ours, theirs = characters_of(vocab), characters_of(reference)
    assert sorted(ours) == sorted(theirs)
    continued = [token for token in ours if len(token) > 1]
    assert continued == sorted(continued)


@settings(max_examples=100, deadline=None)
@given(WORDS, st.integers(0, 15), st.integers(1, 3))
def test_vocabulary_is_that_of_the_textbook(counts, num_merges, min_frequency):
    num_chars = len(train_wordpiece(counts, 0))
    expected = train_wordpiece(counts, num_chars + num_merges, min_frequency=min_frequency)
    vocab = learn_wordpiece(
        counts,
        vocab_size=num_chars + num_merges,
        min_frequency=min_frequency,
        special_tokens=(),
    )
    assert vocab == expected


@settings(max_examples=30, deadline=None)
@given(WORDS, st.randoms(use_true_random=False))
def test_order_of_the_words_does_not_matter(counts, random):
    shuffled = list(counts.items())
    random.shuffle(shuffled)
    assert learn_wordpiece(counts, vocab_size=30) == learn_wordpiece(dict(shuffled), vocab_size=30)


def test_alphabet_keeps_the_most_frequent_characters():
    counts = {"ab": 5, "ac": 4, "d": 5, "e": 1}
    # b and d are equally frequent: the smaller code point stays.
    vocab = learn_wordpiece(counts, vocab_size=20, limit_alphabet=2, special_tokens=["[UNK]"])
    assert vocab == ["[UNK]", "a", "b", "##b", "ab"]
    everything = learn_wordpiece(counts, vocab_size=20, limit_alphabet=None, special_tokens=[])
    assert everything == ["a", "b", "c", "d", "e", "##b", "##c", "ab", "ac"]


def test_characters_around_a_dropped_one_become_neighbours():
    text = "a☃b a☃b ab ab"
    reference = train_reference([text], vocab_size=100, limit_alphabet=2)
    vocab = learn_wordpiece(bert_words([text]), vocab_size=100, limit_alphabet=2)
    assert vocab == reference == [*SPECIAL_TOKENS, "a", "b", "##b", "ab"]


def test_counts_go_beyond_32_bits():
    counts = {"bc": 2**31 + 5, "de": 2**33 + 1, "fg": 7}
    vocab = learn_wordpiece(counts, vocab_size=12, special_tokens=())
    assert vocab[-3:] == ["de", "bc", "fg"]


def test_words_that_teach_nothing():
    long = "a" * 101
    assert learn_wordpiece({long: 9, "bc": 2, "": 3}, vocab_size=9, special_tokens=()) == [
        "b",
        "c",
        "##c",
        "bc",
    ]
    # "##x" at the start of a word would look like the continuation "##x".
    vocab = learn_wordpiece({"##x": 9, "ax": 9, "a##x": 9}, vocab_size=30)
    assert len(set(vocab)) == len(vocab)


def test_no_merge_makes_a_special_token():
    assert "ab" not in learn_wordpiece({"abc": 5}, vocab_size=9, special_tokens=["ab"])[1:]


def test_vocab_size_without_room():
    with pytest.raises(ConfigError, match=r"vocab_size=9 is too small: 5 .* and 5 .* need 10; "):
        learn_wordpiece({"abc": 5}, vocab_size=9)


def test_no_words():
    with pytest.raises(DataError, match=r"no words at all; give texts"):
        learn_wordpiece({"": 5}, vocab_size=9)


def test_progress_is_reported():
    rows = []
    learn_wordpiece({"abc": 5}, vocab_size=20, on_progress=rows.append)
    assert rows == [{"merge": "2/10"}]


def test_words_are_those_of_tokenizers():
    text = shakespeare()
    reference = tokenizers.Tokenizer(models.WordLevel(unk_token="[UNK]"))
    reference.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(
        vocab_size=5000, special_tokens=["[UNK]"], show_progress=False
    )
    reference.train_from_iterator([text], trainer)
    pieces = reference.pre_tokenizer.pre_tokenize_str(text)
    vocab = learn_words(Counter(piece for piece, _ in pieces), vocab_size=5000)
    assert {token: number for number, token in enumerate(vocab)} == reference.get_vocab()


def test_characters_by_frequency_then_code_point():
    counts = {"abca": 2, "cé": 1, "d": 9}
    assert learn_characters(counts, vocab_size=99) == ["[UNK]", "d", "a", "c", "b", "é"]
    assert learn_characters(counts, vocab_size=3) == ["[UNK]", "d", "a"]
    assert learn_characters(counts, vocab_size=9, min_frequency=3) == ["[UNK]", "d", "a", "c"]


def test_words_without_room_or_text():
    with pytest.raises(ConfigError, match=r"vocab_size=1 leaves no room .*at least 2"):
        learn_words({"a": 1}, vocab_size=1)
    with pytest.raises(DataError, match=r"nothing that was seen min_frequency=2 times"):
        learn_characters({"a": 1}, vocab_size=9, min_frequency=2)
