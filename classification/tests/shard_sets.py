"""Tar shards for the tests, and a web server that serves them, well or badly."""

import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from image_folders import make_folder, settings


def pack(folder: Path, out: Path, per_shard: int = 4) -> Path:
    """Shards with index of an ImageFolder data set, as tools/make_shards.py writes them."""
    from dataset.shard_writer import plan, write_split
    from dataset.sources import load_classes, load_samples

    config = settings(folder.parent, folder)
    classes = load_classes(config)
    for split in ("train", "val"):
        samples = load_samples(config, split, classes)
        jobs = plan(out, split, samples, per_shard, seed=0, decode=False)
        write_split(out, split, jobs, classes, processes=1, max_corrupt=0)
    return out


def make_shards(tmp_path: Path, train: int = 8, val: int = 3, per_shard: int = 4) -> Path:
    """Shards of 3 classes with ``train`` and ``val`` images each."""
    folder = make_folder(tmp_path / "folder", train=train, val=val)
    return pack(folder, tmp_path / "shards", per_shard)


def tar_settings(tmp_path: Path, root, *opts):
    """A configuration for shards, whose cache lies in ``tmp_path``."""
    own = ("DATA.SHARD_CACHE", str(tmp_path / "cache"), "DATA.SHARD_WINDOW", 2)
    return settings(tmp_path, root, *own, *opts, dataset="webdataset")


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    """A tar file with these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


class FileServer(ThreadingHTTPServer):
    """Serves a folder.

    Attributes:
        faults: {path: [fault, ...]}: what the next requests get: an HTTP status, or ('cut', n):
            the connection breaks off after n bytes.
        ranges: answer Range requests with the part.
        requests: (path, Range header) of every request.
    """

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.faults, self.ranges, self.requests = folder, {}, True, []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def count(self, ending: str) -> int:
        """Requests for paths with this ending."""
        return sum(path.endswith(ending) for path, _ in self.requests)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        name = self.path.lstrip("/")
        server.requests.append((name, wanted))
        faults = server.faults.get(name, [])
        fault = faults.pop(0) if faults else None
        file = server.folder / name
        status, body, headers = 404, b"", {}
        if isinstance(fault, int):
            status = fault
        elif file.is_file():
            status, body = 200, file.read_bytes()
            if wanted and server.ranges:
                begin = int(wanted.removeprefix("bytes=").split("-")[0])
                headers["Content-Range"] = f"bytes {begin}-{len(body) - 1}/{len(body)}"
                status, body = 206, body[begin:]
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if isinstance(fault, tuple):
            body = body[: fault[1]]
            self.close_connection = True
        self.wfile.write(body)
