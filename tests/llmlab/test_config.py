from dataclasses import dataclass
from pathlib import Path

import pytest
import tyro

from llmlab.config import read_toml, save_config, toml_flags
from llmlab.data.config import PackConfig
from llmlab.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Sample:
    out: Path
    learning_rate: float = 1e-3
    names: tuple[str, ...] = ()
    fast: bool = False
    limit: int | None = None


def test_saved_config_reads_back(tmp_path):
    path = tmp_path / "config.toml"
    save_config(Sample(out=Path("a/b"), names=("x", "y"), fast=True), path)
    assert read_toml(path, Sample) == {
        "out": "a/b",
        "learning_rate": 1e-3,
        "names": ["x", "y"],
        "fast": True,
    }


def test_toml_becomes_flags(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('learning-rate = 0.5\nnames = ["a", "b"]\nfast = false\n')
    assert toml_flags(path, Sample) == ["--learning-rate", "0.5", "--names", "a", "b", "--no-fast"]


def test_positional_fields_come_first_and_without_a_flag(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('tokenizer = "t"\nout = "o"\nsources = ["a.txt", "b"]\n')
    words = toml_flags(path, PackConfig)
    assert words == ["a.txt", "b", "--tokenizer", "t", "--out", "o"]
    assert tyro.cli(PackConfig, args=[*words, "--out", "p"]) == PackConfig(
        sources=("a.txt", "b"), tokenizer=Path("t"), out=Path("p")
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat = 1", r"unknown key 'learning_rat'; did you mean 'learning_rate'\?"),
        ("zzz = 1", "unknown key 'zzz'; known: fast, learning_rate"),
        ("= 1", "is not TOML"),
    ],
)
def test_bad_toml_names_the_fix(tmp_path, text, message):
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_toml(path, Sample)


def test_missing_file():
    with pytest.raises(ConfigError, match=r"nowhere.toml does not exist; check --config"):
        read_toml("nowhere.toml", Sample)
