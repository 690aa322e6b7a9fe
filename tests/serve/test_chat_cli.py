"""`llmlab chat` against a real server."""

import io
import sys

import openai
import pytest

from llmlab.cli.chat import Conversation
from llmlab.cli.main import main
from llmlab.serve.config import ChatConfig
from tests.serve.live import live
from tests.tiny import tiny_model_folder


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with live(tiny_model_folder(tmp_path_factory.mktemp("model"))) as server:
        yield server


def answer(server, *messages):
    asked = {"messages": list(messages), "temperature": 0, "max_tokens": 6}
    return server.post("/v1/chat/completions", **asked).json()["choices"][0]["message"]["content"]


def user(text):
    return {"role": "user", "content": text}


class Terminal(io.StringIO):
    """A standard input that says it is a terminal."""

    def isatty(self):
        return True


def run(monkeypatch, capsys, stdin, *flags):
    monkeypatch.setattr(sys, "stdin", stdin)
    status = main(["chat", "--temperature", "0", "--max-tokens", "6", *flags])
    out, err = capsys.readouterr()
    return status, out, err


def test_piped(server, monkeypatch, capsys):
    status, out, _ = run(monkeypatch, capsys, io.StringIO("Hi\n"), "--base-url", server.url)
    assert (status, out) == (0, answer(server, user("Hi")) + "\n")


def test_with_v1_and_a_system_message(server, monkeypatch, capsys):
    flags = ("--base-url", f"{server.url}/v1/", "--system", "Be brief.", "--model", "tiny")
    status, out, _ = run(monkeypatch, capsys, io.StringIO("Hi"), *flags)
    system = {"role": "system", "content": "Be brief."}
    assert (status, out) == (0, answer(server, system, user("Hi")) + "\n")


def test_terminal_keeps_the_conversation_until_reset(server, monkeypatch, capsys):
    lines = "Hi\nAnd?\n/reset\nHi\n/help\n\n"
    status, out, err = run(monkeypatch, capsys, Terminal(lines), "--base-url", server.url)
    first = answer(server, user("Hi"))
    second = answer(server, user("Hi"), {"role": "assistant", "content": first}, user("And?"))
    assert status == 0
    assert out == f"> {first}\n> {second}\n> > {first}\n> > > "
    assert "/reset" in err


def test_exit(server, monkeypatch, capsys):
    assert run(monkeypatch, capsys, Terminal("/exit\nHi\n"), "--base-url", server.url)[:2] == (
        0,
        "> ",
    )


def test_a_refused_turn_is_told_and_forgotten(server, monkeypatch, capsys):
    lines = f"{'cat ' * 500}\nHi\n"
    status, out, err = run(monkeypatch, capsys, Terminal(lines), "--base-url", server.url)
    assert "maximum context length" in err
    assert (status, out) == (0, f"> > {answer(server, user('Hi'))}\n> ")


def test_an_interrupted_answer_stays_in_the_conversation(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        config = ChatConfig(temperature=0, max_tokens=6)
        conversation = Conversation(client, config, "tiny")
        pieces = conversation.answer("Hi")
        said = next(pieces)
        pieces.close()
        rest = "".join(conversation.answer("And?"))
    assert rest == answer(server, user("Hi"), {"role": "assistant", "content": said}, user("And?"))


def test_no_server(monkeypatch, capsys):
    flags = ("--base-url", "http://127.0.0.1:9")
    status, _, err = run(monkeypatch, capsys, io.StringIO("Hi"), *flags)
    assert status == 1
    assert "no server answers at http://127.0.0.1:9" in err


def test_wrong_model(server, monkeypatch, capsys):
    flags = ("--base-url", server.url, "--model", "other")
    status, _, err = run(monkeypatch, capsys, io.StringIO("Hi"), *flags)
    assert status == 1
    assert "'other' does not exist" in err


def test_key(tmp_path_factory, monkeypatch, capsys):
    folder = tmp_path_factory.mktemp("keyed")
    (folder / "key").write_text("right\n")
    with live(tiny_model_folder(folder), api_keys=("right",)) as server:
        flags = ("--base-url", server.url, "--api-key-file", str(folder / "key"))
        assert run(monkeypatch, capsys, io.StringIO("Hi"), *flags)[0] == 0
        flags = ("--base-url", server.url, "--api-key-file", str(folder / "none"))
        _, _, err = run(monkeypatch, capsys, io.StringIO("Hi"), *flags)
        assert "has no key" in err
