"""SentencePiece's model files against sentencepiece: ids, normalised text, damaged files."""

import io
import random
import struct
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.errors import LabError, TokenizerError, UnsupportedPart
from llmlab.tokenizers.charsmap import CharsMap, SentencePieceNormalizer, charsmap_rules
from llmlab.tokenizers.files.sentencepiece_model import (
    Piece,
    PieceType,
    SentencePieceModel,
    parse_sentencepiece,
    read_sentencepiece,
    token_bytes,
)
from llmlab.tokenizers.models.sentencepiece_bpe import SentencePieceBPE, SentencePieceBPEEncoder
from llmlab.tokenizers.models.unigram import Unigram, UnigramEncoder
from tests.llmlab.tokenizers.rank_files import rank_file
from tests.llmlab.tokenizers.samples import CORPUS, TORTURE
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
def opened(name: str) -> tuple[SentencePieceModel, SentencePieceNormalizer]:
    model = parse_sentencepiece(trained(name))
    return model, model.normalizer()


@cache
def reference(name: str) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=trained(name))


def encoder_of(model: SentencePieceModel) -> UnigramEncoder | SentencePieceBPEEncoder:
    cutter = model.model()
    if isinstance(cutter, Unigram):
        return UnigramEncoder(cutter)
    return SentencePieceBPEEncoder(cutter)


@cache
def encoder(name: str) -> UnigramEncoder | SentencePieceBPEEncoder:
    return encoder_of(opened(name)[0])


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
    model: SentencePieceModel,
    normalizer: SentencePieceNormalizer,
    encode: UnigramEncoder | SentencePieceBPEEncoder,
    theirs: sentencepiece.SentencePieceProcessor,
    text: str,
) -> None:
    normalized = normalizer.apply(text)
    assert normalized == theirs.normalize(text)
    segments = list(normalizer.segments(text))
    assert "".join(replacement for _, replacement in segments) == normalized
    assert sum(length for length, _ in segments) == len(text)
    assert encode.encode(normalized) == theirs.encode(text)


class TestParity:
    @pytest.mark.parametrize("name", OPTIONS)
    def test_trained(self, name):
        model, normalizer = opened(name)
        for text in texts(400):
            check_equal(model, normalizer, encoder(name), reference(name), text)

    @pytest.mark.parametrize("name", ["default", "user-defined", "bpe user-defined"])
    @given(text=st.text(st.sampled_from("ab <>é\u0301ké\u3000\uff41" + SPACE) | st.characters()))
    @settings(max_examples=150, deadline=None)
    def test_any_text(self, name, text):
        model, normalizer = opened(name)
        text = text.encode("utf-8", "replace").decode()  # no lone surrogates
        check_equal(model, normalizer, encoder(name), reference(name), text)

    @pytest.mark.parametrize("name", OPTIONS)
    def test_special_ids_and_bytes(self, name):
        model, theirs = opened(name)[0], reference(name)
        ids = (model.unk_id, model.bos_id, model.eos_id, model.pad_id)
        assert [-1 if each is None else each for each in ids] == [
            theirs.unk_id(),
            theirs.bos_id(),
            theirs.eos_id(),
            theirs.pad_id(),
        ]
        for number, piece in enumerate(model.pieces):
            assert theirs.id_to_piece(number) == piece.text
            assert theirs.is_byte(number) == (piece.type is PieceType.BYTE)
            assert theirs.is_control(number) == (piece.type is PieceType.CONTROL)
            if piece.type is PieceType.NORMAL:
                assert token_bytes(piece) == piece.text.replace(SPACE, " ").encode()

    @pytest.mark.parametrize("name", PUBLISHED)
    def test_published(self, name):
        path = rank_file(name)
        model = read_sentencepiece(path)
        normalizer, encode = model.normalizer(), encoder_of(model)
        theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
        for text in texts(2000):
            check_equal(model, normalizer, encode, theirs, text)

    def test_a_long_text(self):
        # Sums past 100 000 start again from zero.
        text = "\n".join(source_lines())[:120_000]
        model, normalizer = opened("bare")
        assert encoder("bare").encode(normalizer.apply(text)) == reference("bare").encode(text)

    @given(st.text().filter(lambda text: SPACE not in text))
    @settings(deadline=None)
    def test_round_trip(self, text):
        model, normalizer = opened("identity")
        ids = encoder("identity").encode(normalizer.apply(f"|{text}|"))
        decoded = b"".join(token_bytes(model.pieces[i]) for i in ids).decode()
        assert " ".join(decoded.split(" ")) == " " + " ".join(filter(None, f"|{text}|".split(" ")))

    @given(st.text())
    @settings(deadline=None)
    def test_spans_lie_side_by_side(self, text):
        for name in ("bpe", "bpe user-defined"):
            spans = list(encoder(name).spans(text))
            edges = list(dict.fromkeys((start, end) for _, start, end in spans))
            assert [0, *(end for _, end in edges)] == [*(start for start, _ in edges), len(text)]


class TestUnusedPieces:
    """Pieces switched off after training, as sentencepiece's SetVocabulary does."""

    @pytest.mark.parametrize("name", ["default", "bpe"])
    def test_ids(self, name):
        switched_off = _with_types(trained(name), {PieceType.NORMAL: PieceType.UNUSED}, every=3)
        model = parse_sentencepiece(switched_off)
        assert model.of_type(PieceType.UNUSED)
        theirs = sentencepiece.SentencePieceProcessor(model_proto=switched_off)
        normalizer, encode = model.normalizer(), encoder_of(model)
        for text in texts(300):
            check_equal(model, normalizer, encode, theirs, text)

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
        assert list(rules.segments("xxabcdy")) == [(2, "xx"), (4, "3"), (1, "y")]

    def test_kept_strings_are_not_touched(self):
        rules = CharsMap({"a": "1", "xa": "2"}, kept=["ab", "abc"])
        assert rules.apply("a ab abc xab aab") == "1 ab abc 2b 1ab"

    def test_replacements_with_spaces(self):
        normalizer = SentencePieceNormalizer({"=": "  ", "~": " ~"})
        for text in ("=a=b=", "~ =x", "=", "= =", "a = b"):
            joined = "".join(replacement for _, replacement in normalizer.segments(text))
            assert joined == normalizer.apply(text)

    def test_damaged_maps(self):
        good = opened("default")[0].normalizer_spec.charsmap
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
        assert model.unk_surface == " \u2047 "

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
            model = parse_sentencepiece(bytes(raw))
            encoder_of(model).encode(model.normalizer().apply("some text"))

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

    def test_bytes_of_pieces(self):
        assert token_bytes(Piece(f"{SPACE}a{SPACE}b", -1.0, PieceType.NORMAL)) == b" a b"
        assert token_bytes(Piece("<0xE2>", 0.0, PieceType.BYTE)) == b"\xe2"
        assert token_bytes(Piece("<0xE2>", 0.0, PieceType.NORMAL)) == b"<0xE2>"
        assert token_bytes(Piece("</s>", 0.0, PieceType.CONTROL)) == b""
        assert token_bytes(Piece("<unk>", 0.0, PieceType.UNKNOWN)) == b""


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
