"""Import of GGUF files: tiny random models written with the `gguf` package's own tensor names."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from llmlab.cli.main import main
from llmlab.errors import ModelError, OutputError
from llmlab.model import load_model
from llmlab.model.gguf import GgufFile
from llmlab.model.gguf_import import gguf_model, import_gguf
from llmlab.model.gguf_names import halves_from_pairs

# Two float32 implementations of the same sums in another order, logits of size about 1.
FLOAT32_TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DECODER: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
ROPE_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def byte_letters() -> list[str]:
    """The 256 letters that stand for bytes in a byte-level vocabulary (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges: three special tokens, the bytes, and a few words."""
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "Ġwor l", "Ġworl d", "Ġ Ġ"]
    words = [merge.replace(" ", "") for merge in merges]
    return [*SPECIAL, *byte_letters(), *words], merges


TOKENS, MERGES = vocabulary()


def tiny(kind: str, *, tie: bool = True, **changes: Any) -> PreTrainedModel:
    """A random transformers model of a supported architecture."""
    torch.manual_seed(0)
    shared = {"vocab_size": len(TOKENS), "tie_word_embeddings": tie}
    if kind == "gpt2":
        config = transformers.GPT2Config(
            n_embd=64, n_layer=2, n_head=4, n_positions=128, initializer_range=0.2, **shared
        )
    else:
        classes: dict[str, Any] = {
            "llama": transformers.LlamaConfig,
            "qwen2": transformers.Qwen2Config,
            "qwen3": transformers.Qwen3Config,
        }
        extra = {"head_dim": 32} if kind == "qwen3" else {}
        config = classes[kind](**{**DECODER, **shared, **extra, **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    # Biases and norms start at 0 and 1, which would hide a swap of two of them.
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
    return model


def write(
    model: PreTrainedModel,
    path: Path,
    *,
    kind: str,
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    pre: str = "qwen2",
    changes: dict[str, Any] | None = None,
) -> Path:
    """Write a transformers model as llama.cpp's converter lays it out."""
    writer = gguf.GGUFWriter(path, kind)
    config = model.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_file_type(0)
    if kind == "gpt2":
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        _write_head_dim_and_scaling(writer, config, kind)
    _write_tokenizer(writer, pre)
    for key, value in (changes or {}).items():
        writer.kv_data[0].pop(key, None)
        writer.add_string(key, value)
    names = gguf.get_tensor_name_map(
        {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[kind], config.num_hidden_layers
    )
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = _as_stored(name, tensor.numpy(), kind, config)
        target = names.get_name(name, (".weight", ".bias"))
        fits = array.ndim == 2 and array.shape[-1] % gguf.GGML_QUANT_SIZES[quantization][0] == 0
        if quantization != gguf.GGMLQuantizationType.F32 and fits:
            packed = gguf.quantize(array, quantization)
            writer.add_tensor(target, packed, raw_dtype=quantization)
        else:
            writer.add_tensor(target, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_head_dim_and_scaling(writer: gguf.GGUFWriter, config: Any, kind: str) -> None:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if kind == "qwen3":
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    elif kind == "llama":
        writer.add_rope_dimension_count(head_dim)
    rope = config.rope_parameters
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "llama3":
        plain = rope["rope_theta"] ** -(np.arange(0, head_dim, 2) / head_dim)
        factors = plain / AutoModelForCausalLM.from_config(config).model.rotary_emb.inv_freq.numpy()
        writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))


def _write_tokenizer(writer: gguf.GGUFWriter, pre: str) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def _as_stored(name: str, array: np.ndarray, kind: str, config: Any) -> np.ndarray:
    """Permute llama's rotary rows and transpose GPT-2's layers, as llama.cpp stores them."""
    conv1d = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    if kind == "gpt2" and name.endswith(conv1d):
        return np.ascontiguousarray(array.T)
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    part = name.split(".")[-2]
    if kind == "llama" and part in heads:
        num = getattr(config, heads[part])
        halves = array.reshape(num, 2, -1, *array.shape[1:])  # (H, 2, D/2, ...)
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)
    return array


CASES = [
    ("llama", {}),
    ("llama", {"tie": False}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    ("llama", {"rope_parameters": ROPE_LLAMA3}),
    ("qwen2", {}),
    ("qwen3", {"tie": False}),
    ("gpt2", {}),
    ("gpt2", {"tie": False}),
]


@pytest.mark.parametrize(("kind", "changes"), CASES, ids=lambda x: str(x)[:40])
def test_logits_equal_transformers(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    reference = tiny(kind, **changes)
    path = write(reference, tmp_path / "tiny.gguf", kind=kind)
    ids = torch.randint(0, len(TOKENS), (2, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = reference(ids).logits
        got = gguf_model(GgufFile(path))(ids)
    torch.testing.assert_close(got, expected, **FLOAT32_TOLERANCE)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gpt2"])
def test_the_folder_loads_here_and_in_transformers(kind: str, tmp_path: Path) -> None:
    reference = tiny(kind)
    path = write(reference, tmp_path / "tiny.gguf", kind=kind)
    out = import_gguf(path, tmp_path / "model")
    assert out == tmp_path / "model"
    model, tokenizer = load_model(out)
    ids = torch.tensor([tokenizer.encode("hello world, grüße  7")])
    stock = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = reference(ids).logits
        torch.testing.assert_close(model(ids), expected, **FLOAT32_TOLERANCE)
        torch.testing.assert_close(stock(ids).logits, expected, **FLOAT32_TOLERANCE)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_1", "Q5_0", "F16", "BF16"])
def test_quantised_weights_are_the_gguf_packages(name: str, tmp_path: Path) -> None:
    """The model computes with exactly the numbers that gguf.dequantize gives."""
    reference = tiny("llama")
    kind = gguf.GGMLQuantizationType[name]
    path = write(reference, tmp_path / "tiny.gguf", kind="llama", quantization=kind)
    model = gguf_model(GgufFile(path))
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.name == "blk.1.attn_k.weight":
            packed = gguf.dequantize(tensor.data, tensor.tensor_type)
            expected = halves_from_pairs(packed, 2)
            got = model.get_parameter("model.layers.1.self_attn.k_proj.weight")
            np.testing.assert_array_equal(got.detach().numpy(), expected)


def test_transformers_own_gguf_loading_agrees(tmp_path: Path) -> None:
    path = write(tiny("llama"), tmp_path / "tiny.gguf", kind="llama")
    stock = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        gguf_file=path.name,
        dtype=torch.float32,
        quantization_config=transformers.GgufConfig(dequantize=True),
    ).eval()
    ids = torch.randint(0, len(TOKENS), (1, 60), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(
            gguf_model(GgufFile(path))(ids), stock(ids).logits, **FLOAT32_TOLERANCE
        )


def test_bfloat16_folder_holds_rounded_weights(tmp_path: Path) -> None:
    reference = tiny("qwen3")
    path = write(reference, tmp_path / "tiny.gguf", kind="qwen3")
    model, _ = load_model(import_gguf(path, tmp_path / "model", dtype="bfloat16"))
    expected = reference.state_dict()["model.layers.0.mlp.up_proj.weight"]
    got = model.get_parameter("model.layers.0.mlp.up_proj.weight")
    torch.testing.assert_close(got, expected.bfloat16().float(), atol=0, rtol=0)


def test_tokenizer_chat_and_special_tokens(tmp_path: Path) -> None:
    path = write(tiny("llama"), tmp_path / "tiny.gguf", kind="llama")
    out = import_gguf(path, tmp_path / "model")
    _, tokenizer = load_model(out)
    stock: Any = AutoTokenizer.from_pretrained(out)
    text = "hello world\n  hello <|im_end|> 🙂 ½"
    assert tokenizer.encode(text, allow_special=True) == stock.encode(
        text, add_special_tokens=False
    )
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.special_tokens == {token: at for at, token in enumerate(SPECIAL)}
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 2)
    assert 2 in tokenizer.stop_token_ids
    messages = [{"role": "user", "content": "hello"}]
    assert tokenizer.render_chat(messages) == stock.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "mamba"}, "architecture 'mamba'.*gpt2, llama, qwen2, qwen3"),
        ({"tokenizer.ggml.model": "rwkv"}, "tokenizer model 'rwkv'.*gpt2"),
        ({"tokenizer.ggml.pre": "tekken"}, "'tekken'"),
        ({"llama.rope.scaling.type": "yarn"}, "'yarn'.*linear"),
        ({"llama.block_count": "two"}, "llama.block_count is not one number"),
    ],
)
def test_what_is_not_read_is_named(changes: dict[str, str], message: str, tmp_path: Path) -> None:
    path = write(tiny("llama"), tmp_path / "tiny.gguf", kind="llama", changes=changes)
    with pytest.raises(ModelError, match=message):
        import_gguf(path, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    file = GgufFile(write(tiny("llama"), tmp_path / "tiny.gguf", kind="llama"))
    del file.tensors["blk.1.ffn_up.weight"]
    with pytest.raises(ModelError, match=r"lacks model.layers.1.mlp.up_proj.weight \(1 tensors"):
        gguf_model(file)


def test_an_existing_folder_is_kept(tmp_path: Path) -> None:
    path = write(tiny("llama"), tmp_path / "tiny.gguf", kind="llama")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="already exists"):
        import_gguf(path, tmp_path / "model")
    import_gguf(path, tmp_path / "model", overwrite=True)
    assert not (tmp_path / "model" / "mine.txt").exists()


def test_the_verb_names_the_folder_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tiny("llama"), tmp_path / "tiny.gguf", kind="llama")
    out = tmp_path / "model"
    assert main(["import", "gguf", str(path), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("imported LlamaForCausalLM, 0.1M parameters, float32")
    assert lines[-1] == str(out)
    assert main(["import", "gguf", str(path), "--out", str(out)]) == 1
    assert "--overwrite" in capsys.readouterr().err
