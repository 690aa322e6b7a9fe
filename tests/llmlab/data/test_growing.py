"""Text that is tokenized while its shards are read."""

from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmlab.data import Batches, PackConfig, Shards
from llmlab.data.growing import GrowingShards, TokenizingAhead, first_block, read_state
from llmlab.data.packing import Writing
from llmlab.errors import ConfigError, DataError

BLOCK = 1024
T = 32


@pytest.fixture
def config(corpus_folder: Path, tokenizer_folder: Path, tmp_path: Path) -> PackConfig:
    return PackConfig(
        sources=(str(corpus_folder),),
        tokenizer=tokenizer_folder,
        out=tmp_path / "growing",
        val_fraction=0.1,
        shard_tokens=BLOCK,
    )


class Killed(Exception):
    """What a thread meets that ends in the middle."""


def write_until(config: PackConfig, num_documents: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the folder up to some document, with what was not flushed lost."""
    numbers = count()
    original = Writing._parts

    def parts(self: Writing, tail_of: int | None) -> Any:
        for part in original(self, tail_of):
            if next(numbers) == num_documents:
                raise Killed
            yield part

    with monkeypatch.context() as patch:
        patch.setattr(Writing, "_parts", parts)
        patch.setattr("llmlab.data.encoding._BATCH_CHARS", 2000)  # written as soon as read
        ahead = TokenizingAhead(config)
        with pytest.raises(Killed):
            ahead.work.result()
        ahead.close()


def finished(config: PackConfig) -> GrowingShards:
    ahead = TokenizingAhead(config)
    ahead.work.result()
    ahead.close()
    return GrowingShards(config.out)


def labels(shards: Shards, steps: int, rank: int = 0, world_size: int = 1) -> torch.Tensor:
    batches = Batches(shards, batch_size=8, context_len=T, seed=0, rank=rank, world_size=world_size)
    return torch.cat([batches.next().labels for _ in range(steps)])


def test_a_finished_folder_is_what_pack_writes(config: PackConfig, shards: Shards):
    finished(config)
    packed = Shards(config.out)
    for split in ("train", "val"):
        assert np.array_equal(packed.split(split), shards.split(split))
        assert np.array_equal(packed.doc_starts(split), shards.doc_starts(split))
    assert packed.meta["splits"] == shards.meta["splits"]
    assert packed.meta["sources"] == shards.meta["sources"]
    assert not list(config.out.glob("*.part*"))


@pytest.mark.parametrize("num_documents", [0, 1, 60, 111, 150, 199])
def test_a_killed_writer_goes_on_to_the_same_bytes(
    config: PackConfig, shards: Shards, num_documents: int, monkeypatch: pytest.MonkeyPatch
):
    write_until(config, num_documents, monkeypatch)
    state = read_state(config.out)
    assert not state["complete"]
    first_val = state["first_val"]
    again = finished(config)
    for split in ("train", "val"):
        packed = Shards(config.out)
        assert np.array_equal(packed.split(split), shards.split(split))
        assert np.array_equal(packed.doc_starts(split), shards.doc_starts(split))
    assert packed.meta["sources"] == shards.meta["sources"]
    assert first_val in (None, read_state(config.out)["first_val"])
    assert 0 < len(again.split("val")) < len(packed.split("val"))


def test_the_order_does_not_depend_on_how_far_the_writer_is(
    config: PackConfig, monkeypatch: pytest.MonkeyPatch
):
    whole = finished(config)
    (num_windows,) = Batches(whole, batch_size=1, context_len=T, seed=0).num_windows
    assert num_windows
    epochs = 2 * num_windows // 8
    expected = labels(whole, epochs)
    for number in (90, 150):
        other = replace(config, out=config.out.with_name(f"to-{number}"))
        write_until(other, number, monkeypatch)
        early = GrowingShards(other.out)
        batches = Batches(early, batch_size=8, context_len=T, seed=0)
        there = len(early.split("train")) // BLOCK * (BLOCK // T - 1) // 8
        assert 0 < there < epochs
        assert batches.num_windows == batches.epochs == [None]
        got = [batches.next().labels for _ in range(there)]
        state = batches.state_dict()
        ahead = TokenizingAhead(other)  # the rest comes while it is waited for
        resumed = Batches(GrowingShards(other.out, ahead.work), batch_size=8, context_len=T, seed=0)
        resumed.load_state_dict(state)
        got += [resumed.next().labels for _ in range(epochs - there)]
        ahead.close()
        assert torch.equal(torch.cat(got), expected)
        assert (resumed.epochs[0] or 0) > 1


def test_an_epoch_has_every_window_once_shuffled_inside_blocks(config: PackConfig):
    shards = finished(config)
    batches = Batches(shards, batch_size=1, context_len=T, seed=1)
    (source,), num_windows = batches._sources, batches.num_windows[0] or 0
    for epoch in (0, 1):
        pieces = source.pieces(range(epoch * num_windows, (epoch + 1) * num_windows))
        starts = [start for ((start, _),) in pieces]
        assert len(set(starts)) == num_windows
        assert max(starts) - min(starts) == (num_windows - 1) * T
        block = BLOCK // T - 1
        for at in range(0, num_windows - block, block):
            assert max(starts[at : at + block]) < min(starts[at + block : at + 2 * block])
            assert starts[at : at + block] != sorted(starts[at : at + block])


def test_ranks_read_a_growing_folder_alike(config: PackConfig):
    shards = finished(config)
    whole = labels(shards, 20)
    for rank in range(3):
        part = labels(shards, 20, rank=rank, world_size=3)
        rows = torch.arange(len(whole)).view(20, 8)[:, rank::3].flatten()
        assert torch.equal(part, whole[rows])


def test_what_does_not_go_with_a_growing_folder(config: PackConfig):
    shards = finished(config)
    with pytest.raises(ConfigError, match=r"packing='best-fit' needs all documents of .*growing"):
        Batches(shards, batch_size=1, context_len=T, seed=0, packing="best-fit")
    with pytest.raises(ConfigError, match=r"context_len=600 does not fit twice into a block of"):
        Batches(shards, batch_size=1, context_len=600, seed=0)


def test_sizes_of_a_growing_folder_are_not_guessed(
    config: PackConfig, shards: Shards, monkeypatch: pytest.MonkeyPatch
):
    write_until(config, 150, monkeypatch)
    with pytest.raises(ConfigError, match="tokenized ahead is not known; set --weights"):
        Batches([shards, GrowingShards(config.out)], batch_size=1, context_len=T, seed=0)


def test_a_small_corpus_is_to_be_packed_first(config: PackConfig):
    large = replace(config, shard_tokens=2**20)
    ahead = TokenizingAhead(large)
    assert not first_block(large.out, ahead.work)
    ahead.close()


def test_errors_of_the_writer_reach_the_reader(config: PackConfig, tmp_path: Path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for n in range(300):
        (folder / f"{n:03d}.txt").write_text(f"{n} words and words and words " * 9)
    (folder / "zzz.txt").write_bytes(b"ol\xe9")
    bad = replace(config, sources=(str(folder),))
    ahead = TokenizingAhead(bad)
    with pytest.raises(DataError, match=r"zzz.txt is not UTF-8"):
        assert not first_block(bad.out, ahead.work)
    ahead.close()


def test_another_corpus_is_not_gone_on_with(config: PackConfig, tmp_path: Path):
    finished(config)
    with pytest.raises(
        DataError, match=r"was begun with val_fraction=0.1, this run has 0.2; go on"
    ):
        TokenizingAhead(replace(config, val_fraction=0.2))


def test_closing_stops_the_writer_while_it_reads(config: PackConfig, monkeypatch):
    read = []

    def close_at_ten(self: TokenizingAhead) -> None:
        read.append(0)
        if len(read) == 10:
            self._stopping.set()
        original(self)

    original = TokenizingAhead._go_on
    monkeypatch.setattr(TokenizingAhead, "_go_on", close_at_ten)
    ahead = TokenizingAhead(config)
    ahead.work.result()
    ahead.close()
    assert len(read) == 10
    assert not read_state(config.out)["complete"]
