"""Every algorithm from training to files, `AutoTokenizer`, offsets and streams."""

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from llmlab.data import stdlib_docstrings
from llmlab.errors import ConfigError
from llmlab.tokenizers import Tokenizer
from tests.llmlab.tokenizers.samples import TORTURE

ALGORITHMS = ("bpe", "unigram", "wordpiece", "char", "word")
EXACT = ("bpe", "unigram")
"""Those whose ids spell the text again."""


@cache
def corpus():
    texts = (docstring.text for docstring in stdlib_docstrings())
    return [*TORTURE, *(text for text, _ in zip(texts, range(1500), strict=False))]


@cache
def trained(algorithm):
    return Tokenizer.train(corpus(), vocab_size=1000, algorithm=algorithm)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_ids_are_those_of_auto_tokenizer(algorithm, tmp_path):
    tokenizer = trained(algorithm)
    tokenizer.save(tmp_path)
    theirs: Any = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TORTURE, *corpus()[-200:]]:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.encode(text, allow_special=True) == ids
        assert tokenizer.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_saved_tokenizer_is_the_same(algorithm, tmp_path):
    tokenizer = trained(algorithm)
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.pipeline == tokenizer.pipeline
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode_batch(TORTURE) == tokenizer.encode_batch(TORTURE)


@pytest.mark.parametrize("algorithm", EXACT)
@settings(deadline=None)
@given(st.text().filter(lambda text: "\u2581" not in text))
def test_exact_ones_give_the_text_back(algorithm, text):
    tokenizer = trained(algorithm)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@settings(deadline=None)
@given(st.text())
def test_a_stream_joined_is_what_decode_gives(algorithm, text):
    tokenizer = trained(algorithm)
    ids = tokenizer.encode(text)
    stream = tokenizer.stream()
    assert "".join([*map(stream.push, ids), stream.finish()]) == tokenizer.decode(ids)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@settings(deadline=None)
@given(st.text())
def test_offsets_cover_what_the_token_spells(algorithm, text):
    tokenizer = trained(algorithm)
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert ids.tolist() == tokenizer.encode(text)
    assert (offsets[:, 0] <= offsets[:, 1]).all()
    assert (offsets[1:] >= offsets[:-1]).all()
    if algorithm in EXACT and "\u2581" not in text:
        for token, (start, end) in zip(ids.tolist(), offsets.tolist(), strict=True):
            assert tokenizer.token_bytes(token) in text[start:end].encode()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_text_never_becomes_a_special_token(algorithm):
    tokenizer = trained(algorithm)
    text = "".join(tokenizer.special_tokens)
    special = set(tokenizer.special_tokens.values()) - {tokenizer.unk_token_id}
    assert not special & set(tokenizer.encode(text))
    assert tokenizer.encode(text, allow_special=True) == list(tokenizer.special_tokens.values())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_chunks_are_encoded_as_the_whole(algorithm):
    tokenizer = trained(algorithm)
    text = "\n".join(TORTURE)
    chunks = [text[at : at + 7] for at in range(0, len(text), 7)]
    ids = [token for array in tokenizer.encode_iter(chunks) for token in array.tolist()]
    assert ids == tokenizer.encode(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": "word", "digits": 2}, r"digits=2 is only for algorithm='bpe'"),
        ({"algorithm": "bpe", "lowercase": True}, r"lowercase=True is only for .*'wordpiece'"),
        ({"algorithm": "bpe", "limit_alphabet": 9}, r"limit_alphabet=9 .*256 bytes"),
        ({"min_frequency": 0}, r"min_frequency=0 is below 1"),
        ({"special_tokens": ["<e>", "<e>"]}, r"one twice"),
    ],
)
def test_settings_that_do_not_fit(options, message):
    with pytest.raises(ConfigError, match=message):
        Tokenizer.train(["a b"], vocab_size=400, **options)


def test_lowercase_is_for_wordpiece_only_when_asked():
    cased = trained("wordpiece")
    folded = Tokenizer.train(corpus(), vocab_size=1000, algorithm="wordpiece", lowercase=True)
    assert folded.encode("Été") == folded.encode("ete")
    assert cased.encode("The") != cased.encode("the")


def test_dropout_cuts_one_text_in_several_ways():
    tokenizer = trained("bpe")
    text = "the returned value of the function " * 20
    cuts = {tuple(tokenizer.encode(text, dropout=0.2)) for _ in range(20)}
    assert len(cuts) > 1
    assert {tokenizer.decode(ids) for ids in cuts} == {text}
