"""README tables of the newest rows about tokenizers; reads files only, imports no peer."""

import statistics
from typing import Any

from benchmarks.rows import read_rows
from benchmarks.tokenizer_training import LIBRARIES

_STATES = {"new": "new to it", "again": "seen before"}
_NAMES = {"bpe": "BPE", "wordpiece": "WordPiece", "unigram": "Unigram"}


def speed_table() -> list[str]:
    """Return the lines of the README made of the newest row of each part."""
    rows = {row["part"]: row for row in read_rows("tokenizer") if row["limit_mb"] is None}
    lines = [
        f"**Tokenizers** on {rows['train']['device']}, {rows['train']['threads']} threads "
        "(`python -m benchmarks.tokenizer`), medians; each peer in the same run on the same text:",
        "",
        "| what | llmlab | peers | times as fast |",
        "|---|--:|--:|--:|",
        *_training_lines(rows["train"]),
        *_encoding_lines(rows["encode"]),
        *_latency_lines(rows["latency"]),
    ]
    compiling, from_disk = rows["compile"]["compiling"], rows["compile"]["from_disk"]
    limits = rows["limits"]["mb_per_s"]
    lines += [
        "",
        f"The first training on a machine compiles for {compiling['train_s']:.0f} s, the first "
        f"batch encoding for {compiling['encode_s']:.0f} s; later processes load that code in "
        f"{from_disk['train_s']['median']:.2f} and {from_disk['encode_s']['median']:.2f} s. "
        f"One core copies {limits['copy']['median']:,.0f} MB/s and cuts "
        f"{limits['cut into pre-tokens']['median']:,.0f} MB/s into pre-tokens, which bounds "
        f"every encoder; `data pack` from files to shards runs at "
        f"{rows['encode']['pack_mb_per_s']['median']:.0f} MB/s.",
    ]
    return lines


def _training_lines(row: dict[str, Any]) -> list[str]:
    lines = []
    for algorithm, libraries in LIBRARIES.items():
        found = row[algorithm]
        what = f"{_NAMES[algorithm]} {found['vocab_size']:,}, {found['bytes'] / 1e6:.1f} MB"
        seconds = [found[library]["seconds"]["median"] for library in libraries]
        memory = [
            f"{found[library]['peak_with_imports_mb']['median']:,.0f} MB "
            f"(+{found[library]['peak_mb']['median']:,.0f})"
            for library in libraries
        ]
        peers = ", ".join(
            f"{library} {value:.1f} s"
            for library, value in zip(libraries[1:], seconds[1:], strict=True)
        )
        ratios = ", ".join(f"{value / seconds[0]:.1f}" for value in seconds[1:])
        lines.append(f"| train {what} | {seconds[0]:.1f} s | {peers} | {ratios} |")
        peers = ", ".join(
            f"{library} {text}" for library, text in zip(libraries[1:], memory[1:], strict=True)
        )
        lines.append(f"| peak memory of it (over the imports) | {memory[0]} | {peers} | |")
    return lines


def _encoding_lines(row: dict[str, Any]) -> list[str]:
    lines = []
    for corpus, found in row["corpora"].items():
        for state in ("cold", "warm"):
            rates = {
                name: states[state]["median"]
                for name, states in found["mb_per_s"].items()
                if state in states
            }
            best = {
                peer: max(rate for name, rate in rates.items() if name.startswith(peer))
                for peer in ("tokenizers", "tiktoken")
            }
            ours = rates["llmlab arrays"]
            peers = ", ".join(f"{peer} {rate:.1f} MB/s" for peer, rate in best.items())
            ratios = ", ".join(f"{ours / rate:.1f}" for rate in best.values())
            size = f"{found['bytes'] / 1e6:.1f} MB in {found['documents']:,} documents"
            what = f"encode {corpus}, {size}, {state}"
            lines.append(f"| {what} | {ours:.1f} MB/s | {peers} | {ratios} |")
    return lines


def _latency_lines(row: dict[str, Any]) -> list[str]:
    lines = []
    for state, lengths in row["microseconds"].items():
        for chars, found in lengths.items():
            ours, *theirs = (found[name]["median"] for name in ("llmlab", "tokenizers", "tiktoken"))
            peers = ", ".join(
                f"{name} {value:,.0f} µs"
                for name, value in zip(("tokenizers", "tiktoken"), theirs, strict=True)
            )
            ratios = ", ".join(f"{value / ours:.1f}" for value in theirs)
            what = f"encode one prompt of {chars} characters, {_STATES[state]}"
            lines.append(f"| {what} | {ours:,.0f} µs | {peers} | {ratios} |")
    return lines


def study_table() -> list[str]:
    """Return the lines of the README made of the newest row."""
    row = read_rows("tokenisation_study")[-1]
    lines = [
        f"**Tokenisation** (`python -m benchmarks.tokenisation_study`): a 4-layer model of width "
        f"128 gets {row['tflop_each']:.1f} TFLOP of training with each tokenizer, "
        f"{len(row['seeds'])} seeds; {row['train_bytes'] / 1e6:.1f} MB of docstrings and plays to "
        f"learn from, {row['held_out_bytes'] / 1e6:.2f} MB held out.",
        "",
        "| tokens | vocabulary | bytes per token | tokens per word | tokens seen | bits per byte |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for found in sorted(row["variants"], key=lambda found: statistics.mean(found["bits_per_byte"])):
        scores = found["bits_per_byte"]
        half = (max(scores) - min(scores)) / 2
        mark = "" if found["lossless"] else " †"
        lines.append(
            f"| {found['name']} | {found['vocab_size']:,} | {found['bytes_per_token']:.2f} "
            f"| {found['tokens_per_word']:.2f} | {found['tokens_seen'] / 1e6:.2f} M "
            f"| {statistics.mean(scores):.3f} ± {half:.3f}{mark} |"
        )
    if not all(found["lossless"] for found in row["variants"]):
        lines += [
            "",
            "† does not give the text back exactly (case or white space is lost), so it has less "
            "to predict and does not compare.",
        ]
    return lines
