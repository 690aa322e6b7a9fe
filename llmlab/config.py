"""Configs: one frozen dataclass a command, read from TOML and flags, saved beside the results.

Not here: the fields (each stage has its own config.py), the flags (llmlab/cli). Config modules do
not import torch, so that `--help` answers at once.
"""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any, get_type_hints

import tomli_w
import tyro

from llmlab.errors import ConfigError, did_you_mean
from llmlab.outputs import whole_file


def read_toml(path: Path | str, config_class: type) -> dict[str, Any]:
    """Read a TOML file whose keys are fields of `config_class`.

    Raises:
        ConfigError: the file is missing, is not TOML, or has a key that is not a field.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"config file {path} does not exist; check --config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} is not TOML: {error}") from error
    fields = {field.name for field in dataclasses.fields(config_class)}
    values = {key.replace("-", "_"): value for key, value in values.items()}
    for key in values:
        if key not in fields:
            raise ConfigError(f"{path}: unknown key {key!r}{did_you_mean(key, fields)}")
    return values


def toml_flags(path: Path | str, config_class: type) -> list[str]:
    """Turn a TOML file into command-line words, to stand before the user's own.

    Values of positional fields come first, without a flag.
    """
    hints = get_type_hints(config_class, include_extras=True)
    positional: list[str] = []
    flags: list[str] = []
    for key, value in read_toml(path, config_class).items():
        name = key.replace("_", "-")
        words = [str(item) for item in value] if isinstance(value, list) else [str(value)]
        if tyro.conf.Positional in getattr(hints[key], "__metadata__", ()):
            positional += words
        elif isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        else:
            flags += [f"--{name}", *words]
    return positional + flags


def save_config(config: Any, path: Path | str) -> None:
    """Write a config dataclass as TOML; fields that are None are left out."""
    plain = {key: _plain(value) for key, value in dataclasses.asdict(config).items()}
    text = tomli_w.dumps({key: value for key, value in plain.items() if value is not None})
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
