from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.data import Batches, Shards, val_batches
from llmlab.errors import ConfigError, DataError


def test_labels_are_the_next_tokens(shards: Shards):
    inputs, labels, _ = Batches(shards, "train", batch_size=4, context_len=32, seed=0).next()
    assert inputs.shape == labels.shape == (4, 32)
    assert inputs.dtype == labels.dtype == torch.int64
    assert torch.equal(inputs[:, 1:], labels[:, :-1])
    stream = np.asarray(shards.split("train")).tolist()
    window = [*inputs[0].tolist(), int(labels[0, -1])]
    assert any(stream[at : at + 33] == window for at in range(len(stream)))


def test_an_epoch_scores_each_token_at_most_once_and_nearly_all(shards: Shards):
    batches = Batches(shards, "train", batch_size=1, context_len=16, seed=3)
    for epoch in (0, 1, 5):
        first = epoch * batches.num_windows
        starts = [batches.window_start(first + n) for n in range(batches.num_windows)]
        scored = np.concatenate([np.arange(at + 1, at + 17) for at in starts])
        assert len(np.unique(scored)) == len(scored)
        assert scored.max() < len(shards.split("train"))
        assert len(shards.split("train")) - len(scored) <= 2 * 16
        assert starts != sorted(starts)


def test_epochs_differ_and_seeds_differ(shards: Shards):
    def order(seed: int, epoch: int) -> list[int]:
        batches = Batches(shards, "train", batch_size=1, context_len=16, seed=seed)
        return [batches.window_start(epoch * batches.num_windows + n) for n in range(50)]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


@settings(max_examples=20)
@given(done=st.integers(0, 400), batch_size=st.integers(1, 9))
def test_resuming_is_exact_across_epochs(shards: Shards, done: int, batch_size: int):
    first = Batches(shards, "train", batch_size=batch_size, context_len=64, seed=7)
    for _ in range(done // batch_size):
        first.next()
    second = Batches(shards, "train", batch_size=batch_size, context_len=64, seed=7)
    second.load_state_dict(first.state_dict())
    assert second.epoch == first.epoch
    for _ in range(5):
        for one, two in zip(first.next().arguments, second.next().arguments, strict=True):
            assert torch.equal(one, two)


def test_the_order_does_not_depend_on_the_batch_size(shards: Shards):
    ones = Batches(shards, "train", batch_size=1, context_len=16, seed=0)
    six = Batches(shards, "train", batch_size=6, context_len=16, seed=0)
    assert torch.equal(torch.cat([ones.next()[0] for _ in range(6)]), six.next()[0])


@pytest.mark.parametrize(("change", "name"), [({"seed": 8}, "seed"), ({"context_len": 32}, "cont")])
def test_a_state_of_another_run_is_refused(shards: Shards, change: dict, name: str):
    settings = {"batch_size": 2, "context_len": 64, "seed": 7}
    saved = Batches(shards, "train", **settings).state_dict()
    with pytest.raises(DataError, match=rf"cannot resume: the saved {name}\w* is "):
        Batches(shards, "train", **(settings | change)).load_state_dict(saved)


@settings(max_examples=25)
@given(batch_size=st.integers(1, 7), context_len=st.integers(1, 300))
def test_validation_scores_every_token_exactly_once(
    shards: Shards, batch_size: int, context_len: int
):
    stream = np.asarray(shards.split("val")).astype(np.int64)
    before = np.concatenate([[shards.eos_token_id], stream[:-1]])
    seen_inputs, seen_labels = [], []
    for inputs, labels, _ in val_batches(shards, batch_size=batch_size, context_len=context_len):
        assert inputs.shape == labels.shape
        assert inputs.shape[0] <= batch_size
        assert inputs.shape[1] == context_len
        scored = labels != -100
        seen_inputs.append(inputs[scored])
        seen_labels.append(labels[scored])
    assert np.array_equal(torch.cat(seen_labels).numpy(), stream)
    assert np.array_equal(torch.cat(seen_inputs).numpy(), before)


@pytest.mark.parametrize("context_len", [1, 2, 7])
def test_the_smallest_splits(shards: Shards, context_len: int):
    tokens = shards.split("val")[: context_len + 1]

    class Few(Shards):
        def split(self, split):
            return tokens

    few = Few(shards.folder)
    batches = Batches(few, "train", batch_size=3, context_len=context_len, seed=0)
    inputs, labels, _ = batches.next()
    assert batches.num_windows == 1
    assert labels[2].tolist() == tokens[1:].tolist()
    with pytest.raises(ConfigError, match=rf"context_len={context_len + 1} needs"):
        Batches(few, "train", batch_size=3, context_len=context_len + 1, seed=0)


def test_unusable_sizes(shards: Shards, tmp_path: Path):
    with pytest.raises(ConfigError, match="batch_size=0 and context_len=8 must both be at least 1"):
        Batches(shards, "train", batch_size=0, context_len=8, seed=0)
    with pytest.raises(ConfigError, match=r"context_len=1000000 needs 1000001 tokens"):
        Batches(shards, "train", batch_size=1, context_len=1_000_000, seed=0)
