"""Rows as the services' own readers give them back."""

import json
import sqlite3
import sys
from pathlib import Path

import pytest

from llmlab.errors import ConfigError, MissingExtraError
from llmlab.track import MetricsLog, opened_trackers, read_metrics
from llmlab.track.trackers import TRACKERS

ROWS = [
    {"step": 1, "loss": 5.5, "lr": 1e-3, "note": "words are not drawn", "final": True},
    {"step": 2, "loss": 4.25, "lr": 2e-3},
    {"step": 2, "val_loss": 4.5, "bits_per_byte": 2.125},
]


def write(folder: Path, name: str, rows=ROWS) -> None:
    folder.mkdir(exist_ok=True)
    with opened_trackers([name], folder=folder, run_id="0123456789abcdef", settings={}) as opened:
        with MetricsLog(folder / "metrics.jsonl", opened) as log:
            for row in rows:
                log.write(row)


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", exc_type=ImportError
    )
    events = accumulators.EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_reads_every_number(tmp_path):
    write(tmp_path, "tensorboard")
    found = curves(tmp_path / "tensorboard")
    assert found == {
        "loss": [(1, 5.5), (2, 4.25)],
        "lr": [(1, pytest.approx(1e-3)), (2, pytest.approx(2e-3))],  # float32
        "val_loss": [(2, 4.5)],
        "bits_per_byte": [(2, 2.125)],
    }
    assert read_metrics(tmp_path / "metrics.jsonl") == ROWS


def test_tensorboard_hides_what_a_resumed_run_does_again(tmp_path):
    write(tmp_path, "tensorboard", [{"step": step, "loss": 9.0} for step in range(1, 6)])
    write(tmp_path, "tensorboard", [{"step": step, "loss": 1.0} for step in range(4, 8)])
    losses = [9.0] * 3 + [1.0] * 4
    assert curves(tmp_path / "tensorboard")["loss"] == list(enumerate(losses, start=1))


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    write(tmp_path / "run", "wandb")
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*-0123456789abcdef/*.wandb")
    assert b"bits_per_byte" in file.read_bytes()


def test_trackio_keeps_its_database_here(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    write(tmp_path / "run", "trackio")
    with sqlite3.connect(tmp_path / "trackio" / "llmlab.db") as database:
        found = database.execute("select step, metrics from metrics order by id").fetchall()
    assert [(step, json.loads(text)) for step, text in found] == [
        (1, {"loss": 5.5, "lr": 1e-3}),
        (2, {"loss": 4.25, "lr": 2e-3}),
        (2, {"val_loss": 4.5, "bits_per_byte": 2.125}),
    ]


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_is_named_with_its_extra(name, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", sys.meta_path[-1:])  # not what editable installs add
    with pytest.raises(MissingExtraError, match=rf"pip install 'llmlab\[{name}\]'"):
        write(tmp_path, name)


def test_an_unknown_tracker_names_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="no tracker 'tensorbord'; did you mean 'tensorboard'"):
        write(tmp_path, "tensorbord")
