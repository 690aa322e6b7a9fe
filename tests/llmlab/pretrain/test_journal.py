import pytest

from llmlab.errors import ModelError
from llmlab.pretrain.journal import Journal
from llmlab.track import read_metrics


def test_the_live_line_has_what_people_watch_and_the_last_bits_per_byte(tmp_path):
    shown = []
    with Journal(tmp_path, shown.append) as journal:
        step = {"step": "1/9", "loss": 5.0, "lr": 1e-3, "grad_norm": 2.0, "tokens": 64,
                "tok_per_s": 10.0, "mfu": 0.1, "eta": 3.0}  # fmt: skip
        journal(step)
        journal({"note": "step 1  val_loss 4", "step": 1, "val_loss": 4.0, "bits_per_byte": 2.0})
        journal(step)
    assert list(shown[0]) == ["step", "loss", "lr", "tok_per_s", "mfu", "eta"]
    assert list(shown[2]) == ["step", "loss", "bits_per_byte", "lr", "tok_per_s", "mfu", "eta"]
    assert shown[2]["bits_per_byte"] == 2.0
    assert read_metrics(tmp_path / "journal.jsonl") == []


def test_a_journal_is_continued_under_its_id_and_tells_how_each_start_ended(tmp_path):
    with Journal(tmp_path, lambda row: None) as first:
        first.started({"device": "x"})
        first({"note": "a word"})
        first.ended("interrupted", {"steps": 3})
    with pytest.raises(ModelError), Journal(tmp_path, lambda row: None) as second:
        second.started({})
        raise ModelError("step 4: the loss is nan")
    assert second.run_id == first.run_id
    rows = read_metrics(tmp_path / "journal.jsonl")
    kinds = [row.get("event", "note") for row in rows]
    assert kinds == ["started", "note", "ended", "started", "ended"]
    assert rows[2]["status"] == "interrupted"
    assert (rows[4]["status"], rows[4]["error"]) == ("failed", "step 4: the loss is nan")
    assert rows[4]["kind"] == "ModelError"
