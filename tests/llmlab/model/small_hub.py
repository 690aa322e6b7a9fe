"""A hub of one model on 127.0.0.1, with as much of the Hugging Face hub's HTTP as a download asks.

Models, files and one commit; no large-file storage, no accounts.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def small_hub(name: str, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve a folder as the model `name`; yields the URL and the files that were asked for."""
    server = _Server(name, folder)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.fetched
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name, self.folder = name, folder
        self.fetched: list[str] = []

    def answer(self, path: str) -> bytes | None:
        """Return what lies at a path, or None."""
        if path.startswith(f"/api/models/{self.name}/revision/"):
            return json.dumps(_info(self.name, self.folder)).encode()
        if path.startswith(f"/api/models/{self.name}/tree/"):
            return json.dumps(_tree(self.folder)).encode()
        if path.startswith(f"/{self.name}/resolve/{COMMIT}/"):
            file = path.rpartition("/")[2]
            self.fetched.append(file)
            return (self.folder / file).read_bytes()
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(send_body=False)

    def do_GET(self) -> None:
        self._answer(send_body=True)

    def _answer(self, *, send_body: bool) -> None:
        assert isinstance(self.server, _Server)
        body = self.server.answer(urlsplit(self.path).path)
        self.send_response(404 if body is None else 200)
        if body is None:
            self.send_header("X-Error-Code", "RepoNotFound")
            body = b"{}"
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if send_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _info(name: str, folder: Path) -> dict[str, Any]:
    files = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
    return {"id": name, "modelId": name, "sha": COMMIT, "siblings": files, "tags": []}


def _tree(folder: Path) -> list[dict[str, Any]]:
    return [
        {
            "type": "file",
            "path": path.name,
            "size": path.stat().st_size,
            "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
        }
        for path in sorted(folder.iterdir())
    ]
