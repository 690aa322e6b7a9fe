"""Training byte-level BPE: the merges of `tokenizers` and of the textbook, counts without bound."""

import json
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from llmlab.errors import ConfigError, DataError
from llmlab.foundations.bpe import train_bpe
from llmlab.tokenizers import Tokenizer
from llmlab.tokenizers.alphabet import spell
from llmlab.tokenizers.compiled.counting import MAX_PIECE_BYTES, PieceCounts, count_pieces
from llmlab.tokenizers.compiled.learning import learn_pairs
from llmlab.tokenizers.files.tokenizer_json import write_pipeline
from llmlab.tokenizers.splits import find_split
from llmlab.tokenizers.tokenizer import SPECIAL_TOKENS
from llmlab.tokenizers.trainers.bpe import BYTE_CHARS, learn_bpe
from tests.llmlab.tokenizers.samples import CORPUS, SPLITS, pipeline_of, shakespeare


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
    model = write_pipeline(pipeline_of(tokenizer))["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


@pytest.mark.parametrize("vocab_size", [1000, 8000])
@pytest.mark.parametrize("split", ["gpt2", "qwen2"])
def test_vocabulary_is_that_of_tokenizers_on_shakespeare(split, vocab_size):
    text = shakespeare()
    vocab, merges = train_reference([text], split, vocab_size)
    counts = count_pieces([text], find_split(split).rules)
    first_merge = len(SPECIAL_TOKENS) + len(BYTE_CHARS)
    learnt = learn_bpe(counts, num_merges=vocab_size - first_merge, reserved=SPECIAL_TOKENS)
    assert learnt == merges
    tokens = [*SPECIAL_TOKENS, *BYTE_CHARS, *(left + right for left, right in learnt)]
    assert {token: number for number, token in enumerate(tokens)} == vocab
    assert len(tokens) == vocab_size


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("split", ["gpt2", "qwen2"])
def test_merges_are_those_of_tokenizers_on_the_standard_library(split):
    texts = stdlib_texts(20_000_000)
    vocab, merges = train_reference(texts, split, 32_000)
    counts = count_pieces(texts, find_split(split).rules)
    num_merges = 32_000 - len(SPECIAL_TOKENS) - len(BYTE_CHARS)
    assert learn_bpe(counts, num_merges=num_merges, reserved=SPECIAL_TOKENS) == merges
    assert len(merges) == num_merges


def stdlib_texts(num_chars):
    """The sources of Python's standard library, up to a size."""
    texts = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" not in path.parts and num_chars > 0:
            texts.append(path.read_text(encoding="utf-8", errors="replace"))
            num_chars -= len(texts[-1])
    assert num_chars <= 0
    return texts


def test_trained_tokenizer_has_the_vocabulary_of_tokenizers():
    text = shakespeare()
    tokenizer = Tokenizer.train([text], vocab_size=1000, split="gpt2")
    assert tokenizer.vocab_size == 1000
    assert learnt(tokenizer) == train_reference([text], "gpt2", 1000)


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


def learn(counts, num_merges, **options):
    return learn_bpe(PieceCounts.from_mapping(counts), num_merges=num_merges, **options)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.text(alphabet="abcé ", min_size=1, max_size=12), st.integers(1, 9)),
    st.integers(0, 12),
    st.integers(1, 4),
)
def test_merges_are_those_of_the_textbook(counts, num_merges, min_frequency):
    spelled = {spell(word.encode()): count for word, count in counts.items()}
    merges = learn(counts, num_merges, min_frequency=min_frequency)
    assert merges == train_bpe(spelled, num_merges, min_frequency=min_frequency)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(alphabet="ab", min_size=1, max_size=40), st.integers(1, 9)))
def test_runs_are_merged_as_in_the_textbook(counts):
    merges = learn(counts, 100, min_frequency=1)
    assert merges == train_bpe(counts, 100, min_frequency=1)
    tokens = [left + right for left, right in merges]
    assert len(set(tokens)) == len(tokens)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(alphabet="abc", min_size=1), st.integers(1, 9)), st.randoms())
def test_order_of_the_pieces_does_not_matter(counts, random):
    shuffled = list(counts.items())
    random.shuffle(shuffled)
    assert learn(counts, 30) == learn(dict(shuffled), 30)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(alphabet="abc", min_size=1, max_size=8), st.integers(1, 9)))
def test_reserved_spellings_are_skipped_wherever_they_could_arise(counts):
    free = [left + right for left, right in learn(counts, 20, min_frequency=1)]
    for forbidden in free[:3]:
        kept = [
            left + right
            for left, right in learn(counts, 20, min_frequency=1, reserved=[forbidden, "☃"])
        ]
        assert forbidden not in kept
        assert len(set(kept)) == len(kept)
        assert kept[: free.index(forbidden)] == free[: free.index(forbidden)]


@pytest.mark.parametrize("base", [2**31, 2**32, 2**40])
def test_counts_go_beyond_32_bits(base):
    # Cut to 32 bits these counts are negative, or in another order.
    counts = {"ab": base + 5, "cd": base + 7, "ef": 9, "gh": 2 * base + 6}
    assert learn(counts, 4) == [("g", "h"), ("c", "d"), ("a", "b"), ("e", "f")]


def test_counts_add_up_beyond_32_bits():
    # Each piece stays below 2^31; the pair of all of them does not.
    counts = {f"{char}bc": 2**30 for char in "defghij"} | {"xy": 7 * 2**30 - 1, "xz": 2**31 - 1}
    assert learn(counts, 2) == [("b", "c"), ("x", "y")]


def test_equal_counts_go_by_id():
    assert learn({"zb": 3, "az": 3, "ba": 3, "ab": 3}, 4) == [
        ("a", "b"),
        ("a", "z"),
        ("b", "a"),
        ("z", "b"),
    ]


def test_no_merge_makes_a_special_token():
    assert learn({"abc": 5}, 9, reserved={"ab"}) == [("b", "c"), ("a", "bc")]
    assert learn({"abc": 5}, 9, reserved={"abc"}) == [("a", "b")]
    # A space is spelled Ġ, and what holds other characters can never be a token.
    assert learn({"a b": 5}, 1, reserved={"aĠ", "☃"}) == [("Ġ", "b")]


def test_long_pieces_are_counted_in_pieces():
    # One merge touches every occurrence in the piece: a run of length L halves at each merge.
    merges = learn({"a" * (4 * MAX_PIECE_BYTES): 1}, 50)
    assert max(len(left + right) for left, right in merges) == MAX_PIECE_BYTES


def test_nothing_to_merge():
    assert learn({}, 5) == []
    assert learn({"a": 9, "b": 9}, 5) == []
    assert learn({"ab": 9}, 0) == []
    assert learn({"ab": 4}, 5, min_frequency=5) == []


def test_table_of_pairs_grows():
    # Words of two characters merge in the order of their counts, then ids; there are more pairs
    # than the table has room for at first.
    chars = [chr(code) for code in range(ord("!"), ord("~"))]
    counts = {left + right: 2 + ord(right) % 7 for left in chars for right in chars}
    expected = sorted(counts, key=lambda word: (-counts[word], word))
    assert ["".join(merge) for merge in learn(counts, 20_000)] == expected


def test_more_symbols_than_can_be_placed():
    num_symbols = 2**31
    symbols = np.broadcast_to(np.int32(0), (num_symbols,))  # takes no memory
    with pytest.raises(DataError, match=r"have 2147483648 bytes .*; give less text"):
        next(
            learn_pairs(
                symbols,
                np.array([0, num_symbols]),
                np.array([1]),
                num_symbols=256,
                num_merges=1,
                min_frequency=2,
            )
        )


def test_progress_is_reported():
    rows = []
    merges = learn({"abcdefgh": 5}, 20, on_progress=rows.append)
    assert rows == [{"merge": f"{len(merges)}/20"}]


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
    with pytest.raises(ConfigError, match=r"algorithm='bbpe'.*'bpe', 'unigram'"):
        Tokenizer.train(CORPUS, vocab_size=300, algorithm="bbpe")  # type: ignore[arg-type]
