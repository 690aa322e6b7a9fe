"""The server as a process or as a thread: a socket, an engine, uvicorn between them.

The socket is taken before the model loads, so a port in use is told at once; requests that come
during loading wait in the socket's queue. When told to stop, the server takes no new request, gives
the running ones `shutdown_timeout_s` seconds, then cuts them.

Not here: routes (`app.py`), flags (`config.py`).
"""

import errno
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module

from llmlab.errors import MissingExtraError, ServerError
from llmlab.serve.app import create_app
from llmlab.serve.async_engine import AsyncEngine
from llmlab.serve.backend import Backend
from llmlab.serve.config import ServeConfig
from llmlab.serve.guards import read_api_keys

try:
    import uvicorn
    from starlette.types import ASGIApp
except ImportError as error:
    raise MissingExtraError("uvicorn", "serve") from error


@contextmanager
def running_server(config: ServeConfig) -> Iterator[str]:
    """Run the server in a thread of this process and yield its URL, such as http://127.0.0.1:8000.

    It answers when the block begins and is gone, its threads too, when the block has ended.

    Args:
        config: `port=0` takes any free port.

    Raises:
        ServerError: the address cannot be listened on.
        LabError: the model cannot be loaded.
    """
    with _loaded(config) as (app, listener, _), running_app(app, listener, config):
        yield _url(config, listener)


@contextmanager
def running_app(app: ASGIApp, listener: socket.socket, config: ServeConfig) -> Iterator[None]:
    """Serve an application in a thread of this process while the block runs.

    Args:
        app: what answers.
        listener: the socket, which this closes.
        config: how long running requests may take when the block ends.
    """
    server = _Server(_settings(app, config))
    thread = threading.Thread(target=server.run, args=([listener],), name="llmlab-http")
    thread.start()
    try:
        server.ready.wait()
        yield
    finally:
        server.should_exit = True
        thread.join()


def serve_until_stopped(config: ServeConfig, on_ready: Callable[[str, Backend], None]) -> None:
    """Run the server in the main thread until it is told to stop.

    SIGTERM ends it in good order and this returns; Ctrl-C does the same and raises
    KeyboardInterrupt, and a second Ctrl-C does not wait for running requests.

    Args:
        config: what to serve.
        on_ready: called with the URL and the engine once the model is loaded.

    Raises:
        ServerError: the address cannot be listened on.
        LabError: the model cannot be loaded.
    """
    with _loaded(config) as (app, listener, engine):
        server = _Server(_settings(app, config))
        on_ready(_url(config, listener), engine)
        # uvicorn stops on the signal and then raises it again, for whoever handled it before: this.
        before = signal.signal(signal.SIGTERM, lambda *_: setattr(server, "should_exit", True))
        try:
            server.run([listener])
        finally:
            signal.signal(signal.SIGTERM, before)


class _Server(uvicorn.Server):
    """uvicorn that tells another thread when it answers."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        finally:
            self.ready.set()


@contextmanager
def _loaded(config: ServeConfig) -> Iterator[tuple[ASGIApp, socket.socket, Backend]]:
    api_keys = read_api_keys(config.api_key_file) if config.api_key_file else ()
    with listen(config.host, config.port) as listener, _engine(config) as engine:
        app = create_app(
            engine, name=config.served_name, api_keys=api_keys, lora_root=config.lora_root
        )
        yield app, listener, engine


@contextmanager
def _engine(config: ServeConfig) -> Iterator[Backend]:
    """Start one engine in this process, or replicas in their own behind the same methods."""
    if config.replicas == 1:
        with AsyncEngine(config.engine) as engine:
            yield engine
    else:
        cluster = import_module("llmlab.serve.replicas.cluster")  # Ray is an extra of its own
        with cluster.running_replicas(config.engine, config.replicas) as engine:
            yield engine


def _settings(app: ASGIApp, config: ServeConfig) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=config.shutdown_timeout_s,
    )


def listen(host: str, port: int) -> socket.socket:
    """Return a listening TCP socket.

    Args:
        host: address or name.
        port: 0 takes any free one.

    Raises:
        ServerError: the port is in use, or the address is not one of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ServerError(
                f"port {port} of {host} is in use; stop what listens there, choose another "
                "--port, or take any free one with --port 0"
            ) from error
        raise ServerError(
            f"cannot listen on {host} port {port}: {error.strerror}; "
            "choose another --host or --port"
        ) from error


def _url(config: ServeConfig, listener: socket.socket) -> str:
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    host = everywhere.get(config.host, config.host)
    port = listener.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
