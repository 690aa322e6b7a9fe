"""The runs of a sweep, from the words of its settings. Torch-free.

A trial is named by what sets it apart, so the same words give the same folders: that is how a sweep
goes on after it was stopped, and how it grows when a value is added.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import tyro

from llmlab.config import toml_flags
from llmlab.errors import ConfigError, did_you_mean
from llmlab.pretrain.config import PretrainConfig
from llmlab.pretrain.sweep.config import SweepConfig

_RESERVED = ("out", "overwrite", "resume", "find_lr")
_UNITS = {"k": 1e3, "M": 1e6, "B": 1e9}
_LONGEST_NAME = 100

Words = dict[str, str]
"""Field to the text of its value."""


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    name: str
    """Of its folder."""

    config: PretrainConfig
    held_out: bool = False
    """Whether the fit must not see it."""


def make_trials(sweep: SweepConfig) -> list[Trial]:
    """Return the runs of a sweep, the held-out one last.

    Raises:
        ConfigError: a word that is no setting, or settings that do not go together.
    """
    shared = _shared_words(sweep)
    varied = [{**point, **draw} for draw in _draws(sweep) for point in _grid(sweep.grid)]
    trials = [_trial(sweep.out, shared, words) for words in varied]
    if sweep.held_out:
        words = dict(_pair(word) for word in sweep.held_out)
        trials.append(_trial(sweep.out, shared, words, held_out=True))
    return list({trial.name: trial for trial in trials}.values())


def read_settings(words: list[str]) -> PretrainConfig:
    """Return the settings that command-line words of `llmlab pretrain` spell.

    Raises:
        ConfigError: a value cannot be read, or settings do not go together.
    """
    try:
        return tyro.cli(PretrainConfig, args=words, prog="llmlab pretrain", console_outputs=False)
    except SystemExit as stop:
        raise ConfigError(
            f"these are no settings of `llmlab pretrain`: {' '.join(words)}; run it with them to "
            "see which, and see `llmlab pretrain --help`"
        ) from stop


def _shared_words(sweep: SweepConfig) -> list[str]:
    words = toml_flags(sweep.base, PretrainConfig) if sweep.base else []
    for field, text in map(_pair, sweep.set):
        words += _flag(field, text)
    return words


def _trial(out: Path, shared: list[str], words: Words, *, held_out: bool = False) -> Trial:
    flags = [word for field, text in words.items() for word in _flag(field, text)]
    # A folder of their own stands last, so that one in the base file does not count.
    config = read_settings([*shared, *flags, "--out", str(out)])
    name = ("held-out," if held_out else "") + _name(config, words)
    folder = out / "runs" / name
    return Trial(name, dataclasses.replace(config, out=folder), held_out)


def _name(config: PretrainConfig, words: Words) -> str:
    """Name a run by the values as they were read, so that 1e-3 and 0.001 are one run."""
    parts = [f"{field}={_text(getattr(config, field))}" for field in words]
    whole = ",".join(parts)
    safe = re.sub(r"[^\w.=,+-]", "_", whole)
    if safe == whole and len(whole) <= _LONGEST_NAME:
        return whole
    return f"{safe[:_LONGEST_NAME]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(map(_text, value))
    return str(value) if isinstance(value, str | Path) else json.dumps(value)


def _grid(words: tuple[str, ...]) -> Iterator[Words]:
    axes = {field: text.split(",") for field, text in map(_pair, words)}
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _draws(sweep: SweepConfig) -> list[Words]:
    """Return the draws; with more of them the first ones stay the same."""
    if not sweep.random:
        return [{}]
    count, *words = sweep.random
    ranges = dict(_pair(word) for word in words)
    generator = random.Random(sweep.seed)
    return [
        {field: _draw(generator, field, text) for field, text in ranges.items()}
        for _ in range(int(count))
    ]


def _draw(generator: random.Random, field: str, text: str) -> str:
    """Return one value of `low:high`, `log:low:high` or `a,b,c`, as text of three digits."""
    parts = text.split(":")
    if len(parts) == 1:
        return generator.choice(text.split(","))
    is_log = parts[0] == "log" and len(parts) == 3
    try:
        low, high = map(_number, parts[1:] if is_log else parts)
        if not (0 < low < high if is_log else low < high):
            raise ValueError
    except ValueError as error:
        raise ConfigError(
            f"{field}={text} is no range; write low:high, log:low:high with 0 < low < high, or "
            "values with commas, such as learning_rate=log:1e-4:1e-2"
        ) from error
    if is_log:
        drawn = math.exp(generator.uniform(math.log(low), math.log(high)))
    else:
        drawn = generator.uniform(low, high)
    return str(round(drawn)) if int in _kinds(field) else f"{drawn:.3g}"


def _flag(field: str, text: str) -> list[str]:
    kinds = _kinds(field)
    name = field.replace("_", "-")
    if bool in kinds:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{field}={text} must be true or false")
        return [f"--{name}" if text.lower() == "true" else f"--no-{name}"]
    if int in kinds and text != "None":
        text = _whole(field, text)
    return [f"--{name}", *(text.split("+") if tuple in kinds else [text])]


def _whole(field: str, text: str) -> str:
    try:
        value = _number(text)
    except ValueError as error:
        raise ConfigError(f"{field}={text} is not a whole number; try 2000, 500k or 1e6") from error
    if value != int(value):
        raise ConfigError(f"{field}={text} is not a whole number; try {round(value)}")
    return str(int(value))


def _number(text: str) -> float:
    return float(text[:-1]) * _UNITS[text[-1]] if text[-1:] in _UNITS else float(text)


def _pair(word: str) -> tuple[str, str]:
    field, equals, text = word.partition("=")
    field = field.replace("-", "_")
    fields = _hints()
    if not equals or not text:
        raise ConfigError(f"{word!r} is not field=value; try learning_rate=1e-3")
    if field in _RESERVED:
        raise ConfigError(f"{word!r}: a sweep sets {field} itself; leave it out")
    if field not in fields:
        raise ConfigError(f"no field {field!r} in llmlab pretrain{did_you_mean(field, fields)}")
    return field, text


def _kinds(field: str) -> tuple[Any, ...]:
    """Return the types that a field takes, tuples as `tuple`."""
    hint = _hints()[field]
    members = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return tuple(get_origin(member) or member for member in members)


def _hints() -> Mapping[str, Any]:
    return get_type_hints(PretrainConfig)
