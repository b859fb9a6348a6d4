"""main.py on tar shards: a killed run that goes on, and two processes, as if they had not been."""

import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers import CLASSIFICATION, environment, read_log, torchrun
from shard_sets import FileServer, pack

from models.safe_load import load_file

COMPARED = ("epoch", "iter", "step", "lr", "loss", "grad_norm")


@pytest.fixture(scope="module")
def shards(colours, tmp_path_factory):
    """48 training images in 10 shards, 22 validation images in 5."""
    return pack(colours, tmp_path_factory.mktemp("tar") / "shards", per_shard=5)


@pytest.fixture
def server(shards):
    server = FileServer(shards)
    yield server
    server.shutdown()


def flags(nano_yaml, place, output, *opts):
    return [
        "--cfg", str(nano_yaml), "--dataset", "webdataset", "--data-path", str(place),
        "--output", str(output), "--opts", "DATA.SHARD_WINDOW", "2", *map(str, opts),
    ]  # fmt: skip


def compared(output):
    return [{key: record[key] for key in COMPARED} for record in read_log(output)]


def test_a_killed_run_from_a_server_equals_one_from_disk(nano_yaml, shards, server, tmp_path):
    import main

    assert main.main(flags(nano_yaml, shards, tmp_path / "disk")) == 0
    disk, web = tmp_path / "disk" / "nano", tmp_path / "web" / "nano"
    gib = 6 * (shards / "train/shard-000000.tar").stat().st_size / 2**30
    own = ("DATA.NUM_WORKERS", 2, "DATA.SHARD_CACHE", tmp_path / "cache")
    arguments = flags(nano_yaml, server.url, tmp_path / "web", *own, "DATA.SHARD_CACHE_GB", gib)
    command = [sys.executable, str(CLASSIFICATION / "main.py"), *arguments]

    def start():
        return subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)

    process = start()
    deadline = time.monotonic() + 100
    while not (web / "log.jsonl").exists() or len(read_log(web)) < 8:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -9 and len(read_log(web)) < 18
    assert start().wait(100) == 0
    assert "auto resuming from" in (web / "log_rank0.txt").read_text()
    assert compared(web) == compared(disk) and len(compared(disk)) == 18
    ours, theirs = (load_file(f / "ckpt_epoch_2.pth") for f in (web, disk))
    assert ours["max_accuracy"] == theirs["max_accuracy"]
    assert ours["class_names"] == ["blue", "green", "grey", "red"]
    assert all(torch.equal(ours["model"][key], value) for key, value in theirs["model"].items())


def test_two_processes_share_the_shards_and_the_cache(nano_yaml, server, tmp_path):
    own = ("DATA.SHARD_CACHE", tmp_path / "cache", "TRAIN.EPOCHS", 1, "DATA.BATCH_SIZE", 4)
    done = torchrun(*flags(nano_yaml, server.url, tmp_path, *own))
    assert done.returncode == 0, done.stderr
    (result,) = read_log(tmp_path / "nano", "eval", ema=False)
    assert result["images"] == 22
    assert len(read_log(tmp_path / "nano")) == 6  # 24 images each
    fetched = [path for path, _ in server.requests if path.endswith(".tar")]
    assert len(fetched) == len(set(fetched)) == 15  # each shard once for both
