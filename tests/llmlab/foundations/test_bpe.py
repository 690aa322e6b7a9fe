"""The textbook loop: the example of the paper, `tokenizers` on characters, its own definition."""

import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from llmlab.foundations.bpe import count_pairs, encode_bpe, join, train_bpe
from llmlab.tokenizers.alphabet import CHARS, spell
from llmlab.tokenizers.models.bpe import BPE

WORDS = st.dictionaries(
    st.text(alphabet="abcé", min_size=1, max_size=8), st.integers(1, 9), min_size=1, max_size=8
)


def reference_of(counts, num_merges):
    """`tokenizers` trained on the same words."""
    reference = tokenizers.Tokenizer(models.BPE())
    reference.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    num_chars = len(set("".join(counts)))
    trainer = trainers.BpeTrainer(
        vocab_size=num_chars + num_merges, min_frequency=2, show_progress=False
    )
    text = " ".join(" ".join([word] * count) for word, count in counts.items())
    reference.train_from_iterator([text], trainer)
    return reference


def test_example_of_the_paper():
    # Sennrich et al., section 3.2, with the end of a word spelled as one more character.
    counts = {"low.": 5, "lower.": 2, "newest.": 6, "widest.": 3}
    merges = train_bpe(counts, 10)
    # The paper breaks the tie of es|t and t|. the other way round; both lead to est. after three.
    assert merges[:5] == [("e", "s"), ("t", "."), ("es", "t."), ("l", "o"), ("lo", "w")]
    assert encode_bpe("lowest.", merges) == ["low", "est."]


def test_ties_go_to_the_older_token():
    assert train_bpe({"ba": 2, "ab": 2, "aa": 2}, 3) == [("a", "a"), ("a", "b"), ("b", "a")]
    # ("ab", "c") and ("c", "a") occur twice: c is older than ab.
    assert train_bpe({"abc": 2, "ca": 2, "ab": 1}, 2) == [("a", "b"), ("c", "a")]


def test_runs_are_joined_from_the_left():
    assert join("aaaaa", ("a", "a")) == ("aa", "aa", "a")
    assert count_pairs({("a", "a", "a"): 2}) == {("a", "a"): 4}


def test_training_ends_when_pairs_are_rare():
    assert train_bpe({"abc": 1}, 5) == []
    assert train_bpe({"abc": 1}, 5, min_frequency=1) == [("a", "b"), ("ab", "c")]
    assert train_bpe({}, 5) == []


@settings(max_examples=60, deadline=None)
@given(WORDS, st.integers(0, 10), st.text(alphabet="abcé", min_size=1, max_size=12))
def test_merges_and_tokens_are_those_of_tokenizers(counts, num_merges, word):
    merges = train_bpe(counts, num_merges)
    reference = reference_of(counts, num_merges)
    vocab = reference.get_vocab()
    learnt = sorted(vocab, key=vocab.__getitem__)[len(set("".join(counts))) :]
    assert learnt == [left + right for left, right in merges]
    known = "".join(char for char in word if char in vocab)
    assert encode_bpe(known, merges) == reference.encode(known).tokens


@settings(max_examples=100, deadline=None)
@given(WORDS, st.integers(0, 20), st.text(alphabet="abcé🙂", min_size=1, max_size=30))
def test_encoder_of_the_library_gives_these_tokens(counts, num_merges, word):
    spelled = {spell(known.encode()): count for known, count in counts.items()}
    merges = train_bpe(spelled, num_merges, min_frequency=1)
    tokens = [*sorted(CHARS), *(left + right for left, right in merges)]
    model = BPE({token: i for i, token in enumerate(tokens)}, merges, whole_words={})
    for text in (*counts, word):
        assert [tokens[i] for i in model.encode(text)] == encode_bpe(spell(text.encode()), merges)
