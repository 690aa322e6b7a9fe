"""What to run next: commands that work on the folder of a run as it stands."""

import shlex
from dataclasses import dataclass

from llmlab.pretrain.report.record import RunRecord

_BUDGETS = ("max_steps", "max_tokens", "max_seconds")
_RECURRENT = ("rnn", "lstm", "gru")


@dataclass(frozen=True)
class Command:
    """One command and what it is for."""

    purpose: str
    line: str


def next_commands(run: RunRecord) -> list[Command]:
    """Return what goes on from here, the nearest first."""
    config = str(run.folder / "config.toml")
    if run.status != "finished":
        if run.checkpoints:
            go_on = _command("pretrain", "--config", config, "--resume")
            return [Command("go on from the last checkpoint, on the same curve", go_on)]
        again = _command("pretrain", "--config", config, "--overwrite")
        return [Command("start again, for nothing was saved", again)]
    return [*_uses(run), *_more_training(run, config)]


def _uses(run: RunRecord) -> list[Command]:
    model = str(run.folder / "model")
    prompt = (run.settings.get("prompts") or ["Once upon a time"])[0]
    results, chat = str(run.folder / "results"), f"{run.folder}-chat"
    commands = [
        Command("let it write", _command("generate", "--model", model, "--prompt", prompt)),
        Command(
            "score it, with error bars",
            _command("eval", "run", "--model", model, "--tasks", "bits_per_byte", "--out", results),
        ),
    ]
    if run.settings.get("arch") in _RECURRENT:
        return commands
    return [
        *commands,
        Command(
            "teach it to chat (lines of {\"messages\": […]})",
            _command("finetune", "--model", model, "--data", "chats.jsonl", "--out", chat),
        ),
        Command(
            "serve it behind the OpenAI API", _command("serve", "--model", model, "--port", "8000")
        ),
        Command(
            "take it to llama.cpp",
            _command("export", "gguf", "--model", model, "--out", f"{run.folder}/model.gguf"),
        ),
    ]  # fmt: skip


def _more_training(run: RunRecord, config: str) -> list[Command]:
    commands = []
    budgets = [name for name in _BUDGETS if run.settings.get(name)]
    if budgets and run.checkpoints:
        flags = [
            word for name in budgets for word in (_flag(name), f"{2 * run.settings[name]:.10g}")
        ]
        commands.append(
            Command(
                "train on, twice as long in all (the schedule stretches over the new budget)",
                _command("pretrain", "--config", config, "--resume", *flags),
            )
        )
    seed = run.settings.get("seed", 0) + 1
    other = f"{run.folder}-seed{seed}"
    again = ["pretrain", "--config", config, "--out", other, "--seed", str(seed)]
    both = ["pretrain", "report", str(run.folder), other, "--out", f"{run.folder}-seeds"]
    return [
        *commands,
        Command("the same with another seed, to see the spread", _command(*again)),
        Command("and both side by side", _command(*both)),
    ]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _command(*words: str) -> str:
    return shlex.join(["llmlab", *words])
