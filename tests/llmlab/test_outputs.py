import errno
import os

import pytest

from llmlab.errors import OutputError
from llmlab.outputs import whole_file, whole_folder


def test_folder_appears_only_when_complete(tmp_path):
    out = tmp_path / "a" / "out"
    with whole_folder(out) as partial:
        (partial / "x").write_text("1")
        assert not out.exists()
    assert [p.name for p in out.iterdir()] == ["x"]
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyError), whole_folder(tmp_path / "out") as partial:
        (partial / "x").write_text("1")
        raise KeyError
    with pytest.raises(KeyError), whole_file(tmp_path / "file") as partial:
        partial.write_text("half")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_kept_unless_overwrite(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("1")
    with pytest.raises(OutputError, match=r"out already exists; choose another --out or add --ov"):
        with whole_folder(out):
            raise AssertionError("must not get here")
    with pytest.raises(ValueError, match="stop"), whole_folder(out, overwrite=True):
        raise ValueError("stop")
    assert (out / "old").exists()
    with whole_folder(out, overwrite=True) as partial:
        (partial / "new").write_text("1")
    assert [p.name for p in out.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_empty_folder_counts_as_free(tmp_path):
    (tmp_path / "out").mkdir()
    with whole_folder(tmp_path / "out") as partial:
        (partial / "x").write_text("1")
    assert (tmp_path / "out" / "x").exists()


def test_leftover_of_a_killed_writer_is_removed(tmp_path):
    leftover = tmp_path / ".out.partial"
    leftover.mkdir()
    (leftover / "junk").write_text("1")
    with whole_folder(tmp_path / "out") as partial:
        (partial / "x").write_text("1")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["x"]
    assert not leftover.exists()


def test_full_disk_is_one_clear_error(tmp_path):
    with pytest.raises(OutputError, match=r"cannot write .*out: No space left .* MB free\); free"):
        with whole_folder(tmp_path / "out"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_file_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with whole_file(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
