"""Model folders as GGUF files: what llama.cpp computes with them, and the way back."""

import dataclasses
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from llmlab.cli.main import main
from llmlab.errors import ModelError, OutputError, TokenizerError
from llmlab.export import ExportGgufConfig, export_gguf
from llmlab.model import LanguageModel, import_gguf, load_model, save_model
from llmlab.model.config_json import ATTENTION_SIZES
from llmlab.model.experts_config import Experts
from llmlab.model.generation import generate_ids
from llmlab.model.gguf import GgufFile
from llmlab.model.rope_config import RopeScaling
from llmlab.tokenizers import Tokenizer
from tests.full_disk import files_no_larger_than
from tests.llmlab.export.llama_cpp_model import HAS_LLAMA_CPP, llama_cpp
from tests.tiny import TEXTS, tiny_model, tiny_model_folder, tiny_tokenizer

# Float32 sums in another order, logits of size about 6. GPT-2's GELU is a table of float16 there.
TOLERANCE = {"gpt2": 4e-3}
FLOAT32_TOLERANCE = 5e-5
LLAMA3 = RopeScaling(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
LINEAR = RopeScaling(rope_type="linear", factor=4.0)
YARN = RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
YARN_ODD = RopeScaling(
    rope_type="yarn",
    factor=8.0,
    original_max_position_embeddings=16,
    attention_factor=1.5,
    beta_fast=16.0,
    beta_slow=2.0,
)
EXPERTS = Experts(
    num_experts=4, num_experts_per_tok=2, moe_intermediate_size=40, norm_topk_prob=True
)
DYNAMIC = RopeScaling(rope_type="dynamic", factor=4.0)
UNROUNDED = dataclasses.replace(YARN, truncate=False)
UNNORMED = dataclasses.replace(EXPERTS, norm_topk_prob=False)
SOME_DENSE = dataclasses.replace(EXPERTS, decoder_sparse_step=2)
RECURRENT = {"hidden_act": "tanh", **dict.fromkeys(ATTENTION_SIZES, 0)}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("qwen3", {}),
    ("qwen3", {"rope_scaling": LINEAR, "tie_word_embeddings": False}),
    ("llama", {}),
    ("llama", {"rope_scaling": LLAMA3, "tie_word_embeddings": False}),
    ("llama", {"rope_scaling": YARN}),
    ("mistral", {}),
    ("qwen2", {"head_dim": 12}),
    ("qwen3", {"rope_scaling": YARN_ODD}),
    ("qwen3_moe", {"experts": EXPERTS}),
    ("gpt2", {}),
    ("gpt2", {"tie_word_embeddings": False}),
]

needs_llama_cpp = pytest.mark.skipif(
    not HAS_LLAMA_CPP, reason="needs llama.cpp: `pip install xllamacpp`"
)


def folder_of(model: LanguageModel, path: Path) -> Path:
    """A model folder whose norms and biases are no ones and zeros, which would hide a swap."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.normal_(mean=1.0, std=0.2)
    save_model(model, tiny_tokenizer(), path)
    return path


def export(folder: Path, kind: Any, **settings: Any) -> Path:
    out = folder.with_name(f"{folder.name}-{kind}.gguf")
    return export_gguf(ExportGgufConfig(model=folder, out=out, type=kind, **settings)).out


def some_ids(count: int) -> list[int]:
    return torch.randint(0, 300, (count,), generator=torch.Generator().manual_seed(0)).tolist()


@needs_llama_cpp
@pytest.mark.parametrize(("architecture", "changes"), CASES, ids=lambda x: str(x)[:40])
def test_llama_cpp_computes_the_same(architecture: str, changes: dict[str, Any], tmp_path: Path):
    """Logits at every place, and the tokens that follow; 16 rows more than there are tokens."""
    model = tiny_model(architecture, vocab_size=400, **changes)
    file = export(folder_of(model, tmp_path / "model"), "f32")
    ids = some_ids(50)
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0].numpy()
    logits, following = llama_cpp(file, ids, num_new=12)
    atol = TOLERANCE.get(architecture, FLOAT32_TOLERANCE)
    np.testing.assert_allclose(logits, expected, atol=atol, rtol=0)
    assert following == list(generate_ids(model, ids, max_tokens=12))


@needs_llama_cpp
@pytest.mark.parametrize(
    ("kind", "rounding"), [("f16", 2.0**-11), ("bf16", 2.0**-8), ("q8_0", 1 / 127)]
)
def test_llama_cpp_computes_nearly_the_same_with_fewer_bits(
    kind: str, rounding: float, tmp_path: Path
):
    """The weights are equal; ggml rounds what it multiplies them with to their format, too."""
    sizes = {"hidden_size": 64, "intermediate_size": 96}
    file = export(folder_of(tiny_model("llama", **sizes), tmp_path / "model"), kind)
    rounded_model, _ = load_model(import_gguf(file, tmp_path / "back"))
    ids = some_ids(40)
    with torch.no_grad():
        expected = rounded_model(torch.tensor([ids]))[0].numpy()
    error = llama_cpp(file, ids)[0] - expected
    # About 3 to 5 roundings after 22 products in a row; other weights would be 100 and more.
    assert error.std() <= 8 * rounding * expected.std()


@pytest.mark.parametrize(("architecture", "changes"), CASES, ids=lambda x: str(x)[:40])
def test_float32_comes_back_bit_for_bit(architecture: str, changes: dict[str, Any], tmp_path: Path):
    model = tiny_model(architecture, vocab_size=400, **changes)
    file = export(folder_of(model, tmp_path / "model"), "f32")
    back, tokenizer = load_model(import_gguf(file, tmp_path / "back"))
    assert tokenizer.fingerprint == tiny_tokenizer().fingerprint
    assert tokenizer.chat_template == tiny_tokenizer().chat_template
    assert back.config.rope_scaling == model.config.rope_scaling
    assert back.config.experts == model.config.experts
    assert back.state_dict().keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], weight), name


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gpt2"])
@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
def test_other_formats_come_back_rounded(kind: str, architecture: str, tmp_path: Path):
    is_gpt2 = architecture == "gpt2"
    sizes = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    model = tiny_model(architecture, **sizes)
    file = export(folder_of(model, tmp_path / "model"), kind)
    back, _ = load_model(import_gguf(file, tmp_path / "back"))
    for name, weight in model.state_dict().items():
        transposed = is_gpt2 and ".h." in name and weight.dim() == 2
        stored = weight.T if transposed else weight
        exact = weight.dim() == 1 or name == "transformer.wpe.weight"
        expected = stored if exact else rounded(stored, kind)
        assert torch.equal(back.state_dict()[name], expected.T if transposed else expected), name


def rounded(weight: torch.Tensor, kind: str) -> torch.Tensor:
    if kind != "q8_0":
        return weight.to({"f16": torch.float16, "bf16": torch.bfloat16}[kind]).float()
    packed = gguf.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q8_0)
    return torch.from_numpy(gguf.dequantize(packed, gguf.GGMLQuantizationType.Q8_0))


def test_the_gguf_package_reads_the_file(tmp_path: Path):
    folder = tiny_model_folder(tmp_path)
    file = export(folder, "q8_0", name="Tiny")
    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "qwen3"
    assert fields["general.name"] == "Tiny"
    assert fields["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0
    assert fields["general.quantization_version"] == gguf.GGML_QUANT_VERSION
    assert fields["qwen3.attention.key_length"] == 16
    assert reader.fields["qwen3.rope.freq_base"].types == [gguf.GGUFValueType.FLOAT32]
    assert reader.fields["qwen3.block_count"].types == [gguf.GGUFValueType.UINT32]
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert next(iter(kinds)) == "token_embd.weight"
    assert "output.weight" not in kinds  # the head is tied
    assert kinds["blk.0.attn_output.weight"] == "Q8_0"  # rows of 64
    assert kinds["blk.0.attn_q.weight"] == "F16"  # rows of 48, which blocks of 32 do not fill
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    assert all(tensor.data_offset % 32 == 0 for tensor in reader.tensors)


def test_a_folder_in_several_files_of_bfloat16(tmp_path: Path):
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    save_model(model, tokenizer, whole, dtype="bfloat16")
    save_model(model, tokenizer, parts, dtype="bfloat16", max_shard_bytes=30_000)
    assert len(list(parts.glob("*.safetensors"))) > 3
    left, right = (export(folder, "bf16", name="same") for folder in (whole, parts))
    assert left.read_bytes() == right.read_bytes()
    stored = GgufFile(left).array("blk.1.ffn_up.weight")
    expected = model.get_parameter("model.layers.1.mlp.up_proj.weight").bfloat16().float()
    np.testing.assert_array_equal(stored, expected.detach().numpy())


@pytest.mark.parametrize("algorithm", ["unigram", "wordpiece"])
def test_other_tokenizers_come_back_equal(algorithm: Any, tmp_path: Path):
    """With rows beyond the last token, which a GGUF file has to name."""
    tokenizer = Tokenizer.train(TEXTS, vocab_size=380, algorithm=algorithm)
    save_model(tiny_model(vocab_size=400), tokenizer, tmp_path / "model")
    file = export(tmp_path / "model", "f32")
    _, back = load_model(import_gguf(file, tmp_path / "back"))
    assert back.fingerprint == tokenizer.fingerprint
    assert back.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("gpt2", {"hidden_act": "gelu"}, "hidden_act='gelu' is GELU itself.*gelu_new"),
        ("qwen3", {"rope_scaling": LLAMA3}, "rope_type='llama3' is computed.*for Llama only"),
        ("llama", {"rope_scaling": DYNAMIC}, "rope_type='dynamic' is not computed by llama.cpp"),
        ("qwen3", {"rope_scaling": UNROUNDED}, "truncate=False in rope_scaling"),
        ("mistral", {"sliding_window": 64}, "sliding_window=64 is passed over by llama.cpp"),
        ("qwen3_moe", {"experts": UNNORMED}, "norm_topk_prob is false, and llama.cpp"),
        ("qwen3_moe", {"experts": SOME_DENSE}, "layer 0 is dense, and llama.cpp"),
        ("lstm", RECURRENT, "LSTMForCausalLM has no form in GGUF"),
        ("qwen2", {"head_dim": 16}, "num_attention_heads x head_dim = 64 is not hidden_size=48"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(
    architecture: str, changes: dict[str, Any], message: str, tmp_path: Path
):
    folder = folder_of(tiny_model(architecture, **changes), tmp_path / "model")
    with pytest.raises(ModelError, match=message):
        export(folder, "f32")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_tokenizer_that_llama_cpp_lacks_is_refused(tmp_path: Path):
    tokenizer = Tokenizer.train(TEXTS, vocab_size=380, algorithm="char")
    save_model(tiny_model(), tokenizer, tmp_path / "model")
    with pytest.raises(TokenizerError, match="no tokenizer of whole words or single characters"):
        export(tmp_path / "model", "f32")


def test_a_weight_too_large_for_the_format_leaves_no_file(tmp_path: Path):
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("model.layers.2.mlp.up_proj.weight")[3, 5] = 1e6
    folder = folder_of(model, tmp_path / "model")
    with pytest.raises(ModelError, match=r"blk\.2\.ffn_up\.weight has the number 1000000\.0"):
        export(folder, "f16")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_leaves_no_file_and_an_old_one_as_it_was(tmp_path: Path):
    folder = tiny_model_folder(tmp_path)
    old = export(folder, "f16")
    before = old.read_bytes()
    with pytest.raises(OutputError, match=r"cannot write .*f16\.gguf.*free some space"):
        with files_no_larger_than(100_000):
            export(folder, "f16", overwrite=True)
    assert old.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, old.name}


def test_an_existing_file_is_kept(tmp_path: Path):
    folder = tiny_model_folder(tmp_path)
    export(folder, "f16")
    with pytest.raises(OutputError, match=r"already exists.*--overwrite"):
        export(folder, "f16")


def test_the_verb_names_the_file_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder, out = tiny_model_folder(tmp_path, "gpt2"), tmp_path / "tiny.gguf"
    command = ["export", "gguf", "--model", str(folder), "--out", str(out)]
    assert main([*command, "--type", "q8_0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("exported gpt2, 0.1M parameters, 0.2 MB")
    assert lines[-1] == str(out)
    assert main(command) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main(["export", "gguf", "--model", str(tmp_path), "--out", "x.gguf"]) == 1
    assert "no model folder" in capsys.readouterr().err
