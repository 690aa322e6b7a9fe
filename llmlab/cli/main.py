"""The one program: find the verb, parse its flags into its config, call it, show what came out.

Not here: the verbs themselves (verbs.py lists them; one small file a stage runs them).
Exit status: 0 done, 1 a LabError (one line), 2 wrong usage, 130 interrupted.
"""

import contextlib
import dataclasses
import json
import logging
import os
import sys
import traceback
from importlib import import_module
from typing import Any

import tyro

from llmlab import __version__
from llmlab.cli.verbs import VERBS, Verb
from llmlab.config import toml_flags
from llmlab.errors import ConfigError, LabError, did_you_mean


def entry() -> None:
    """Run the program on `sys.argv` and exit with its status."""
    sys.exit(main(sys.argv[1:]))


def main(args: list[str]) -> int:
    """Run one command line.

    Args:
        args: the words after the program's name.

    Returns:
        The exit status.
    """
    debug, as_json = "--debug" in args, "--json" in args
    args = [word for word in args if word not in ("--debug", "--json")]
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    try:
        status = _dispatch(args, as_json=as_json)
        sys.stdout.flush()
        return status
    except LabError as error:
        if debug:
            traceback.print_exc()
        print(f"llmlab: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("llmlab: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our stdout went away; point it elsewhere so that exit stays quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _dispatch(args: list[str], *, as_json: bool) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if args else 2
    if args[0] == "--version":
        print(f"llmlab {__version__}")
        return 0
    name, rest = find_verb(args)
    if name not in VERBS:
        return _unknown(name)
    result = _run(name, VERBS[name], rest, as_json=as_json)
    if result is not None:
        print(json.dumps(_plain(result), ensure_ascii=False) if as_json else result)
    return 0


def find_verb(args: list[str]) -> tuple[str, list[str]]:
    """Split words into the verb (one or two words) and what follows it."""
    two = " ".join(args[:2])
    if two in VERBS:
        return two, args[2:]
    return args[0], args[1:]


def overview() -> str:
    """Return the text of `llmlab --help`."""
    width = max(len(name) for name in VERBS)
    verbs = "\n".join(f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items())
    return (
        "llmlab: the whole life of a small language model\n\n"
        f"usage: llmlab VERB [flags]\n\nverbs:\n{verbs}\n\n"
        "Every verb takes --help, --config FILE.toml (flags win over the file), --json (result\n"
        "as JSON) and --debug (traceback on errors). `llmlab --version` prints the version."
    )


def _unknown(name: str) -> int:
    group = [verb for verb in VERBS if verb.startswith(f"{name} ")]
    hint = f"; one of: {', '.join(group)}" if group else did_you_mean(name, VERBS)
    print(f"llmlab: no verb {name!r}{hint}", file=sys.stderr)
    return 2


def _run(name: str, verb: Verb, args: list[str], *, as_json: bool) -> Any:
    config_class = _load(verb.config)
    if "--config" in args:
        at = args.index("--config")
        if at + 1 == len(args):
            raise ConfigError("--config names no file; write --config FILE.toml")
        args = [*toml_flags(args[at + 1], config_class), *args[:at], *args[at + 2 :]]
    config = tyro.cli(config_class, args=args, prog=f"llmlab {name}")
    run = _load(verb.run)
    if not as_json:
        return run(config)
    with contextlib.redirect_stdout(sys.stderr):  # what streams by is progress to a JSON reader
        return run(config)


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def _plain(result: Any) -> Any:
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        result = dataclasses.asdict(result)
    return json.loads(json.dumps(result, default=str))
