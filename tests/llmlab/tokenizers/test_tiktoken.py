"""Rank files: ids identical to tiktoken's, and the errors of damaged files."""

import argparse
import base64
import random
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import regex
import tiktoken
import tiktoken_ext.openai_public

from llmlab.errors import ConfigError, TokenizerError
from llmlab.tokenizers.alphabet import CHARS, spell
from llmlab.tokenizers.files.tiktoken_ranks import (
    merges_of_ranks,
    read_rank_file,
)
from llmlab.tokenizers.splits import find_split
from llmlab.tokenizers.tokenizer import Tokenizer
from tests.llmlab.tokenizers.rank_files import rank_file
from tests.llmlab.tokenizers.samples import CORPUS, pipeline_of

PUBLISHED = ("r50k_base", "p50k_base", "cl100k_base", "o200k_base")
LAST_BY_DEFAULT = (*(pytest.param(n, marks=pytest.mark.slow) for n in PUBLISHED[:3]), PUBLISHED[3])
STDLIB = Path(argparse.__file__).parent


@cache
def ours(name: str) -> Tokenizer:
    return Tokenizer.from_vocab(**read_rank_file(rank_file(f"{name}.tiktoken")))


@cache
def theirs(name: str) -> tiktoken.Encoding:
    """tiktoken's own encoding, with the ranks read from the same file by tiktoken's reader."""
    content = rank_file(f"{name}.tiktoken").read_bytes()
    lines = (line.split() for line in content.splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiktoken_ext.openai_public, "load_tiktoken_bpe", lambda *_, **__: ranks)
        arguments: Any = tiktoken_ext.openai_public.ENCODING_CONSTRUCTORS[name]()
        return tiktoken.Encoding(**arguments)


@pytest.mark.parametrize("name", LAST_BY_DEFAULT)
def test_ids_of_random_text(name):
    _compare(name, _random_texts(500, seed=1))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", PUBLISHED)
def test_ids_of_much_random_text(name):
    _compare(name, _random_texts(120_000, seed=2))


@pytest.mark.parametrize("name", LAST_BY_DEFAULT)
def test_ids_of_torture_and_stdlib(name):
    files = sorted(STDLIB.glob("*.py"))[:20]
    _compare(name, [*CORPUS, *(path.read_text(encoding="utf-8") for path in files)])


@pytest.mark.parametrize("name", PUBLISHED)
def test_special_tokens(name):
    assert ours(name).special_tokens == theirs(name)._special_tokens
    assert ours(name).vocab_size == theirs(name).n_vocab
    assert ours(name).eos_token_id == theirs(name).eot_token
    text = "a<|endoftext|> b<|fim_prefix|><|endofprompt|>"
    allowed = theirs(name).encode(text, allowed_special="all")
    assert ours(name).encode(text, allow_special=True) == allowed
    assert ours(name).encode(text) == theirs(name).encode_ordinary(text)
    assert ours(name).decode(allowed) == text


@pytest.mark.parametrize("name", PUBLISHED)
def test_bytes_of_tokens(name):
    tokenizer, encoding = ours(name), theirs(name)
    for token_id in encoding._mergeable_ranks.values():
        assert tokenizer.token_bytes(token_id) == encoding.decode_single_token_bytes(token_id)


def _compare(name: str, texts: list[str]) -> None:
    encode, wanted = ours(name).encode, theirs(name).encode_ordinary
    for text in texts:
        assert encode(text) == wanted(text), ascii(text)


def _random_texts(count: int, *, seed: int) -> list[str]:
    """Texts that mix a few characters of any kind with those that expressions name.

    Characters newer than Python's tables are left out: whether such a one is a letter depends on
    the Unicode version of each library.
    """
    rng = random.Random(seed)
    by_kind: dict[str, list[str]] = {}
    for char in map(chr, range(0x110000)):
        by_kind.setdefault(unicodedata.category(char), []).append(char)
    kinds = sorted(by_kind.keys() - {"Cn", "Cs"})
    named = (
        "  \n\t\r\x0b\x0c\x1c\x85\u00a0\u2028\u3000\u0301\u200d"
        "abzABZ019'''sSdDmMtTlLvVeErR/!?.,_ſKİ"
    )
    pool = ["a"] * 6
    texts = []
    for number in range(count):
        if number % 4 == 0:
            pool = [rng.choice(by_kind[rng.choice(kinds)]) for _ in range(6)]
        share = rng.random()
        texts.append(
            "".join(
                rng.choice(named if rng.random() < share else pool)
                for _ in range(rng.randrange(1, 40))
            )
        )
    return texts


# -- the merges of ranks ---------------------------------------------------------------------------


def test_merges_of_gpt2_are_those_it_was_published_with():
    pair = read_rank_file(rank_file("vocab.bpe"))
    ranks = read_rank_file(rank_file("r50k_base.tiktoken"))
    assert pair == ranks
    assert len(pair["merges"]) == 50_000
    assert read_rank_file(rank_file("encoder.json")) == pair


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_token_of_the_published_files_has_its_merge(name):
    pipeline, ranks = pipeline_of(ours(name)), theirs(name)._mergeable_ranks
    assert not pipeline.model.ignore_merges
    assert [left + right for left, right in pipeline.model.merges] == [
        spell(token) for token in sorted(ranks, key=ranks.__getitem__) if len(token) > 1
    ]


def test_ranks_in_any_order_of_length_merge_as_tiktoken_merges():
    rng = random.Random(3)
    for _ in range(60):
        ranks = _random_ranks(rng)
        merges, unreached = merges_of_ranks(ranks)
        tokenizer = Tokenizer.from_vocab(
            {spell(token): rank for token, rank in ranks.items()},
            [(spell(left), spell(right)) for left, right in merges],
            split="gpt2",
            ignore_merges=bool(unreached),
        )
        encoding = tiktoken.Encoding(
            "random",
            pat_str=find_split("gpt2").expression,
            mergeable_ranks=ranks,
            special_tokens={},
        )
        for _ in range(100):
            text = "".join(rng.choice("abc ") for _ in range(rng.randrange(1, 14)))
            assert tokenizer.encode(text) == encoding.encode_ordinary(text), (text, ranks)


def _random_ranks(rng: random.Random) -> dict[bytes, int]:
    """All bytes and random tokens over three letters, reachable by merges or not."""
    single = [bytes([byte]) for byte in range(256)]
    tokens = {
        "".join(rng.choice("abc") for _ in range(rng.randrange(2, 6))).encode() for _ in range(40)
    }
    many = sorted(tokens)
    rng.shuffle(many)
    return {token: rank for rank, token in enumerate([*single, *many])}


# -- files that are not published, and damaged ones ------------------------------------------------


def _write(folder: Path, *more: str, name: str = "mine.tiktoken", num_bytes: int = 256) -> Path:
    lines = [f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(num_bytes)]
    path = folder / name
    path.write_text("\n".join([*lines, *more]) + "\n")
    return path


def test_a_file_of_ones_own(tmp_path):
    path = _write(tmp_path, "YWI= 256", "", "YWJj 300")  # ab, abc
    arguments = read_rank_file(path, split="qwen2", special_tokens={"<|x|>": 400})
    tokenizer = Tokenizer.from_vocab(**arguments)
    assert tokenizer.encode("abc ab<|x|>", allow_special=True) == [300, 32, 256, 400]
    assert tokenizer.vocab_size == 401
    assert tokenizer.eos_token_id is None
    assert arguments["merges"] == [("a", "b"), ("ab", "c")]


def test_a_token_that_merges_do_not_reach_is_taken_whole(tmp_path):
    arguments = read_rank_file(_write(tmp_path, "YWJj 256"), split="gpt2")  # abc, but not ab
    assert arguments["ignore_merges"]
    tokenizer = Tokenizer.from_vocab(**arguments)
    assert tokenizer.encode("abc") == [256]
    assert tokenizer.encode("abca") == [*b"abca"]


def test_a_known_name_can_be_overruled(tmp_path):
    path = _write(tmp_path, name="cl100k_base.tiktoken")
    assert read_rank_file(path)["split"] == "cl100k"
    arguments = read_rank_file(path, split="gpt2", special_tokens={})
    assert arguments["split"] == "gpt2"
    assert arguments["special_tokens"] == []


def test_an_unknown_file_needs_its_split(tmp_path):
    with pytest.raises(ConfigError, match=r"split is not given, and mine.tiktoken is none of"):
        read_rank_file(_write(tmp_path))


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("YWI=", "line 257: 1 fields, not a token and its rank"),
        ("Y*I= 256", "line 257: .*base64"),
        ("YWI= many", "line 257: .*many"),
        ("YWI= -3", "line 257: token b'ab' with rank -3"),
        ("YQ== 256", "line 257: token b'a' is there for the second time"),
        ("YWI= 7", "two tokens have the same rank"),
    ],
)
def test_damaged_lines_are_named(tmp_path, line, named):
    path = _write(tmp_path, line)
    with pytest.raises(TokenizerError, match=f"{regex.escape(str(path))}.*{named}.*etch the file"):
        read_rank_file(path, split="gpt2")


def test_a_file_cut_short_is_named(tmp_path):
    with pytest.raises(TokenizerError, match=r"no token for 6 of the 256 bytes.*0xFA"):
        read_rank_file(_write(tmp_path, num_bytes=250), split="gpt2")
    with pytest.raises(TokenizerError, match="is not a file; give the path"):
        read_rank_file(tmp_path / "none.tiktoken", split="gpt2")


@pytest.mark.parametrize("special", [{"a": 300}, {"<|x|>": 7}, {"<|x|>": -1}])
def test_special_tokens_that_are_taken(tmp_path, special):
    with pytest.raises(TokenizerError, match=r"special token .* cannot be added"):
        read_rank_file(_write(tmp_path), split="gpt2", special_tokens=special)


def _write_pair(folder: Path, merges: str, *more: str) -> Path:
    tokens = [*CHARS, *more]
    ids = ", ".join(f'"{_escaped(token)}": {at}' for at, token in enumerate(tokens))
    (folder / "vocab.json").write_text("{" + ids + "}")
    (folder / "merges.txt").write_text(merges)
    return folder


def _escaped(token: str) -> str:
    return "".join(f"\\u{ord(char):04x}" for char in token)


def test_a_pair_under_its_later_names(tmp_path):
    folder = _write_pair(tmp_path, "#version: 0.2\na b\nab c\n", "ab", "abc", "<s>")
    arguments = read_rank_file(folder)
    assert arguments["special_tokens"] == ["<s>"]
    assert arguments["merges"] == [("a", "b"), ("ab", "c")]
    assert Tokenizer.from_vocab(**arguments).encode("abcab") == [257, 256]


def test_damaged_pairs_are_named(tmp_path):
    with pytest.raises(TokenizerError, match=r"neither vocab.bpe nor merges.txt"):
        read_rank_file(tmp_path)
    with pytest.raises(TokenizerError, match=r"merges.txt, line 2: 'a b c' is not two tokens"):
        read_rank_file(_write_pair(tmp_path, "a b\na b c\n", "ab"))
    with pytest.raises(TokenizerError, match=r"no id for 'ab'.*do not belong together"):
        read_rank_file(_write_pair(tmp_path, "a b\n"))
    with pytest.raises(ConfigError, match="special_tokens is given"):
        read_rank_file(tmp_path / "merges.txt", special_tokens={})
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"vocab.json is not JSON"):
        read_rank_file(tmp_path)
    (tmp_path / "vocab.json").unlink()
    with pytest.raises(TokenizerError, match=r"vocab.json is missing"):
        read_rank_file(tmp_path)
