"""The server as a thread and as a process."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading

import httpx
import pytest

from llmlab.cli.main import main
from llmlab.errors import ConfigError, ModelError, ServerError
from llmlab.serve import running_server
from tests.serve.live import tiny_serve_config as config
from tests.serve.live import until
from tests.tiny import tiny_model_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


def test_running_server_answers_and_leaves_nothing(folder):
    threads = set(threading.enumerate())
    with running_server(config(folder)) as url:
        with httpx.Client(base_url=url) as client:
            assert client.get("/v1/models").json()["data"][0]["id"] == folder.name
            body = {"prompt": "The", "max_tokens": 2}
            assert client.post("/v1/completions", json=body).status_code == 200
    assert set(threading.enumerate()) == threads
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_running_server_ends_after_an_error_inside(folder):
    threads = set(threading.enumerate())
    with pytest.raises(KeyError), running_server(config(folder)):
        raise KeyError
    assert set(threading.enumerate()) == threads


def test_a_port_in_use_is_told_before_the_model_loads(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(ServerError, match=rf"port {port} of 127.0.0.1 is in use.*--port 0"),
            running_server(config(tmp_path / "no-model", port=port)),
        ):
            pass


def test_a_foreign_address_is_told(tmp_path):
    with (
        pytest.raises(ServerError, match=r"cannot listen on 192\.0\.2\.1"),
        running_server(config(tmp_path, host="192.0.2.1")),
    ):
        pass


def test_a_missing_model_frees_the_port(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ModelError), running_server(config(tmp_path / "none", port=port)):
        pass
    socket.create_server(("127.0.0.1", port)).close()


def test_ports_are_checked(tmp_path):
    with pytest.raises(ConfigError, match="port=70000"):
        config(tmp_path, port=70000)


def test_the_command_line_names_the_port(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert main(["serve", "--model", str(tmp_path), "--port", port]) == 1
    assert f"port {port}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 0), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_signals_end_the_process_after_running_streams(folder, number, status):
    command = [sys.executable, "-m", "llmlab", "serve", "--model", str(folder), "--port", "0"]
    command += ["--kv-memory-mb", "8", "--shutdown-timeout-s", "20"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as process:
        try:
            assert process.stderr is not None
            lines = []
            while "listening on " not in (line := process.stderr.readline()):
                assert line, "".join(lines)
                lines.append(line)
            url = line.split("listening on ")[1].split(",")[0]
            assert any("pages of 16 tokens" in line for line in lines)
            assert any("GFLOP/s" in line for line in lines)  # why this dtype
            assert url in process.stderr.readline()  # the example
            body = {"prompt": "The", "max_tokens": 100, "ignore_eos": True, "stream": True}
            with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
                lines = response.iter_lines()
                next(lines)
                process.send_signal(number)
                rest = [line.removeprefix("data: ") for line in lines if line]
            assert rest[-1] == "[DONE]"
            assert json.loads(rest[-2])["choices"][0]["finish_reason"] == "length"
            assert process.wait(timeout=60) == status
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()


def test_importing_the_package_and_the_chat_is_light():
    code = "import llmlab.serve, llmlab.cli.chat, sys; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_package_names_the_extra():
    code = """
import sys
from importlib import import_module
for package, module in [
    ("fastapi", "llmlab.serve.envelope"),
    ("starlette", "llmlab.serve.sse"),
    ("starlette", "llmlab.serve.guards"),
    ("pydantic", "llmlab.serve.schema"),
    ("openai", "llmlab.cli.chat"),
]:
    sys.modules[package] = None
    try:
        import_module(module)
    except Exception as error:
        print(error)
    del sys.modules[package]
"""
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    lines = out.stdout.splitlines()
    assert len(lines) == 5
    assert all("llmlab[serve]" in line for line in lines), lines


def test_two_servers_side_by_side(folder):
    with running_server(config(folder)) as one, running_server(config(folder)) as two:
        assert one != two
        until(
            lambda: httpx.get(f"{one}/health").is_success and httpx.get(f"{two}/health").is_success
        )
