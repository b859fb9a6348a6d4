"""Downloading released checkpoints: from a local server that behaves like the hub, or badly."""

import hashlib
import io
import json
import logging
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from helpers import CLASSIFICATION, environment
from hub_server import Hub, use

from models import hub, pins, released
from models.safe_load import CheckpointError, ReadError

NAME = "internimage_t_1k_224"
FILE = "OpenGVLab/InternImage/internimage_t_1k_224.pth"


def checkpoint_bytes(seed=0, channels=64, depths=(4, 4, 18, 4), op="offset", classes=1000) -> bytes:
    """A checkpoint of 0.9 MB with a few weights of the model `NAME`, or of another."""
    head = torch.rand(classes, 200, generator=torch.Generator().manual_seed(seed))
    state = {"patch_embed.conv2.weight": torch.zeros(channels, 2, 3, 3), "head.weight": head}
    for level, depth in enumerate(depths):
        for block in range(depth):
            state[f"levels.{level}.blocks.{block}.dcn.{op}.weight"] = torch.zeros(2, 2)
    buffer = io.BytesIO()
    torch.save({"model": state}, buffer)
    return buffer.getvalue()


GOOD = checkpoint_bytes()
SHA = hashlib.sha256(GOOD).hexdigest()


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A hub that holds the checkpoint, and an empty cache."""
    with Hub() as server:
        server.files[FILE] = GOOD
        use(monkeypatch, server.url, tmp_path)
        yield server
        server.shutdown()


def files_below(folder: Path) -> list[str]:
    """Names of the files that could be taken for checkpoints."""
    found = [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size > 1000]
    return sorted(p.name for p in found)


def gets(server) -> list[str | None]:
    return [
        span for method, path, span in server.requests if method == "GET" and "/resolve/" in path
    ]


def test_download_once(server, tmp_path):
    path = hub.checkpoint_path(NAME)
    assert path.name == "internimage_t_1k_224.pth" and path.read_bytes() == GOOD
    assert path.is_relative_to(tmp_path / "hub")
    entry = json.loads((tmp_path / "internimage_lock.json").read_text())[FILE]
    assert entry["sha256"] == SHA and entry["size"] == len(GOOD)
    before = len(server.requests)
    assert hub.checkpoint_path(NAME) == path
    assert len(server.requests) == before  # not even a HEAD


def test_checked_once_and_again_when_changed(server, monkeypatch):
    path = hub.checkpoint_path(NAME)
    with monkeypatch.context() as patch:
        patch.setattr(hub, "sha256_of", lambda path: pytest.fail("read again"))
        hub.checkpoint_path(NAME)
    os.utime(path)
    hub.checkpoint_path(NAME)
    path.resolve().write_bytes(GOOD[:-1])
    with pytest.raises(CheckpointError, match=r"pinned in .*internimage_lock.json.*removed"):
        hub.checkpoint_path(NAME)
    assert not path.exists() and not path.is_symlink() and not path.resolve().exists()
    assert hub.checkpoint_path(NAME).read_bytes() == GOOD


def test_cut_connection_goes_on(server):
    server.cut[FILE] = [300_000, 200_000]
    assert hub.checkpoint_path(NAME).read_bytes() == GOOD
    spans = gets(server)
    starts = [int(span.removeprefix("bytes=").rstrip("-")) for span in spans[1:]]
    assert spans[0] is None and 200_000 < starts[0] <= 300_000 < starts[1] <= 500_000


def test_connection_that_is_always_cut(server, tmp_path):
    server.cut[FILE] = [0] * 100
    with pytest.raises(CheckpointError, match="could not download .*internimage_t_1k_224.pth"):
        hub.checkpoint_path(NAME)
    assert files_below(tmp_path) == []
    server.cut.clear()
    assert hub.checkpoint_path(NAME).read_bytes() == GOOD


@pytest.mark.parametrize("body", [GOOD[: len(GOOD) // 2], b"<html>sorry</html>"])
def test_shorter_than_announced(server, tmp_path, body):
    server.body[FILE] = body
    with pytest.raises(CheckpointError, match="could not download"):
        hub.checkpoint_path(NAME)
    server.body.clear()
    assert hub.checkpoint_path(NAME).read_bytes() == GOOD


def test_wrong_content_of_the_right_size(server, tmp_path):
    other = checkpoint_bytes(seed=1)
    assert len(other) == len(GOOD)
    server.body[FILE] = other
    with pytest.raises(CheckpointError, match=f"hub announced {SHA}.*removed from the cache"):
        hub.checkpoint_path(NAME)
    assert files_below(tmp_path) == []
    server.body.clear()
    assert hub.checkpoint_path(NAME).read_bytes() == GOOD


def test_published_hash(server, monkeypatch, tmp_path):
    row = released.released_model(NAME)
    monkeypatch.setitem(
        released._table(), NAME, released.ReleasedModel(**{**vars(row), "sha256": "0" * 64})
    )
    with pytest.raises(CheckpointError, match=f"offers has sha256 {SHA}, but that of .* is 0000"):
        hub.checkpoint_path(NAME)
    assert gets(server) == []  # the announcement was enough
    server.etag[FILE] = "not-a-hash"
    with pytest.raises(CheckpointError, match="but that of internimage_t_1k_224 is 0000"):
        hub.checkpoint_path(NAME)
    assert files_below(tmp_path) == []


def test_published_size(server, monkeypatch, tmp_path):
    row = released.released_model(NAME)
    monkeypatch.setitem(
        released._table(), NAME, released.ReleasedModel(**{**vars(row), "bytes": len(GOOD) + 1})
    )
    with pytest.raises(CheckpointError, match=f"{len(GOOD)} bytes, but .*has {len(GOOD) + 1}.*rem"):
        hub.checkpoint_path(NAME)
    assert files_below(tmp_path) == []


def test_replaced_on_the_hub(server, tmp_path):
    first = hub.checkpoint_path(NAME)
    server.files[FILE] = checkpoint_bytes(seed=1)
    assert hub.checkpoint_path(NAME).read_bytes() == GOOD  # from the cache
    hub._remove(first)
    with pytest.raises(CheckpointError, match=f"offers has .* first download .* had {SHA}"):
        hub.checkpoint_path(NAME)
    server.etag[FILE] = "not-a-hash"
    with pytest.raises(CheckpointError, match=f"first download .* had {SHA}.*removed"):
        hub.checkpoint_path(NAME)
    assert files_below(tmp_path) == []


def test_not_a_checkpoint(server, tmp_path):
    server.files[FILE] = b"<html>" + b"x" * 5000
    with pytest.raises(CheckpointError, match=r"not a .pth file.*removed from the") as caught:
        hub.checkpoint_path(NAME)
    assert "weights_only" not in str(caught.value)  # PyTorch's advice to load it unsafely
    assert files_below(tmp_path) == []
    assert not (tmp_path / "internimage_lock.json").exists()


@pytest.mark.parametrize(
    "other, holds",
    [
        ({"channels": 80, "depths": (4, 4, 21, 4)}, "channels 80, depths [4, 4, 21, 4], DCNv3"),
        ({"op": "offset_mask"}, "channels 64, depths [4, 4, 18, 4], DCNv4, 1000 classes"),
        ({"classes": 21841}, "channels 64, depths [4, 4, 18, 4], DCNv3, 21841 classes"),
    ],
)
def test_another_model(server, tmp_path, other, holds):
    server.files[FILE] = checkpoint_bytes(**other)
    expected = f"{NAME} has channels 64, depths [4, 4, 18, 4], DCNv3, 1000 classes: another model."
    with pytest.raises(CheckpointError, match=f"holds {re.escape(holds)}.*{re.escape(expected)}"):
        hub.checkpoint_path(NAME)
    assert files_below(tmp_path) == [] and pins.read_pin(FILE) is None


def test_weights_of_something_else(server, tmp_path):
    buffer = io.BytesIO()
    torch.save({"layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3)}, buffer)
    server.files[FILE] = buffer.getvalue()
    with pytest.raises(CheckpointError, match="holds no InternImage weights, .*removed from the"):
        hub.checkpoint_path(NAME)
    assert files_below(tmp_path) == [] and pins.read_pin(FILE) is None


@pytest.mark.parametrize(
    "failure",
    [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError(), OSError(5, "I/O")],
)
def test_too_little_memory_removes_nothing(server, monkeypatch, failure):
    def refuse(*args, **options):
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", refuse)
        with pytest.raises(ReadError, match="not fit into the memory|cannot read .*I/O"):
            hub.checkpoint_path(NAME)
    assert pins.read_pin(FILE) is None  # not checked yet
    assert hub.checkpoint_path(NAME).read_bytes() == GOOD
    assert len(gets(server)) == 1


def test_wrong_file_that_cannot_be_removed(server, monkeypatch):
    path = hub.checkpoint_path(NAME)
    path.resolve().write_bytes(GOOD[:-1])

    def refuse(path):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(hub, "_remove", refuse)
    with pytest.raises(CheckpointError, match="pinned in .*not be removed .*Read-only file system"):
        hub.checkpoint_path(NAME)


def test_announced_hash_without_links(server, monkeypatch, tmp_path):
    """Where the cache has no symbolic links, the file's name does not tell its hash."""
    server.body[FILE] = checkpoint_bytes(seed=1)
    plain = tmp_path / "copy.pth"
    plain.write_bytes(server.body[FILE])
    monkeypatch.setattr(hub, "_resumed_download", lambda *args: plain)
    with pytest.raises(CheckpointError, match=f"the hub announced {SHA}.*removed"):
        hub.checkpoint_path(NAME)
    assert not plain.exists()


def test_partial_files_of_killed_processes(server, tmp_path):
    blobs = hub.path_by_hand(released.released_model(NAME), tmp_path / "hub").parent / "blobs"
    blobs.mkdir(parents=True)
    left, in_use, other = (
        blobs / f"{name}.incomplete" for name in (f"{SHA}.1", f"{SHA}.2", "f" * 64 + ".3")
    )
    for partial in (left, in_use, other):
        partial.write_bytes(GOOD[:5000])
    os.utime(left, (0, 0))
    os.utime(other, (0, 0))
    assert hub.checkpoint_path(NAME).read_bytes() == GOOD
    assert not left.exists() and in_use.exists() and other.exists()


def test_html_page_instead_of_the_hub(server, tmp_path):
    server.page = b"<html>please log in</html>" * 100
    with pytest.raises(CheckpointError, match="could not download"):
        hub.checkpoint_path(NAME)
    assert files_below(tmp_path) == []


def test_missing_on_the_hub(server):
    server.files.clear()
    with pytest.raises(CheckpointError, match="404|Not Found|not found"):
        hub.checkpoint_path(NAME)


def test_no_server_and_a_file_by_hand(monkeypatch, tmp_path):
    use(monkeypatch, "http://127.0.0.1:9", tmp_path)
    with pytest.raises(CheckpointError) as caught:
        hub.checkpoint_path(NAME)
    row = released.released_model(NAME)
    assert row.url in str(caught.value) and "its sha256 is not known" in str(caught.value)
    target = Path(str(caught.value).split("put it at ")[1])
    target.parent.mkdir(parents=True)
    target.write_bytes(GOOD)
    assert hub.checkpoint_path(NAME) == target
    assert pins.read_pin(FILE).sha256 == SHA
    target.write_bytes(checkpoint_bytes(seed=1))
    with pytest.raises(CheckpointError, match=f"first download .* had {SHA}"):
        hub.checkpoint_path(NAME)
    assert target.exists()  # files of the user are not deleted
    target.unlink()
    with pytest.raises(CheckpointError, match=f"sha256 {SHA}, {len(GOOD)} bytes"):
        hub.checkpoint_path(NAME)


def test_cache_that_cannot_be_written(server, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot write to the cache .*or set HF_HOME"):
        hub.checkpoint_path(NAME, cache_dir=tmp_path / "file" / "hub")


def test_lock_file_that_cannot_be_written(server, monkeypatch, tmp_path, caplog):
    from huggingface_hub import constants

    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "file" / "home"))
    with caplog.at_level(logging.WARNING):
        assert hub.checkpoint_path(NAME).read_bytes() == GOOD
    assert "cannot record the sha256" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"a/b": 3}',
        '{"a/b": {"sha256": "0"}}',
        '{"a/b": {"sha256": "0", "size": 1, "checked": null}}',
        '{"a/b": {"sha256": null, "size": 1}}',
    ],
)
def test_damaged_lock_file(server, tmp_path, text):
    (tmp_path / "internimage_lock.json").write_text(text)
    with pytest.raises(CheckpointError, match="internimage_lock.json .*repair or delete it"):
        hub.checkpoint_path(NAME)


def test_model_without_a_file(server):
    with pytest.raises(CheckpointError, match="flash_intern_image_t_1k_224 has no checkpoint"):
        hub.checkpoint_path("flash_intern_image_t_1k_224")
    assert server.requests == []


PREAMBLE = f"""
    import sys
    import types
    package = types.ModuleType("models")  # its __init__ would import timm and ops_dcnv3
    package.__path__ = [{str(CLASSIFICATION / "models")!r}]
    sys.modules["models"] = package
    from models.safe_load import CheckpointError
    from models.hub import checkpoint_path
    name = {NAME!r}
"""


def child(home: Path, url: str, code: str, **extra: str) -> subprocess.Popen:
    """A process of its own, told by the environment variables of the hub."""
    variables = environment(HF_HOME=str(home), HF_ENDPOINT=url, **extra)
    variables.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-c", textwrap.dedent(PREAMBLE) + textwrap.dedent(code)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=variables, stdout=pipe, stderr=pipe, text=True)


def test_two_processes_and_then_offline(server, tmp_path):
    children = [child(tmp_path, server.url, "print(checkpoint_path(name))") for _ in range(2)]
    paths = set()
    for process in children:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        paths.add(out.strip())
    (path,) = paths
    assert Path(path).read_bytes() == GOOD and len(gets(server)) <= 2, server.requests
    assert files_below(tmp_path / "hub") == [SHA, "internimage_t_1k_224.pth"]
    assert json.loads((tmp_path / "internimage_lock.json").read_text())[FILE]["sha256"] == SHA
    before = len(server.requests)
    code = """
        print(checkpoint_path(name))
        try:
            checkpoint_path(name, cache_dir="empty")
        except CheckpointError as error:
            print(error)
    """
    out, err = child(tmp_path, server.url, code, HF_HUB_OFFLINE="1").communicate(timeout=120)
    found, message = out.splitlines()
    assert found == path, err
    assert "ffline" in message and f"sha256 {SHA}" in message and "put it at empty/" in message
    assert len(server.requests) == before


def test_disk_full(server, tmp_path):
    code = """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, -1))
        try:
            checkpoint_path(name)
        except CheckpointError as error:
            print(error)
        import pathlib
        from huggingface_hub import constants
        print([p for p in pathlib.Path(constants.HF_HUB_CACHE).rglob("*.pth")])
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
        print(checkpoint_path(name))
    """
    out, err = child(tmp_path, server.url, code).communicate(timeout=120)
    message, kept, path = out.splitlines()
    assert message.startswith("cannot write to the cache") and "too large" in message
    assert kept == "[]", err
    assert Path(path).read_bytes() == GOOD
