import pytest

from llmlab.errors import DataError
from llmlab.track import MetricsLog, read_metrics


def test_rows_survive_and_continue(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.write({"step": 1, "loss": 2.5})
    with MetricsLog(path) as log:
        log.write({"step": 2})
        assert read_metrics(path) == [{"step": 1, "loss": 2.5}, {"step": 2}]


def test_last_line_cut_by_a_kill_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st')
    assert read_metrics(path) == [{"step": 1}]
    path.write_text('{"st\n{"step": 1}\n')
    with pytest.raises(DataError, match="line 1 is not JSON"):
        read_metrics(path)
    with pytest.raises(DataError, match="does not exist"):
        read_metrics(tmp_path / "none")
