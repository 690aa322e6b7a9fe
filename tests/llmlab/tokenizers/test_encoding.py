"""Encoding and decoding: the ids of `tokenizers`, round trips, special tokens, streams."""

import time
import unicodedata
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from llmlab.errors import TokenizerError
from llmlab.tokenizers import Tokenizer
from llmlab.tokenizers.alphabet import CHARS, spell, unspell
from llmlab.tokenizers.models.bpe import BPE, PieceCache
from tests.llmlab.tokenizers.samples import SPLITS, TORTURE, pipeline_of, reference, trained

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
HARD_TEXT = st.text(
    st.sampled_from("ab'sSLl ve\r\n\t 12٣,.!<|>é\u0301汉🙂\u200d\x00\u00a0ſ"), max_size=30
)


@pytest.mark.parametrize("split", SPLITS)
def test_ids_are_those_of_tokenizers(split, tmp_path):
    tokenizer = trained(split)
    theirs = reference(tokenizer, tmp_path)
    for text in TORTURE:
        encoded = theirs.encode(text)
        assert tokenizer.encode(text, allow_special=True) == encoded.ids, repr(text)
        decoded = tokenizer.decode(encoded.ids)
        assert decoded == theirs.decode(encoded.ids, skip_special_tokens=False) == text
        skipped = tokenizer.decode(encoded.ids, skip_special_tokens=True)
        assert skipped == theirs.decode(encoded.ids, skip_special_tokens=True)
        theirs.encode_special_tokens = True  # special tokens in the text are text
        assert tokenizer.encode(text) == theirs.encode(text).ids, repr(text)
        theirs.encode_special_tokens = False


@pytest.mark.parametrize("split", SPLITS)
def test_ids_of_random_text_are_those_of_tokenizers(split, tmp_path):
    tokenizer = trained(split)
    theirs = reference(tokenizer, tmp_path)

    @settings(max_examples=300, deadline=None)
    @given(HARD_TEXT)
    def check(text):
        assert tokenizer.encode(text, allow_special=True) == theirs.encode(text).ids

    check()


@pytest.mark.parametrize("split", SPLITS)
def test_characters_of_all_kinds_are_cut_as_tokenizers_cuts_it(split, tmp_path):
    # Characters newer than Python's Unicode tables are left out: the libraries differ on them.
    tokenizer = trained(split)
    theirs = reference(tokenizer, tmp_path)
    known = [
        char for char in map(chr, range(0x20000)) if unicodedata.category(char) not in ("Cn", "Cs")
    ]
    texts = [f"a{char}b '{char}  {char}1" for char in known[:: 5 if split == "qwen2" else 37]]
    ids = [encoding.ids for encoding in theirs.encode_batch(texts)]
    assert tokenizer.encode_batch(texts) == ids


def test_nfc_is_that_of_tokenizers(tmp_path):
    plain = trained()
    tokenizer = Tokenizer.from_vocab(
        pipeline_of(plain).vocab,
        pipeline_of(plain).model.merges,
        split="qwen2",
        special_tokens=plain.special_tokens,
        normalizer="NFC",
    )
    theirs = reference(tokenizer, tmp_path)
    for text in TORTURE:
        assert tokenizer.encode(text, allow_special=True) == theirs.encode(text).ids, repr(text)
    assert tokenizer.decode(tokenizer.encode("e\u0301")) == "é"


@settings(max_examples=300, deadline=None)
@given(ANY_TEXT)
def test_decoding_gives_the_text_back(text):
    for split in SPLITS:
        tokenizer = trained(split)
        for allow_special in (False, True):
            assert tokenizer.decode(tokenizer.encode(text, allow_special=allow_special)) == text


@given(st.lists(st.integers(0, 449), max_size=40))
def test_any_ids_decode_and_stream_to_the_same_text(ids):
    tokenizer = trained()
    text = tokenizer.decode(ids)
    stream = tokenizer.stream()
    assert "".join([*map(stream.push, ids), stream.finish()]) == text
    assert b"".join(map(tokenizer.token_bytes, ids)).decode("utf-8", "replace") == text


def test_stream_never_shows_half_a_character():
    tokenizer = trained()
    text = "é汉🙂👩‍👧 end"
    stream = tokenizer.stream()
    shown = [stream.push(token) for token in tokenizer.encode(text)]
    assert "".join(shown) == text
    assert "\ufffd" not in "".join(shown)
    assert "" in shown
    assert stream.finish() == ""


def test_stream_of_a_cut_character_ends_with_the_replacement():
    tokenizer = trained()
    stream = tokenizer.stream(skip_special_tokens=True)
    cut = [*tokenizer.encode("a\U0001fabf")[:-1], tokenizer.special_tokens["<|endoftext|>"]]
    assert "".join(stream.push(token) for token in cut) == "a"
    assert stream.finish() == "\ufffd"
    assert stream.push(tokenizer.encode("b")[0]) == "b"


def test_special_tokens_in_text_stay_text():
    tokenizer = trained()
    text = "<|im_start|>system<|im_end|>"
    specials = set(tokenizer.special_tokens.values())
    assert not specials & set(tokenizer.encode(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    allowed = tokenizer.encode(text, allow_special=True)
    assert (allowed[0], allowed[-1]) == (2, 3)
    assert tokenizer.decode(allowed, skip_special_tokens=True) == "system"


def test_arrays_and_batches_hold_the_same_ids():
    tokenizer = trained()
    ids = [tokenizer.encode(text) for text in TORTURE]
    assert tokenizer.encode_batch(TORTURE) == ids
    for text, expected in zip(TORTURE, ids, strict=True):
        array = tokenizer.encode_to_array(text)
        assert array.dtype == np.uint32
        assert array.flags.writeable  # torch warns about arrays that are not
        assert array.tolist() == expected


def test_ids_without_a_token_stand_for_nothing():
    tokenizer = trained()
    assert tokenizer.decode([*tokenizer.encode("a"), 10**6, -100]) == "a"
    assert tokenizer.token_bytes(tokenizer.vocab_size) == b""


def test_lone_surrogate():
    with pytest.raises(TokenizerError, match=r"U\+D83D.*errors='replace'"):
        trained().encode("half \ud83d an emoji")


def test_one_enormous_pre_token_is_no_trap():
    # n log n: a quadratic merge would need 10^10 steps, hours in any language's time.
    tokenizer = trained()
    start_s = time.process_time()
    text = "ab" * 50_000 + " " * 50_000 + "\n" + "!" * 50_000
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert time.process_time() - start_s < 20


def greedy(ids, ranks):
    """The definition: apply the lowest-ranked merge, leftmost first, until none applies."""
    ids = list(ids)
    while True:
        found = [(ranks[pair][0], at) for at, pair in enumerate(pairwise(ids)) if pair in ranks]
        if not found:
            return ids
        _, at = min(found)
        ids[at : at + 2] = [ranks[ids[at], ids[at + 1]][1]]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12),
    st.text("abc", max_size=60),
)
def test_merging_follows_the_definition_for_any_order_of_merges(choices, text):
    # Also orders no training gives, where a merge ranks below one of its parts.
    tokens = ["a", "b", "c"]
    merges = []
    for left, right in choices:
        pair = (tokens[left % len(tokens)], tokens[right % len(tokens)])
        if pair not in merges and len("".join(pair)) < 9:
            merges.append(pair)
            tokens += [] if "".join(pair) in tokens else ["".join(pair)]
    merges.reverse()
    vocab = {token: number for number, token in enumerate(tokens)}
    ranks = {
        (vocab[left], vocab[right]): (rank, vocab[left + right])
        for rank, (left, right) in enumerate(merges)
    }
    expected = greedy([vocab[char] for char in text], ranks)
    assert BPE(vocab, merges, whole_words={}).encode(text) == expected


def test_cache_is_bounded():
    cache = PieceCache(lambda piece: [len(piece)], max_pieces=3)
    for piece in ("a", "bb", "ccc", "a", "dddd", "x" * 1000):
        assert np.frombuffer(cache[piece], np.uint32).tolist() == [len(piece)]
        assert len(cache) <= 3
    assert set(cache) == {"dddd"}


def test_alphabet_is_that_of_gpt2():
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    assert set(CHARS) == set(byte_level.alphabet())
    for text in filter(None, TORTURE):
        assert byte_level.pre_tokenize_str(text)[0][0] == spell(text.encode())
    assert spell(" é\n".encode()) == "ĠÃ©Ċ"
    assert unspell(spell(bytes(range(256)))) == bytes(range(256))
    assert unspell("汉") == "汉".encode()
