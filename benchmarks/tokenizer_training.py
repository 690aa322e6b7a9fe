"""One training of one library in a fresh process: seconds, peak memory, and what was learnt.

Both sides read the same files one at a time inside the timed part. Peak memory is the largest
resident set of the process, and its growth over what it was after the imports. The parent
(benchmarks/tokenizer.py) reads one line of JSON from stdout.

    python -m benchmarks.tokenizer_training LIBRARY ALGORITHM OUT [--limit-mb MB]
"""

import argparse
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.tokenizer_corpus import stdlib_texts

SPLIT = "gpt2"
VOCAB_SIZES = {"bpe": 32_768, "wordpiece": 8_192, "unigram": 8_192}
LIBRARIES = {
    "bpe": ("llmlab", "tokenizers"),
    "wordpiece": ("llmlab", "tokenizers"),
    "unigram": ("llmlab", "tokenizers", "sentencepiece"),
}
UNIGRAM_EVERY = 10
"""Unigram learns from each tenth file: the peers need minutes for all of them."""

_IMPORTS = {
    "llmlab": ("llmlab.tokenizers.tokenizer", "llmlab.tokenizers.trainers.{algorithm}"),
    "tokenizers": ("tokenizers",),
    "sentencepiece": ("sentencepiece",),
}


def texts_for(algorithm: str, limit_mb: float | None) -> Iterator[str]:
    """Return the texts that an algorithm learns from."""
    return stdlib_texts(every=UNIGRAM_EVERY if algorithm == "unigram" else 1, limit_mb=limit_mb)


def train_llmlab(module: Any, algorithm: str, texts: Iterator[str], out: Path) -> int:
    """Train and save; return the size of the vocabulary."""
    split = {"split": SPLIT} if algorithm == "bpe" else {}
    tokenizer = module.Tokenizer.train(
        texts, vocab_size=VOCAB_SIZES[algorithm], algorithm=algorithm, **split
    )
    tokenizer.save(out)
    return tokenizer.vocab_size


def train_tokenizers(module: Any, algorithm: str, texts: Iterator[str], out: Path) -> int:
    """Train and save with Hugging Face `tokenizers`; return the size of the vocabulary."""
    models, pre_tokenizers, trainers = module.models, module.pre_tokenizers, module.trainers
    special = [f"<|special_{number}|>" for number in range(16)]
    size: Any = {"vocab_size": VOCAB_SIZES[algorithm], "show_progress": False}
    if algorithm == "bpe":
        tokenizer = module.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(
            special_tokens=special, initial_alphabet=alphabet, min_frequency=2, **size
        )
    elif algorithm == "wordpiece":
        tokenizer = module.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(
            special_tokens=["[UNK]", *special], min_frequency=2, **size
        )
    else:
        tokenizer = module.Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            special_tokens=["<unk>", *special], unk_token="<unk>", **size
        )
    tokenizer.train_from_iterator(texts, trainer)
    out.mkdir(parents=True)
    tokenizer.save(str(out / "tokenizer.json"))
    return tokenizer.get_vocab_size()


def train_sentencepiece(module: Any, algorithm: str, texts: Iterator[str], out: Path) -> int:
    """Train and save with sentencepiece on two threads; return the size of the vocabulary."""
    model = io.BytesIO()
    module.SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts for line in text.splitlines() if line),
        model_writer=model,
        vocab_size=VOCAB_SIZES[algorithm],
        model_type=algorithm,
        normalization_rule_name="identity",
        num_threads=2,
        minloglevel=2,
    )
    out.mkdir(parents=True)
    (out / "tokenizer.model").write_bytes(model.getvalue())
    return VOCAB_SIZES[algorithm]


TRAIN: dict[str, Callable[[Any, str, Iterator[str], Path], int]] = {
    "llmlab": train_llmlab,
    "tokenizers": train_tokenizers,
    "sentencepiece": train_sentencepiece,
}


def peak_bytes() -> int:
    """Return the largest resident set of this process so far.

    It is Linux's VmHWM: `ru_maxrss` starts from the parent's size when the parent was larger.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Train once and print what it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("library", choices=list(TRAIN))
    parser.add_argument("algorithm", choices=list(VOCAB_SIZES))
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit-mb", type=float)
    args = parser.parse_args()
    began_s = time.perf_counter()
    names = [name.format(algorithm=args.algorithm) for name in _IMPORTS[args.library]]
    module, *_ = [import_module(name) for name in names]
    import_s, before = time.perf_counter() - began_s, peak_bytes()
    began_s = time.perf_counter()
    texts = texts_for(args.algorithm, args.limit_mb)
    vocab_size = TRAIN[args.library](module, args.algorithm, texts, args.out)
    found = {
        "seconds": time.perf_counter() - began_s,
        "import_s": import_s,
        "peak_mb": (peak_bytes() - before) / 1e6,
        "peak_with_imports_mb": peak_bytes() / 1e6,
        "vocab_size": vocab_size,
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
