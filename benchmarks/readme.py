"""Write the measured parts of README.md from the newest rows of results/.

python -m benchmarks.readme
"""

import re
from pathlib import Path
from typing import Any

from benchmarks.kernel_tables import kernel_table, quantization_table
from benchmarks.rows import read_rows
from benchmarks.serve_tables import serving_table
from benchmarks.tokenizer_tables import speed_table, study_table
from benchmarks.training_tables import hour_paragraph, scaling_paragraph, training_table

README = Path(__file__).parents[1] / "README.md"


def main() -> None:
    """Rewrite README.md in place."""
    README.write_text(with_measurements(README.read_text(encoding="utf-8")), encoding="utf-8")


def with_measurements(text: str) -> str:
    """Return the README's text with its measured part taken from the rows."""
    begin, end = "<!-- measured: begin -->\n", "<!-- measured: end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.S)
    return pattern.sub(lambda _: begin + measured() + end, text)


def measured() -> str:
    """Return the section made of the newest row of each benchmark."""
    parity, quickstart = read_rows("parity")[-1], read_rows("quickstart")[-1]
    sections = [
        _exactness(parity),
        _quickstart(quickstart),
        speed_table(),
        study_table(),
        training_table(),
        scaling_paragraph(),
        hour_paragraph(),
        kernel_table(),
        quantization_table(),
        serving_table(),
        _cranfield(),
    ]
    return "\n".join(line for section in sections if section for line in (*section, ""))


def _exactness(row: dict[str, Any]) -> list[str]:
    greedy, ids = row["smollm2_greedy"], row["tokenizer_ids"]
    lines = [
        f"**Exactness** against transformers, {row['dtype']} (`python -m benchmarks.parity`):",
        "",
        "| what | result |",
        "|---|---|",
    ]
    for name, found in row["max_abs_logit_difference"].items():
        worst = max(found.values())
        lines.append(
            f"| {name}, tiny random weights, both ways: largest logit difference | {worst:.1e} |"
        )
    lines += [
        f"| SmolLM2-135M from its GGUF, prompts with the same {greedy['new_tokens']} greedy "
        f"tokens, alone | {greedy['equal_alone']} of {greedy['prompts']} |",
        f"| the same in batches of 8 | {greedy['equal_in_batch_of_8']} of {greedy['prompts']} |",
        f"| `AutoTokenizer` on a freshly trained tokenizer, difficult texts with equal ids | "
        f"{ids['equal']} of {ids['texts']} |",
    ]
    return lines


def _quickstart(row: dict[str, Any]) -> list[str]:
    facts = row["facts"]
    lines = [
        f"**Quickstart** on {row['device']} (`python -m benchmarks.quickstart`): "
        f"{row['total_s'] / 60:.1f} minutes in all; {facts['parameters']} parameters, "
        f"{facts['tokens seen']} tokens, {facts['bits per byte, held out']} bits per byte on "
        "files held out.",
        "",
        "| stage | seconds |",
        "|---|--:|",
    ]
    return lines + [f"| {stage} | {seconds} |" for stage, seconds in row["stages_s"].items()]


def _cranfield() -> list[str]:
    row = read_rows("rag_cranfield")[-1]
    lines = [
        f"**Retrieval** on Cranfield, 225 questions over {row['documents']:,} abstracts "
        "(`python -m benchmarks.rag_cranfield`):",
        "",
        "| search | nDCG@10 | median ms |",
        "|---|--:|--:|",
    ]
    for mode in ("hybrid", "bm25", "dense"):
        median_ms = row.get(f"search_ms_{mode}_median", "–")
        lines.append(f"| {mode} | {row[f'ndcg10_{mode}']:.3f} | {median_ms} |")
    return lines


if __name__ == "__main__":
    main()
