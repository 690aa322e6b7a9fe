"""A model made ready to serve computes what it did before."""

import pytest
import torch

from llmlab.kernels.op import serving
from llmlab.kernels.packed_linear import PackedLinear, can_pack
from llmlab.kernels.quantized_linear import Int8Linear
from llmlab.model.fused import fuse_
from tests.tiny import tiny_model

needs_packing = pytest.mark.skipif(
    not can_pack(torch.zeros(1, 1)), reason="needs a C++ compiler, and native functions"
)
IDS = torch.arange(40).view(1, 40) % 250


@needs_packing
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", ["qwen3", "llama", "qwen2", "gpt2", "qwen3_moe", "lstm"])
def test_the_same_logits(architecture, tied):
    model = tiny_model(architecture, tie_word_embeddings=tied)
    with torch.inference_mode(), serving():
        expected = model(IDS)
        head = fuse_(model, max_len=64)
        found = head(model.hidden(IDS))
    assert isinstance(head, PackedLinear)
    # float32, three layers: the same sums in another order.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@needs_packing
@pytest.mark.parametrize(("scheme", "most"), [("int8", 0.1), ("int8-dynamic", 0.3), ("int4", 1.5)])
def test_rounded_weights_change_little(scheme, most):
    model = tiny_model("qwen3")
    with torch.inference_mode(), serving():
        expected = model(IDS)
        found = fuse_(model, scheme=scheme)(model.hidden(IDS))
    assert 0 < (found - expected).abs().mean() < most


def test_where_nothing_can_be_packed_layers_are_rounded_all_the_same():
    model = tiny_model("qwen3").double()
    head = fuse_(model, scheme="int8")
    assert isinstance(model.get_submodule("model.layers.0.mlp.up_proj"), Int8Linear)
    assert head(model.hidden(IDS)).shape == (1, 40, model.config.vocab_size)
