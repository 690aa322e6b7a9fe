"""Shares of a model: together they compute what the whole model does, and each is small."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from torch import Tensor

from llmlab.errors import ConfigError
from llmlab.model import LanguageModel, load_model, save_model
from llmlab.model.experts_config import Experts
from llmlab.model.sharding import Share, check_shares, sum_shares_
from tests.tiny import tiny_config, tiny_model, tiny_model_folder, tiny_tokenizer

TOLERANCE = 1e-4  # float32, three layers: the same sums in another order

ODD_EXPERTS = Experts(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=25)


class Meeting:
    """Threads that stand for processes: they sum their tensors when all have come."""

    def __init__(self, size: int) -> None:
        self._barrier = Barrier(size, timeout=60)
        self._given: list[Tensor] = [torch.empty(0)] * size

    def sum_of(self, rank: int) -> Callable[[Tensor], None]:
        def sum_(x: Tensor) -> None:
            self._given[rank] = x.clone()
            self._barrier.wait()
            x.copy_(torch.stack(self._given).sum(0))
            self._barrier.wait()

        return sum_


def shares_of(folder: Path, size: int) -> list[LanguageModel]:
    return [load_model(folder, share=Share(rank, size))[0] for rank in range(size)]


@torch.no_grad()
def logits_of(model: LanguageModel, ids: Tensor) -> Tensor:
    return model(ids)


@pytest.mark.parametrize(
    ("architecture", "size", "changes"),
    [
        ("llama", 2, {}),
        ("llama", 2, {"tie_word_embeddings": False, "vocab_size": 385}),
        ("qwen3", 2, {"tie_word_embeddings": False}),
        ("qwen2", 2, {"vocab_size": 385}),
        ("qwen3_moe", 2, {}),
        ("qwen3", 4, {"num_key_value_heads": 4, "vocab_size": 387}),
        ("llama", 3, {"num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 81}),
    ],
)
def test_the_shares_together_give_the_logits_of_the_whole(tmp_path, architecture, size, changes):
    """Also where the vocabulary does not divide: biases, norms of q and k, experts."""
    folder = tmp_path / "model"
    save_model(tiny_model(architecture, **changes), tiny_tokenizer(), folder)
    whole, _ = load_model(folder)
    ids = torch.randint(0, 380, (2, 21), generator=torch.Generator().manual_seed(1))
    shares, meeting = shares_of(folder, size), Meeting(size)
    for rank, model in enumerate(shares):
        sum_shares_(model, meeting.sum_of(rank))
    with ThreadPoolExecutor(size) as threads:
        parts = list(threads.map(logits_of, shares, [ids] * size))
    assert len({part.shape for part in parts}) == 1, "a gather wants equal parts"
    logits = torch.cat(parts, dim=-1)[..., : whole.config.vocab_size]
    torch.testing.assert_close(logits, logits_of(whole, ids), rtol=0, atol=TOLERANCE)


def test_each_share_holds_its_part_of_the_weights_and_no_more(tmp_path):
    folder = tiny_model_folder(tmp_path, "qwen3_moe", tie_word_embeddings=False)
    whole = dict(load_model(folder)[0].named_parameters())
    shares = [dict(model.named_parameters()) for model in shares_of(folder, 2)]
    everywhere = {
        name
        for name in whole
        if name.endswith(("norm.weight", "embed_tokens.weight", "gate.weight"))
    }
    for name, weight in whole.items():
        parts = [share.pop(name) for share in shares]
        assert [part.numel() for part in parts] == [
            weight.numel() if name in everywhere else weight.numel() / 2
        ] * 2, name
        assert all(torch.equal(part, weight) for part in parts) == (name in everywhere), name
    assert shares == [{}, {}]


def test_a_share_in_another_dtype_keeps_nothing_of_the_rest_alive(tmp_path):
    folder = tiny_model_folder(tmp_path, "llama")
    model, _ = load_model(folder, dtype="bfloat16", share=Share(1, 2))
    for name, weight in model.named_parameters():
        if name != "lm_head.weight":  # tied: rows of the embedding, which is there anyway
            assert weight.untyped_storage().nbytes() == 2 * weight.numel(), name


@pytest.mark.parametrize(
    ("size", "changes", "message"),
    [
        (
            2,
            {"num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 84},
            r"tensor_parallel=2 does not divide num_attention_heads=9 and num_key_value_heads=3; "
            "use 1 or 3",
        ),
        (2, {"intermediate_size": 81}, "tensor_parallel=2 does not divide intermediate_size=81"),
        (4, {}, "does not divide num_key_value_heads=2; use 1 or 2"),
        (
            2,
            {"architecture": "qwen3_moe", "experts": ODD_EXPERTS},
            "moe_intermediate_size=25; use 1",
        ),
        (2, {"architecture": "gpt2"}, "a GPT2LMHeadModel is not cut for several processes"),
        (2, {"architecture": "lstm"}, "is not cut for several processes; use tensor_parallel=1"),
    ],
)
def test_what_does_not_divide_is_refused_by_name(size, changes, message):
    config = tiny_config(**changes)
    with pytest.raises(ConfigError, match=message):
        check_shares(config, size)
