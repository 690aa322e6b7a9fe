"""The data of a run: shards folders, or sources of text that go into shards in `out/shards/`.

Text is tokenized on a thread while training goes on, when that is possible, and packed first else.
Not here: how either is done (llmlab/data).
"""

import contextlib
import itertools
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from llmlab.data import Batches, PackConfig, Shards, pack
from llmlab.data.contamination import overlap_between
from llmlab.data.growing import BLOCK_TOKENS, GrowingShards, TokenizingAhead, first_block
from llmlab.errors import ConfigError
from llmlab.pretrain.config import PretrainConfig
from llmlab.tokenizers import Tokenizer
from llmlab.track import OnProgress

_MOST_COMPARED = 500_000_000
"""Training tokens that are searched for another folder's held-out text: some fifteen seconds."""


class Corpus:
    """What a run reads; leaving the block ends the threads that tokenize.

    Args:
        config: the settings of the run.
        on_progress: gets the numbers of packing, and notes.
        writes: whether this process turns text into shards. Of several processes one does, and the
            others open them once it has.

    Raises:
        ConfigError: text without a tokenizer, or weights that do not go with the data.
        DataError: a folder or source cannot be used, or comes from another tokenizer.
    """

    def __init__(
        self, config: PretrainConfig, on_progress: OnProgress, *, writes: bool = True
    ) -> None:
        if not config.data:
            raise ConfigError("no data given; name a shards folder, or text and --tokenizer")
        self._config, self._on_progress, self._writes = config, on_progress, writes
        self._threads: list[TokenizingAhead] = []
        fingerprint = Tokenizer.load(config.tokenizer).fingerprint if config.tokenizer else None
        self.names = _names(config.data)
        """What each source is called in the rows of validation."""
        self.shards: list[Shards] = []
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            for source, name in zip(config.data, self.names, strict=True):
                is_shards = (Path(source) / "meta.json").is_file()
                self.shards.append(
                    Shards(source, fingerprint) if is_shards else self._shards_of_text(source, name)
                )
            if writes and not config.resume:
                self._compare_splits()
            stack.pop_all()
        self.tokenizer = Tokenizer.load(self.shards[0].tokenizer)

    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Batches:
        """Return the batches of a process, at their beginning.

        Args:
            batch_size: windows in a micro-batch, B, over all processes.
            rank: number of the process.
            world_size: how many there are.
        """
        config = self._config
        batches = Batches(
            self.shards,
            "train",
            batch_size=batch_size,
            context_len=config.context_len,
            seed=config.seed,
            weights=config.weights or None,
            packing=config.packing,
            document_ids=config.document_mask,
            rank=rank,
            world_size=world_size,
        )
        for name, plan in zip(self.names, batches.plans, strict=False):
            self._note(
                f"{name}: {plan.num_documents:,} documents in {plan.num_windows:,} windows, "
                f"{plan.padding:.2%} padding, {plan.num_cut / plan.num_documents:.2%} of the "
                f"documents are longer than {config.context_len} tokens and cut"
            )
        if len(self.names) > 1:
            shares = zip(self.names, batches.shares, strict=True)
            self._note(
                "windows from " + ", ".join(f"{name}: {share:.1%}" for name, share in shares)
            )
        return batches

    def epochs(self, batches: Batches) -> dict[str, float]:
        """Return the passes over each source so far, as numbers of a row of metrics."""
        keys = ["epoch"] if len(self.names) == 1 else [f"epoch/{name}" for name in self.names]
        pairs = zip(keys, batches.epochs, strict=True)
        return {key: epoch for key, epoch in pairs if epoch is not None}

    def close(self) -> None:
        """Stop tokenizing; a resumed run goes on with it."""
        for thread in self._threads:
            thread.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _shards_of_text(self, source: str, name: str) -> Shards:
        config = self._config
        if config.tokenizer is None:
            raise ConfigError(
                f"data={source!r} is no shards folder (it has no meta.json); pack it with "
                "`llmlab data pack`, or set --tokenizer to have that done in the run's folder"
            )
        folder = config.out / "shards" / name
        begun = any((folder / file).is_file() for file in ("meta.json", "growing.json"))
        anew = self._writes and not (config.resume and begun)
        if anew:
            shutil.rmtree(folder, ignore_errors=True)
        ahead = self._can_go_ahead if anew else (folder / "growing.json").is_file()
        shards = self._ahead(source, folder, config.tokenizer) if ahead else None
        if shards is None and anew:
            self._note(f"packing {source} into {folder}")
            pack(
                PackConfig(
                    sources=(source,), tokenizer=config.tokenizer, out=folder, overwrite=True
                ),
                self._on_progress,
            )
        return shards or Shards(folder)

    @property
    def _can_go_ahead(self) -> bool:
        """Best-fit packing and weights by size need to know all documents first."""
        config = self._config
        by_size = len(config.data) > 1 and not config.weights
        return config.tokenize_ahead and config.packing == "stream" and not by_size

    def _ahead(self, source: str, folder: Path, tokenizer: Path) -> GrowingShards | None:
        """Tokenize on a thread, from where that stopped; None if the corpus is too small for it."""
        if not self._writes:
            return GrowingShards(folder)
        self._note(f"tokenizing {source} into {folder} while training")
        thread = TokenizingAhead(
            PackConfig(
                sources=(source,),
                tokenizer=tokenizer,
                out=folder,
                shard_tokens=BLOCK_TOKENS,
                num_threads=1,  # the other cores train
            )
        )
        self._threads.append(thread)
        if first_block(folder, thread.work):
            return GrowingShards(folder, thread.work)
        thread.close()
        return None

    def _compare_splits(self) -> None:
        """Say what is held out in one folder and trained on in another."""
        named = [
            (name, shards)
            for name, shards in zip(self.names, self.shards, strict=True)
            if not isinstance(shards, GrowingShards)
        ]
        for (name, held_out), (other, training) in itertools.permutations(named, 2):
            if len(training.split("train")) > _MOST_COMPARED:
                self._note(f"{other} is too large to be searched for the held-out text of {name}")
            elif note := overlap_between(training, held_out).note:
                self._note(f"held-out text of {name} in {other}: {note}")

    def _note(self, text: str) -> None:
        self._on_progress({"note": text})


def _names(sources: tuple[str, ...]) -> list[str]:
    """A name for each source that tells it from the others: its last part, or all parts."""
    paths = [Path(source.replace(":", "-")) for source in sources]
    last = [path.name for path in paths]
    return [
        path.name if last.count(path.name) == 1 else "-".join(path.parts).replace("/", "")
        for path in paths
    ]
