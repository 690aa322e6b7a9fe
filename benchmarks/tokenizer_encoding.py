"""Encoding with one vocabulary in three libraries: ids compared first, then timed in turns.

The vocabulary is trained here; `tokenizers` reads it from tokenizer.json, tiktoken gets its bytes
as ranks. "cold" is the first call of a fresh object, "warm" the second one; making the object is
not timed. `tokenizers` is not asked for its ids (`Encoding.ids` would cost it more), tiktoken's
numpy output runs on a pool of threads, as its own batch function does.
"""

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
import tokenizers

from benchmarks.timing import spread, take_turns, timed
from benchmarks.tokenizer_corpus import num_bytes
from llmlab.data.config import PackConfig
from llmlab.data.packing import pack
from llmlab.tokenizers import Tokenizer
from llmlab.tokenizers.compiled.char_classes import char_classes
from llmlab.tokenizers.compiled.jit import compiled_inner
from llmlab.tokenizers.compiled.scanner import piece_end
from llmlab.tokenizers.splits import find_split

Encode = Callable[[list[str]], Any]

COLD_ONLY = frozenset({"tokenizers encode_batch"})
"""Too slow to run twice; its second call is no faster than `encode_batch_fast`'s."""

PROMPT_CHARS = (50, 200, 1000)
NUM_PROMPTS = 50


class Contestants:
    """One vocabulary in three libraries.

    Args:
        folder: tokenizer folder of a byte-level BPE.
        num_threads: threads that each may use.
    """

    def __init__(self, folder: Path, num_threads: int) -> None:
        self._folder, self._num_threads = folder, num_threads
        ours = Tokenizer.load(folder)
        special = ours.special_tokens
        ordinary = set(range(ours.vocab_size)) - set(special.values())
        self._ranks = {ours.token_bytes(token): token for token in sorted(ordinary)}
        self._special, self._expression = special, find_split(ours.split).expression

    def ours(self) -> Tokenizer:
        """Return a fresh tokenizer."""
        return Tokenizer.load(self._folder)

    def hugging_face(self) -> tokenizers.Tokenizer:
        """Return a fresh `tokenizers` one."""
        return tokenizers.Tokenizer.from_file(str(self._folder / "tokenizer.json"))

    def tiktoken(self) -> tiktoken.Encoding:
        """Return a fresh tiktoken one."""
        return tiktoken.Encoding(
            "same",
            pat_str=self._expression,
            mergeable_ranks=self._ranks,
            special_tokens=self._special,
        )

    def encoders(self) -> dict[str, Callable[[], Encode]]:
        """Return, by name, what makes a fresh batch encoder."""
        return {
            "llmlab arrays": lambda: self.ours().encode_batch_to_arrays,
            "llmlab lists": lambda: self.ours().encode_batch,
            "tokenizers encode_batch": lambda: _without_special(self.hugging_face().encode_batch),
            "tokenizers encode_batch_fast": lambda: _without_special(
                self.hugging_face().encode_batch_fast
            ),
            "tiktoken lists": self._tiktoken_lists,
            "tiktoken arrays": self._tiktoken_arrays,
        }

    def _tiktoken_lists(self) -> Encode:
        encoding, threads = self.tiktoken(), self._num_threads
        return lambda texts: encoding.encode_ordinary_batch(texts, num_threads=threads)

    def _tiktoken_arrays(self) -> Encode:
        encoding, threads = self.tiktoken(), self._num_threads

        def encode(texts: list[str]) -> list[Any]:
            with ThreadPoolExecutor(threads) as pool:
                return list(
                    pool.map(
                        lambda text: encoding.encode_to_numpy(text, disallowed_special=()), texts
                    )
                )

        return encode


def equal_documents(contestants: Contestants, texts: list[str]) -> dict[str, int]:
    """Count the documents on which each peer gives our ids; ours as lists and arrays as well."""
    ours = contestants.ours()
    arrays = ours.encode_batch_to_arrays(texts)
    theirs = _without_special(contestants.hugging_face().encode_batch_fast)(texts)
    sides: dict[str, Sequence[Any]] = {
        "llmlab lists": ours.encode_batch(texts),
        "tokenizers": [encoding.ids for encoding in theirs],
        "tiktoken": contestants.tiktoken().encode_ordinary_batch(texts),
    }
    return {
        name: sum(np.array_equal(a, b) for a, b in zip(arrays, ids, strict=True))
        for name, ids in sides.items()
    }


def corpus_speed(contestants: Contestants, texts: list[str], runs: int) -> dict[str, Any]:
    """Return MB/s of every encoder, cold and warm."""
    mega = num_bytes(texts) / 1e6
    makers = contestants.encoders()
    states = {name: ("cold",) if name in COLD_ONLY else ("cold", "warm") for name in makers}
    rates: dict[str, dict[str, list[float]]] = {
        name: {state: [] for state in states[name]} for name in makers
    }
    names = list(makers)
    for number in range(runs):
        for name in names if number % 2 == 0 else reversed(names):
            encode = makers[name]()
            for state in states[name]:
                rates[name][state].append(mega / timed(lambda: encode(texts))[0])  # noqa: B023
    return {
        name: {state: spread(values, 2) for state, values in found.items()}
        for name, found in rates.items()
    }


def pack_speed(folder: Path, texts: list[str], runs: int) -> dict[str, Any]:
    """Return MB/s of `data pack` from files on disk to shards, reading and writing included."""
    mega = num_bytes(texts) / 1e6
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "corpus"
        source.mkdir()
        for number, text in enumerate(texts):
            (source / f"{number:05}.txt").write_text(text, encoding="utf-8", newline="")
        config = PackConfig(
            sources=(str(source),), tokenizer=folder, out=Path(name) / "shards", overwrite=True
        )
        return spread([mega / timed(lambda: pack(config))[0] for _ in range(runs)], 2)


def latency(contestants: Contestants, texts: list[str], runs: int) -> dict[str, Any]:
    """Return microseconds for one prompt as a list of ids, by state and length in characters.

    "new" prompts come once each, to tokenizers that have read the first half of the corpus, as
    those of a server have; "again" are prompts all seen before.
    """
    ours, theirs, ranks = contestants.ours(), contestants.hugging_face(), contestants.tiktoken()
    one = {
        "llmlab": ours.encode,
        "tokenizers": lambda text: theirs.encode(text, add_special_tokens=False).ids,
        "tiktoken": ranks.encode_ordinary,
    }
    joined = "".join(texts)
    half = len(joined) // 2
    for encode in one.values():
        _each(encode, _prompts(joined[:half], max(PROMPT_CHARS)))()
    per_length = half // len(PROMPT_CHARS)
    found: dict[str, Any] = {"new": {}, "again": {}}
    for number, chars in enumerate(PROMPT_CHARS):
        first = half + number * per_length
        prompts = _prompts(joined[first : first + per_length], chars)
        groups = [prompts[at : at + NUM_PROMPTS] for at in range(0, len(prompts), NUM_PROMPTS)]
        new: dict[str, list[float]] = {name: [] for name in one}
        for group in groups[: 4 * runs]:
            tasks = {name: _each(encode, group) for name, encode in one.items()}
            for name, (seconds,) in take_turns(tasks, 1).items():
                new[name].append(seconds / len(group))
        tasks = {name: _each(encode, groups[0]) for name, encode in one.items()}
        again = take_turns(tasks, 4 * runs)
        found["new"][str(chars)] = _microseconds(new)
        found["again"][str(chars)] = _microseconds(
            {name: [value / len(groups[0]) for value in values] for name, values in again.items()}
        )
    return found


def _prompts(text: str, chars: int) -> list[str]:
    return [text[at : at + chars] for at in range(0, len(text) - chars, chars)]


def _microseconds(seconds: dict[str, list[float]]) -> dict[str, Any]:
    return {name: spread([1e6 * value for value in values], 1) for name, values in seconds.items()}


def limits(split: str, texts: list[str], runs: int) -> dict[str, Any]:
    """Return MB/s on one core of what any encoder does at least: one pass, and the cutting."""
    data = np.frombuffer("".join(texts).encode(), np.uint8)
    raw, target = data.tobytes(), np.empty_like(data)
    classes, rules = char_classes(), find_split(split).rules
    _count_pieces(data[:1000], classes, rules)
    tasks = {
        "copy": lambda: np.copyto(target, data),
        "count one byte": lambda: raw.count(b"\n"),
        "cut into pre-tokens": lambda: _count_pieces(data, classes, rules),
    }
    return {
        name: spread([len(data) / 1e6 / value for value in values], 1)
        for name, values in take_turns(tasks, max(runs, 5)).items()
    }


@compiled_inner
def _count_pieces(data: Any, classes: Any, rules: Any) -> int:
    at = pieces = 0
    while at < len(data):
        at = piece_end(data, at, len(data), classes, rules)
        pieces += 1
    return pieces


def _without_special(encode_batch: Callable[..., Any]) -> Encode:
    return lambda texts: encode_batch(texts, add_special_tokens=False)


def _each(encode: Callable[[str], Any], prompts: list[str]) -> Callable[[], None]:
    def run() -> None:
        for prompt in prompts:
            encode(prompt)

    return run
