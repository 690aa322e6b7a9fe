"""Unigram: learning against sentencepiece, segmentation against tokenizers and by hand."""

import argparse
import io
import math
import pathlib
import random
import re
import textwrap
import typing
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models

from llmlab.errors import ConfigError, DataError, TokenizerError
from llmlab.tokenizers.bulk_unigram import BulkUnigram
from llmlab.tokenizers.compiled.counting import count_pieces
from llmlab.tokenizers.compiled.expectation import Scored, Words, add_best, add_expected
from llmlab.tokenizers.compiled.trie import build_trie
from llmlab.tokenizers.cuts import CUTS
from llmlab.tokenizers.files.sentencepiece_model import parse_sentencepiece
from llmlab.tokenizers.models.unigram import Unigram, UnigramEncoder
from llmlab.tokenizers.scan_rules import METASPACE_RULES
from llmlab.tokenizers.tokenizer import Tokenizer
from llmlab.tokenizers.trainers.unigram import learn_unigram
from tests.llmlab.tokenizers.samples import CORPUS, TORTURE, shakespeare

SPACE = "\u2581"


@cache
def source_lines() -> tuple[str, ...]:
    """Lines of Python source that every installation has (300 kB)."""
    modules = (argparse, pathlib, typing, textwrap)
    texts = [pathlib.Path(str(module.__file__)).read_text(encoding="utf-8") for module in modules]
    return tuple(line for text in texts for line in text.split("\n") if line)


def words(lines) -> Counter[str]:
    """Count words as they are cut before each space."""
    return Counter(word for line in lines for word in re.findall(" ?[^ ]+| ", line))


@cache
def learnt(vocab_size: int = 1000) -> Unigram:
    return learn_unigram(words(source_lines()), vocab_size=vocab_size)


def theirs(lines, vocab_size: int) -> Unigram:
    """What sentencepiece learns from the same words under the same rules about pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=vocab_size,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_by_unicode_script=False,
        split_by_number=False,
        byte_fallback=True,
        num_threads=2,
        max_sentence_length=100_000,
        minloglevel=2,
    )
    unigram = parse_sentencepiece(model.getvalue()).model()
    assert isinstance(unigram, Unigram)
    return unigram


def cost(model: Unigram, lines) -> tuple[float, int]:
    """Negative log-likelihood of the best segmentations, bytes left aside, and their tokens."""
    texts = [line.replace(" ", SPACE).encode() for line in lines]
    ids = np.concatenate(BulkUnigram(model).encode_many(texts))
    scores = np.array([0.0 if i in model.unmatched else s for i, (_, s) in enumerate(model.pieces)])
    return -float(scores[ids].sum()), len(ids)


class TestLearning:
    def test_as_likely_as_sentencepiece(self):
        ours, num_ours = cost(learnt(), source_lines())
        their, num_their = cost(theirs(source_lines(), 1000), source_lines())
        assert ours < 1.01 * their
        assert num_ours < 1.01 * num_their

    @pytest.mark.slow
    def test_as_likely_as_sentencepiece_at_8k(self):
        lines = [line for line in shakespeare().split("\n") if line]
        ours, num_ours = cost(learn_unigram(words(lines), vocab_size=8000), lines)
        their, num_their = cost(theirs(lines, 8000), lines)
        assert ours < 1.01 * their
        assert num_ours < 1.01 * num_their

    def test_vocabulary(self):
        model = learnt()
        pieces = [piece for piece, _ in model.pieces]
        assert len(pieces) == len(set(pieces)) == 1000
        assert pieces[:3] == ["<unk>", "<0x00>", "<0x01>"]
        assert set("abc(){}_=" + SPACE) < set(pieces)
        assert all(SPACE not in piece[1:] and len(piece) <= 16 for piece in pieces[257:])
        ranking = [(-score, piece) for piece, score in model.pieces[257:]]
        assert ranking == sorted(ranking)
        assert 0.97 < sum(math.exp(-minus) for minus, _ in ranking) < 1.001

    def test_threads_do_not_matter(self):
        counts = words(source_lines()[:3000])
        assert learn_unigram(counts, vocab_size=700, num_threads=1) == learn_unigram(
            counts, vocab_size=700, num_threads=5
        )

    def test_counts_may_pass_32_bits(self):
        counts = {"abcabc": 2**40, " xyz": 2**33, "q": 2**33}
        model = learn_unigram(counts, vocab_size=270)
        assert UnigramEncoder(model).encode("abcabc") == [model.vocab["abcabc"]]

    def test_from_counted_texts(self):
        lines = source_lines()[:500]
        counts = count_pieces(lines, METASPACE_RULES)
        assert learn_unigram(counts, vocab_size=400) == learn_unigram(words(lines), vocab_size=400)

    def test_rare_characters_part_words(self):
        counts = {"over中all": 3, " here": 1000, "over": 5, "all": 5}
        model = learn_unigram(counts, vocab_size=300, character_coverage=0.999)
        assert not any("中" in piece for piece, _ in model.pieces)
        encoder = UnigramEncoder(model)
        assert encoder.encode("over中all") == [
            model.vocab["over"],
            *(model.vocab[f"<0x{byte:02X}>"] for byte in "中".encode()),
            model.vocab["all"],
        ]
        few = learn_unigram(counts, vocab_size=300, limit_alphabet=3)
        assert {piece for piece, _ in few.pieces if len(piece) == 1} == {"e", "r", SPACE}

    def test_spaces_of_both_kinds_are_one(self):
        plain = learn_unigram({" the": 9, " then": 5}, vocab_size=280)
        marked = learn_unigram({f"{SPACE}the": 9, f"{SPACE}then": 5}, vocab_size=280)
        assert plain == marked
        assert f"{SPACE}the" in plain.vocab

    def test_any_script(self):
        lines = [*CORPUS, "".join(chr(0x4E00 + i) for i in range(200)), "ab\0cd", "\U0001f642" * 9]
        model = learn_unigram(words(lines), vocab_size=900, character_coverage=1.0)
        encoder = UnigramEncoder(model)
        singles = {piece for piece, _ in model.pieces if len(piece) == 1}
        assert singles == set("".join(lines).replace(" ", SPACE)) - {"\0"}
        for text in lines:
            assert decoded(model, encoder.encode(text.replace(" ", SPACE))) == text

    def test_without_byte_fallback(self):
        model = learn_unigram({"ab": 5}, vocab_size=10, byte_fallback=False)
        assert [piece for piece, _ in model.pieces][:1] == ["<unk>"]
        assert len(model.pieces) < 10  # there is no more to learn
        assert UnigramEncoder(model).encode("ab???ab") == [model.vocab["ab"], 0, model.vocab["ab"]]

    def test_progress(self):
        steps: list[Mapping[str, Any]] = []
        learn_unigram({"ab": 5, "abc": 7}, vocab_size=300, on_progress=steps.append)
        assert "seeds" in steps[0]
        assert steps[-1]["nats per byte"] > 0

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"vocab_size": 258}, "vocab_size leaves room for 1 pieces and the alphabet has 3"),
            ({"vocab_size": 300, "seed_size": 10}, "seed_size=10 is less than vocab_size=300"),
            ({"vocab_size": 300, "shrinking_factor": 1.0}, "shrinking_factor=1.0"),
            ({"vocab_size": 300, "max_piece_chars": 0}, "max_piece_chars=0"),
            ({"vocab_size": 300, "num_sub_iterations": 0}, "num_sub_iterations=0"),
            ({"vocab_size": 300, "character_coverage": 0.0}, "character_coverage=0.0"),
            ({"vocab_size": 300, "limit_alphabet": 0}, "limit_alphabet=0"),
        ],
    )
    def test_bad_numbers(self, options, message):
        with pytest.raises(ConfigError, match=re.escape(message)):
            learn_unigram({"abc": 5}, **options)

    def test_no_words(self):
        with pytest.raises(DataError, match="no words"):
            learn_unigram({}, vocab_size=300)


class TestExpectation:
    """Forward-backward against a sum over all segmentations."""

    PIECES = ("a", "ab", "abc", "b", "bc", "c", "é", "éa")
    SCORES = np.log(np.array([0.2, 0.1, 0.05, 0.2, 0.15, 0.2, 0.06, 0.04]))

    def corpus(self, *texts: str) -> Words:
        encoded = [text.encode() for text in texts]
        ends = np.cumsum([len(each) for each in encoded])
        bounds = np.stack([ends - [len(each) for each in encoded], ends], 1).astype(np.int64)
        counts = np.arange(1, len(texts) + 1, dtype=np.int64)
        return Words(np.frombuffer(b"".join(encoded), np.uint8).copy(), bounds, counts)

    def scored(self, byte_score: float = -1.0) -> Scored:
        raw = [piece.encode() for piece in self.PIECES]
        lengths = np.array([len(piece) for piece in raw], np.int64)
        data = np.frombuffer(b"".join(raw), np.uint8).copy()
        nodes = build_trie(data, np.cumsum(lengths) - lengths, lengths)
        return Scored(nodes, self.SCORES, np.exp(self.SCORES - byte_score * lengths), byte_score)

    def ways(self, text: str) -> list[list[int]]:
        if not text:
            return [[]]
        return [
            [number, *rest]
            for number, piece in enumerate(self.PIECES)
            if text.startswith(piece)
            for rest in self.ways(text[len(piece) :])
        ]

    @pytest.mark.parametrize("byte_score", [-1.0, 0.0, -100.0, 100.0])
    def test_sums_over_all_segmentations(self, byte_score):
        texts = ("abcéab", "a", "cabcabcé", "éaabc")
        expected, likelihood = np.zeros(len(self.PIECES)), 0.0
        for count, text in enumerate(texts, start=1):
            ways = self.ways(text)
            shares = np.exp([self.SCORES[way].sum() for way in ways])
            likelihood += count * math.log(shares.sum())
            for way, share in zip(ways, shares / shares.sum(), strict=True):
                np.add.at(expected, way, count * share)
        found = np.zeros(len(self.PIECES))
        corpus = self.corpus(*texts)
        total = add_expected(corpus, 0, len(texts), self.scored(byte_score), 3, found)
        np.testing.assert_allclose(found, expected, rtol=1e-10)
        assert total == pytest.approx(likelihood, rel=1e-12)

    def test_a_word_of_any_length(self):
        corpus = self.corpus("abc" * 2000)  # a probability of about 1e-3000
        found = np.zeros(len(self.PIECES))
        total = add_expected(corpus, 0, 1, self.scored(), 3, found)
        lengths = np.array([len(piece) for piece in self.PIECES])
        assert found @ lengths == pytest.approx(6000)
        one = math.log(0.2 * 0.2 * 0.2 + 0.1 * 0.2 + 0.2 * 0.15 + 0.05)
        assert total == pytest.approx(2000 * one)

    def test_best_segmentations(self):
        texts = ("abcéab", "cabcabcé")
        used = np.zeros(len(self.PIECES), np.int64)
        total = add_best(self.corpus(*texts), 0, 2, self.scored(), 3, used)
        best = [max(self.ways(text), key=lambda way: self.SCORES[way].sum()) for text in texts]
        assert used.tolist() == [
            best[0].count(number) + 2 * best[1].count(number) for number in range(len(self.PIECES))
        ]
        assert total == pytest.approx(self.SCORES[best[0]].sum() + 2 * self.SCORES[best[1]].sum())


class TestSegmenting:
    def test_ids_of_tokenizers(self):
        # It looks for every piece, the bytes' own names too; their scores keep them out.
        model = learnt()
        reference = tokenizers.Tokenizer(models.Unigram(list(model.pieces), 0, True))
        encoder = UnigramEncoder(model)
        texts = [*TORTURE, *random_texts(2000), "<0x41><0x0A> <unk> a<0xFF>"]
        for text in texts:
            marked = text.replace(" ", SPACE)
            assert encoder.encode(marked) == reference.encode(marked).ids

    @given(st.text())
    def test_bulk_is_one_by_one(self, text):
        for model in (learnt(), replace(learnt(), single_precision=True)):
            assert BulkUnigram(model).encode_many([text.encode()])[0].tolist() == UnigramEncoder(
                model
            ).encode(text)

    def test_bulk_of_many(self):
        model = learnt()
        texts = [*random_texts(3000), "", "x" * 600_000, ""]
        encoder = UnigramEncoder(model)
        raw = [text.encode() for text in texts]
        one, many = (BulkUnigram(model).encode_many(raw, num_threads=n) for n in (1, 3))
        assert all(np.array_equal(a, b) for a, b in zip(one, many, strict=True))
        for text, ids in zip(texts[:1000], one, strict=False):
            assert ids.tolist() == encoder.encode(text)
        assert BulkUnigram(model).encode_many([]) == []

    @given(st.text(st.sampled_from(SPACE + "ab \u2580é\u2581") | st.characters(codec="utf-8")))
    def test_bulk_cut_at_marks_is_word_by_word(self, text):
        encoder = UnigramEncoder(learnt())
        ids = BulkUnigram(learnt(), cuts_at_marks=True).encode_many([text.encode(), text.encode()])
        expected = [token for word in CUTS["marks"].pieces(text) for token in encoder.encode(word)]
        assert [each.tolist() for each in ids] == [expected, expected]

    def test_a_batch_is_its_texts(self):
        tokenizer = Tokenizer.train(source_lines(), vocab_size=1000, algorithm="unigram")
        texts = [*random_texts(500), "<|im_end|>", "\n".join(source_lines())]
        for allow_special in (False, True):
            batch = tokenizer.encode_batch(texts, allow_special=allow_special)
            assert [list(ids) for ids in batch] == [
                tokenizer.encode(text, allow_special=allow_special) for text in texts
            ]

    @given(st.text().filter(lambda text: SPACE not in text))
    @settings(max_examples=300)
    def test_round_trip(self, text):
        model = learnt()
        assert decoded(model, UnigramEncoder(model).encode(text.replace(" ", SPACE))) == text

    @given(st.text())
    def test_spans_lie_side_by_side(self, text):
        encoder = UnigramEncoder(learnt())
        spans = list(encoder.spans(text))
        assert [token for token, _, _ in spans] == encoder.encode(text)
        edges = list(dict.fromkeys((start, end) for _, start, end in spans))
        assert all(end == start for (_, end), (start, _) in pairwise(edges))
        assert not text or (edges[0][0], edges[-1][1]) == (0, len(text))

    def test_of_equals_the_first_stays(self):
        pieces = (("<unk>", 0.0), ("a", -1.0), ("b", -1.0), ("ab", -1.0), ("bc", -1.0), ("c", -1.0))
        model = Unigram(pieces=pieces, unk_id=0, unmatched=frozenset({0}))
        assert UnigramEncoder(model).encode("abc") == [1, 4]  # a bc, not ab c
        assert BulkUnigram(model).encode_many([b"abc"])[0].tolist() == [1, 4]

    def test_user_defined_pieces_win(self):
        pieces = (("<unk>", 0.0), ("a", -1.0), ("<a>", 0.0), ("<a><a>", 0.0), ("<", -1.0))
        model = Unigram(
            pieces=pieces, unk_id=0, unmatched=frozenset({0}), user_defined=frozenset({2, 3})
        )
        assert UnigramEncoder(model).encode("a<a><a><a>a") == [1, 2, 3, 1]

    def test_nothing_to_write_for_an_unknown_character(self):
        model = Unigram(pieces=(("a", -1.0),), unk_id=None)
        assert UnigramEncoder(model).encode("aa") == [0, 0]
        with pytest.raises(TokenizerError, match="'bb' has no piece"):
            UnigramEncoder(model).encode("abba")
        with pytest.raises(TokenizerError, match="no piece"):
            BulkUnigram(model).encode_many([b"abba"])

    def test_missing_byte_pieces(self):
        model = Unigram(pieces=(("<0x00>", 0.0), ("a", -1.0)), unk_id=None, byte_fallback=True)
        for encoder in (UnigramEncoder, BulkUnigram):
            with pytest.raises(TokenizerError, match="255 are missing, <0x01> first"):
                encoder(model)


def decoded(model: Unigram, ids: list[int]) -> str:
    parts = []
    for token in ids:
        piece = model.pieces[token][0]
        byte = re.fullmatch("<0x(..)>", piece)
        parts.append(bytes([int(byte[1], 16)]) if byte else piece.replace(SPACE, " ").encode())
    return b"".join(parts).decode()


def random_texts(number: int) -> list[str]:
    """Stretches of source with characters of all planes strewn in."""
    rng = random.Random(0)
    text = "\n".join(source_lines()).replace(" ", SPACE)
    texts = []
    for _ in range(number):
        start = rng.randrange(len(text))
        chars = list(text[start : start + rng.randrange(60)])
        for _ in range(rng.randrange(6)):
            point = rng.choice((rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)))
            chars.insert(rng.randrange(len(chars) + 1), chr(point))
        texts.append("".join(chars))
    return texts
