from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.data import Batches, PackConfig, Shards, pack, val_batches
from llmlab.errors import ConfigError, DataError
from llmlab.tokenizers import Tokenizer


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Shards:
    """A second, smaller source from the same tokenizer."""
    folder = tmp_path_factory.mktemp("other")
    for n in range(40):
        (folder / f"{n}.txt").write_text(f"{n} dogs ran over the hills. " * (1 + n % 5))
    pack(PackConfig(sources=(str(folder),), tokenizer=tokenizer_folder, out=folder / "shards"))
    return Shards(folder / "shards")


def same(one, two) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.arguments, two.arguments, strict=True))


def test_labels_are_the_next_tokens(shards: Shards):
    inputs, labels, none = Batches(shards, "train", batch_size=4, context_len=32, seed=0).next()
    assert inputs.shape == labels.shape == (4, 32)
    assert inputs.dtype == labels.dtype == torch.int64
    assert none is None
    assert torch.equal(inputs[:, 1:], labels[:, :-1])
    stream = np.asarray(shards.split("train")).tolist()
    window = [*inputs[0].tolist(), int(labels[0, -1])]
    assert any(stream[at : at + 33] == window for at in range(len(stream)))


@settings(max_examples=30, deadline=None)
@given(context_len=st.integers(1, 200), seed=st.integers(0, 9), epoch=st.integers(0, 4))
def test_an_epoch_has_each_window_once_and_nearly_all_tokens(
    shards: Shards, context_len: int, seed: int, epoch: int
):
    batches = Batches(shards, batch_size=1, context_len=context_len, seed=seed)
    (source,), num_windows = batches._sources, batches.num_windows[0] or 0
    first = epoch * num_windows
    pieces = [piece for (piece,) in source.pieces(range(first, first + num_windows))]
    scored = np.concatenate([np.arange(start, start + length) for start, length in pieces])
    assert len(np.unique(scored)) == len(scored)
    assert scored.max() < len(shards.split("train"))
    assert len(shards.split("train")) - len(scored) <= 2 * context_len
    assert pieces != sorted(pieces) or num_windows < 5


def test_epochs_differ_and_seeds_differ(shards: Shards):
    def order(seed: int, epoch: int) -> list:
        batches = Batches(shards, batch_size=1, context_len=16, seed=seed)
        (source,), num_windows = batches._sources, batches.num_windows[0] or 0
        return source.pieces(range(epoch * num_windows, epoch * num_windows + 50))

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


@pytest.mark.parametrize("packing", ["stream", "best-fit"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_the_ranks_together_read_what_one_process_reads(
    shards: Shards, other: Shards, world_size: int, packing
):
    settings: dict[str, Any] = {"batch_size": 8, "context_len": 24, "seed": 5, "packing": packing}
    settings |= {"weights": (0.7, 0.3), "document_ids": True}
    alone = Batches([shards, other], **settings)
    ranks = [
        Batches([shards, other], rank=rank, world_size=world_size, **settings)
        for rank in range(world_size)
    ]
    for _ in range(60):  # more than an epoch of the smaller source
        whole, parts = alone.next(), [batches.next() for batches in ranks]
        for number, tensor in enumerate(whole.arguments):
            for rank, part in enumerate(parts):
                assert torch.equal(part.arguments[number], tensor[rank::world_size])
        assert all(batches.state_dict() == alone.state_dict() for batches in ranks)
    assert max(epoch or 0 for epoch in alone.epochs) > 1


@settings(max_examples=20, deadline=None)
@given(
    done=st.integers(0, 60),
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 4),
    packing=st.sampled_from(["stream", "best-fit"]),
)
def test_resuming_is_exact_at_every_place_and_on_any_world_size(
    shards: Shards, other: Shards, done: int, batch_size: int, world_size: int, packing
):
    sizes: dict[str, Any] = {
        "batch_size": batch_size + 3,
        "context_len": 64,
        "seed": 7,
        "packing": packing,
    }
    first = Batches([shards, other], **sizes)
    for _ in range(done):
        first.next()
    ranks = [
        Batches([shards, other], rank=rank, world_size=world_size, **sizes)
        for rank in range(world_size)
    ]
    for batches in ranks:
        batches.load_state_dict(first.state_dict())
        assert batches.epochs == first.epochs
    for _ in range(5):
        whole = first.next()
        for rank, batches in enumerate(ranks):
            assert torch.equal(batches.next().labels, whole.labels[rank::world_size])


def test_the_order_does_not_depend_on_the_batch_size(shards: Shards):
    ones = Batches(shards, batch_size=1, context_len=16, seed=0)
    six = Batches(shards, batch_size=6, context_len=16, seed=0)
    assert torch.equal(torch.cat([ones.next()[0] for _ in range(6)]), six.next()[0])


def test_sources_come_by_their_weights_and_epochs_are_counted_apart(shards: Shards, other: Shards):
    batches = Batches([shards, other], batch_size=10, context_len=16, seed=0, weights=(7, 3))
    assert batches.shares == [0.7, 0.3]
    for step in range(1, 30):
        batches.next()
        assert batches.state_dict()["taken"] == [7 * step, 3 * step]
    sizes = [windows or 0 for windows in batches.num_windows]
    assert batches.epochs == [203 / sizes[0], 87 / sizes[1]]
    by_size = Batches([shards, other], batch_size=1, context_len=16, seed=0)
    for _ in range(sum(sizes)):
        by_size.next()
    assert by_size.epochs == [1.0, 1.0]


def test_best_fit_scores_every_token_once_an_epoch_from_its_document_only(shards: Shards):
    T, eos = 48, shards.eos_token_id
    batches = Batches(
        shards, batch_size=1, context_len=T, seed=0, packing="best-fit", document_ids=True
    )
    (plan,), tokens = batches.plans, np.asarray(shards.split("train"))
    scored, padding = Counter(), 0
    for _ in range(plan.num_windows):
        inputs, labels, numbers = (tensor[0].numpy() for tensor in batches.next().arguments)
        real = labels != -100
        scored.update(labels[real].tolist())
        padding += int((~real).sum())
        assert (np.diff(numbers) >= 0).all()
        assert len(set(numbers[~real])) == (not real.all())
        assert not set(numbers[~real]) & set(numbers[real])
        assert (inputs[~real] == eos).all()
        # within a document each input is the label before it, and only the start of one is eos
        inside = (np.diff(numbers) == 0) & real[1:]
        assert (inputs[1:][inside] == labels[:-1][inside]).all()
        assert (inputs[1:][inside] != eos).all()
    assert scored == Counter(tokens.tolist())
    assert plan.padding == pytest.approx(padding / (plan.num_windows * T))
    assert plan.num_documents == len(shards.doc_starts("train"))


def test_documents_of_a_stream_are_told_apart(shards: Shards):
    batches = Batches(shards, batch_size=16, context_len=64, seed=0, document_ids=True)
    inputs, _, numbers = batches.next().arguments
    assert numbers.dtype == torch.int32
    starts = inputs[:, 1:] == shards.eos_token_id
    assert starts.sum() > 3
    assert torch.equal(torch.diff(numbers, dim=1), starts.int())


@pytest.mark.parametrize(
    ("change", "name"),
    [({"seed": 8}, "seed"), ({"context_len": 32}, "cont"), ({"packing": "best-fit"}, "packing")],
)
def test_a_state_of_another_run_is_refused(shards: Shards, change: dict, name: str):
    settings: dict[str, Any] = {"batch_size": 2, "context_len": 64, "seed": 7}
    saved = Batches(shards, **settings).state_dict()
    with pytest.raises(DataError, match=rf"cannot resume: the saved {name}\w* is "):
        Batches(shards, **(settings | change)).load_state_dict(saved)


@settings(max_examples=25, deadline=None)
@given(batch_size=st.integers(1, 7), context_len=st.integers(1, 300))
def test_validation_scores_every_token_exactly_once(
    shards: Shards, batch_size: int, context_len: int
):
    stream = np.asarray(shards.split("val")).astype(np.int64)
    before = np.concatenate([[shards.eos_token_id], stream[:-1]])
    seen_inputs, seen_labels = [], []
    for batch in val_batches(
        shards, batch_size=batch_size, context_len=context_len, document_ids=True
    ):
        inputs, labels, numbers = batch.arguments
        assert inputs.shape == labels.shape == numbers.shape
        assert inputs.shape[0] <= batch_size
        assert inputs.shape[1] == context_len
        scored = labels != -100
        seen_inputs.append(inputs[scored])
        seen_labels.append(labels[scored])
        starts = inputs[:, 1:] == shards.eos_token_id
        starts &= scored[:, 1:] | scored[:, :-1]  # padding is one document
        assert torch.equal(torch.diff(numbers, dim=1), starts.int())
    assert np.array_equal(torch.cat(seen_labels).numpy(), stream)
    assert np.array_equal(torch.cat(seen_inputs).numpy(), before)


@pytest.mark.parametrize("context_len", [1, 2, 7])
def test_the_smallest_splits(shards: Shards, context_len: int):
    tokens = shards.split("val")[: context_len + 1]

    class Few(Shards):
        def split(self, split):
            return tokens

    few = Few(shards.folder)
    batches = Batches(few, batch_size=3, context_len=context_len, seed=0)
    assert batches.num_windows == [1]
    assert batches.next().labels[2].tolist() == tokens[1:].tolist()
    with pytest.raises(ConfigError, match=rf"context_len={context_len + 1} needs"):
        Batches(few, batch_size=3, context_len=context_len + 1, seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 and context_len=8 must both be at least 1"),
        ({"context_len": 1_000_000}, r"context_len=1000000 needs 1000001 tokens"),
        ({"world_size": 3}, r"batch_size=2 leaves some of 3 processes without a window; use 3"),
        ({"world_size": 2, "rank": 2}, r"rank=2 is not between 0 and world_size=2"),
        ({"weights": (1, 2)}, r"1 shards folders and 2 weights do not go together"),
        ({"weights": (0,)}, r"weights=\[0\] must all be above 0; leave out"),
    ],
)
def test_unusable_settings(shards: Shards, changes: dict, message: str):
    settings: dict[str, Any] = {"batch_size": 2, "context_len": 8, "seed": 0} | changes
    with pytest.raises(ConfigError, match=message):
        Batches(shards, **settings)


def test_folders_of_two_tokenizers_do_not_mix(shards: Shards, tmp_path: Path):
    Tokenizer.train(["other words, other merges " * 9], vocab_size=300).save(tmp_path / "tok")
    (tmp_path / "a.txt").write_text("some text " * 50)
    pack(
        PackConfig(
            sources=(str(tmp_path / "a.txt"),), tokenizer=tmp_path / "tok", out=tmp_path / "out"
        )
    )
    with pytest.raises(DataError, match=r"packed with another tokenizer than .*again with .*tok"):
        Batches([shards, Shards(tmp_path / "out")], batch_size=2, context_len=8, seed=0)
