"""SentencePiece's model files against sentencepiece: ids, texts, damaged files."""

import io
import random
import shutil
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.errors import LabError, TokenizerError, UnsupportedPart
from llmlab.tokenizers.charsmap import CharsMap, charsmap_rules
from llmlab.tokenizers.files.protobuf import Message
from llmlab.tokenizers.files.sentencepiece_model import (
    PieceType,
    SentencePieceModel,
    parse_sentencepiece,
    read_sentencepiece,
)
from llmlab.tokenizers.files.sentencepiece_pipeline import sentencepiece_pipeline
from llmlab.tokenizers.models.sentencepiece_bpe import SentencePieceBPE, SentencePieceBPEEncoder
from llmlab.tokenizers.normalizers import normalized
from llmlab.tokenizers.sentencepiece_rules import SentencePieceRules
from llmlab.tokenizers.tokenizer import Tokenizer
from tests.llmlab.tokenizers.rank_files import rank_file
from tests.llmlab.tokenizers.samples import CORPUS, TORTURE, pipeline_of
from tests.llmlab.tokenizers.test_unigram import source_lines

SPACE = "\u2581"

PUBLISHED = (
    "tokenizer.model.v1",  # Mistral 7B: BPE, byte fallback
    "mistral_instruct_tokenizer_240323.model.v3",  # the same with control pieces
    "universal_sentence_encoder.sp.model",  # Unigram, 128 000 pieces, NFKC
)

OPTIONS: dict[str, dict] = {
    "default": {},
    "bytes": {"byte_fallback": True},
    "identity": {"normalization_rule_name": "identity", "byte_fallback": True},
    "no prefix": {"add_dummy_prefix": False, "normalization_rule_name": "nfkc_cf"},
    "all spaces": {"remove_extra_whitespaces": False, "byte_fallback": True},
    "bare": {
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
    },
    "user-defined": {
        "user_defined_symbols": ["<a>", "<a><b>", "  ", "é", "ab", "x y", "\u0301k"],
        "control_symbols": ["<c>"],
        "byte_fallback": True,
    },
    "bpe": {"model_type": "bpe", "byte_fallback": True},
    "bpe user-defined": {
        "model_type": "bpe",
        "user_defined_symbols": ["<a>", "<a><b>", "  ", "é", "ab", "\u0301k"],
        "remove_extra_whitespaces": False,
    },
    "char": {"model_type": "char", "user_defined_symbols": ["<a>", "ab"]},
}


@cache
def trained(name: str) -> bytes:
    """A small model with these options."""
    model = io.BytesIO()
    options = {"vocab_size": 700, "hard_vocab_limit": False, **OPTIONS[name]}
    if options.get("model_type") == "bpe":
        del options["hard_vocab_limit"]
    train: Any = sentencepiece.SentencePieceTrainer.train
    train(
        sentence_iterator=iter([*CORPUS, *source_lines()[:2000]]),
        model_writer=model,
        minloglevel=2,
        num_threads=1,
        max_sentence_length=10_000,
        **options,
    )
    return model.getvalue()


@cache
def opened(name: str) -> Tokenizer:
    return tokenizer_of(parse_sentencepiece(trained(name)))


def tokenizer_of(model: SentencePieceModel) -> Tokenizer:
    pipeline, names = sentencepiece_pipeline(model)
    return Tokenizer(pipeline, names=names)


@cache
def reference(name: str) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=trained(name))


def texts(number: int) -> Iterator[str]:
    """Stretches of source, and characters of the kinds that normalising changes."""
    rng = random.Random(1)
    source = "\n".join(source_lines())
    for _ in range(number):
        if rng.random() < 0.3:
            start = rng.randrange(len(source))
            yield source[start : start + rng.randrange(150)]
        else:
            yield "".join(_char(rng) for _ in range(rng.randrange(30)))
    yield from TORTURE
    yield "<a><b><a> ab<c><s></s><unk> <0x41>x y\u0301k e\u0301"


def _char(rng: random.Random) -> str:
    first, last = rng.choice(
        (
            (0x20, 0x7F),
            (0x20, 0x7F),
            (0x20, 0x21),
            (0x00, 0x20),
            (0x2581, 0x2582),
            (0x300, 0x370),
            (0x1100, 0x1200),
            (0x2000, 0x2100),
            (0x3000, 0x3100),
            (0xAC00, 0xD7A4),
            (0xFF00, 0xFFF0),
            (0, 0xD800),
            (0xE000, 0x110000),
        )
    )
    return chr(rng.randrange(first, last))


def check_equal(
    ours: Tokenizer, theirs: sentencepiece.SentencePieceProcessor, texts: Iterable[str]
) -> None:
    steps = pipeline_of(ours).normalizers
    for text in texts:
        assert normalized(steps, text) == theirs.normalize(text)
        encoding = ours.encode_with_offsets(text)
        assert ours.encode(text) == encoding.ids.tolist() == theirs.encode(text)
        # The unknown piece is decoded as it is named; spaces written U+2581 are not dropped.
        if theirs.unk_id() not in encoding.ids and SPACE not in text:
            assert ours.decode(encoding.ids) == theirs.decode(encoding.ids.tolist())
        starts, ends = encoding.offsets.T
        assert (np.diff(starts) >= 0).all()
        assert ((starts >= 0) & (starts <= ends) & (ends <= len(text))).all()


class TestParity:
    @pytest.mark.parametrize("name", OPTIONS)
    def test_trained(self, name):
        check_equal(opened(name), reference(name), texts(200))

    @pytest.mark.parametrize("name", ["default", "user-defined", "bpe user-defined"])
    @given(text=st.text(st.sampled_from("ab <>é\u0301ké\u3000\uff41" + SPACE) | st.characters()))
    @settings(max_examples=150, deadline=None)
    def test_any_text(self, name, text):
        text = text.encode("utf-8", "replace").decode()  # no lone surrogates
        check_equal(opened(name), reference(name), [text])

    @pytest.mark.parametrize("name", OPTIONS)
    def test_special_ids(self, name):
        ours, theirs = opened(name), reference(name)
        assert [
            -1 if each is None else each
            for each in (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id)
        ] == [theirs.bos_id(), theirs.eos_id(), theirs.pad_id()]
        for number in range(ours.vocab_size):
            is_special = theirs.is_control(number) or theirs.is_unknown(number)
            assert (theirs.id_to_piece(number) in ours.special_tokens) == is_special
            if theirs.is_byte(number):
                assert ours.token_bytes(number) == bytes(
                    [int(theirs.id_to_piece(number)[3:-1], 16)]
                )

    @pytest.mark.parametrize(
        "name", [*PUBLISHED[:2], pytest.param(PUBLISHED[2], marks=pytest.mark.slow)]
    )
    def test_published(self, name, tmp_path):
        path = tmp_path / "tokenizer.model"
        shutil.copy(rank_file(name), path)
        theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
        check_equal(Tokenizer.load(path), theirs, texts(2000))

    def test_a_long_text(self):
        # Sums past 100 000 start again from zero.
        text = "\n".join(source_lines())
        expected = reference("bare").encode(text)
        assert opened("bare").encode_batch([text])[0] == expected
        assert opened("bare").encode(text[:120_000]) == reference("bare").encode(text[:120_000])

    @given(st.text())
    @settings(deadline=None)
    def test_spans_lie_side_by_side(self, text):
        for name in ("bpe", "bpe user-defined"):
            model = parse_sentencepiece(trained(name)).model()
            assert isinstance(model, SentencePieceBPE)
            spans = list(SentencePieceBPEEncoder(model).spans(text))
            edges = list(dict.fromkeys((start, end) for _, start, end in spans))
            assert [0, *(end for _, end in edges)] == [*(start for start, _ in edges), len(text)]


class TestFolder:
    @pytest.mark.parametrize("name", OPTIONS)
    def test_the_same_after_saving(self, name, tmp_path):
        ours = opened(name)
        ours.save(tmp_path / "tok")
        again = Tokenizer.load(tmp_path / "tok")
        assert again.fingerprint == ours.fingerprint
        assert again.special_tokens == ours.special_tokens
        for text in texts(50):
            assert again.encode(text) == ours.encode(text)

    @pytest.mark.parametrize("name", ["default", "bytes", "identity", "bpe"])
    def test_as_transformers_reads_it(self, name, tmp_path):
        ours = opened(name)
        ours.save(tmp_path / "tok")
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "tok")
        for line in source_lines()[:300]:
            assert theirs.encode(line, add_special_tokens=False) == ours.encode(line)

    @pytest.mark.parametrize("name", ["bytes", "bpe"])
    def test_a_stream_is_the_text(self, name):
        ours = opened(name)
        for text in texts(50):
            ids = ours.encode(text)
            stream = ours.stream()
            assert "".join(map(stream.push, ids)) + stream.finish() == ours.decode(ids)


class TestUnusedPieces:
    """Pieces switched off after training, as sentencepiece's SetVocabulary does."""

    @pytest.mark.parametrize("name", ["default", "bpe"])
    def test_ids(self, name):
        switched_off = _with_types(trained(name), {PieceType.NORMAL: PieceType.UNUSED}, every=3)
        model = parse_sentencepiece(switched_off)
        assert model.of_type(PieceType.UNUSED)
        theirs = sentencepiece.SentencePieceProcessor(model_proto=switched_off)
        check_equal(tokenizer_of(model), theirs, texts(300))

    def test_taken_apart_as_it_was_made(self):
        pieces = (("<unk>", 0.0), ("a", -9.0), ("b", -9.0), ("ab", -1.0), ("aab", -2.0))
        model = SentencePieceBPE(
            pieces=pieces, unk_id=0, unmatched=frozenset({0}), unused=frozenset({4})
        )
        assert SentencePieceBPEEncoder(model).encode("aab") == [1, 3]


class TestNormalizer:
    def test_the_longest_rule_wins(self):
        rules = CharsMap({"a": "1", "ab": "2", "abcd": "3", "cd": ""})
        assert rules.apply("abcabcdcda") == "2c31"
        units = [(2, "xx", False), (4, "3", True), (1, "y", False)]
        assert list(rules.units("xxabcdy")) == units

    def test_kept_strings_are_not_touched(self):
        rules = CharsMap({"a": "1", "xa": "2"}, kept=["ab", "abc"])
        assert rules.apply("a ab abc xab aab") == "1 ab abc 2b 1ab"

    def test_replacements_with_spaces(self):
        make: Any = sentencepiece.SentencePieceNormalizer
        theirs = make(
            norm_map=[("=", "  "), ("~", " ~")],
            add_dummy_prefix=True,
            escape_whitespaces=True,
            remove_extra_whitespaces=True,
        )
        spec = Message(theirs.serialized_model_proto()).content(3)
        rules = SentencePieceRules(charsmap=Message(spec).content(2))
        for text in ("=a=b=", "~ =x", "=", "= =", "a = b"):
            normal = rules.apply(text)
            assert normal == theirs.normalize(text)
            assert "".join(replacement for _, replacement in rules.segments(text)) == normal

    def test_damaged_maps(self):
        good = parse_sentencepiece(trained("default")).normalizer_spec.charsmap
        assert charsmap_rules(good)["ﬁ"] == "fi"
        for bad in (b"", b"\1\0\0\0", good[:1000], good[:-1], good[:4] + b"\xff" * (len(good) - 4)):
            with pytest.raises(TokenizerError, match="character map"):
                charsmap_rules(bad)

    def test_a_trie_without_end(self):
        # The root's children are at 0 ^ byte; the one by byte 1 has itself as its child.
        units = struct.pack("<256I", 0, 1 << 10 | 1, *[0] * 254)
        with pytest.raises(TokenizerError, match="does not end"):
            charsmap_rules(struct.pack("<I", len(units)) + units + b"\0")


class TestFiles:
    def test_reading(self, tmp_path: Path):
        path = tmp_path / "m.model"
        path.write_bytes(trained("bytes"))
        model = read_sentencepiece(path)
        assert model == parse_sentencepiece(trained("bytes"))
        assert (model.model_type, model.byte_fallback) == ("unigram", True)
        assert model.normalizer_spec.name == "nmt_nfkc"

    def test_no_file(self, tmp_path: Path):
        with pytest.raises(TokenizerError, match="cannot be read"):
            read_sentencepiece(tmp_path / "none.model")

    def test_cut_short(self, tmp_path: Path):
        path = tmp_path / "m.model"
        path.write_bytes(trained("bytes")[:5000])
        with pytest.raises(TokenizerError, match=r"m\.model: .* damaged"):
            read_sentencepiece(path)

    @pytest.mark.parametrize("data", [b"", b"{}", b"\x1f\x8b\x08\x00", b"\x00" * 100])
    def test_other_files(self, data):
        with pytest.raises(TokenizerError):
            parse_sentencepiece(data)

    @given(st.data())
    @settings(max_examples=150, deadline=None)
    def test_damage_is_an_error_of_ours_or_none(self, data):
        raw = bytearray(trained("bare"))
        for _ in range(data.draw(st.integers(1, 4))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        del raw[data.draw(st.integers(len(raw) // 2, len(raw))) :]
        with suppress(LabError):
            tokenizer_of(parse_sentencepiece(bytes(raw))).encode("some text")

    @pytest.mark.parametrize(
        ("piece", "message"),
        [
            (b"\x0a\x00\x15\x00\x00\x00\x00", "has 0 bytes"),
            (b"\x0a\x01\xff", "not UTF-8"),
            (b"\x0a\x01a\x15\x00\x00\x80\x7f", "score inf"),
            (b"\x0a\x01a\x18\x09", "type 9"),
            (b"\x0a\x01a\x10\x01", "another type"),
            (b"\x0a\x05<unk>", "are both '<unk>'"),
            (b"\x0a\x01a\x18\x06", "of the type byte"),
            (b"\x0a\x03uuu\x18\x02", "2 pieces are of the type unknown"),
        ],
    )
    def test_damaged_pieces(self, piece, message):
        unknown = b"\x0a\x05<unk>\x18\x02"
        raw = b"".join(b"\x0a" + bytes([len(each)]) + each for each in (unknown, piece))
        with pytest.raises(TokenizerError, match=message):
            parse_sentencepiece(raw)

    def test_what_is_not_supported(self):
        suffix, word = b"\x12\x03\xc0\x01\x01", b"\x12\x02\x18\x03"
        raw = b"\x0a\x09\x0a\x05<unk>\x18\x02"
        with pytest.raises(UnsupportedPart, match="treat_whitespace_as_suffix"):
            parse_sentencepiece(raw + suffix)
        with pytest.raises(UnsupportedPart, match="model_type word"):
            parse_sentencepiece(raw + word).model()
        with pytest.raises(UnsupportedPart, match="denormaliser"):
            parse_sentencepiece(raw + b"\x2a\x03\x12\x01x")


def _with_types(raw: bytes, types: dict[PieceType, PieceType], *, every: int) -> bytes:
    """The same model with other types for every so many pieces of a type."""
    model = parse_sentencepiece(raw)
    places = [i for i, piece in enumerate(model.pieces) if piece.type in types]
    changed = set(places[::every])
    out, at = bytearray(), 0
    for number in range(len(model.pieces)):
        size, start = raw[at + 1], at + 2
        if size >= 0x80:  # a length of two bytes
            size, start = size & 0x7F | raw[at + 2] << 7, at + 3
        piece = raw[start : start + size]
        if number in changed:
            piece += bytes([0x18, types[model.pieces[number].type]])
        out += b"\x0a" + _varint(len(piece)) + piece
        at = start + size
    return bytes(out + raw[at:])


def _varint(number: int) -> bytes:
    return bytes([number]) if number < 0x80 else bytes([number & 0x7F | 0x80, number >> 7])
