"""Splits: whole texts, names, and what GGUF and tokenizer.json call them."""

from typing import get_args

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from llmlab.errors import ConfigError, TokenizerError
from llmlab.tokenizers.config import SplitName
from llmlab.tokenizers.splits import SPLITS, find_split, split_of_component, split_of_gguf


@pytest.mark.parametrize("name", SPLITS)
@given(text=st.text())
def test_pieces_cover_any_text(name, text):
    pieces = find_split(name).pattern.findall(text)
    assert "".join(pieces) == text
    assert all(pieces)


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("gpt2", ["I", "'ll", " pay", "  ", " 1234", " €", "\n\n", " x"]),
        ("llama3", ["I", "'ll", " pay", "  ", " ", "123", "4", " €\n\n", " x"]),
        ("qwen2", ["I", "'ll", " pay", "  ", " ", "1", "2", "3", "4", " €\n\n", " x"]),
        ("smollm", ["I", "'ll", " pay", "   ", "1", "2", "3", "4", " €", "\n\n", " x"]),
    ],
)
def test_how_each_cuts(name, pieces):
    assert find_split(name).pattern.findall("I'll pay   1234 €\n\n x") == pieces


def test_every_name_is_a_choice_of_the_config():
    assert set(get_args(SplitName)) == set(SPLITS)


@pytest.mark.parametrize("name", SPLITS)
def test_components_and_gguf_names_lead_back(name):
    split = find_split(name)
    assert split_of_component(split.component) == split
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
    with pytest.raises(TokenizerError, match=r"pre='deepseek-llm'.*known: gpt-2"):
        split_of_gguf("deepseek-llm")


def test_white_space_class_is_the_unicode_property():
    # `str.isspace` also counts U+001C to U+001F, which are not white space here.
    assert not regex.search(r"\s", "\x1c\x1d\x1e\x1f")
