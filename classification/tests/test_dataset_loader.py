"""Loaders: exactly-once validation, repeatable epochs, unreadable images, caches, mixing, crops."""

import logging
import os
import pickle
import random
import signal
import zipfile

import numpy as np
import pytest
import torch
from image_folders import decode, make_folder, make_zip, settings
from PIL import Image

from config import ConfigError
from dataset import CorruptDataError, DataError, build_loader, build_transform
from dataset import loader as loader_module
from dataset import storage as storage_module
from dataset.decode import decode_image
from dataset.loader import _World
from dataset.rng import keyed_rng
from dataset.samples import PackedStrings
from dataset.storage import ByteCache, Reader


@pytest.fixture
def as_rank(monkeypatch):
    """Pretend to be one of several processes: as_rank(rank, size, local_size=size)."""

    def pretend(rank, size, local_size=None):
        local_size = local_size or size
        world = _World(rank, size, rank % local_size, local_size)
        monkeypatch.setattr(loader_module, "_world", lambda: world)

    return pretend


def seen_in(loader):
    return [pair for images, _ in loader for pair in decode(images)]


def break_images(root, *names):
    for name in names:
        path = root / name
        path.write_bytes(path.read_bytes()[:40])


# ------------------------------------------------------------------------------ exactly once
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_validation_counts_every_image_once_over_all_ranks(tmp_path, as_rank, world, workers):
    root = make_folder(tmp_path / "d", train=6, val=7)  # 21 images: no multiple of 2 ranks
    config = settings(tmp_path, root, "DATA.NUM_WORKERS", workers, "TEST.BATCH_SIZE", 2)
    seen = []
    for rank in range(world):
        as_rank(rank, world)
        loader = build_loader(config, train=False).val
        assert loader.batch_size == 2
        seen += seen_in(loader)
    assert sorted(seen) == [(c, n) for c in range(3) for n in range(7)]


def test_sequential_validation_gives_every_rank_everything(tmp_path, as_rank):
    root = make_folder(tmp_path / "d", val=3)
    as_rank(1, 2)
    loader = build_loader(settings(tmp_path, root, "TEST.SEQUENTIAL", True), train=False).val
    assert seen_in(loader) == [(c, n) for c in range(3) for n in range(3)]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_training_images_are_taken_at_most_once_per_epoch(tmp_path, as_rank, world):
    root = make_folder(tmp_path / "d", train=8)  # 24 images
    seen = []
    for rank in range(world):
        as_rank(rank, world)
        loaders = build_loader(settings(tmp_path, root))
        loaders.set_epoch(1)
        mine = seen_in(loaders.train)
        assert len(mine) == 24 // world // 4 * 4
        seen += mine
    assert len(set(seen)) == len(seen) and sorted(seen) != seen


# -------------------------------------------------------------------------------- repeatable
RANDOM = ("AUG.AUTO_AUGMENT", "rand-m9-mstd0.5-inc1", "AUG.REPROB", 0.5, "AUG.MIXUP", 0.8)


def epoch_of(tmp_path, root, epoch, *, before=(), workers=0, seed=0):
    config = settings(
        tmp_path, root, *RANDOM, "AUG.CUTMIX", 1.0, "DATA.NUM_WORKERS", workers, "SEED", seed
    )
    loaders = build_loader(config)
    for earlier in before:
        loaders.set_epoch(earlier)
        for batch in loaders.train:
            loaders.mixup_fn(*batch)
        torch.rand(3), random.random(), np.random.rand()  # what a training loop would draw
    loaders.set_epoch(epoch)
    return [loaders.mixup_fn(*batch) for batch in loaders.train]


def same(first, second):
    return all(
        torch.equal(a, b)
        for x, y in zip(first, second, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def test_an_epoch_depends_on_nothing_but_seed_and_number(tmp_path):
    root = make_folder(tmp_path / "d", train=4)
    reference = epoch_of(tmp_path, root, 2)
    torch.manual_seed(99)
    assert same(epoch_of(tmp_path, root, 2), reference)
    assert same(epoch_of(tmp_path, root, 2, before=(0, 1)), reference)
    assert same(epoch_of(tmp_path, root, 2, workers=2), reference)
    assert same(epoch_of(tmp_path, root, 2, before=(0, 1), workers=2), reference)
    assert not same(epoch_of(tmp_path, root, 1), reference)
    assert not same(epoch_of(tmp_path, root, 2, seed=1), reference)


@pytest.mark.parametrize("opts", [(), ("DATA.IMG_ON_MEMORY", True)])
def test_order_and_augmentation_both_change_with_the_epoch(tmp_path, as_rank, opts):
    root = make_folder(tmp_path / "d", train=8)
    as_rank(0, 2)
    loaders = build_loader(settings(tmp_path, root, *RANDOM, *opts))
    orders, images = [], []
    for epoch in range(2):
        loaders.set_epoch(epoch)
        orders.append(list(loaders.train_sampler))
        images.append(loaders.train.dataset[3][0])
    assert orders[0] != orders[1] and not torch.equal(*images)
    assert not torch.equal(loaders.train.dataset[4][0], images[1])  # and with the image


def test_loading_leaves_the_random_numbers_of_the_caller_alone(tmp_path):
    root = make_folder(tmp_path / "d", train=4)
    config = settings(tmp_path, root, *RANDOM)
    draws = []
    for load in (False, True):
        torch.manual_seed(5), random.seed(5), np.random.seed(5)
        loaders = build_loader(config)
        if load:
            for batch in loaders.train:
                loaders.mixup_fn(*batch)
        draws.append((torch.rand(1).item(), random.random(), np.random.rand()))
    assert draws[0] == draws[1]


def test_workers_leave_an_interrupt_to_the_main_process(tmp_path):
    """A worker that Ctrl-C ends in the middle of its work can leave the main one waiting."""
    root = make_folder(tmp_path / "d")
    loader = build_loader(settings(tmp_path, root, "DATA.NUM_WORKERS", 1)).train
    batches = iter(loader)
    next(batches)
    for worker in loader._iterator._workers:
        os.kill(worker.pid, signal.SIGINT)
        worker.join(0.5)
        assert worker.is_alive()
    assert len(list(batches)) == len(loader) - 1


def test_keyed_rng_is_a_function_of_its_key():
    def draw(*key):
        with keyed_rng(*key):
            return torch.rand(1).item(), random.random(), np.random.rand()

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({draw(1, 2, 3), draw(1, 2, 4), draw(1, 3, 3), draw(2, 2, 3), draw(-1, 2, 3)}) == 5


# ---------------------------------------------------------------------------------- unreadable
@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_training_image_is_replaced_and_reported_once(tmp_path, caplog, workers):
    root = make_folder(tmp_path / "d", train=4)
    break_images(root, "train/dog/001.png", "train/dog/002.png")
    (root / "train/dog/002.png").unlink()
    (root / "train/dog/002.png").write_text("not a picture")
    loaders = build_loader(settings(tmp_path, root, "DATA.NUM_WORKERS", workers))
    with caplog.at_level(logging.WARNING):
        for epoch in range(3):
            loaders.set_epoch(epoch)
            seen = seen_in(loaders.train)
            assert len(seen) == 12 and not {(1, 1), (1, 2)} & set(seen)
            assert seen.count((1, 3)) == 3  # itself, and in the place of both
    assert loaders.train.dataset.corrupt_count == 2
    if not workers:  # worker processes log on their own
        lines = [r.getMessage() for r in caplog.records]
        assert len(lines) == 2
        assert all("dog/00" in line and "the next image takes its place" in line for line in lines)
        assert any("2 so far" in line for line in lines)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_validation_image_is_left_out(tmp_path, workers):
    root = make_folder(tmp_path / "d", val=4)
    break_images(root, *(f"val/cat/{n:03d}.png" for n in range(4)), "val/eel/000.png")
    loaders = build_loader(settings(tmp_path, root, "DATA.NUM_WORKERS", workers), train=False)
    for _ in range(2):  # the first batch of four is left out as a whole
        assert seen_in(loaders.val) == [(1, n) for n in range(4)] + [(2, n) for n in (1, 2, 3)]
    assert loaders.val.dataset.corrupt_count == 5


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("split", ["train", "val"])
def test_too_many_unreadable_images_stop_the_run(tmp_path, workers, split):
    root = make_folder(tmp_path / "d", train=4, val=4)
    break_images(root, *(f"{split}/cat/{n:03d}.png" for n in range(3)))
    opts = ["DATA.NUM_WORKERS", workers, "DATA.MAX_CORRUPT", 2]
    loaders = build_loader(settings(tmp_path, root, *opts))
    with pytest.raises(CorruptDataError) as caught:
        for _ in range(2):
            list(getattr(loaders, split))
    message = str(caught.value)
    assert message.startswith("3 images cannot be read, more than DATA.MAX_CORRUPT 2; the last is")
    assert "cat/00" in message and "Traceback" not in message
    opts[-1] = 3
    assert list(getattr(build_loader(settings(tmp_path, root, *opts)), split))


def test_nothing_readable_is_an_error_not_a_loop(tmp_path):
    root = make_folder(tmp_path / "d", train=2)
    break_images(root, *(f"train/{c}/{n:03d}.png" for c in ("cat", "dog", "eel") for n in range(2)))
    with pytest.raises(CorruptDataError, match="none of the 6 images"):
        next(iter(build_loader(settings(tmp_path, root)).train))


def test_broken_member_of_a_zip_counts_as_unreadable(tmp_path):
    root = make_folder(tmp_path / "d", val=2)
    for split in ("train", "val"):
        make_zip(root / f"{split}.zip", root / split)
    data = bytearray((root / "val.zip").read_bytes())
    with zipfile.ZipFile(root / "val.zip") as file:
        start = file.getinfo("dog/001.png").header_offset
    data[start + 60 : start + 70] = bytes(10)
    (root / "val.zip").write_bytes(data)
    for mode in ("no", "full"):
        config = settings(tmp_path, root, "DATA.ZIP_MODE", True, "DATA.CACHE_MODE", mode)
        loaders = build_loader(config)
        assert len(seen_in(loaders.val)) == 5 and loaders.val.dataset.corrupt_count == 1


# ------------------------------------------------------------------------------------- caches
def no_reading(monkeypatch):
    def refuse(self, path):
        raise AssertionError(f"{path} was read from disk")

    monkeypatch.setattr(Reader, "read", refuse)


@pytest.mark.parametrize("size, local_size", [(1, 1), (2, 2), (4, 2), (3, 3)])
def test_img_on_memory_holds_one_copy_per_machine_and_never_reads_again(
    tmp_path, as_rank, monkeypatch, size, local_size
):
    root = make_folder(tmp_path / "d", train=8, val=4)
    config = settings(tmp_path, root, "DATA.IMG_ON_MEMORY", True, "DATA.BATCH_SIZE", 2)
    monkeypatch.delenv("LOCAL_SIZE", raising=False)
    every = []
    for rank in range(size):
        as_rank(rank, size, local_size)
        every.append(build_loader(config))
        assert len(every[-1].train.dataset.cache) == 24 // local_size
        assert len(every[-1].val.dataset.cache) == 12 // size
    no_reading(monkeypatch)
    for epoch in range(2):
        seen = []
        for loaders in every:
            loaders.set_epoch(epoch)
            seen += seen_in(loaders.train)
        assert sorted(seen) == [(c, n) for c in range(3) for n in range(8)]
    assert len([pair for loaders in every for pair in seen_in(loaders.val)]) == 12


def test_img_on_memory_does_not_load_what_is_read_once(tmp_path):
    root = make_folder(tmp_path / "d")
    config = settings(tmp_path, root, "DATA.IMG_ON_MEMORY", True)
    assert build_loader(config, train=False).val.dataset.cache is None


@pytest.mark.parametrize("mode, held", [("no", None), ("part", 12), ("full", 24)])
def test_cache_modes_hold_what_their_name_says(tmp_path, as_rank, monkeypatch, mode, held):
    root = make_folder(tmp_path / "d", train=8)
    for split in ("train", "val"):
        make_zip(root / f"{split}.zip", root / split)
    config = settings(tmp_path, root, "DATA.ZIP_MODE", True, "DATA.CACHE_MODE", mode)
    seen = []
    for rank in range(2):
        as_rank(rank, 2)
        dataset = build_loader(config).train.dataset
        assert (len(dataset.cache) if dataset.cache else None) == held
        seen += seen_in(build_loader(config).train)
    assert sorted(seen) == [(c, n) for c in range(3) for n in range(8)]


def test_cache_that_does_not_fit_is_refused_with_a_way_out(tmp_path, monkeypatch):
    root = make_folder(tmp_path / "d")
    monkeypatch.setattr(storage_module, "available_memory", lambda: 10)
    with pytest.raises(DataError, match=r"IMG_ON_MEMORY would hold .*IMG_ON_MEMORY False"):
        build_loader(settings(tmp_path, root, "DATA.IMG_ON_MEMORY", True))


def test_cache_keeps_the_bytes_of_its_share(tmp_path):
    files = []
    for i in range(5):
        files.append(tmp_path / f"{i}.bin")
        files[-1].write_bytes(bytes([i]) * i)
    cache = ByteCache(Reader(), PackedStrings([str(f) for f in files]), 1, 2)
    assert [cache.get(i) for i in range(5)] == [None, b"\1", None, b"\3\3\3", None]


def test_reader_can_be_sent_to_another_process(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("in/x", b"abc")
    reader = Reader()
    assert reader.read(f"{tmp_path}/a.zip@/in/x") == b"abc"
    assert pickle.loads(pickle.dumps(reader)).size(f"{tmp_path}/a.zip@/in/x") == 3


def test_a_forked_process_opens_its_own_archive_handle(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("x", b"abc")
    reader = Reader()
    handles = []
    for pid in (reader._pid, -1):  # -1: as if the reader had been made in another process
        reader._pid = pid
        assert reader.read(f"{tmp_path}/a.zip@/x") == b"abc"
        handles.append(reader._archive(f"{tmp_path}/a.zip"))
    assert handles[0] is not handles[1]


# ------------------------------------------------------------------------------------- mixing
@pytest.mark.parametrize(
    "opts",
    [
        ("AUG.MIXUP", 0.8),
        ("AUG.CUTMIX", 1.0),
        ("AUG.CUTMIX_MINMAX", "[0.3,0.6]"),
        ("AUG.MIXUP", 0.8, "AUG.CUTMIX", 1.0, "AUG.MIXUP_MODE", "elem"),
    ],
)
def test_every_way_of_mixing_gives_soft_targets(tmp_path, opts):
    root = make_folder(tmp_path / "d", train=8)
    loaders = build_loader(settings(tmp_path, root, *opts, "MODEL.LABEL_SMOOTHING", 0.0))
    assert loaders.mixup_fn is not None
    mixed = []
    for images, targets in loaders.train:
        before = images.clone()
        images, soft = loaders.mixup_fn(images, targets)
        assert soft.shape == (4, 3) and torch.allclose(soft.sum(1), torch.ones(4))
        mixed.append(not torch.equal(before, images))
        flipped = torch.nn.functional.one_hot(targets.flip(0), 3)
        own = torch.nn.functional.one_hot(targets, 3)
        assert torch.all(soft * (own + flipped == 0) == 0)  # nothing for classes that are not there
    assert any(mixed)


def test_no_mixing_and_odd_batches(tmp_path):
    root = make_folder(tmp_path / "d")
    assert build_loader(settings(tmp_path, root)).mixup_fn is None
    assert build_loader(settings(tmp_path, root, "AUG.MIXUP", 0.8), train=False).mixup_fn is None
    with pytest.raises(DataError, match="BATCH_SIZE 3 must be even"):
        build_loader(settings(tmp_path, root, "AUG.MIXUP", 0.8, "DATA.BATCH_SIZE", 3))
    with pytest.raises(DataError, match=r"9 training images .* do not fill one batch of 10"):
        build_loader(settings(tmp_path, root, "DATA.BATCH_SIZE", 10))


# ---------------------------------------------------------------------------------- transforms
def striped(width=96, height=48):
    """Left third black, middle third grey, right third white."""
    shades = np.repeat(np.array([0, 128, 255], np.uint8), width // 3)
    return Image.fromarray(np.repeat(np.tile(shades, (height, 1))[..., None], 3, axis=2))


def columns(tensor):
    return [round(v, 2) for v in tensor[0, 16, [0, 16, 31]].tolist()]


def test_validation_crops_the_centre_or_squashes(tmp_path):
    nearest = ("DATA.INTERPOLATION", "nearest")
    crop = build_transform(False, settings(tmp_path, "", *nearest))(striped())
    assert crop.shape == (3, 32, 32)
    assert columns(crop) == [0.5, 0.5, 0.5] or columns(crop)[1] == 0.5
    squash = build_transform(False, settings(tmp_path, "", *nearest, "TEST.CROP", False))
    assert columns(squash(striped())) == [0.0, 0.5, 1.0]


def test_random_validation_crop_is_random_but_repeatable(tmp_path):
    root = make_folder(tmp_path / "d", val=1)
    striped().save(root / "val/cat/000.png")
    config = settings(tmp_path, root, "TEST.CROP", False, "AUG.RANDOM_RESIZED_CROP", True)
    transform = build_transform(False, config)
    assert len({transform(striped()).sum().item() for _ in range(8)}) > 1
    first, second = (next(iter(build_loader(config, train=False).val))[0] for _ in range(2))
    assert torch.equal(first, second)


def test_normalisation_and_interpolation_names(tmp_path):
    mean_std = ("AUG.MEAN", "[0.5,0.5,0.5]", "AUG.STD", "[0.25,0.5,1.0]")
    for name in ("bicubic", "bilinear", "nearest", "lanczos", "hamming", "box", "random"):
        config = settings(tmp_path, "", *mean_std, "DATA.INTERPOLATION", name)
        white = Image.new("RGB", (50, 40), (255, 255, 255))
        for is_train in (False, True):
            pixel = build_transform(is_train, config)(white)[:, 10, 10]
            assert pixel.tolist() == pytest.approx([2.0, 1.0, 0.5], abs=1e-4)
    with pytest.raises(ConfigError, match="did you mean 'bicubic'"):
        settings(tmp_path, "", "DATA.INTERPOLATION", "bicubik")


def test_unknown_augmentation_policy_is_an_error(tmp_path):
    with pytest.raises(DataError, match="'rnd-m9' is not a policy"):
        build_transform(True, settings(tmp_path, "", "AUG.AUTO_AUGMENT", "rnd-m9"))


def test_kinds_of_image_files(tmp_path):
    """16 bits are scaled to 8 (PIL would clip them to white), 32 bits are refused."""
    shades = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    Image.fromarray(shades).save(tmp_path / "16.png")
    Image.fromarray(shades).save(tmp_path / "16.tif")
    for name in ("16.png", "16.tif"):
        image = decode_image(tmp_path / name)
        assert image.mode == "RGB" and np.asarray(image)[0, :, 1].tolist() == [0, 1, 128, 255]
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"):
        path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
        Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode).save(path)
        image = decode_image(path)
        assert image.mode == "RGB" and image.size == (5, 4) and image.getpixel((0, 0))[0] == 255
    for values in (np.zeros((4, 4), np.float32), np.zeros((4, 4), np.int32)):
        Image.fromarray(values).save(tmp_path / "32.tif")
        with pytest.raises(ValueError, match="convert it to 8 or 16 bits"):
            decode_image(tmp_path / "32.tif")


def test_flip_scale_and_ratio_are_honoured(tmp_path):
    whole = ("AUG.SCALE", "[1,1]", "AUG.RATIO", "[2,2]", "DATA.INTERPOLATION", "nearest")
    upright = build_transform(True, settings(tmp_path, "", *whole, "AUG.HFLIP", 0.0))
    mirrored = build_transform(True, settings(tmp_path, "", *whole, "AUG.HFLIP", 1.0))
    for _ in range(5):
        assert columns(upright(striped())) == [0.0, 0.5, 1.0]
        assert columns(mirrored(striped())) == [1.0, 0.5, 0.0]
        assert upright(striped())[0, 16, 9:12].round(decimals=1).tolist() == [0.0, 0.0, 0.5]
    default = build_transform(True, settings(tmp_path, ""))
    assert len({default(striped()).sum().item() for _ in range(8)}) > 1
