"""Folders: written for AutoTokenizer, read from anywhere, refused by name."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from llmlab.errors import TokenizerError, UnsupportedPart
from llmlab.tokenizers import Tokenizer
from llmlab.tokenizers.chat import CHATML
from llmlab.tokenizers.files.tokenizer_json import read_pipeline, write_pipeline
from tests.llmlab.tokenizers.samples import (
    SPLITS,
    TORTURE,
    auto_tokenizer,
    pipeline_of,
    reference,
    trained,
)


def from_vocab(split="llama3", **changes):
    """A tokenizer with the vocabulary of the trained one and other settings."""
    pipeline = pipeline_of(trained())
    specials = list(trained().special_tokens)
    settings: dict[str, Any] = {"special_tokens": specials, "eos_token": specials[0]} | changes
    return Tokenizer.from_vocab(pipeline.vocab, pipeline.model.merges, split=split, **settings)


def edited(folder: Path, **changes) -> Path:
    """Write a tokenizer.json whose top-level parts are changed."""
    content = write_pipeline(pipeline_of(trained())) | changes
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("split", SPLITS)
def test_auto_tokenizer_reads_the_folder(split, tmp_path):
    tokenizer = trained(split)
    tokenizer.save(tmp_path)
    theirs = auto_tokenizer(tmp_path)
    assert len(theirs) == tokenizer.vocab_size
    assert theirs.eos_token_id == tokenizer.eos_token_id
    assert theirs.pad_token_id == tokenizer.pad_token_id
    assert theirs.bos_token_id is None
    assert theirs.chat_template == tokenizer.chat_template
    for text in TORTURE:
        ids = tokenizer.encode(text, allow_special=True)
        assert theirs.encode(text) == theirs(text).input_ids == ids, repr(text)
        assert theirs.decode(ids) == text
        assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(
            ids, skip_special_tokens=True
        )
        assert theirs.encode(text, split_special_tokens=True) == tokenizer.encode(text)


@pytest.mark.parametrize("model_type", ["qwen3", "llama"])
def test_auto_tokenizer_reads_it_beside_a_model_config(model_type, tmp_path):
    tokenizer = trained("gpt2")
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs = auto_tokenizer(tmp_path)
    for text in TORTURE:
        assert theirs.encode(text) == tokenizer.encode(text, allow_special=True), repr(text)


@pytest.mark.parametrize("split", SPLITS)
def test_saving_and_loading_changes_nothing(split, tmp_path):
    tokenizer = trained(split)
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.pipeline == tokenizer.pipeline
    assert again.fingerprint == tokenizer.fingerprint
    assert again.chat_template == tokenizer.chat_template
    assert again.special_tokens == tokenizer.special_tokens
    assert again.stop_token_ids == tokenizer.stop_token_ids
    assert again.pad_token_id == tokenizer.pad_token_id
    assert again.encode_batch(TORTURE) == tokenizer.encode_batch(TORTURE)


def test_what_transformers_writes_is_read_back(tmp_path):
    tokenizer = trained()
    tokenizer.save(tmp_path / "ours")
    auto_tokenizer(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    again = Tokenizer.load(tmp_path / "theirs")
    assert again.fingerprint == tokenizer.fingerprint
    assert (again.eos_token_id, again.pad_token_id) == (0, 1)
    assert again.chat_template == tokenizer.chat_template


def test_fingerprint_follows_what_decides_the_ids():
    prints = {
        trained().fingerprint,
        from_vocab("qwen2", normalizer="NFC").fingerprint,
        from_vocab("gpt2").fingerprint,
        from_vocab("qwen2", ignore_merges=True).fingerprint,
        from_vocab("qwen2", special_tokens=["<|endoftext|>"]).fingerprint,
    }
    assert len(prints) == 5
    same = from_vocab("qwen2", chat_template="{{ messages }}", pad_token="<|im_end|>")
    assert same.fingerprint == trained().fingerprint


def test_saving_keeps_other_files_and_drops_an_old_template(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    trained().save(tmp_path)
    from_vocab().save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_bos_is_written_and_read(tmp_path):
    tokenizer = from_vocab(bos_token="<|reserved_0|>", add_bos=True)
    assert tokenizer.bos_ids == [tokenizer.bos_token_id] == [4]
    assert tokenizer.encode("a") == from_vocab().encode("a")  # encode adds nothing
    theirs = reference(tokenizer, tmp_path)
    assert theirs.encode("a b").ids == [4, *tokenizer.encode("a b")]
    assert auto_tokenizer(tmp_path)("a b").input_ids == theirs.encode("a b").ids
    again = Tokenizer.load(tmp_path)
    assert again.bos_ids == [4]
    assert again.bos_token_id == 4


def test_a_bos_token_that_is_not_added(tmp_path):
    tokenizer = from_vocab("gpt2", bos_token="<|endoftext|>")
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert (again.bos_token_id, again.bos_ids) == (0, [])
    assert auto_tokenizer(tmp_path)("a").input_ids == tokenizer.encode("a")


def test_ignore_merges_takes_whole_words(tmp_path):
    pipeline = pipeline_of(trained())
    vocab = {**pipeline.vocab, "Ġzebra": 450, "<|x|>": 451}
    tokenizer = Tokenizer.from_vocab(
        vocab,
        pipeline.model.merges,
        split="llama3",
        special_tokens=["<|x|>"],
        ignore_merges=True,
    )
    assert tokenizer.encode(" zebra") == [450]
    theirs = reference(tokenizer, tmp_path)
    for text in (*TORTURE, " zebra zebras"):
        assert tokenizer.encode(text, allow_special=True) == theirs.encode(text).ids, repr(text)
    assert Tokenizer.load(tmp_path).encode(" zebra") == [450]


@pytest.mark.parametrize("unknown", [None, "<|endoftext|>"])
def test_bytes_without_a_token(unknown, tmp_path):
    # SmolLM2 lacks 21 bytes, 0xC1 and 0xF1 among them.
    content = write_pipeline(pipeline_of(trained()))
    vocab = dict(content["model"]["vocab"])
    for char in "ñ\x04":
        vocab.pop({"ñ": "ñ", "\x04": "Ą"}[char])
    content["model"] |= {"vocab": vocab, "unk_token": unknown}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = Tokenizer.load(tmp_path)
    theirs = reference(tokenizer, tmp_path / "again")
    for text in ("a\x04b", "\U00041234 x", "\x04"):
        assert tokenizer.encode(text) == theirs.encode(text).ids
    assert len(tokenizer.encode("\x04")) == (0 if unknown is None else 1)


def test_added_token_flags(tmp_path):
    mask, tool, tools = range(trained().vocab_size, trained().vocab_size + 3)
    added = [
        {"id": mask, "content": "<mask>", "lstrip": True, "special": True},
        {"id": tool, "content": "<tool>", "rstrip": True, "special": False},
        {"id": tools, "content": "<tool>s", "special": False},
    ]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer = Tokenizer.load(edited(tmp_path, added_tokens=[flags | token for token in added]))
    theirs = reference(tokenizer, tmp_path / "again")
    for text in ("a  <mask> b", "<tool> \n x<tool>", "x <tool>s<mask><mask> ", "<tool"):
        assert tokenizer.encode(text, allow_special=True) == theirs.encode(text).ids, text
    assert tokenizer.special_tokens == {"<mask>": mask}
    # Ordinary added tokens are vocabulary, special ones need permission.
    assert tool in tokenizer.encode("<tool>")
    assert mask not in tokenizer.encode("<mask>")
    assert tokenizer.vocab_size == tools + 1


def test_from_vocab_takes_lists_and_joined_merges():
    tokens = [*"abc", "ab", "abc", "<e>"]
    tokenizer = Tokenizer.from_vocab(
        tokens, ["a b", "ab c"], split="smollm", special_tokens=["<e>"], eos_token="<e>"
    )
    assert tokenizer.encode("abcab") == [4, 3]
    assert tokenizer.eos_token_id == 5
    assert tokenizer.stop_token_ids == {5}
    assert tokenizer.split == "smollm"
    assert tokenizer.vocab_size == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": ["a", "b", "a"]}, "token 'a' is in the vocabulary twice"),
        ({"merges": ["a c"]}, r"merge 0 \('a', 'c'\) needs the token 'c'"),
        ({"special_tokens": ["<e>"]}, "special token '<e>' is not in the vocabulary"),
        ({"eos_token": "<e>"}, "eos_token '<e>' is not in the vocabulary"),
        ({"add_bos": True}, "add_bos=True without a bos_token"),
    ],
)
def test_vocabularies_that_do_not_fit(changes, message):
    settings: dict[str, Any] = {"tokens": ["a", "b"], "merges": [], "split": "gpt2"} | changes
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_vocab(settings.pop("tokens"), settings.pop("merges"), **settings)


SPLIT = {"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Isolated", "invert": False}
TWO_TEXTS = [{"Sequence": {"id": "A"}}, {"Sequence": {"id": "B"}}]
LAST = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"normalizer": {"type": "Nmt"}}, "normalizer Nmt"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer Whitespace"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT]}}, "Split"),
        ({"decoder": {"type": "CTC"}}, "decoder CTC"),
        ({"decoder": None}, "decoder none"),
        ({"decoder": {"type": "Fuse"}}, "decoder .*Fuse"),
        ({"post_processor": {"type": "TemplateProcessing", "single": TWO_TEXTS}}, "two texts"),
        ({"model": {"type": "Other"}}, "model Other"),
        ({"model": {"type": "BPE", "byte_fallback": True}}, "byte_fallback=True"),
        ({"model": {"type": "BPE", "dropout": 0.1}}, r"dropout=0\.1"),
    ],
)
def test_parts_that_are_none_of_ours_are_named(changes, named):
    content = write_pipeline(pipeline_of(trained())) | copy.deepcopy(changes)
    with pytest.raises(UnsupportedPart, match=rf"{named}.*not supported yet"):
        read_pipeline(content)


def test_pipelines_that_are_none_of_ours_load_through_tokenizers(tmp_path):
    cut = {"type": "Sequence", "pretokenizers": [SPLIT, LAST]}
    folder = edited(tmp_path, pre_tokenizer=cut)
    tokenizer = Tokenizer.load(folder)
    theirs = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
    for text in TORTURE:
        assert tokenizer.encode(text, allow_special=True) == theirs.encode(text).ids
    assert tokenizer.encode_batch(TORTURE) == [tokenizer.encode(text) for text in TORTURE]
    chunks = [token for ids in tokenizer.encode_iter(TORTURE) for token in ids.tolist()]
    assert chunks == tokenizer.encode("".join(TORTURE))
    tokenizer.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").fingerprint == tokenizer.fingerprint


def test_added_tokens_that_stand_alone_are_refused(tmp_path):
    added = [{"id": 0, "content": "x", "single_word": True}]
    with pytest.raises(TokenizerError, match="single_word is not supported yet"):
        Tokenizer.load(edited(tmp_path, added_tokens=added))


def test_damaged_folders(tmp_path):
    with pytest.raises(TokenizerError, match=r"has no tokenizer.json.*llmlab tokenizer train"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"tokenizer.json is not JSON"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(TokenizerError, match="holds list, not an object"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"not a whole tokenizer.json.*'model'"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab": {"a": -1}}, "whole number from 0"),
        ({"vocab": {"a": "0"}}, "whole number from 0"),
        ({"vocab": {"a": 10**12}}, "whole number from 0"),
        ({"vocab": ["a"]}, "AttributeError"),
        ({"merges": ["a"]}, "not enough values"),
        ({"merges": [["a", "b", "c"]]}, "too many values"),
        ({"merges": [["a", "no such"]]}, r"merge 0 \('a', 'no such'\) needs the token"),
    ],
)
def test_damaged_vocabularies(changes, message, tmp_path):
    model = write_pipeline(pipeline_of(trained()))["model"] | changes
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.load(edited(tmp_path, model=model))


def test_a_tokenizer_travels_to_other_processes():
    again = pickle.loads(pickle.dumps(trained()))
    assert again.encode_batch(TORTURE) == trained().encode_batch(TORTURE)
    assert again.render_chat([{"role": "user", "content": "x"}])


def test_older_folders_keep_the_template_in_the_config(tmp_path):
    trained().save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "special_tokens_map.json").unlink()
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["eos_token"] = {"content": "<|im_end|>", "special": True}
    config["chat_template"] = CHATML
    path.write_text(json.dumps(config))
    assert Tokenizer.load(tmp_path).chat_template == CHATML
    assert Tokenizer.load(tmp_path).eos_token_id == 3
    config["chat_template"] = [
        {"name": "tool_use", "template": "x"},
        {"name": "default", "template": CHATML},
    ]
    path.write_text(json.dumps(config))
    assert Tokenizer.load(tmp_path).chat_template == CHATML
