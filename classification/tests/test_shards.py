"""Tar shards as a data set: the order of the images, exactly-once, resume, what can be wrong."""

import logging

import numpy as np
import pytest
import torch
from image_folders import decode, settings
from shard_sets import FileServer, make_shards, tar_settings

from dataset import CorruptDataError, DataError, build_loader
from dataset import download as download_module
from dataset import loader as loader_module
from dataset.loader import _World
from dataset.samplers import TarSampler

RANDOM = ("AUG.AUTO_AUGMENT", "rand-m9-mstd0.5-inc1", "AUG.REPROB", 0.5, "AUG.MIXUP", 0.8)
EVERY = [(c, n) for c in range(3) for n in range(8)]


@pytest.fixture
def as_rank(monkeypatch):
    def pretend(rank, size):
        monkeypatch.setattr(loader_module, "_world", lambda: _World(rank, size, rank, size))

    return pretend


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


# ------------------------------------------------------------------------------------- the data
def test_shards_hold_the_images_labels_and_classes_of_the_folder(tmp_path):
    root = make_shards(tmp_path)
    loaders = build_loader(tar_settings(tmp_path, root))
    assert (loaders.num_classes, loaders.class_names) == (3, ["cat", "dog", "eel"])
    assert sorted(seen_in(loaders.train)) == EVERY and labels_fit(loaders.train)
    assert seen_in(loaders.val) == [(c, n) for c in range(3) for n in range(3)]
    assert labels_fit(loaders.val)
    folder = build_loader(settings(tmp_path, tmp_path / "folder")).val
    for (ours, _), (theirs, _) in zip(loaders.val, folder, strict=True):
        assert torch.equal(ours, theirs)


def test_shards_of_the_training_images_are_shuffled_once(tmp_path):
    paths = build_loader(tar_settings(tmp_path, make_shards(tmp_path))).train.dataset.samples
    labels = paths.labels.tolist()
    assert sorted(labels) == [0] * 8 + [1] * 8 + [2] * 8 and labels != sorted(labels)


# ------------------------------------------------------------------------------------- the order
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_every_rank_gets_as_many_and_no_image_twice(tmp_path, as_rank, world):
    root = make_shards(tmp_path, train=9, per_shard=4)  # 27 images in 7 shards
    seen = []
    for rank in range(world):
        as_rank(rank, world)
        loaders = build_loader(tar_settings(tmp_path, root, "DATA.BATCH_SIZE", 2))
        loaders.set_epoch(1)
        mine = list(loaders.train_sampler)
        assert len(mine) == len(loaders.train_sampler) == 27 // world
        assert len(seen_in(loaders.train)) == 27 // world // 2 * 2
        assert len({i // 4 for i in mine}) <= -(-27 // world // 4) + 2  # few shards for each
        seen += mine
    assert len(set(seen)) == len(seen)


def epoch_of(tmp_path, root, epoch, *opts, before=(), workers=0, seed=0):
    opts += ("DATA.NUM_WORKERS", workers, "SEED", seed, "AUG.CUTMIX", 1.0)
    loaders = build_loader(tar_settings(tmp_path, root, *RANDOM, *opts))
    for earlier in before:
        loaders.set_epoch(earlier)
        for batch in loaders.train:
            loaders.mixup_fn(*batch)
    loaders.set_epoch(epoch)
    return [loaders.mixup_fn(*batch) for batch in loaders.train]


def same(first, second):
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a, b) for x, y in pairs for a, b in zip(x, y, strict=True))


def test_an_epoch_depends_on_nothing_but_seed_and_number(tmp_path, as_rank, serve):
    root = make_shards(tmp_path)
    for rank in range(2):
        as_rank(rank, 2)
        reference = epoch_of(tmp_path, root, 2)
        torch.manual_seed(99)
        assert same(epoch_of(tmp_path, root, 2, before=(0, 1)), reference)
        assert same(epoch_of(tmp_path, root, 2, workers=2), reference)
        assert same(epoch_of(tmp_path, root, 2, before=(0, 1), workers=1), reference)
        assert same(epoch_of(tmp_path, f"file://{root}", 2), reference)
        url = serve(root).url
        assert same(epoch_of(tmp_path, url, 2, before=(1,), workers=2), reference)
        assert not same(epoch_of(tmp_path, root, 1), reference)
        assert not same(epoch_of(tmp_path, root, 2, seed=1), reference)


class Store:
    """As much of a ShardStore as a sampler needs."""

    def __init__(self, counts):
        self.ends = np.cumsum(counts)

    def fetch_ahead(self):
        return None


def stretches(order, ends):
    """Where each shard is used first and last."""
    shards = np.searchsorted(ends, order, side="right")
    return {s: np.flatnonzero(shards == s)[[0, -1]] for s in np.unique(shards)}


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("window", [1, 4, 100])
def test_the_window_is_what_is_mixed_at_one_time(world, window):
    store = Store([50] * 30)
    for rank in range(world):
        sampler = TarSampler(store, window, rank, world)
        order = np.array(list(sampler))
        used = stretches(order, store.ends)
        at_once = [sum(a <= i <= b for a, b in used.values()) for i in range(0, len(order), 10)]
        count = min(window, len(used))
        assert max(at_once) <= count + 1 and np.mean(at_once[5:-5]) > 0.75 * count
        last = order[-len(order) // 3 :]
        if window == 100:  # a whole shuffle: the last third comes from everywhere
            assert len(np.unique(last // 50)) == len(used)


def test_orders_of_epochs_and_shards_differ():
    store = Store([10, 7, 12, 3, 9])
    sampler = TarSampler(store, 2)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(41))
    assert len({tuple(order) for order in orders}) == 3
    cut = [TarSampler(store, 2, rank, 2) for rank in range(2)]
    left_over = set()
    for epoch in range(20):
        for sampler in cut:
            sampler.set_epoch(epoch)
        left_over |= set(range(41)) - {i for sampler in cut for i in sampler}
    assert len(left_over) > 10  # no image is left out for ever


def test_images_of_one_shard_spread_over_the_window():
    """Neighbours in a shard do not stay neighbours; a batch is drawn from the whole window."""
    store = Store([100] * 20)
    order = np.array(list(TarSampler(store, 8)))
    assert np.mean(np.abs(np.diff(order)) == 1) < 0.01
    batches = [order[i : i + 64] for i in (*range(0, 1936, 64), 1936)]
    shards = [len(np.unique(batch // 100)) for batch in batches]
    assert min(shards[0], shards[-1]) >= 4  # half a window at both ends
    assert min(shards) >= 4 and np.mean(shards) > 7


# ------------------------------------------------------------------------------ exactly once
@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("workers", [0, 2])
def test_validation_counts_every_image_once(tmp_path, as_rank, world, workers):
    root = make_shards(tmp_path, train=2, val=7)  # 21 images in 6 shards
    seen = []
    for rank in range(world):
        as_rank(rank, world)
        config = tar_settings(tmp_path, root, "DATA.NUM_WORKERS", workers, "TEST.BATCH_SIZE", 2)
        seen += seen_in(build_loader(config, train=False).val)
    assert seen == [(c, n) for c in range(3) for n in range(7)]


def test_sequential_validation_gives_every_rank_everything(tmp_path, as_rank):
    root = make_shards(tmp_path)
    as_rank(1, 2)
    loader = build_loader(tar_settings(tmp_path, root, "TEST.SEQUENTIAL", True), train=False).val
    assert len(seen_in(loader)) == 9


def test_images_kept_in_memory(tmp_path, as_rank):
    root = make_shards(tmp_path)
    seen, val = [], []
    for rank in range(2):
        as_rank(rank, 2)
        loaders = build_loader(tar_settings(tmp_path, root, "DATA.IMG_ON_MEMORY", True))
        loaders.train.dataset.reader = loaders.val.dataset.reader = None  # nothing is read again
        seen += seen_in(loaders.train)
        val += seen_in(loaders.val)
    assert sorted(seen) == EVERY and len(set(val)) == 9


# ---------------------------------------------------------------------------------- unreadable
def damage(root, split, image):
    """Overwrite an image within its shard."""
    samples = build_loader(tar_settings(root.parent, root)).val.dataset.samples
    if split == "train":
        samples = build_loader(tar_settings(root.parent, root)).train.dataset.samples
    place = samples.paths[image].split("@")[1].split("/")[0]
    offset, size = map(int, place.split("+"))
    shard = int(np.searchsorted(samples.shards.ends, image, side="right"))
    path = root / samples.shards.shards[shard].name
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(size))
    return samples.paths[image]


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_reported_replaced_and_limited(tmp_path, caplog, workers):
    root = make_shards(tmp_path)
    bad = [damage(root, "train", i) for i in (5, 6)]
    damage(root, "val", 0)
    config = tar_settings(tmp_path, root, "DATA.NUM_WORKERS", workers)
    loaders = build_loader(config)
    with caplog.at_level(logging.WARNING):
        for epoch in range(2):
            loaders.set_epoch(epoch)
            seen = seen_in(loaders.train)
            assert len(seen) == 24 and len(set(seen)) == 22
    assert loaders.train.dataset.corrupt_count == 2
    if not workers:
        lines = [record.getMessage() for record in caplog.records]
        assert len(lines) == 2 and all(any(path in line for line in lines) for path in bad)
        assert "shard-000001.tar@" in lines[0] and ".png (not an image)" in lines[0]
    assert len(seen_in(loaders.val)) == 8 and loaders.val.dataset.corrupt_count == 1
    limited = tar_settings(tmp_path, root, "DATA.NUM_WORKERS", workers, "DATA.MAX_CORRUPT", 1)
    with pytest.raises(CorruptDataError, match=r"^2 images cannot be read, more than DATA.MAX_CO"):
        list(build_loader(limited).train)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_goes_away_stops_the_run_with_one_line(tmp_path, serve, monkeypatch, workers):
    root = make_shards(tmp_path)
    monkeypatch.setattr(download_module, "PAUSE", 0)
    server = serve(root)
    loaders = build_loader(tar_settings(tmp_path, server.url, "DATA.NUM_WORKERS", workers))
    (root / "train/shard-000003.tar").unlink()
    with pytest.raises(DataError) as caught:
        list(loaders.train)
    assert type(caught.value) in (DataError, download_module.NotOnServer)
    wanted = f"{server.url}/train/shard-000003.tar cannot be downloaded: HTTP 404 Not Found"
    assert str(caught.value) == wanted
    local = build_loader(tar_settings(tmp_path, root / "../shards", "DATA.VAL_SHARDS",
                                      "val/shard-{000000..000001}.tar"), train=False)  # fmt: skip
    (root / "val/shard-000001.tar").unlink()
    with pytest.raises(DataError, match=r"shard .*val/shard-000001.tar has been removed"):
        list(local.val)
