"""The results folder: samples.jsonl, results.json, report.md and report.html.

Not here: the numbers (results.py). The HTML page stands alone: no script, no other file.
"""

import dataclasses
import html
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmlab.evals.results import HIGHER_IS_BETTER, Results, Sample, TaskResult
from llmlab.evals.stats import Estimate
from llmlab.outputs import whole_folder

_SHOWN_SAMPLES = 50
_SHOWN_CHARS = 300
_COLOURS: dict[float | None, str] = {1.0: "right", 0.0: "wrong"}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; }
tr { border-bottom: 1px solid #ddd; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
td.text { white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.4 ui-monospace, monospace; }
.right { color: #176b2c; } .wrong { color: #a11; } .quiet { color: #666; }
"""


def write_results(results: Results, *, overwrite: bool = False) -> None:
    """Write the results folder at `results.out`, whole or not at all.

    Raises:
        OutputError: the folder exists and `overwrite` is false, or cannot be written.
    """
    with whole_folder(results.out, overwrite=overwrite) as folder:
        with (folder / "samples.jsonl").open("w", encoding="utf-8") as file:
            for result in results.tasks:
                for sample in result.samples:
                    row = dataclasses.asdict(sample)
                    file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
        _write(folder / "results.json", json.dumps(results.to_dict(), indent=2) + "\n")
        _write(folder / "report.md", markdown(results))
        _write(folder / "report.html", page(results))


def markdown(results: Results) -> str:
    """Return the report as Markdown."""
    lines = [
        f"# Evaluation of {results.model}",
        "",
        "| task | version | metric | | value | 95% interval | stderr | n |",
        "|---|---|---|---|---|---|---|---|",
    ]
    versions = {result.task: result.version for result in results.tasks}
    for task, metric, number in results.rows():
        arrow = "↑" if HIGHER_IS_BETTER[metric] else "↓"
        lines.append(
            f"| {task} | {versions[task]} | {metric} | {arrow} | {number.value:.4f} | "
            f"{_interval(number)} | {_stderr(number)} | {number.num_examples} |"
        )
    lines += ["", *(_failures(result) for result in results.tasks if result.num_failed)]
    lines += [
        "",
        "↑ higher is better, ↓ lower is better. Intervals: percentile bootstrap, "
        f"seed {results.config['seed']}.",
        "",
        f"Model fingerprint `{results.model_fingerprint}`.",
        *(f"Task {r.task} `{r.fingerprint}`: {r.description}." for r in results.tasks),
    ]
    return "\n".join(lines) + "\n"


def page(results: Results) -> str:
    """Return the report as one HTML page."""
    parts = [
        f"<h1>Evaluation of {html.escape(results.model)}</h1>",
        f'<p class="quiet">model fingerprint {results.model_fingerprint}</p>',
        "<table><tr><th>task<th>metric<th>value<th>95% interval<th><th>n</tr>",
        *(_summary_row(*row) for row in results.rows()),
        "</table>",
        '<p class="quiet">↑ higher is better, ↓ lower is better. The dot is the value, the bar its '
        "95% bootstrap interval.</p>",
    ]
    for result in results.tasks:
        parts += _task_section(result)
    title = html.escape(f"Evaluation of {results.model}")
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n" + "\n".join(parts) + "\n</html>\n"
    )


def _summary_row(task: str, metric: str, number: Estimate) -> str:
    arrow = "↑" if HIGHER_IS_BETTER[metric] else "↓"
    return (
        f"<tr><td>{html.escape(task)}<td>{metric} {arrow}"
        f'<td class="number">{number.value:.4f}<td class="number">{_interval(number)}'
        f'<td>{_error_bar(metric, number)}<td class="number">{number.num_examples}</tr>'
    )


def _error_bar(metric: str, number: Estimate) -> str:
    """Draw an estimate on an axis from 0 to 1, or to the next whole number above it."""
    most = max(1.0, float(int(number.high or number.value) + 1)) if number.value > 1 else 1.0
    width, height = 200, 16
    low = number.value if number.low is None else number.low
    high = number.value if number.high is None else number.high
    x, left, right = (4 + (width - 8) * end / most for end in (number.value, low, high))
    return (
        f'<svg width="{width}" height="{height}" role="img" aria-label="{metric} '
        f'{number.value:.4f} on an axis from 0 to {most:g}"><line x1="4" x2="{width - 4}" y1="8" '
        f'y2="8" stroke="#ccc"/><line x1="{left:.1f}" x2="{right:.1f}" y1="8" y2="8" '
        f'stroke="#36c" stroke-width="4"/><circle cx="{x:.1f}" cy="8" r="4" fill="#124"/></svg>'
    )


def _task_section(result: TaskResult) -> Iterator[str]:
    yield f"<h2>{html.escape(result.task)}</h2>"
    yield (
        f'<p class="quiet">{html.escape(result.description)}; version {result.version}, '
        f"fingerprint {result.fingerprint[:16]}, {result.wall_s:.1f} s</p>"
    )
    if result.num_failed:
        yield f'<p class="wrong">{html.escape(_failures(result))}</p>'
    shown = result.samples[:_SHOWN_SAMPLES]
    yield f"<details><summary>{len(shown)} of {len(result.samples)} examples</summary>"
    yield "<table><tr><th>id<th>input<th>target<th>response<th>scores</tr>"
    yield from map(_sample_row, shown)
    yield "</table></details>"


def _sample_row(sample: Sample) -> str:
    kind = "wrong" if sample.error else _COLOURS.get(_first_score(sample), "")
    scores = sample.error or ", ".join(
        f"{name} {value:.4g}" for name, value in sample.scores.items() if isinstance(value, float)
    )
    cells = (sample.input[-_SHOWN_CHARS:], sample.target, sample.response[:_SHOWN_CHARS])
    texts = "".join(f'<td class="text">{html.escape(cell)}' for cell in cells)
    return f'<tr><td>{html.escape(sample.id)}{texts}<td class="{kind}">{html.escape(scores)}</tr>'


def _first_score(sample: Sample) -> float | None:
    names: Sequence[str] = ("acc", "match")
    return next((sample.scores[name] for name in names if name in sample.scores), None)


def _failures(result: TaskResult) -> str:
    return (
        f"{result.task}: {result.num_failed} of {len(result.samples)} examples could not be "
        f"scored and are left out; the first: {result.first_error}"
    )


def _interval(number: Estimate) -> str:
    return "–" if number.low is None else f"{number.low:.4f} to {number.high:.4f}"


def _stderr(number: Estimate) -> str:
    return "–" if number.stderr is None else f"{number.stderr:.4f}"


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
