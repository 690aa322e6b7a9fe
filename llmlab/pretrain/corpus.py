"""The data of a run: shards folders, or sources of text that are packed into `out/shards/` first.

Not here: how text is packed (llmlab/data).
"""

from pathlib import Path

from llmlab.data import Batches, PackConfig, Shards, pack
from llmlab.errors import ConfigError
from llmlab.pretrain.config import PretrainConfig
from llmlab.tokenizers import Tokenizer
from llmlab.track import OnProgress


class Corpus:
    """What a run reads.

    Args:
        config: the settings of the run.
        on_progress: gets the numbers of packing, and notes.

    Raises:
        ConfigError: text without a tokenizer, or weights that do not go with the data.
        DataError: a folder or source cannot be used, or comes from another tokenizer.
    """

    def __init__(self, config: PretrainConfig, on_progress: OnProgress) -> None:
        if not config.data:
            raise ConfigError("no data given; name a shards folder, or text and --tokenizer")
        self._config, self._on_progress = config, on_progress
        fingerprint = Tokenizer.load(config.tokenizer).fingerprint if config.tokenizer else None
        self.names = _names(config.data)
        """What each source is called in the rows of validation."""
        self.shards: list[Shards] = []
        for source, name in zip(config.data, self.names, strict=True):
            folder = source if (Path(source) / "meta.json").is_file() else self._pack(source, name)
            self.shards.append(Shards(folder, fingerprint))
        self.tokenizer = Tokenizer.load(self.shards[0].tokenizer)

    def batches(self, rank: int = 0, world_size: int = 1) -> Batches:
        """Return the batches of a process, at their beginning."""
        config = self._config
        batches = Batches(
            self.shards,
            "train",
            batch_size=config.batch_size,
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
        if len(self.names) == 1:
            return {"epoch": batches.epochs[0]}
        return {f"epoch/{n}": epoch for n, epoch in zip(self.names, batches.epochs, strict=True)}

    def _pack(self, source: str, name: str) -> Path:
        """Pack a source of text, unless the run that is resumed has done so."""
        config = self._config
        if config.tokenizer is None:
            raise ConfigError(
                f"data={source!r} is no shards folder (it has no meta.json); pack it with "
                "`llmlab data pack`, or set --tokenizer to have it packed into the run's folder"
            )
        folder = config.out / "shards" / name
        if not (config.resume and (folder / "meta.json").is_file()):
            self._note(f"packing {source} into {folder}")
            pack(
                PackConfig(
                    sources=(source,), tokenizer=config.tokenizer, out=folder, overwrite=True
                ),
                self._on_progress,
            )
        return folder

    def _note(self, text: str) -> None:
        self._on_progress({"note": text})


def _names(sources: tuple[str, ...]) -> list[str]:
    """A name for each source that tells it from the others: its last part, or all parts."""
    whole = [source.strip("/").replace(":", "-") for source in sources]
    last = [name.rpartition("/")[2] for name in whole]
    pairs = zip(last, whole, strict=True)
    return [short if last.count(short) == 1 else full.replace("/", "-") for short, full in pairs]
