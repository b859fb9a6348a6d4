"""tools/make_shards.py: conversion, going on after a kill, verification, shards from elsewhere."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import pytest
from helpers import CLASSIFICATION, environment, run_program
from image_folders import decode, make_folder, make_zip, save
from shard_sets import tar_settings, write_tar

from dataset import build_loader
from dataset import shard_writer as writer_module

PROGRAM = CLASSIFICATION / "tools" / "make_shards.py"
spec = importlib.util.spec_from_file_location("make_shards", PROGRAM)
make_shards = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_shards)


def run(*args):
    return make_shards.main([str(a) for a in args])


def files(folder):
    """{relative path: content} of everything, without what names times or places."""
    found = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {str(path): data for path, data in found.items() if path.suffix == ".tar"}


def seen_in(loader):
    return [pair for images, _ in loader for pair in decode(images)]


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "folder", train=5, val=2)


@pytest.fixture
def flags(folder, tmp_path):
    return ("--data-path", folder, "--out", tmp_path / "out", "--per-shard", 4, "--jobs", 1)


def test_the_command_converts_and_verifies_and_does_it_once(folder, flags, tmp_path):
    done = run_program("tools/make_shards.py", *flags[:-1], 2, "--verify")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "train: 15 images, 0 unreadable and left out, 4 shards, 0.0 MiB",
        "val: 6 images, 0 unreadable and left out, 2 shards, 0.0 MiB",
        "train: 15 images in 4 shards are whole",
        "val: 6 images in 2 shards are whole",
    ]
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == ["dataset.json", "train", "val"]
    names = [f"shard-00000{i}.tar" for i in range(4)]
    assert sorted(p.name for p in (out / "train").iterdir()) == ["index.npz", *names]
    content = json.loads((out / "dataset.json").read_text())
    assert content["classes"] == ["cat", "dog", "eel"]
    assert [shard["samples"] for shard in content["splits"]["train"]["shards"]] == [4, 4, 4, 3]
    before = files(out)
    assert run(*flags) == 0 and files(out) == before
    alone = tmp_path / "alone"
    assert run(*flags[:2], "--out", alone, *flags[4:]) == 0
    assert files(alone) == before  # the number of processes changes no byte
    assert run(*flags[:2], "--out", tmp_path / "s", *flags[4:], "--seed", 1) == 0
    assert files(tmp_path / "s") != before


def test_shards_are_what_webdataset_reads(flags, tmp_path):
    import webdataset

    assert run(*flags) == 0
    pattern = str(tmp_path / "out/train/shard-{000000..000003}.tar")
    data = webdataset.WebDataset(pattern, shardshuffle=False).decode("rgb8").to_tuple("png", "cls")
    pairs = [(image[16, 16, 0] // 10, label) for image, label in data]
    assert len(pairs) == 15 and all(red == label for red, label in pairs)


def test_an_interrupted_conversion_goes_on(flags, tmp_path, monkeypatch):
    assert run(*flags[:2], "--out", tmp_path / "whole", *flags[4:]) == 0
    write, written = writer_module.write_shard, []

    def stop_at_third(job):
        if len(written) == 2:
            raise OSError("the disk is gone")
        written.append(job.name)
        return write(job)

    monkeypatch.setattr(writer_module, "write_shard", stop_at_third)
    assert run(*flags) == 1
    assert not (tmp_path / "out/dataset.json").exists()
    first = list(written)
    damaged = tmp_path / "out" / first[1]
    damaged.chmod(0o644)
    damaged.write_bytes(b"")  # its file system lost it: written again
    monkeypatch.setattr(writer_module, "write_shard", lambda job: written.append(job) or write(job))
    assert run(*flags) == 0
    assert [job.name for job in written[2:]] == [
        *first[1:], "train/shard-000002.tar", "train/shard-000003.tar",
        "val/shard-000000.tar", "val/shard-000001.tar",
    ]  # fmt: skip
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert not (tmp_path / "out/.unfinished").exists()


def test_a_killed_conversion_goes_on_and_leaves_nothing(tmp_path):
    folder = make_folder(tmp_path / "folder", train=60, val=1)
    flags = ["--data-path", folder, "--per-shard", 3, "--jobs", 2, "--out"]
    out = tmp_path / "out"
    command = [sys.executable, PROGRAM, *flags, out]
    process = subprocess.Popen(list(map(str, command)), env=environment())
    deadline = time.monotonic() + 60
    while len(list(out.glob(".unfinished/train/*.npz"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    children = children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "dataset.json").exists()
    while any(is_alive(child) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert run(*flags, out) == 0 and run(*flags, tmp_path / "whole") == 0
    assert files(out) == files(tmp_path / "whole")
    assert not [p for p in out.rglob(".*")]


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_unreadable_images_are_left_out_named_and_limited(folder, flags, tmp_path, caplog):
    for name in ("train/cat/001.png", "train/dog/002.png", "val/cat/000.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:60])
    assert run(*flags, "--max-corrupt", 1) == 1
    assert "2 images cannot be read, more than --max-corrupt 1; the last is" in caplog.text
    caplog.clear()
    for _ in range(2):  # the second time from what is noted
        assert run(*flags, "--verify") == 0
        assert "train/cat/001.png" in caplog.text and "val/cat/000.png" in caplog.text
        caplog.clear()
    loaders = build_loader(tar_settings(tmp_path, tmp_path / "out"))
    assert len(loaders.train.dataset) == 13 and len(seen_in(loaders.val)) == 5
    # without looking, they are carried along, and found by verification and training
    blind = tmp_path / "blind"
    assert run(*flags[:2], "--out", blind, *flags[4:], "--no-decode") == 0
    assert run("--out", blind, "--verify", "--jobs", 1, "--no-decode") == 0
    assert run("--out", blind, "--verify", "--jobs", 1) == 1
    assert "cannot read 00000001-001.png" in caplog.text
    for path in folder.glob("train/*/*.png"):
        path.write_bytes(b"")
    assert run(*flags[:2], "--out", tmp_path / "none", *flags[4:]) == 1
    assert "none of the 4 images of train/shard-000000.tar can be read" in caplog.text


def test_a_place_that_cannot_be_written(folder, flags, tmp_path, caplog):
    place = tmp_path / "file"
    place.touch()
    assert run(*flags[:2], "--out", place, *flags[4:]) == 1
    assert f"{place} cannot be written (Not a directory): name another folder" in caplog.text


def test_verification_finds_what_is_wrong(flags, tmp_path, caplog):
    assert run(*flags) == 0
    out = tmp_path / "out"

    def problems():
        caplog.clear()
        code = run("--out", out, "--verify", "--jobs", 1)
        return code, caplog.text

    assert problems() == (0, "")
    shard = out / "train/shard-000001.tar"
    whole = shard.read_bytes()
    shard.chmod(0o644)
    shard.write_bytes(whole[:700] + bytes([whole[700] ^ 1]) + whole[701:])
    assert problems()[0] == 1 and "shard-000001.tar has sha256" in problems()[1]
    shard.write_bytes(whole[:-512])
    assert "bytes, the index says" in problems()[1]
    shard.unlink()
    assert "train/shard-000001.tar is missing" in problems()[1]
    shard.write_bytes(whole)
    index = out / "val/index.npz"
    wrong = writer_module.load_index(index)
    wrong.offsets[1] += 1
    wrong.save(index)
    assert "val/index.npz is not the file that dataset.json names" in problems()[1]
    assert "val/shard-000000.tar: the offsets in the index" in problems()[1]
    (out / "dataset.json").unlink()
    assert "there is nothing to verify" in problems()[1]


def test_one_folder_holds_one_data_set(folder, flags, tmp_path, caplog):
    assert run(*flags, "--splits", "train") == 0
    assert run(*flags[:4], "--per-shard", 5, "--splits", "train") == 1
    assert "already holds train shards of other images or options" in caplog.text
    other = make_folder(tmp_path / "other", classes=("a", "b"))
    assert run("--data-path", other, *flags[2:], "--splits", "val") == 1
    assert "has 3 classes, which are not the 2 of this data" in caplog.text
    unfinished = tmp_path / "u"
    (unfinished / ".unfinished/train").mkdir(parents=True)
    (unfinished / ".unfinished/train/made_from").write_text("x")
    assert run(*flags[:2], "--out", unfinished, *flags[4:]) == 1
    assert "is left from a conversion of other images or options" in caplog.text
    assert run(*flags[:2], "--out", folder) == 1
    assert "is the data set itself" in caplog.text
    assert run("--data-path", tmp_path / "gone", "--out", tmp_path / "x") == 1
    assert "does not exist. Expected there: train/<class>" in caplog.text


def test_zip_and_list_sources(folder, tmp_path):
    zipped = tmp_path / "zipped"
    zipped.mkdir()
    for split in ("train", "val"):
        make_zip(zipped / f"{split}.zip", folder / split)
    assert run("--data-path", zipped, "--zip", "--out", tmp_path / "a", "--jobs", 2) == 0
    assert sorted(seen_in(build_loader(tar_settings(tmp_path, tmp_path / "a")).val)) == [
        (c, n) for c in range(3) for n in range(2)
    ]
    save(folder / "train/cat/odd.name.with.dots.png", 0, 9)
    lists = []
    for split in ("train", "val"):
        path = tmp_path / f"{split}.txt"
        names = sorted((folder / split).rglob("*.png"))
        labels = {"cat": 0, "dog": 1, "eel": 2}
        path.write_text(
            "".join(f"{p.relative_to(folder / split)} {labels[p.parent.name]}\n" for p in names)
        )
        lists += [f"DATA.{split.upper()}_LIST", path]
    assert run("--data-path", folder, "--out", tmp_path / "b", "--jobs", 1, "--opts", *lists) == 0
    loaders = build_loader(tar_settings(tmp_path, tmp_path / "b"))
    assert (loaders.num_classes, loaders.class_names) == (3, None)
    assert sorted(seen_in(loaders.train))[5] == (0, 9)
    with tarfile.open(tmp_path / "b/train/shard-000000.tar") as tar:
        assert "00000005-odd_name_with_dots.png" in tar.getnames()


def test_shards_from_elsewhere_get_an_index(flags, tmp_path, caplog):
    assert run(*flags) == 0
    there = tmp_path / "there"
    for split, count in (("train", 4), ("val", 2)):
        (there / split).mkdir(parents=True)
        for i in range(count):
            name = f"{split}/shard-{i:06d}.tar"
            os.link(tmp_path / "out" / name, there / name)
    index = ("--out", there, "--index", "--jobs", 1)
    assert run(*index) == 1
    assert "classes are not known: write" in caplog.text
    assert run(*index, "--num-classes", 2) == 1
    assert "is out of range 0..1" in caplog.text
    (there / "classes.txt").write_text("cat\ndog\neel\n")
    assert run(*index, "--verify") == 0
    ours, theirs = (json.loads((f / "dataset.json").read_text()) for f in (there, tmp_path / "out"))
    for split in ("train", "val"):
        assert ours["splits"][split]["shards"] == theirs["splits"][split]["shards"]
    some = ("--opts", "DATA.TRAIN_SHARDS", "train/shard-{000001..000002}.tar")
    assert run(*index, "--splits", "train", *some) == 0
    assert len(build_loader(tar_settings(tmp_path, there)).train.dataset) == 8
    write_tar(there / "train/shard-000009.tar", {"a.png": b"", "a.txt": b""})
    assert run(*index) == 1 and "train/shard-000009.tar: sample 'a' has no label" in caplog.text


@pytest.mark.parametrize(
    "args, message",
    [
        (["--out", "x"], "nothing to do: give --data-path DIR, --index or --verify"),
        (["--out", "x", "--index", "--data-path", "y"], "leave out --data-path"),
        (["--out", "x", "--data-path", "y", "--per-shard", "0"], "must be at least 1"),
        (["--out", "x", "--data-path", "y", "--dataset", "webdataset"], "type --index"),
        (["--out", "x", "--verfy"], "did you mean --verify?"),
    ],
)
def test_command_line_mistakes(args, message, capsys):
    with pytest.raises(SystemExit) as caught:
        make_shards.main(args)
    assert caught.value.code == 2 and message in capsys.readouterr().err
