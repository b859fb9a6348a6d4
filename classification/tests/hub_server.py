"""A local server that answers like the Hugging Face hub, well or badly; tiny released models."""

import dataclasses
import hashlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from models.released import ReleasedModel, released_model

TINY_SIZE = 64
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves `files` at /<repository>/resolve/main/<file>.

    Attributes:
        files: {"repository/file": bytes}.
        cut: {"repository/file": [n, ...]}: the next GETs break off after n bytes.
        body: {"repository/file": bytes}: what a GET sends instead of the announced file.
        etag: {"repository/file": str}: instead of the sha256.
        page: answer everything with this HTML page, status 200, without the hub's headers.
        requests: (method, path, Range header) of every request.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.cut, self.body, self.etag = {}, {}, {}, {}
        self.page = None
        self.requests = []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def _answer(self):
        hub, wanted = self.server, self.headers.get("Range")
        hub.requests.append((self.command, self.path, wanted))
        if hub.page is not None:
            return self._send(200, hub.page, {"Content-Type": "text/html"})
        key = self.path.split("?")[0].lstrip("/").replace("/resolve/main/", "/")
        key = key.replace(f"/resolve/{COMMIT}/", "/")
        content = hub.files.get(key)
        if content is None:
            return self._send(404, b"no such file", {"X-Error-Code": "EntryNotFound"})
        headers = {
            "ETag": f'"{hub.etag.get(key) or hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        if self.command == "GET":
            content = hub.body.get(key, content)
        status, start = 200, 0
        if wanted and self.command == "GET":
            status, start = 206, int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cuts = hub.cut.get(key, []) if self.command == "GET" else []
        self._send(status, content[start:], headers, cuts.pop(0) if cuts else None)

    def _send(self, status, content, headers, cut=None):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:cut])
        if cut is not None:
            self.close_connection = True


def use(monkeypatch, url: str, home: Path) -> None:
    """What HF_ENDPOINT and HF_HOME do, which huggingface_hub reads when it is imported."""
    from huggingface_hub import constants, file_download

    values = {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "DOWNLOAD_CHUNK_SIZE": 1 << 16,  # what a cut loses at most
    }
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)
        if hasattr(file_download, name):  # releases before 0.30 or so keep their own
            monkeypatch.setattr(file_download, name, value)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between retries


def tiny_row(name: str, num_classes: int = 10) -> ReleasedModel:
    """The row `test_<name>`: the options of a released model with few channels and blocks."""
    row = released_model(name)
    arguments = {**row.arguments, "channels": 16, "depths": [1, 1, 2, 1], "groups": [1, 2, 4, 8]}
    if row.arguments.get("level2_post_norm"):
        arguments["level2_post_norm_block_ids"] = [1]
    return dataclasses.replace(
        row,
        name=f"test_{name}",
        arguments=arguments,
        input_size=TINY_SIZE,
        num_classes=num_classes,
    )
