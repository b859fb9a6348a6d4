"""Tar shards as a data set: those of other tools, which shards and classes, what can be wrong."""

import io
import json
import sys

import pytest
from image_folders import colour, decode
from PIL import Image
from shard_sets import FileServer, make_shards, tar_settings, write_tar

from dataset import DataError, build_loader
from dataset import webdataset_source as source_module
from dataset.class_names import names_for
from dataset.loader import num_classes_of
from dataset.samples import Classes

EVERY = [(c, n) for c in range(3) for n in range(8)]


@pytest.fixture
def serve():
    servers = []

    def start(folder):
        servers.append(FileServer(folder))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()


def seen_in(loader):
    return [pair for images, _ in loader for pair in decode(images)]


def labels_fit(loader):
    return all([c for c, _ in decode(images)] == labels.tolist() for images, labels in loader)


# ------------------------------------------------------------------------------- other's shards
def png(label, number):
    data = io.BytesIO()
    Image.new("RGB", (40, 36), colour(label, number)).save(data, "PNG")
    return data.getvalue()


def foreign(root, *, kind="cls", split="train", count=2):
    """Shards as others write them: no index, ./ before names, extra members."""
    for number in range(count):
        members = {"__meta__": b"x"}
        for i in range(3):
            key = f"./pack.d/{number}-{i}"
            label = {"cls": f"{i}\n", "json": f'{{"label": {i}, "id": 7}}'}[kind].encode()
            members |= {f"{key}.PNG": png(i, number), f"{key}.{kind}": label, f"{key}.txt": b"hi"}
        write_tar(root / f"{split}/a-{number:03d}.tar", members)
    return root


@pytest.mark.parametrize("kind", ["cls", "json"])
@pytest.mark.parametrize("remote", [False, True])
def test_shards_without_index_are_looked_through_once(tmp_path, monkeypatch, serve, kind, remote):
    root = foreign(foreign(tmp_path / "s", kind=kind), kind=kind, split="val", count=1)
    (root / "classes.txt").write_text("cat\ndog\n\neel\n")
    opts = ()
    if remote:
        server = serve(root)
        opts = ("DATA.TRAIN_SHARDS", "train/a-{000..001}.tar", "DATA.VAL_SHARDS", "val/a-000.tar")
    place = server.url if remote else root
    loaders = build_loader(tar_settings(tmp_path, place, *opts))
    assert loaders.class_names == ["cat", "dog", "eel"]
    for again in range(2):
        images = [pair for i in range(6) for pair in decode(loaders.train.dataset[i][0][None])]
        assert images == [(i, n) for n in range(2) for i in range(3)]
        assert seen_in(loaders.val) == [(i, 0) for i in range(3)]
        if not again:
            monkeypatch.setattr(source_module, "scan_tar", None)
            loaders = build_loader(tar_settings(tmp_path, place, *opts))
    if remote:  # what was fetched for the index is used for training
        assert server.count("a-001.tar") == 1


def test_a_changed_shard_is_looked_through_again(tmp_path):
    root = foreign(tmp_path / "s", split="val")
    config = tar_settings(tmp_path, root, "MODEL.NUM_CLASSES", 3)
    assert len(build_loader(config, train=False).val.dataset) == 6
    write_tar(root / "val/a-000.tar", {"x.png": png(1, 1), "x.cls": b"1"})
    loader = build_loader(config, train=False).val
    assert sorted(seen_in(loader)) == [(0, 1), (1, 1), (1, 1), (2, 1)]


def test_classes_of_shards(tmp_path):
    root = foreign(foreign(tmp_path / "s"), split="val")
    with pytest.raises(DataError, match=r"not known, .*: put a file classes\.txt .*NUM_CLASSES N"):
        build_loader(tar_settings(tmp_path, root))
    loaders = build_loader(tar_settings(tmp_path, root, "MODEL.NUM_CLASSES", 7))
    assert (loaders.num_classes, loaders.class_names) == (7, None)
    with pytest.raises(
        DataError, match=r"train/a-000\.tar: label 2 of pack.d/0-2.PNG is out of range 0\.\.1 \(2 "
    ):
        build_loader(tar_settings(tmp_path, root, "MODEL.NUM_CLASSES", 2))
    (root / "classes.txt").write_text("a\nb\nc\n")
    with pytest.raises(DataError, match="NUM_CLASSES 7 was typed, but webdataset data .* need 3"):
        build_loader(tar_settings(tmp_path, root, "MODEL.NUM_CLASSES", 7))


def test_a_22k_head_is_scored_on_shards_of_imagenet(tmp_path):
    config = tar_settings(tmp_path, make_shards(tmp_path), "EVAL_22K_TO_1K", True)
    assert num_classes_of(config, Classes(1000, names_for(1000))) == 21841
    with pytest.raises(DataError, match="needs DATA.DATASET imagenet, got 'webdataset'"):
        num_classes_of(config)


def test_patterns_choose_shards(tmp_path, serve):
    root = make_shards(tmp_path)
    train = "DATA.TRAIN_SHARDS"
    loaders = build_loader(tar_settings(tmp_path, root, train, "train/shard-00000{3,1}.tar"))
    store = loaders.train.dataset.samples.shards
    names = [shard.name for shard in store.shards]
    assert names == ["train/shard-000003.tar", "train/shard-000001.tar"]
    seen = seen_in(loaders.train)
    whole = build_loader(tar_settings(tmp_path, root)).train.dataset
    wanted = [i for shard in (3, 1) for i in range(4 * shard, 4 * shard + 4)]
    assert sorted(seen) == sorted(
        pair for i in wanted for pair in decode(whole[i][0][None])
    ) and labels_fit(loaders.train)
    everything = tar_settings(tmp_path, root, train, f"{root}/train/*.tar")
    assert sorted(seen_in(build_loader(everything).train)) == EVERY
    for pattern, message in (
        ("train/shard-00000{1,1}.tar", "TRAIN_SHARDS names train/shard-000001.tar 2 times"),
        ("gone/*.tar", r"no file in .*shards is like 'gone/\*\.tar' \(DATA\.TRAIN_SHARDS\)"),
        ("train/b-000.tar", "shard .*train/b-000.tar does not exist"),
        (f"train/shard-000001.tar::{serve(root).url}/train/shard-000002.tar", "mixes files and"),
    ):
        with pytest.raises(DataError, match=message):
            build_loader(tar_settings(tmp_path, root, train, pattern))
    (root / "dataset.json").unlink()
    with pytest.raises(
        DataError, match=r"type --opts DATA.VAL_SHARDS 'val/NAME-\{000000\.\.000146"
    ):
        opts = ("MODEL.NUM_CLASSES", 3)
        build_loader(tar_settings(tmp_path, serve(root).url, *opts), train=False)


# ------------------------------------------------------------------------------------- messages
def only(root, members, mode="w"):
    write_tar(root / "val/x.tar", members, mode)
    return root


@pytest.mark.parametrize(
    "members, message",
    [
        ({"a.png": b"", "a.txt": b"1"}, r"sample 'a' has no label: .*there are only: png txt"),
        ({"a.cls": b"1"}, r"sample 'a' has no image, its members end in: cls"),
        ({"a.png": b"", "a.jpg": b"", "a.cls": b"1"}, r"several images \(png, jpg\)"),
        ({"a.png": b"", "a.cls": b"cat"}, r"a\.cls must hold the label as an integer, got b'cat'"),
        ({"a.png": b"", "a.json": b'{"id": 1}'}, r"as an integer or as .*got b'{\"id\": 1}'"),
        ({"a.png": b"", "a.json": b'{"label": "1"}'}, r"must hold the label"),
        ({"a.png": b"", "a.cls": b"-1"}, r"label -1 of a\.png is out of range 0\.\.2"),
        ({"README": b"x"}, r"holds no samples"),
    ],
)
def test_a_shard_with_wrong_members_is_named(tmp_path, members, message):
    root = only(tmp_path / "s", members)
    with pytest.raises(DataError, match=message) as caught:
        build_loader(tar_settings(tmp_path, root, "MODEL.NUM_CLASSES", 3), train=False)
    assert "val/x.tar" in str(caught.value)


def test_a_damaged_shard_without_index_is_named(tmp_path):
    good = {f"{i}.{e}": d for i in range(3) for e, d in (("png", png(i, 0)), ("cls", b"1"))}
    root = only(tmp_path / "s", good)
    config = tar_settings(tmp_path, root, "MODEL.NUM_CLASSES", 3)
    path = root / "val/x.tar"
    whole = path.read_bytes()
    assert len(build_loader(config, train=False).val.dataset) == 3
    end = whole.rstrip(b"\0")
    member = whole.index(b"1.png")
    broken = bytearray(whole)
    broken[member + 150] ^= 1  # the checksum of a header
    for data in (
        b"", b"no tar", whole[:100], whole[: member + 700], whole[:member], whole[: member + 100],
        whole[: (len(end) + 511) // 512 * 512], bytes(broken), whole[:member] + b"x" * 2000,
    ):  # fmt: skip
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"shard val/x\.tar is not a whole, plain tar file: \S"):
            build_loader(config, train=False)
    only(root, good, "w:gz")
    with pytest.raises(DataError, match="it is compressed"):
        build_loader(config, train=False)


def test_a_shard_that_does_not_fit_its_index_is_named(tmp_path):
    root = make_shards(tmp_path)
    path = root / "train/shard-000002.tar"
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"shard-000002\.tar has \d+ bytes, the index says \d+: it"):
        build_loader(tar_settings(tmp_path, root))
    path.unlink()
    with pytest.raises(DataError, match=r"shard .*train/shard-000002\.tar is missing"):
        build_loader(tar_settings(tmp_path, root))


def test_damaged_index_files_are_named(tmp_path):
    root = make_shards(tmp_path)
    config = tar_settings(tmp_path, root)
    content = json.loads((root / "dataset.json").read_text())
    path = root / "train/index.npz"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"index of shards .*train/index\.npz cannot be read"):
        build_loader(config)
    for text in ("{", "[]", '{"format": "other"}', '{"format": "internimage-shards-1"}'):
        (root / "dataset.json").write_text(text)
        with pytest.raises(DataError, match=r"dataset\.json is not one of tools/make_shards\.py"):
            build_loader(config)
    index = source_module.load_index(root / "val/index.npz")
    for name in ("pipe:touch /tmp/x://", "/etc/passwd", "../x.tar"):
        shard = source_module.TarIndex(
            (type(index.shards[0])(name, len(index), 1),),
            index.offsets, index.sizes, index.labels, index.names,
        )  # fmt: skip
        shard.save(root / "val/index.npz")
        (root / "dataset.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match="names a shard outside of its folder"):
            build_loader(config, train=False)


def test_settings_that_do_not_go_with_shards(tmp_path, monkeypatch):
    root = make_shards(tmp_path)
    with pytest.raises(DataError, match="ZIP_MODE .* not available for webdataset"):
        build_loader(tar_settings(tmp_path, root, "DATA.ZIP_MODE", True))
    with pytest.raises(DataError, match="needs DATA.DATASET inat18, got 'webdataset'"):
        build_loader(tar_settings(tmp_path, root, "MODEL.TYPE", "intern_image_meta_former"))
    with pytest.raises(DataError, match=r"gone .*does not exist.*train/\*\.tar.*make_shards\.py"):
        build_loader(tar_settings(tmp_path, tmp_path / "gone"))
    with pytest.raises(DataError, match="type --data-path DIR or an URL"):
        build_loader(tar_settings(tmp_path, ""))
    monkeypatch.setitem(sys.modules, "webdataset", None)
    assert build_loader(tar_settings(tmp_path, root)).num_classes == 3  # not needed with an index
    (root / "dataset.json").unlink()
    with pytest.raises(DataError, match=r"package webdataset .*-r requirements/large\.txt"):
        build_loader(tar_settings(tmp_path, root, "MODEL.NUM_CLASSES", 3))


def test_a_store_that_forbids_what_is_missing(tmp_path, serve):
    server = serve(foreign(tmp_path / "s", split="val", count=1))
    server.faults = {"dataset.json": [403] * 9, "classes.txt": [403] * 9}
    opts = ("MODEL.NUM_CLASSES", 3, "DATA.VAL_SHARDS", "val/a-000.tar")
    loader = build_loader(tar_settings(tmp_path, server.url, *opts), train=False).val
    assert seen_in(loader) == [(i, 0) for i in range(3)]
