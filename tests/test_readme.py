"""The README is true: its commands parse (always) and run, in order, in an empty folder (slow)."""

import os
import re
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib import import_module
from pathlib import Path

import pytest
import tyro

from benchmarks.readme import with_measurements
from llmlab.cli.main import find_verb
from llmlab.cli.verbs import VERBS

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(
    r"^```(bash|python)\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S
)
COMMANDS = [
    line
    for kind, text in BLOCKS
    if kind == "bash"
    for line in text.replace("\\\n", " ").splitlines()
    if line.startswith("llmlab ")
]


def test_the_readme_has_blocks_of_both_kinds():
    assert {kind for kind, _ in BLOCKS} == {"bash", "python"}
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_parses(command):
    name, args = find_verb(shlex.split(command, comments=True)[1:])
    module, _, config = VERBS[name].config.partition(":")
    tyro.cli(getattr(import_module(module), config), args=args)


@pytest.mark.parametrize(
    "text", [text for kind, text in BLOCKS if kind == "python"], ids=lambda text: text[:30]
)
def test_every_python_block_compiles(text):
    compile(text, "README.md", "exec")


def test_the_measured_part_is_made_of_the_newest_rows():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_measurements(text) == text


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("command", [text for _, text in BLOCKS if text.startswith("make ")])
def test_the_make_commands_run_in_a_fresh_clone(command, tmp_path):
    subprocess.run(["git", "clone", "--quiet", ROOT, tmp_path / "clone"], check=True)
    subprocess.run(["bash", "-euc", command], cwd=tmp_path / "clone", check=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_other_block_runs_in_an_empty_folder(tmp_path):
    servers: list[subprocess.Popen] = []
    try:
        for kind, text in BLOCKS:
            if not text.startswith("make "):
                _run_block(kind, text, tmp_path, servers)
    finally:
        for server in servers:
            server.terminate()
            server.wait(timeout=30)


def _run_block(kind: str, text: str, folder: Path, servers: list[subprocess.Popen]) -> None:
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    if kind == "python":
        subprocess.run([sys.executable, "-c", text], cwd=folder, env=env, check=True)
    elif text.startswith("llmlab serve"):
        servers.append(subprocess.Popen(shlex.split(text, comments=True), cwd=folder, env=env))
        _wait_for_health(servers[-1])
    else:
        subprocess.run(["bash", "-euc", text], cwd=folder, env=env, check=True, input="")


def _wait_for_health(server: subprocess.Popen) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen("http://127.0.0.1:8000/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise AssertionError(f"server did not answer; exit status {server.poll()}")
