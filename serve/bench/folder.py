"""The folder that a run leaves: all numbers, the table and a plot.

Not here: what is in them (report.py, plot.py).
"""

import json
from pathlib import Path

from llmlab.outputs import whole_folder
from llmlab.serve.bench.plot import load_figure, long_prompt_figure
from llmlab.serve.bench.report import as_json, table
from llmlab.serve.bench.run import Results


def write_folder(results: Results, folder: Path, *, overwrite: bool) -> None:
    """Write results.json, report.txt and plot.png, all or nothing.

    Raises:
        OutputError: the folder exists and `overwrite` is false, or the disk is full.
    """
    with whole_folder(folder, overwrite=overwrite) as partial:
        text = json.dumps(as_json(results), indent=1, ensure_ascii=False, default=str)
        (partial / "results.json").write_text(text + "\n", encoding="utf-8")
        (partial / "report.txt").write_text(table(results) + "\n", encoding="utf-8")
        is_load = results.config.mix != "long-prefill"
        figure = load_figure(results) if is_load else long_prompt_figure(results)
        figure.savefig(partial / "plot.png", dpi=150)
