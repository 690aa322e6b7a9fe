from pathlib import Path

import pytest

from llmlab.data import iter_documents
from llmlab.data.named import NAMED, cache_folder, find_named
from llmlab.errors import DataError


def test_found_in_the_data_folder_and_checked():
    try:
        path = find_named("tinyshakespeare")
    except (DataError, OSError):
        pytest.skip("tinyshakespeare lies neither in LLMLAB_DATA nor in the cache")
    assert path.stat().st_size == 1_115_394
    (document,) = iter_documents(["tinyshakespeare"])
    assert document.text.startswith("First Citizen:")


def test_another_file_of_that_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = tmp_path / NAMED["names"].path
    place.parent.mkdir()
    place.write_text("emma\n")
    monkeypatch.setenv("LLMLAB_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"names.txt has SHA-256 \w{64}, expected 0a30b5.*delete"):
        find_named("names")


def test_a_failed_download_names_the_place_for_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("LLMLAB_DATA", raising=False)
    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    with pytest.raises(
        DataError, match=rf"could not download https://.*put the file at {tmp_path}"
    ):
        find_named("names")
    assert not list(tmp_path.rglob("*.txt"))


def test_unknown_name():
    with pytest.raises(DataError, match="no data set is named 'nmaes'; did you mean 'names'"):
        find_named("nmaes")
