"""Bulk encoding: the ids of the readable model, of `tokenizers` and of tiktoken, on any threads."""

import json
import os
import random
import sysconfig
import time
import unicodedata
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.errors import TokenizerError
from llmlab.tokenizers import Tokenizer, bulk
from llmlab.tokenizers.added_tokens import AddedToken, AddedTokens
from llmlab.tokenizers.alphabet import CHARS, unspell
from llmlab.tokenizers.bulk import BulkBPE
from llmlab.tokenizers.compiled.encoding import MAX_KEPT_IDS, MAX_KEY_BYTES
from llmlab.tokenizers.compiled.merging import SHORT_LEN
from llmlab.tokenizers.long_texts import encode_chunks
from llmlab.tokenizers.models.bpe import BPE
from llmlab.tokenizers.splits import SPLITS, find_split
from tests.llmlab.tokenizers.samples import CORPUS, TORTURE, pipeline_of, reference, trained

HARD_TEXT = st.text(
    st.sampled_from("ab'sSLl ve\r\n\t 12٣,.!<|>é\u0301汉🙂\u200d\x00\u00a0ſ"), max_size=60
)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
LETTERS = "etaoin shrdlu"


def readable(bpe: BPE, split: str, text: str) -> list[int]:
    """The specification: the split's expression, then the model, piece by piece."""
    return [i for piece in find_split(split).pattern.findall(text) for i in bpe.encode(piece)]


def model_of(tokenizer: Tokenizer, *, ignore_merges: bool = False) -> BPE:
    pipeline = pipeline_of(tokenizer)
    words = {word: i for word, i in pipeline.vocab.items() if word not in tokenizer.special_tokens}
    return BPE(pipeline.vocab, pipeline.model.merges, whole_words=words if ignore_merges else {})


@cache
def small(split: str = "qwen2") -> tuple[BPE, BulkBPE]:
    """A small vocabulary, and its bulk encoder with next to no cache."""
    model = model_of(trained("qwen2"))
    return model, BulkBPE(model, find_split(split).rules, cached_pieces=4)


@cache
def gpt2() -> tuple[BPE, BulkBPE]:
    """GPT-2's own vocabulary, or skip the test."""
    folder = Path(os.environ.get("LLMLAB_DATA", "data")) / "tokenizer_ranks"
    if not (folder / "vocab.bpe").exists() or not (folder / "encoder.json").exists():
        pytest.skip("GPT-2's encoder.json and vocab.bpe are not in LLMLAB_DATA/tokenizer_ranks")
    vocab = json.loads((folder / "encoder.json").read_text("utf-8"))
    lines = (folder / "vocab.bpe").read_text("utf-8").splitlines()[1:]
    model = BPE(vocab, [(pair[0], pair[1]) for pair in map(str.split, lines)], whole_words={})
    return model, BulkBPE(model, find_split("gpt2").rules)


@cache
def library(num_files: int) -> list[str]:
    """Modules of the standard library."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return [path.read_text("utf-8") for path in files[:num_files]]


def texts_of(strings: Sequence[str]) -> list[bytes]:
    return [text.encode() for text in strings]


def listed(arrays: list[np.ndarray]) -> list[list[int]]:
    return [array.tolist() for array in arrays]


# -- the ids ---------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_ids_are_those_of_the_readable_model(split):
    model, encoder = small(split)
    expected = [readable(model, split, text) for text in TORTURE]
    assert listed(encoder.encode_many(texts_of(TORTURE))) == expected
    assert [encoder.encode(text.encode()).tolist() for text in TORTURE] == expected

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.one_of(HARD_TEXT, ANY_TEXT), max_size=8))
    def check(texts):
        expected = [readable(model, split, text) for text in texts]
        assert listed(encoder.encode_many(texts_of(texts))) == expected

    check()


def test_ids_of_modules_are_those_of_tokenizers(tmp_path):
    tokenizer = Tokenizer.train(library(40), vocab_size=3000)
    theirs = reference(tokenizer, tmp_path)
    theirs.encode_special_tokens = True
    encoder = BulkBPE(model_of(tokenizer), find_split("qwen2").rules)
    texts = [*library(60), *CORPUS]
    expected = [encoding.ids for encoding in theirs.encode_batch(texts)]
    assert listed(encoder.encode_many(texts_of(texts))) == expected


@pytest.mark.parametrize("split", ["gpt2", "cl100k", "o200k"])
def test_ids_are_those_of_tiktoken(split):
    # Any ranks do; those of the small vocabulary, whose ids rise with the merges, are at hand.
    pipeline = pipeline_of(trained("qwen2"))
    first = len(trained("qwen2").special_tokens)
    ranks = {unspell(word): i - first for word, i in pipeline.vocab.items() if i >= first}
    expression = find_split(split).expression
    theirs = tiktoken.Encoding("t", pat_str=expression, mergeable_ranks=ranks, special_tokens={})
    model = model_of(trained("qwen2"), ignore_merges=True)
    encoder = BulkBPE(model, find_split(split).rules)
    texts = [*library(20), *TORTURE]
    for text, ids in zip(texts, encoder.encode_many(texts_of(texts)), strict=True):
        assert [i - first for i in ids.tolist()] == theirs.encode_ordinary(text), text[:50]


def test_ids_of_gpt2_are_those_of_the_readable_model():
    model, encoder = gpt2()
    texts = [*library(12), *TORTURE]
    expected = [readable(model, "gpt2", text) for text in texts]
    assert listed(encoder.encode_many(texts_of(texts))) == expected


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12),
    st.text("abc", max_size=3 * SHORT_LEN),
)
def test_merging_is_that_of_the_readable_model_for_any_order_of_merges(choices, text):
    # Also orders no training gives, where a merge ranks below one of its parts or is there twice.
    tokens, merges = ["a", "b", "c"], []
    for left, right in choices:
        merges.append((tokens[left % len(tokens)], tokens[right % len(tokens)]))
        tokens += [] if "".join(merges[-1]) in tokens else ["".join(merges[-1])]
    merges.reverse()
    model = BPE({token: i for i, token in enumerate(tokens)}, merges, whole_words={})
    encoder = BulkBPE(model, find_split("gpt2").rules, cached_pieces=2)
    assert encoder.encode(text.encode()).tolist() == readable(model, "gpt2", text)


def test_bytes_without_a_token_are_dropped_or_unknown():
    vocab = {"a": 0, "b": 1, "ab": 2, "?": 9}
    for unknown_id, expected in ((None, [2, 0]), (9, [9, 2, 9, 9, 9, 9, 0])):
        model = BPE(vocab, [("a", "b")], whole_words={}, unknown_id=unknown_id)
        encoder = BulkBPE(model, find_split("gpt2").rules)
        for _ in range(2):  # the second time from the cache
            assert encoder.encode("xab éxa".encode()).tolist() == expected
        assert encoder.encode(b"xyz").tolist() == [9] * 3 * (unknown_id is not None)


def test_whole_words_come_before_merges():
    vocab = {**{char: i for i, char in enumerate(CHARS)}, "ab": 256, "abc": 257, "汉": 258}
    words = {"abc": 257, "汉": 258}  # the second one is not spelled in the byte alphabet
    model = BPE(vocab, [("a", "b")], whole_words=words)
    encoder = BulkBPE(model, find_split("gpt2").rules)
    for text in ("abc", "abcd", "ab", "汉", "", "abc abc"):
        assert encoder.encode(text.encode()).tolist() == readable(model, "gpt2", text)
    assert encoder.encode(b"abc").tolist() == [257]


# -- the cache -------------------------------------------------------------------------------


@pytest.mark.parametrize("cached_pieces", [2, 8, 2**10])
def test_a_cache_of_any_size_changes_nothing(cached_pieces):
    model = model_of(trained("qwen2"))
    encoder = BulkBPE(model, find_split("gpt2").rules, cached_pieces=cached_pieces)
    rng = random.Random(0)
    words = ["".join(rng.choices(LETTERS, k=rng.randint(1, 40))) for _ in range(300)]
    text = " ".join(rng.choices(words, k=5000))
    expected = readable(model, "gpt2", text)
    for _ in range(2):
        assert encoder.encode(text.encode()).tolist() == expected


@pytest.mark.parametrize("size", [1, 7, 8, 9, MAX_KEPT_IDS + 1, MAX_KEY_BYTES, MAX_KEY_BYTES + 1])
def test_pieces_that_differ_in_one_byte_or_in_length_are_kept_apart(size):
    model, encoder = small("gpt2")
    word = "\x00" * size  # bytes that also stand for "nothing here" in a slot
    texts = [word, word + "\x00", word[:-1], word[:-1] + "\x01", "\x01" + word[1:], word]
    texts += [" ".join(texts), *(text.replace("\x00", "q") for text in texts)]
    expected = [readable(model, "gpt2", text) for text in texts]
    for _ in range(2):
        assert listed(encoder.encode_many(texts_of(texts), num_threads=1)) == expected


# -- threads and sizes -----------------------------------------------------------------------


def test_threads_give_the_same_in_the_same_order(monkeypatch):
    monkeypatch.setattr(bulk, "_JOB_BYTES", 2000)
    monkeypatch.setattr(bulk, "_CHUNK_BYTES", 5000)
    model = model_of(trained("qwen2"))
    texts = [*library(10), "", *TORTURE, "", "x" * 20_000, *library(10)]
    expected = [readable(model, "qwen2", text) for text in texts]
    for num_threads in (1, 2, 5, None):
        encoder = BulkBPE(model, find_split("qwen2").rules, cached_pieces=64)
        for _ in range(2):
            encoded = encoder.encode_many(texts_of(texts), num_threads=num_threads)
            assert listed(encoded) == expected
    assert all(ids.dtype == np.uint32 and ids.flags.writeable for ids in encoded)
    assert encoder.encode_many([]) == []
    assert listed(encoder.encode_many([b"", b""])) == [[], []]


@pytest.mark.parametrize("split", SPLITS)
def test_a_long_text_is_cut_without_a_trace(split, monkeypatch):
    monkeypatch.setattr(bulk, "_CHUNK_BYTES", 100)
    model, encoder = small(split)
    rng = random.Random(1)
    for _ in range(20):
        text = "".join(rng.choices("ab'sL \n\r\t 12٣,./é\u0301汉🙂\u00a0", k=1500))
        assert encoder.encode(text.encode()).tolist() == readable(model, split, text)


@pytest.mark.parametrize("kind", ["one letter", "letters", "spaces", "digits", "characters"])
def test_one_enormous_pre_token_is_no_trap(kind):
    rng = random.Random(2)
    text = {
        "one letter": "a" * 10**6,
        "letters": "".join(rng.choices("etaoinshrdlu", k=10**6)),
        "spaces": " " * 10**6,
        "digits": "1" * 10**6,
        "characters": "汉" * 300_000,
    }[kind]
    model, encoder = small("gpt2")
    encoder.encode(b"the compiler's time does not count")
    start_s = time.process_time()
    ids = encoder.encode(text.encode())
    assert time.process_time() - start_s < 5  # quadratic merging takes minutes
    tokens = trained("qwen2")
    assert tokens.decode(ids) == text
    sample = text[:3000]
    assert encoder.encode(sample.encode()).tolist() == readable(model, "gpt2", sample)


# -- texts in chunks -------------------------------------------------------------------------

ADDED = AddedTokens(
    [
        AddedToken(1000, "<|end|>"),
        AddedToken(1001, "<|end"),
        AddedToken(1002, "<tool>", special=False),
        AddedToken(1003, "<sp>", lstrip=True, rstrip=True),
        AddedToken(1004, "~", rstrip=True, special=False),
    ]
)
PIECES = (
    "<|end|>",
    "<|en",
    "<|end",
    "<tool>",
    "<sp>",
    "~",
    " ",
    "\n",
    "a",
    "ab's",
    "e\u0301",
    "汉",
)


def whole(text, encoder, *, allow_special, normalize=None):
    ids = []
    for start, end, token in ADDED.parts(text, allow_special=allow_special):
        if token is None:
            part = text[start:end]
            ids += encoder.encode((normalize(part) if normalize else part).encode()).tolist()
        else:
            ids.append(token)
    return ids


@pytest.mark.parametrize("allow_special", [True, False])
@pytest.mark.parametrize("normalize", [None, lambda text: unicodedata.normalize("NFC", text)])
def test_chunks_give_the_ids_of_the_whole(allow_special, normalize):
    _, encoder = small("qwen2")

    @settings(max_examples=400, deadline=None)
    @given(
        st.lists(st.sampled_from(PIECES), max_size=40).map("".join),
        st.lists(st.integers(0, 100), max_size=10),
        st.integers(1, 20),
    )
    def check(text, cuts, gathered_chars):
        places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
        chunks = [text[start:end] for start, end in pairwise(places)]
        arrays = encode_chunks(
            chunks,
            encoder,
            ADDED,
            allow_special=allow_special,
            normalize=normalize,
            gathered_chars=gathered_chars,
        )
        ids = np.concatenate(list(arrays))
        assert ids.dtype == np.uint32
        expected = whole(text, encoder, allow_special=allow_special, normalize=normalize)
        assert ids.tolist() == expected

    check()


@pytest.mark.parametrize("split", SPLITS)
def test_chunks_of_any_split_give_the_ids_of_the_whole(split):
    model, encoder = small(split)

    @settings(max_examples=150, deadline=None)
    @given(HARD_TEXT, st.integers(1, 7))
    def check(text, size):
        chunks = (text[at : at + size] for at in range(0, len(text), size))
        ids = np.concatenate(
            list(encode_chunks(chunks, encoder, AddedTokens([]), gathered_chars=1))
        )
        assert ids.tolist() == readable(model, split, text)

    check()


def test_chunks_are_encoded_as_they_come():
    _, encoder = small("qwen2")
    taken = []

    def lines():
        for number in range(1000):
            taken.append(number)
            yield f"line {number} of many\n"

    arrays = encode_chunks(lines(), encoder, AddedTokens([]), gathered_chars=100)
    next(arrays)
    assert len(taken) < 10
    ids = [next(arrays) for _ in range(20)]
    assert len(taken) < 200
    assert sum(map(len, ids)) > 0


def test_chunks_of_one_endless_word_take_no_quadratic_time():
    _, encoder = small("gpt2")
    start_s = time.process_time()
    chunks = ("a" * 1000 for _ in range(1000))
    arrays = list(encode_chunks(chunks, encoder, AddedTokens([]), gathered_chars=1000))
    assert np.array_equal(np.concatenate(arrays), encoder.encode(b"a" * 1_000_000))
    assert time.process_time() - start_s < 10


def test_lone_surrogate_in_a_chunk():
    _, encoder = small()
    with pytest.raises(TokenizerError, match=r"U\+D83D"):
        list(encode_chunks(["fine ", "half \ud83d"], encoder, AddedTokens([])))
