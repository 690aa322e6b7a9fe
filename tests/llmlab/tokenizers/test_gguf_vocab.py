"""GGUF files with a vocabulary: llama.cpp, the `gguf` package and our own reader agree on them."""

import argparse
import dataclasses
import random
import unicodedata
from pathlib import Path

import gguf
import numpy as np
import pytest
import regex

from llmlab.errors import OutputError, TokenizerError
from llmlab.model.gguf import GgufFile
from llmlab.model.gguf_tokenizer import gguf_tokenizer
from llmlab.tokenizers.files.gguf_vocab import gguf_metadata, write_vocab_gguf
from llmlab.tokenizers.files.gguf_writer import write_gguf
from llmlab.tokenizers.files.tiktoken_ranks import read_rank_file
from llmlab.tokenizers.splits import SPLITS
from llmlab.tokenizers.tokenizer import Tokenizer
from llmlab.tokenizers.unicode_forms import Lowercase
from tests.llmlab.tokenizers.llama_cpp import llama_cpp_ids
from tests.llmlab.tokenizers.rank_files import rank_file
from tests.llmlab.tokenizers.samples import CORPUS, TORTURE, pipeline_of, trained

NAMED = tuple(name for name, split in SPLITS.items() if split.gguf_pre)
STDLIB = tuple(
    (Path(argparse.__file__).parent / name).read_text(encoding="utf-8")
    for name in ("argparse.py", "difflib.py", "html/entities.py", "stringprep.py")
)
CHAT = ({"role": "user", "content": "hi <|im_end|>"}, {"role": "assistant", "content": "yes"})


@pytest.fixture(scope="module", params=NAMED)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return trained(request.param, 1000)


@pytest.fixture
def file(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    write_vocab_gguf(tokenizer, tmp_path / "vocab.gguf")
    return tmp_path / "vocab.gguf"


def test_llama_cpp_makes_the_same_ids(tokenizer, file):
    texts = [*CORPUS, *STDLIB]
    ids, facts = llama_cpp_ids(file, texts)
    for text, theirs in zip(texts, ids, strict=True):
        assert theirs == tokenizer.encode(text)
    assert facts["num_tokens"] == tokenizer.vocab_size
    assert facts["eos"] == tokenizer.eos_token_id
    assert facts["eot"] == tokenizer.special_tokens["<|im_end|>"]
    assert facts["pad"] == tokenizer.pad_token_id
    assert not facts["adds_bos"]


def test_llama_cpp_reads_special_tokens_where_allowed(tokenizer, file):
    texts = [tokenizer.render_chat(CHAT), *TORTURE]
    ids, _ = llama_cpp_ids(file, texts, parse_special=True)
    assert ids == [tokenizer.encode(text, allow_special=True) for text in texts]


def test_our_reader_gives_the_same_tokenizer_back(tokenizer, file):
    again = gguf_tokenizer(GgufFile(file))
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode_chat(CHAT) == tokenizer.encode_chat(CHAT)
    assert (again.eos_token_id, again.pad_token_id) == (
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )


def test_the_gguf_package_reads_the_file(tokenizer, file):
    fields = gguf.GGUFReader(file).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert [tokens[token_id] for token_id in tokenizer.special_tokens.values()] == list(
        tokenizer.special_tokens
    )
    assert len(tokens) == tokenizer.vocab_size
    assert fields["tokenizer.ggml.pre"].contents() == SPLITS[tokenizer.split].gguf_pre
    assert fields["tokenizer.chat_template"].contents() == tokenizer.chat_template
    types = fields["tokenizer.ggml.token_type"].contents()
    assert {types[token_id] for token_id in tokenizer.special_tokens.values()} == {3}
    merges = fields["tokenizer.ggml.merges"].contents()
    assert len(merges) == len(pipeline_of(tokenizer).model.merges)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_llama_cpp_cuts_random_text_the_same_way(name, tmp_path):
    published = {"gpt2": "r50k_base", "o200k": "o200k_base"}.get(name, "cl100k_base")
    arguments = read_rank_file(rank_file(f"{published}.tiktoken"), split=name)
    tokenizer = Tokenizer.from_vocab(**arguments)
    write_vocab_gguf(tokenizer, tmp_path / "vocab.gguf")
    texts = [text for text in random_texts(40_000) if name != "o200k" or _is_plain(text)]
    assert len(texts) > 5_000
    ids, _ = llama_cpp_ids(tmp_path / "vocab.gguf", texts)
    for text, theirs in zip(texts, ids, strict=True):
        assert theirs == tokenizer.encode(text), ascii(text)


def test_o200k_of_llama_cpp_leaves_marks_and_foreign_case_apart(tmp_path):
    tokenizer = Tokenizer.train(["a\u0301'S ñÑ " * 9], vocab_size=300, split="o200k")
    write_vocab_gguf(tokenizer, tmp_path / "vocab.gguf")
    plain, marked, cased = "aS aS", "a\u0301'S", "ñÑ"
    ids, _ = llama_cpp_ids(tmp_path / "vocab.gguf", [plain, marked, cased])
    assert ids[0] == tokenizer.encode(plain)
    assert ids[1] != tokenizer.encode(marked)


def random_texts(count: int) -> list[str]:
    """Texts of a few characters of few kinds, so that every pair of kinds meets."""
    rng = random.Random(7)
    by_kind: dict[str, list[str]] = {}
    for char in map(chr, range(0x80, 0x20000)):
        by_kind.setdefault(unicodedata.category(char), []).append(char)
    kinds = sorted(by_kind.keys() - {"Cn", "Cs"})
    ascii_chars = " \n\t\r a1's'SABb7!/\x85\u00a0\u2028\u3000\x1c"
    texts = []
    for _ in range(count):
        pool = [rng.choice(by_kind[rng.choice(kinds)]) for _ in range(6)]
        length = rng.randrange(1, 16)
        texts.append(
            "".join(rng.choice(ascii_chars if rng.random() < 0.4 else pool) for _ in range(length))
        )
    return texts


def _is_plain(text: str) -> bool:
    """Whether llama.cpp's expression for o200k cuts the text as the published one does."""
    return regex.search(r"[\p{M}--[a-z]]|[\p{Lu}\p{Lt}\p{Ll}--[a-zA-Z]]", text, regex.V1) is None


# -- gaps, roles, refusals -------------------------------------------------------------------------


def test_ids_without_a_token_are_unused(tmp_path):
    vocab = {token: at + 3 for token, at in pipeline_of(trained()).vocab.items()}
    tokenizer = Tokenizer.from_vocab(
        vocab,
        pipeline_of(trained()).model.merges,
        split="qwen2",
        special_tokens=["<|endoftext|>", "<|im_end|>"],
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        add_bos=True,
    )
    write_vocab_gguf(tokenizer, tmp_path / "vocab.gguf")
    ids, facts = llama_cpp_ids(tmp_path / "vocab.gguf", CORPUS)
    assert ids == [tokenizer.encode(text) for text in CORPUS]
    assert facts["adds_bos"]
    assert facts["bos"] == tokenizer.bos_token_id
    again = gguf_tokenizer(GgufFile(tmp_path / "vocab.gguf"))
    assert again.fingerprint == tokenizer.fingerprint
    assert again.bos_ids == tokenizer.bos_ids


def test_added_tokens_beside_the_vocabulary_come_back(tmp_path):
    pipeline = pipeline_of(trained())
    special = set(trained().special_tokens)
    vocab = {token: at for token, at in pipeline.vocab.items() if token not in special}
    first, *others = pipeline.added_tokens
    changed = dataclasses.replace(
        pipeline,
        model=dataclasses.replace(pipeline.model, vocab=vocab),
        added_tokens=(first, *(dataclasses.replace(each, normalized=True) for each in others)),
        eos_tokens=("<|endoftext|>",),
    )
    tokenizer = Tokenizer(changed, names={"eos_token": "<|endoftext|>"})
    write_vocab_gguf(tokenizer, tmp_path / "vocab.gguf")
    again = gguf_tokenizer(GgufFile(tmp_path / "vocab.gguf"))
    assert again.fingerprint == tokenizer.fingerprint != trained().fingerprint
    assert pipeline_of(again).eos_tokens == ("<|endoftext|>",)
    ids, _ = llama_cpp_ids(tmp_path / "vocab.gguf", ["a b"], add_special=True)
    assert ids == [[*tokenizer.encode("a b"), tokenizer.eos_token_id]]


def test_normalizers_are_refused():
    pipeline = dataclasses.replace(pipeline_of(trained()), normalizers=(Lowercase(),))
    tokenizer = Tokenizer(pipeline, names={"eos_token": "<|endoftext|>"})
    with pytest.raises(TokenizerError, match=r"normalizers Lowercase change.*remove them"):
        gguf_metadata(tokenizer)


def test_a_split_without_a_name_is_refused():
    tokenizer = Tokenizer.train(CORPUS, vocab_size=300, split="cl100k")
    with pytest.raises(TokenizerError, match=r"split='cl100k' has no name in llama\.cpp"):
        gguf_metadata(tokenizer)


def test_a_tokenizer_without_end_of_text_is_refused():
    tokenizer = Tokenizer.train(CORPUS, vocab_size=300, special_tokens=("<|a|>",))
    with pytest.raises(TokenizerError, match=r"no eos_token.*give eos_token"):
        gguf_metadata(tokenizer)


def test_white_space_taken_by_an_added_token_is_refused():
    pipeline = pipeline_of(trained())
    *others, last = pipeline.added_tokens
    added = (*others, dataclasses.replace(last, lstrip=True))
    tokenizer = Tokenizer(
        dataclasses.replace(pipeline, added_tokens=added), names={"eos_token": "<|endoftext|>"}
    )
    with pytest.raises(TokenizerError, match=r"takes the white space.*switch that off"):
        gguf_metadata(tokenizer)


def test_whole_words_that_merges_do_not_make_are_refused():
    pipeline = pipeline_of(trained())
    vocab = {**pipeline.vocab, "unmergeable": 1000}
    tokenizer = Tokenizer.from_vocab(
        vocab,
        pipeline.model.merges,
        split="qwen2",
        special_tokens=trained().special_tokens,
        eos_token="<|endoftext|>",
        ignore_merges=True,
    )
    with pytest.raises(TokenizerError, match="'unmergeable' is not what its merges make"):
        gguf_metadata(tokenizer)


def test_numbers_keep_their_types(tmp_path):
    values = {
        "an.int": 7,
        "a.long": np.int64(-(2**40)),
        "a.float": 0.5,
        "a.double": np.float64(0.1),
        "a.flag": True,
        "a.text": "grüße 🙂",
        "no.words": [],
        "words": ["one", "", "drei"],
        "numbers": np.array([1, -2, 3], np.int32),
        "flags": np.array([True, False]),
    }
    write_gguf(tmp_path / "small.gguf", values)
    theirs = gguf.GGUFReader(tmp_path / "small.gguf").fields
    ours = GgufFile(tmp_path / "small.gguf")
    assert ours.tensors == {}
    for key, value in values.items():
        assert np.array_equal(ours.metadata[key], value), key
        if key != "no.words":
            assert np.array_equal(theirs[key].contents(), value), key
    assert [kind.name for kind in theirs["a.long"].types] == ["INT64"]
    assert [kind.name for kind in theirs["an.int"].types] == ["UINT32"]


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (-1, "a.key=-1 is no u32"),
        (2**32, "is no u32"),
        (np.float16(1), "float16"),
        (np.zeros((2, 2)), r"shape \(2, 2\)"),
        ([1, 2], "give a numpy array"),
    ],
)
def test_values_that_gguf_does_not_have(tmp_path, value, named):
    with pytest.raises(OutputError, match=named):
        write_gguf(tmp_path / "small.gguf", {"a.key": value})
    assert list(tmp_path.iterdir()) == []
