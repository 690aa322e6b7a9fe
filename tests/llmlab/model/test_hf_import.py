"""Import of folders that transformers wrote, from the disk and from a hub."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from llmlab.cli.main import main
from llmlab.errors import MissingExtraError, ModelError, OutputError, TokenizerError
from llmlab.model import load_model
from llmlab.model.hf_import import import_hf
from tests.full_disk import files_no_larger_than
from tests.llmlab.model.small_hub import COMMIT, small_hub
from tests.tiny import CHAT, TEXTS, tiny_model_folder, tiny_tokenizer

# Two float32 implementations of the same sums in another order, logits of size about 1.
FLOAT32_TOLERANCE = {"atol": 1e-4, "rtol": 0}
VOCAB_SIZE = 400
DECODER: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "vocab_size": VOCAB_SIZE,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "head_dim": 16,
}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
)
CONFIGS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**DECODER, tie_word_embeddings=False),
    "mistral": lambda: transformers.MistralConfig(**DECODER, sliding_window=16),
    "qwen2": lambda: transformers.Qwen2Config(**DECODER, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(**DECODER, head_dim=32, tie_word_embeddings=True),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**DECODER, **EXPERTS),
    "gpt2": lambda: transformers.GPT2Config(
        n_embd=64, n_layer=2, n_head=4, n_positions=128, vocab_size=VOCAB_SIZE,
        initializer_range=0.2, bos_token_id=0, eos_token_id=0,
    ),
}  # fmt: skip


def written(kind: str, folder: Path, *, shard: str = "5GB") -> PreTrainedModel:
    """Write a random model and a tokenizer into a folder, both by transformers itself."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind]()).eval()
    with torch.no_grad():  # biases and norms of zeros and ones would hide a swap
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.normal_(mean=1.0, std=0.2)
    model.save_pretrained(folder, max_shard_size=shard)
    own = folder.with_name("own-tokenizer")
    tiny_tokenizer().save(own)
    tokenizer: Any = AutoTokenizer.from_pretrained(own)
    tokenizer.save_pretrained(folder)
    return model


def some_ids() -> torch.Tensor:
    return torch.randint(0, 380, (2, 60), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", CONFIGS)
def test_logits_equal_transformers(kind: str, tmp_path: Path):
    """From several files into one; what comes out is read by transformers as well."""
    reference = written(kind, tmp_path / "theirs", shard="60KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").is_file()
    assert import_hf(tmp_path / "theirs", tmp_path / "ours") == tmp_path / "ours"
    assert (tmp_path / "ours" / "model.safetensors").is_file()
    model, tokenizer = load_model(tmp_path / "ours")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    ids = some_ids()
    with torch.no_grad():
        expected = reference(ids).logits
        torch.testing.assert_close(model(ids), expected, **FLOAT32_TOLERANCE)
        torch.testing.assert_close(stock(ids).logits, expected, **FLOAT32_TOLERANCE)
    assert tokenizer.fingerprint == tiny_tokenizer().fingerprint


def test_tokenizer_and_chat_template_come_with_it(tmp_path: Path):
    written("llama", tmp_path / "theirs")
    stock: Any = AutoTokenizer.from_pretrained(tmp_path / "theirs")
    import_hf(tmp_path / "theirs", tmp_path / "ours")
    _, tokenizer = load_model(tmp_path / "ours")
    for text in TEXTS:
        assert tokenizer.encode(text) == stock.encode(text, add_special_tokens=False)
    assert tokenizer.render_chat(list(CHAT)) == stock.apply_chat_template(
        list(CHAT), tokenize=False, add_generation_prompt=True
    )


@pytest.mark.parametrize("dtype", ["stored", "float32", "float16"])
def test_weights_keep_their_dtype_or_take_another(dtype: str, tmp_path: Path):
    model = written("qwen3", tmp_path / "theirs")
    model.bfloat16().save_pretrained(tmp_path / "theirs")
    import_hf(tmp_path / "theirs", tmp_path / "ours", dtype=dtype)
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["torch_dtype"] == ("bfloat16" if dtype == "stored" else dtype)
    loaded, _ = load_model(tmp_path / "ours")
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, model.get_parameter(name).float()), name


def sentencepiece_folder(folder: Path, **settings: Any) -> None:
    """A Llama folder of the old kind: tokenizer.model, and tokens beside its pieces."""
    written("llama", folder)
    for name in ("tokenizer.json", "chat_template.jinja", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 4), model_prefix=str(folder / "tokenizer"),
        vocab_size=340, model_type="bpe", byte_fallback=True, minloglevel=2,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    tokens = {0: "<unk>", 1: "<s>", 2: "</s>", 340: "<|im_start|>", 341: "<|im_end|>"}
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": False,
        "chat_template": CHAT_TEMPLATE,
        "added_tokens_decoder": {
            str(at): {"content": text, "special": True, **flags} for at, text in tokens.items()
        },
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config | settings))


def test_a_sentencepiece_model_is_read(tmp_path: Path):
    folder = tmp_path / "theirs"
    sentencepiece_folder(folder)
    reference = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    import_hf(folder, tmp_path / "ours")
    _, tokenizer = load_model(tmp_path / "ours")
    assert tokenizer.vocab_size == 342
    assert (tokenizer.bos_ids, tokenizer.eos_token_id, tokenizer.unk_token_id) == ([1], 2, 0)
    for text in (*TEXTS, "  two  spaces", "unknown ∆"):
        assert tokenizer.encode(text) == reference.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode_chat(list(CHAT))[0] == 340
    assert 341 in tokenizer.stop_token_ids
    stock: Any = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert stock(TEXTS[0]).input_ids == [1, *reference.encode(TEXTS[0])]


def test_a_sentencepiece_model_with_nothing_before_a_text(tmp_path: Path):
    sentencepiece_folder(tmp_path / "theirs", add_bos_token=False)
    import_hf(tmp_path / "theirs", tmp_path / "ours")
    assert load_model(tmp_path / "ours")[1].bos_ids == []
    sentencepiece_folder(tmp_path / "theirs", add_prefix_space=False)
    with pytest.raises(TokenizerError, match=r"add_prefix_space=False.*save the tokenizer as"):
        import_hf(tmp_path / "theirs", tmp_path / "other")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["BloomForCausalLM"]}, "'BloomForCausalLM' is not supported"),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type='longrope' is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config=.* is not supported"),
        ({"num_hidden_layers": 3}, r"lacks model\.layers\.2"),
    ],
)
def test_what_is_not_computed_here_is_named(changes: dict[str, Any], message: str, tmp_path: Path):
    written("llama", tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelError, match=message):
        import_hf(tmp_path / "theirs", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_pickled_weights_are_refused_with_the_reason(tmp_path: Path):
    folder = tiny_model_folder(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only pytorch_model\.bin; it is a pickle, which can run"):
        import_hf(folder, tmp_path / "ours")


def test_a_folder_without_a_tokenizer(tmp_path: Path):
    folder = tiny_model_folder(tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json and no tokenizer\.model; in tra"):
        import_hf(folder, tmp_path / "ours")


def test_sources_of_another_kind(tmp_path: Path):
    with pytest.raises(ModelError, match=r"run `llmlab import gguf model\.gguf`"):
        import_hf("model.gguf", tmp_path / "ours")
    with pytest.raises(ModelError, match="revision='v1' is for models of the hub"):
        import_hf(tmp_path, tmp_path / "ours", revision="v1")
    with pytest.raises(ModelError, match="no model folder"):
        import_hf(tmp_path / "nowhere", tmp_path / "ours")
    with pytest.raises(ModelError, match="'hf:tiny' is not of the form hf:OWNER/NAME"):
        import_hf("hf:tiny", tmp_path / "ours")


def test_a_full_disk_and_an_existing_folder(tmp_path: Path):
    folder = tiny_model_folder(tmp_path)
    with pytest.raises(OutputError, match=r"cannot write .*ours.*free some space"):
        with files_no_larger_than(100_000):
            import_hf(folder, tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    with pytest.raises(OutputError, match="already exists"):
        import_hf(folder, folder)


def test_the_verb_names_the_folder_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder, out = tiny_model_folder(tmp_path), tmp_path / "ours"
    assert main(["import", str(folder), "--out", str(out), "--dtype", "bfloat16"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "imported Qwen3ForCausalLM, 0.1M parameters, bfloat16",
        f"from {folder}",
        str(out),
    ]
    assert main(["import", str(folder), "--out", str(out)]) == 1
    assert "--overwrite" in capsys.readouterr().err


def test_without_the_extra_the_error_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delitem(sys.modules, "llmlab.model.hub", raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'llmlab\[hub\]'"):
        import_hf("hf:owner/tiny", tmp_path / "ours")


FETCH = """
import json, sys
from llmlab.errors import ModelError
from llmlab.model.hub import fetch_model
try:
    print(json.dumps(str(fetch_model(*json.loads(sys.argv[1])))))
except ModelError as error:
    print(json.dumps({"error": str(error)}))
assert "torch" not in sys.modules
"""


def hub_environment(url: str, cache: Path) -> dict[str, str]:
    """Another hub than the usual one; its address is read when a process starts."""
    return dict(os.environ) | {"HF_ENDPOINT": url, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}


def fetched_from(url: str, cache: Path, source: str, revision: str | None = None) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", FETCH, json.dumps([source, revision])],
        env=hub_environment(url, cache), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_only_what_a_model_folder_is_made_of_is_fetched(tmp_path: Path):
    folder = tiny_model_folder(tmp_path)
    unwanted = {"pytorch_model.bin", "README.md", "modeling_tiny.py", "model.onnx"}
    for name in unwanted:
        (folder / name).write_text("no part of a model folder")
    with small_hub("owner/tiny", folder) as (url, files):
        place = Path(fetched_from(url, tmp_path / "cache", "hf:owner/tiny", "main"))
    assert place.name == COMMIT
    assert set(files) == {path.name for path in folder.iterdir()} - unwanted
    import_hf(place, tmp_path / "ours")
    expected, _ = load_model(folder)
    model, _ = load_model(tmp_path / "ours")
    assert torch.equal(model(some_ids()), expected(some_ids()))


def test_models_that_are_not_to_be_had(tmp_path: Path):
    folder = tiny_model_folder(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with small_hub("owner/pickled", folder) as (url, files):
        pickled = fetched_from(url, tmp_path / "cache", "hf:owner/pickled")
        unknown = fetched_from(url, tmp_path / "cache", "hf:owner/unknown")
    assert "pickled weights (pytorch_model.bin) can run any code" in pickled["error"]
    assert "pytorch_model.bin" not in files
    assert "cannot fetch hf:owner/unknown: " in unknown["error"]
    assert "check the name, the revision and the network" in unknown["error"]


@pytest.mark.slow
def test_the_verb_and_a_hub_that_is_out_of_reach(tmp_path: Path):
    """Slow: without an answer huggingface_hub tries five times."""
    folder = tiny_model_folder(tmp_path)

    def run(name: str, out: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "llmlab", "import", name, "--out", str(tmp_path / out)],
            env=hub_environment(url, tmp_path / "cache"), capture_output=True, text=True,
            check=False,
        )  # fmt: skip

    with small_hub("owner/tiny", folder) as (url, _):
        done = run("hf:owner/tiny", "ours")
    assert done.returncode == 0, done.stderr
    lines = [f"from hf:owner/tiny at {COMMIT}", str(tmp_path / "ours")]
    assert done.stdout.splitlines()[1:] == lines
    gone = run("hf:owner/other", "theirs")
    assert gone.returncode == 1
    assert "cannot fetch hf:owner/other" in gone.stderr.splitlines()[-1]
    # What was fetched before needs no hub.
    assert run("hf:owner/tiny", "again").returncode == 0
