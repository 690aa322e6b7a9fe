"""What holds for every model: loss at the start, masks, caches, positions, compilation."""

import math

import pytest
import torch
from torch import Tensor

from llmlab.errors import ModelError
from llmlab.model import LanguageModel, build_model
from llmlab.model.attention import in_window
from llmlab.model.cache import KVCache
from llmlab.model.window_config import FULL, SLIDING
from tests.tiny import tiny_config, tiny_model

ARCHITECTURES = ["qwen3", "qwen3_moe", "llama", "mistral", "qwen2", "gpt2"]
RECURRENT = ["rnn", "lstm", "gru"]
# float32; products over other shapes may sum in another order.
ATOL = 2e-5


@pytest.fixture(params=[*ARCHITECTURES, "window"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    if request.param == "window":
        return tiny_model(sliding_window=5, layer_types=(SLIDING, FULL, SLIDING))
    return tiny_model(request.param)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *RECURRENT])
def test_loss_at_step_0_is_the_logarithm_of_the_vocabulary(architecture: str):
    torch.manual_seed(0)
    model = build_model(tiny_config(architecture))
    input_ids = torch.randint(0, 384, (4, 64))
    labels = torch.randint(0, 384, (4, 64))
    # Initial logits have a standard deviation of 0.02 sqrt(E) = 0.14, which adds half its square.
    assert model.loss(input_ids, labels).item() == pytest.approx(math.log(384), abs=0.05)


def test_a_token_does_not_see_the_future(model: LanguageModel):
    input_ids = torch.randint(0, 384, (1, 20))
    changed = input_ids.clone()
    changed[0, 12:] = (changed[0, 12:] + 1) % 384
    with torch.inference_mode():
        torch.testing.assert_close(model(input_ids)[:, :12], model(changed)[:, :12])
        assert not torch.allclose(model(input_ids)[:, 12:], model(changed)[:, 12:])


@pytest.mark.parametrize("cuts", [[20], [1] * 20, [7, 1, 6, 1, 5]])
def test_cached_equals_uncached(model: LanguageModel, cuts: list[int]):
    input_ids = torch.randint(0, 384, (2, 20))
    cache = KVCache(model.config, batch_size=2, max_len=20)
    parts = []
    with torch.inference_mode():
        for length in cuts:
            start = cache.length
            positions = torch.arange(start, start + length)[None]
            part = input_ids[:, start : start + length]
            parts.append(model(part, positions, cache.attend))
            cache.advance(length)
        torch.testing.assert_close(torch.cat(parts, 1), model(input_ids), atol=ATOL, rtol=0)


def test_packed_rows_equal_separate_rows(model: LanguageModel):
    """The server's way: rows of several lengths side by side in one, kept apart by `attend`."""
    lengths = [5, 11, 3]
    rows = [torch.randint(0, 384, (1, length)) for length in lengths]

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(*(x.split(lengths, dim=2) for x in (q, k, v)), strict=True)
        window = model.config.windows[layer]
        return torch.cat([in_window(*part, window=window) for part in parts], dim=2)

    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    with torch.inference_mode():
        packed = model(torch.cat(rows, dim=1), positions, attend)
        separate = torch.cat([model(row) for row in rows], dim=1)
    torch.testing.assert_close(packed, separate, atol=ATOL, rtol=0)


def test_labels_of_minus_100_are_not_scored(model: LanguageModel):
    input_ids = torch.randint(0, 384, (2, 10))
    labels = torch.randint(0, 384, (2, 10))
    labels[0, :7] = -100
    total, count = model.loss_sum(input_ids, labels)
    logprobs = model(input_ids).log_softmax(-1)
    expected = -sum(
        logprobs[b, t, labels[b, t]] for b in range(2) for t in range(10) if labels[b, t] >= 0
    )
    torch.testing.assert_close(total, expected)
    assert count.item() == 13
    torch.testing.assert_close(model.loss(input_ids, labels), total / 13)
    assert model.loss(input_ids, torch.full_like(labels, -100)).item() == 0


def test_compiles_without_a_graph_break(model: LanguageModel):
    compiled = torch.compile(model.loss, fullgraph=True, backend="eager")
    input_ids = torch.randint(0, 384, (2, 16))
    labels = torch.randint(0, 384, (2, 16))
    torch.testing.assert_close(compiled(input_ids, labels), model.loss(input_ids, labels))


def test_bfloat16_autocast_stays_near_float32(model: LanguageModel):
    input_ids = torch.randint(0, 384, (2, 32))
    labels = torch.randint(0, 384, (2, 32))
    with torch.autocast("cpu", torch.bfloat16):
        narrow = model.loss(input_ids, labels)
    narrow.backward()
    assert narrow.dtype == torch.float32
    # bfloat16 keeps 8 bits: errors near 0.4 % in each product of a loss around 8.
    assert narrow.item() == pytest.approx(model.loss(input_ids, labels).item(), rel=0.02)


def test_changing_the_dtype_leaves_rotary_angles_exact():
    model = tiny_model("llama")
    before = model.get_buffer("model.rotary_emb.inv_freq").clone()
    model.to(torch.bfloat16)
    after = model.get_buffer("model.rotary_emb.inv_freq")
    assert after.dtype == torch.float32
    assert torch.equal(after, before)


def test_the_same_seed_gives_the_same_weights():
    first, second, other = tiny_model(seed=1), tiny_model(seed=1), tiny_model(seed=2)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])
    assert not torch.equal(first.head_weight(), other.head_weight())


def test_shapes_that_do_not_fit(model: LanguageModel):
    input_ids = torch.zeros(2, 5, dtype=torch.int64)
    with pytest.raises(ModelError, match=r"input_ids has shape \(5,\); pass \(B, T\)"):
        model(input_ids[0])
    with pytest.raises(ModelError, match=r"input_ids is \(2, 5\).*are \(2, 4\)"):
        model.loss(input_ids, input_ids[:, 1:])


def test_gpt2_has_only_so_many_positions():
    with pytest.raises(ModelError, match="129 tokens do not fit GPT-2's 128 learned positions"):
        tiny_model("gpt2")(torch.zeros(1, 129, dtype=torch.int64))


def test_a_cache_that_is_too_short():
    model = tiny_model()
    cache = KVCache(model.config, batch_size=1, max_len=4)
    with pytest.raises(ModelError, match="5 tokens do not fit a cache of max_len=4"):
        model(torch.zeros(1, 5, dtype=torch.int64), None, cache.attend)
