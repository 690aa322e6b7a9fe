"""Training: the merges of `tokenizers`, counts without bound, clear errors."""

import json
from collections import Counter
from itertools import pairwise

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from llmlab.errors import ConfigError, DataError
from llmlab.tokenizers import Tokenizer
from llmlab.tokenizers.files.tokenizer_json import write_pipeline
from llmlab.tokenizers.splits import find_split
from llmlab.tokenizers.tokenizer import SPECIAL_TOKENS
from llmlab.tokenizers.trainer import BYTE_CHARS, MAX_PIECE_CHARS, count_pieces, learn_merges
from tests.llmlab.tokenizers.samples import CORPUS, SPLITS, shakespeare


def train_reference(texts, split, vocab_size, min_frequency=2):
    """Vocabulary and merges that `tokenizers` learns with the same pre-tokenizer."""
    content = json.loads(tokenizers.Tokenizer(models.BPE()).to_str())
    content["pre_tokenizer"] = find_split(split).component
    reference = tokenizers.Tokenizer.from_str(json.dumps(content))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    reference.train_from_iterator(texts, trainer)
    model = json.loads(reference.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def learnt(tokenizer):
    model = write_pipeline(tokenizer.pipeline)["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


@pytest.mark.parametrize(("split", "vocab_size"), [("gpt2", 1000), ("qwen2", 4000)])
def test_vocabulary_is_that_of_tokenizers_on_shakespeare(split, vocab_size):
    text = shakespeare()
    tokenizer = Tokenizer.train([text], vocab_size=vocab_size, split=split)
    assert tokenizer.vocab_size == vocab_size
    assert learnt(tokenizer) == train_reference([text], split, vocab_size)


@pytest.mark.parametrize("split", SPLITS)
def test_vocabulary_is_that_of_tokenizers_on_hard_text(split):
    tokenizer = Tokenizer.train(CORPUS, vocab_size=2000, split=split)
    assert tokenizer.vocab_size < 2000  # until no pair occurs twice
    assert learnt(tokenizer) == train_reference(CORPUS, split, 2000)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="aab é\n", min_size=1, max_size=40), min_size=1, max_size=6))
def test_vocabulary_is_that_of_tokenizers_on_runs(texts):
    tokenizer = Tokenizer.train(texts, vocab_size=320)
    assert learnt(tokenizer) == train_reference(texts, "qwen2", 320)


def recounted_merges(counts, num_merges):
    """The definition: count all pairs again for every merge."""
    order = {char: number for number, char in enumerate(BYTE_CHARS)}
    words = {tuple(word): count for word, count in counts.items()}
    merges = []
    while len(merges) < num_merges:
        pairs = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], order[pair[0]], order[pair[1]]))
        if pairs[best] < 2:
            break
        merges.append(best)
        order.setdefault("".join(best), len(order))
        merged = Counter()
        for word, count in words.items():
            merged[_joined(word, best)] += count
        words = merged
    return merges


def _joined(word, pair):
    out, at = [], 0
    while at < len(word):
        if word[at : at + 2] == pair:
            out.append("".join(pair))
            at += 2
        else:
            out.append(word[at])
            at += 1
    return tuple(out)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(alphabet="abc", min_size=1, max_size=12), st.integers(1, 9)))
def test_incremental_counts_give_the_merges_of_recounting(counts):
    assert learn_merges(counts, 12) == recounted_merges(counts, 12)


def test_counts_go_beyond_32_bits():
    # ("b", "c") occurs 2^31 + 1 times: in 32 bits its count would be negative and come last.
    counts = {"bc": 2**31 + 1, "de": 2**31 - 1, "fg": 5}
    assert learn_merges(counts, 3) == [("b", "c"), ("d", "e"), ("f", "g")]


def test_equal_counts_go_by_id():
    assert learn_merges({"zb": 3, "az": 3, "ba": 3, "ab": 3}, 4) == [
        ("a", "b"),
        ("a", "z"),
        ("b", "a"),
        ("z", "b"),
    ]


def test_no_merge_makes_a_special_token():
    assert learn_merges({"abc": 5}, 9, reserved={"ab"}) == [("b", "c"), ("a", "bc")]
    assert learn_merges({"abc": 5}, 9, reserved={"abc"}) == [("a", "b")]


def test_long_pieces_are_counted_in_pieces():
    # One merge touches every occurrence in the piece: a run of length L halves at each merge.
    merges = learn_merges({"a" * (4 * MAX_PIECE_CHARS): 1}, 50)
    assert max(len(left + right) for left, right in merges) == MAX_PIECE_CHARS


def test_pieces_are_counted_one_text_at_a_time():
    rows = []
    texts = (text for text in ["a b"] * 250)
    counts = count_pieces(texts, find_split("gpt2"), on_progress=rows.append)
    assert counts == {"a": 250, " b": 250}
    assert [row["documents"] for row in rows] == [100, 200]


def test_training_is_deterministic():
    again = [Tokenizer.train(iter(CORPUS), vocab_size=500).fingerprint for _ in range(2)]
    assert again[0] == again[1]


def test_what_a_trained_tokenizer_has():
    tokenizer = Tokenizer.train(CORPUS, vocab_size=400)
    assert tokenizer.vocab_size == 400
    assert tokenizer.special_tokens == {token: i for i, token in enumerate(SPECIAL_TOKENS)}
    assert tokenizer.eos_token_id == 0
    assert tokenizer.pad_token_id == 1
    assert tokenizer.bos_token_id is None
    assert tokenizer.bos_ids == []
    assert tokenizer.stop_token_ids == {0, 3}
    assert tokenizer.token_bytes(2) == b"<|im_start|>"
    assert "generation" in (tokenizer.chat_template or "")


def test_other_special_tokens():
    tokenizer = Tokenizer.train(CORPUS, vocab_size=300, special_tokens=["<s>"])
    assert tokenizer.special_tokens == {"<s>": 0}
    assert tokenizer.eos_token_id is None
    assert tokenizer.chat_template is None
    assert tokenizer.vocab_size == 300


def test_smallest_vocabulary_has_no_merges():
    tokenizer = Tokenizer.train(["aaaa"], vocab_size=256 + len(SPECIAL_TOKENS))
    assert len(tokenizer.encode("aé")) == 3


@pytest.mark.parametrize("vocab_size", [0, 271, 2_000_000])
def test_vocab_size_out_of_range(vocab_size):
    with pytest.raises(ConfigError, match=rf"vocab_size={vocab_size} .*at least 272"):
        Tokenizer.train(CORPUS, vocab_size=vocab_size)


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_empty_corpus(texts):
    with pytest.raises(DataError, match=r"corpus is empty.*give texts"):
        Tokenizer.train(texts, vocab_size=300)


def test_unknown_choices():
    with pytest.raises(ConfigError, match=r"split='qwen3'.*did you mean 'qwen2'"):
        Tokenizer.train(CORPUS, vocab_size=300, split="qwen3")
    with pytest.raises(ConfigError, match=r"algorithm='unigram'.*'bpe'"):
        Tokenizer.train(CORPUS, vocab_size=300, algorithm="unigram")  # type: ignore[arg-type]
