import json
import subprocess
import sys
import time

import pytest

from llmlab.cli.main import find_verb, main
from llmlab.cli.verbs import VERBS
from tests.tiny import tiny_model_folder


def test_help_lists_every_verb_and_is_quick():
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "llmlab", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    elapsed_s = time.perf_counter() - started
    assert all(name in done.stdout for name in VERBS)
    assert "torch" not in done.stderr, "--help must not import torch"
    assert elapsed_s < 5, "0.1 s on an idle machine; this bound only catches a heavy import"


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_help_without_torch(name):
    code = (
        "import sys\n"
        "from llmlab.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *name.split(), "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"llmlab {name}" in done.stdout


def test_unknown_verbs_name_the_nearest(capsys):
    assert main(["pretrian"]) == 2
    assert "did you mean 'pretrain'?" in capsys.readouterr().err
    assert main(["tokenizer"]) == 2
    assert "one of: tokenizer train" in capsys.readouterr().err
    assert main([]) == 2


def test_a_lab_error_is_one_line_and_status_1(capsys, tmp_path):
    assert main(["pretrain", "--config", str(tmp_path / "no.toml")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("llmlab: error: config file ")
    assert error.count("\n") == 1


def test_two_word_verbs_win():
    assert find_verb(["tokenizer", "train", "x"]) == ("tokenizer train", ["x"])
    assert find_verb(["serve", "--port", "1"]) == ("serve", ["--port", "1"])


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("llmlab 0.")


def test_json_alone_stands_on_stdout(capsys, tmp_path):
    folder = tiny_model_folder(tmp_path)
    words = ["generate", "--model", str(folder), "--prompt", "The cat", "--max-tokens", "3"]
    assert main([*words, "--dtype", "float32", "--json"]) == 0
    shown = capsys.readouterr()
    text = json.loads(shown.out)["text"]
    assert text in shown.err
    assert main([*words, "--dtype", "float32"]) == 0
    assert text in capsys.readouterr().out


def test_config_without_a_file(capsys):
    assert main(["pretrain", "--config"]) == 1
    assert "--config names no file" in capsys.readouterr().err
