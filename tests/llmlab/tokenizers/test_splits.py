"""Splits: whole texts, names, digits, what others cut, and what GGUF and tokenizer.json say."""

import json
import unicodedata
from itertools import pairwise
from typing import get_args

import pytest
import regex
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.errors import ConfigError, TokenizerError
from llmlab.tokenizers.config import SplitName
from llmlab.tokenizers.splits import (
    SPLITS,
    all_splits,
    find_split,
    split_of_component,
    split_of_gguf,
)
from tests.llmlab.tokenizers.samples import CORPUS, TORTURE, TRICKY

ALL = {split.name: split for split in all_splits()}

texts = st.text(max_size=40) | st.lists(st.sampled_from(TRICKY), max_size=16).map("".join)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=50)
@given(text=texts)
def test_pieces_cover_any_text(name, text):
    pieces = ALL[name].pattern.findall(text)
    assert "".join(pieces) == text
    assert all(pieces)


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("gpt2", ["I", "'ll", " pay", "  ", " 1234", " €", "\n\n", " x"]),
        ("llama3", ["I", "'ll", " pay", "  ", " ", "123", "4", " €\n\n", " x"]),
        ("qwen2", ["I", "'ll", " pay", "  ", " ", "1", "2", "3", "4", " €\n\n", " x"]),
        ("cl100k", ["I", "'ll", " pay", "  ", " ", "123", "4", " €\n\n", " x"]),
        ("o200k", ["I'll", " pay", "  ", " ", "123", "4", " €\n\n", " x"]),
        ("smollm", ["I", "'ll", " pay", "   ", "1", "2", "3", "4", " €", "\n\n", " x"]),
    ],
)
def test_how_each_cuts(name, pieces):
    assert find_split(name).pattern.findall("I'll pay   1234 €\n\n x") == pieces


@pytest.mark.parametrize(
    ("name", "digits", "pieces"),
    [
        ("gpt2", 1, ["a", " 1", "2", "3", "4", "  ", " 5", " ", "\n", "6"]),
        ("gpt2", 2, ["a", " 12", "34", "  ", " 5", " ", "\n", "6"]),
        ("gpt2", 3, ["a", " 123", "4", "  ", " 5", " ", "\n", "6"]),
        ("qwen2", 2, ["a", " ", "12", "34", "  ", " ", "5", " \n", "6"]),
        ("cl100k", 1, ["a", " ", "1", "2", "3", "4", "  ", " ", "5", " \n", "6"]),
        ("o200k", 2, ["a", " ", "12", "34", "  ", " ", "5", " \n", "6"]),
        ("smollm", 3, ["a", " ", "123", "4", "   ", "5", " \n", "6"]),
    ],
)
def test_digits_by_groups(name, digits, pieces):
    assert find_split(name, digits=digits).pattern.findall("a 1234   5 \n6") == pieces


def test_a_published_expression_keeps_its_name():
    assert find_split("qwen2", digits=3) is SPLITS["llama3"]
    assert find_split("llama3", digits=1) is SPLITS["qwen2"]
    for name, digits in [("qwen2", 1), ("llama3", 3), ("cl100k", 3), ("o200k", 3), ("smollm", 1)]:
        assert find_split(name, digits=digits) is SPLITS[name]
        assert find_split(name, digits=None) is SPLITS[name]
    assert find_split("llama3", digits=2) == find_split("qwen2", digits=2)


def test_other_groups_have_a_name_here_and_none_in_llama_cpp():
    split = find_split("qwen2", digits=2)
    assert split.name == "qwen2-digits2"
    assert find_split("qwen2-digits2") == split
    assert {split.name for split in ALL.values() if not split.gguf_pre} == {
        *("cl100k", "cl100k-digits1", "cl100k-digits2", "qwen2-digits2"),
        *("gpt2-digits1", "gpt2-digits2", "gpt2-digits3"),
        *("o200k-digits1", "o200k-digits2", "smollm-digits2", "smollm-digits3"),
    }


def test_cl100k_is_llama3_but_for_white_space_at_the_end():
    assert find_split("cl100k").pattern.findall("a\n b\n  ") == ["a", "\n", " b", "\n  "]
    assert find_split("llama3").pattern.findall("a\n b\n  ") == ["a", "\n", " b", "\n", "  "]


@settings(max_examples=300)
@given(text=texts)
def test_cl100k_is_llama3_on_text_that_ends_with_a_word(text):
    text += "x"
    cl100k, llama3 = (find_split(name).pattern.findall(text) for name in ("cl100k", "llama3"))
    assert cl100k == llama3


# The expressions that tiktoken gives its encodings (tiktoken 0.14, openai_public).
_TIKTOKEN = {
    "gpt2": (r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"),
    "cl100k": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    ),
    "o200k": SPLITS["o200k"].expression,
}


@pytest.mark.parametrize("name", _TIKTOKEN)
@settings(max_examples=300)
@given(text=texts)
def test_tiktokens_expressions_cut_alike(name, text):
    assert regex.findall(_TIKTOKEN[name], text) == find_split(name).pattern.findall(text)


def _tiktoken_pieces(name, text, ours):
    """Cut by tiktoken: every piece of ours, and up to four in a row, is a token of its own."""
    tiktoken = pytest.importorskip("tiktoken")
    whole = [piece.encode() for piece in ours]
    rows = {b"".join(whole[at : at + length]) for at in range(len(ours)) for length in range(1, 5)}
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += sorted(rows - set(tokens))
    encoding = tiktoken.Encoding(
        name,
        pat_str=_TIKTOKEN[name],
        mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
        special_tokens={},
    )
    return encoding.decode_tokens_bytes(encoding.encode_ordinary(text))


@pytest.mark.parametrize("name", _TIKTOKEN)
@settings(max_examples=40, deadline=None)
@given(text=st.lists(st.sampled_from(TRICKY), max_size=16).map("".join))
def test_tiktoken_cuts_alike(name, text):
    ours = find_split(name).pattern.findall(text)
    assert _tiktoken_pieces(name, text, ours) == [piece.encode() for piece in ours]


@pytest.mark.parametrize("name", _TIKTOKEN)
def test_tiktoken_cuts_samples_alike(name):
    for text in (*TORTURE, *CORPUS):
        ours = find_split(name).pattern.findall(text)
        assert _tiktoken_pieces(name, text, ours) == [piece.encode() for piece in ours]


def _reference(split):
    """The component, run by Hugging Face `tokenizers`."""
    model = {"type": "BPE", "vocab": {}, "merges": []}
    content = {"version": "1.0", "pre_tokenizer": split.component, "model": model}
    return tokenizers.Tokenizer.from_str(json.dumps(content)).pre_tokenizer


def _reference_pieces(pre_tokenizer, text):
    # With ByteLevel a piece begins where the one before it ended; trimmed offsets leave gaps.
    starts = [start for _, (start, _) in pre_tokenizer.pre_tokenize_str(text)]
    return [text[start:end] for start, end in pairwise([*starts, len(text)])]


def _assigned(text):
    """Whether all Unicode versions in play know the characters."""
    return all(unicodedata.category(char) != "Cn" for char in text)


@pytest.mark.parametrize("name", ALL)
def test_tokenizers_cuts_alike(name):
    pre_tokenizer = _reference(ALL[name])

    @settings(max_examples=50)
    @given(text=texts.filter(_assigned))
    def check(text):
        assert _reference_pieces(pre_tokenizer, text) == ALL[name].pattern.findall(text)

    check()
    for text in (*TORTURE, *CORPUS):
        if _assigned(text):
            assert _reference_pieces(pre_tokenizer, text) == ALL[name].pattern.findall(text)


def test_every_name_is_a_choice_of_the_config():
    assert set(get_args(SplitName)) == set(SPLITS)


@pytest.mark.parametrize("name", ALL)
def test_components_and_gguf_names_lead_back(name):
    split = find_split(name)
    assert split is ALL[name]
    assert split_of_component(split.component) is split
    if split.gguf_pre is not None:
        assert split_of_gguf(split.gguf_pre) == split


def test_older_spellings_of_components():
    expression = find_split("llama3").expression
    removed = {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": expression},
                "behavior": "Removed",
                "invert": True,
            },
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ],
    }
    assert split_of_component(removed).name == "llama3"
    assert split_of_component({"type": "ByteLevel", "add_prefix_space": False}).name == "gpt2"


@pytest.mark.parametrize(
    ("component", "named"),
    [
        (None, "pre_tokenizer none"),
        ({"type": "Metaspace"}, "Metaspace"),
        ({"type": "ByteLevel", "add_prefix_space": True}, "add_prefix_space"),
        (
            {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Punctuation"},
                    {"type": "ByteLevel", "add_prefix_space": False},
                ],
            },
            "Punctuation",
        ),
        (
            {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated"},
                    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
                ],
            },
            r"x\+",
        ),
        (
            {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed"},
                    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
                ],
            },
            "Removed",
        ),
    ],
)
def test_other_components_are_named(component, named):
    with pytest.raises(TokenizerError, match=rf"{named}.*not supported yet"):
        split_of_component(component)


def test_unknown_names():
    with pytest.raises(ConfigError, match=r"split='gpt-2'.*did you mean 'gpt2'"):
        find_split("gpt-2")
    with pytest.raises(ConfigError, match=r"digits=4 is out of range; take 1 to 3"):
        find_split("qwen2", digits=4)
    with pytest.raises(ConfigError, match="digits=0 is out of range"):
        find_split("qwen2", digits=0)
    with pytest.raises(TokenizerError, match=r"pre='deepseek-llm'.*known: gpt-2, gpt-4o"):
        split_of_gguf("deepseek-llm")


def test_white_space_class_is_the_unicode_property():
    # `str.isspace` also counts U+001C to U+001F, which are not white space here.
    assert not regex.search(r"\s", "\x1c\x1d\x1e\x1f")
