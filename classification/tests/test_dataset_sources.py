"""Where images and labels come from: folders, lists, zip archives, ImageNet, iNaturalist."""

import json
import math
import zipfile

import numpy as np
import pytest
from image_folders import decode, make_folder, make_zip, save, settings

from dataset import DataError, build_loader, names_for, num_classes_of
from dataset.class_names import wordnet_ids
from dataset.inat18 import spatial_features, temporal_features
from dataset.samples import PackedStrings
from dataset.sources import load_classes, load_samples

LISTS = "DATA.TRAIN_LIST", "train.txt", "DATA.VAL_LIST", "val.txt"


def everything(loader):
    """All (label, number) of a loader; checks that the label agrees with the image."""
    seen = []
    for images, targets in loader:
        decoded = decode(images)
        assert [label for label, _ in decoded] == targets.tolist()
        seen += decoded
    return seen


def samples_of(config, split):
    samples = load_samples(config, split, load_classes(config))
    return list(samples.paths), samples.labels.tolist()


def write_lists(root, separator=" ", folder=""):
    for split, count in (("train", 3), ("val", 2)):
        lines = [
            f"{folder.format(split)}{name}/{number:03d}.png{separator}{label}"
            for label, name in enumerate(("cat", "dog", "eel"))
            for number in range(count)
        ]
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n\n")


# ------------------------------------------------------------------------------------- folder
def test_folder_gives_sorted_classes_and_every_image(tmp_path):
    root = make_folder(tmp_path / "d")
    (root / "train/cat/notes.txt").write_text("no image")
    (root / "train/.cache").mkdir()
    loaders = build_loader(settings(tmp_path, root))
    assert (loaders.num_classes, loaders.class_names) == (3, ["cat", "dog", "eel"])
    assert everything(loaders.val) == [(c, n) for c in range(3) for n in range(2)]
    assert len(loaders.train.dataset) == 9 and len(loaders.train) == 2  # drop_last
    images, targets = next(iter(loaders.train))
    assert images.shape == (4, 3, 32, 32) and str(images.dtype) == "torch.float32"
    assert str(targets.dtype) == "torch.int64"


def test_evaluation_needs_no_training_half(tmp_path):
    root = make_folder(tmp_path / "d", train=0)
    loaders = build_loader(settings(tmp_path, root), train=False)
    assert loaders.train is None and loaders.num_classes == 3
    assert loaders.set_epoch(3) is None


@pytest.mark.parametrize("separator", [" ", "\t", "   "])
@pytest.mark.parametrize("folder", ["", "{}/"])
def test_list_files_replace_class_folders(tmp_path, separator, folder):
    root = make_folder(tmp_path / "d")
    write_lists(root, separator, folder)
    loaders = build_loader(settings(tmp_path, root, *LISTS))
    assert loaders.num_classes == 3 and loaders.class_names is None
    assert everything(loaders.val) == [(c, n) for c in range(3) for n in range(2)]
    assert len(loaders.train.dataset) == 9


def test_list_paths_may_hold_blanks(tmp_path):
    root = tmp_path / "d"
    save(root / "train/my cat.png", 0, 0)
    save(root / "val/my cat.png", 0, 0)
    for split in ("train", "val"):
        (root / f"{split}.txt").write_text("my cat.png 0\n")
    loaders = build_loader(settings(tmp_path, root, *LISTS, "DATA.BATCH_SIZE", 1))
    assert everything(loaders.val) == [(0, 0)]


# ---------------------------------------------------------------------------------------- zip
@pytest.mark.parametrize("mode", ["no", "part", "full"])
@pytest.mark.parametrize("prefix", ["", "{}/"])
def test_zip_with_class_folders_in_every_cache_mode(tmp_path, mode, prefix):
    root = make_folder(tmp_path / "d")
    for split in ("train", "val"):
        make_zip(root / f"{split}.zip", root / split, prefix.format(split))
    config = settings(tmp_path, root, "DATA.ZIP_MODE", True, "DATA.CACHE_MODE", mode)
    loaders = build_loader(config)
    assert (loaders.train.dataset.cache is None) == (mode == "no")
    assert loaders.class_names == ["cat", "dog", "eel"]
    assert everything(loaders.val) == [(c, n) for c in range(3) for n in range(2)]
    assert (
        loaders.val.dataset.samples.paths[0] == f"{root}/val.zip@/{prefix.format('val')}cat/000.png"
    )
    assert len(everything(loaders.train)) == 8


def test_zip_with_list_beside_it_and_zip_notation_in_a_list(tmp_path):
    root = make_folder(tmp_path / "d")
    write_lists(root, "\t")
    for split in ("train", "val"):
        make_zip(root / f"{split}.zip", root / split)
        (root / f"{split}.txt").rename(root / f"{split}_map.txt")
    config = settings(tmp_path, root, "DATA.ZIP_MODE", True)
    assert everything(build_loader(config).val) == [(c, n) for c in range(3) for n in range(2)]
    (root / "mine.txt").write_text("val.zip@/eel/001.png 2\n")
    config = settings(
        tmp_path, root, "DATA.VAL_LIST", "mine.txt", "DATA.TRAIN_LIST", "train_map.txt"
    )
    assert everything(build_loader(config).val) == [(2, 1)]


def test_zip_workers_open_their_own_handles(tmp_path):
    root = make_folder(tmp_path / "d", train=6, val=6)
    for split in ("train", "val"):
        make_zip(root / f"{split}.zip", root / split)
    config = settings(
        tmp_path, root, "DATA.ZIP_MODE", True, "DATA.CACHE_MODE", "no", "DATA.NUM_WORKERS", 2
    )
    loaders = build_loader(config)
    loaders.val.dataset[0]  # the parent's handle is open before the workers are forked
    assert sorted(everything(loaders.val)) == [(c, n) for c in range(3) for n in range(6)]


# ----------------------------------------------------------------------------------- ImageNet
def test_imagenet_subset_by_wordnet_id_keeps_the_labels_of_all_1000(tmp_path):
    wnids = wordnet_ids(1000)
    root = make_folder(tmp_path / "d", classes=(wnids[2], wnids[7], wnids[999]))
    config = settings(tmp_path, root, dataset="imagenet")
    assert num_classes_of(config) == 1000
    loaders = build_loader(config)
    assert loaders.num_classes == 1000 and loaders.class_names[0] == "tench, Tinca tinca"
    labels = [label for _, targets in loaders.val for label in targets.tolist()]
    assert labels == [2, 2, 7, 7, 999, 999]


def test_imagenet_finds_its_train_list_in_a_zip(tmp_path, monkeypatch):
    root = make_folder(tmp_path / "d", classes=wordnet_ids(1000)[:3])
    names = [
        f"{wnid}/{n:03d}.png {i}" for i, wnid in enumerate(wordnet_ids(1000)[:3]) for n in (0, 2)
    ]
    (tmp_path / "cwd/meta_data").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "cwd/meta_data/train.txt.zip", "w") as file:
        file.writestr("train.txt", "\n".join(names))
    config = settings(tmp_path, root, dataset="imagenet")
    assert len(samples_of(config, "train")[1]) == 9
    monkeypatch.chdir(tmp_path / "cwd")
    paths, labels = samples_of(config, "train")
    assert labels == [0, 0, 1, 1, 2, 2] and paths[1].endswith("train/n01440764/002.png")
    assert len(samples_of(config, "val")[1]) == 6  # still the folders


def test_imagenet_refuses_other_folders(tmp_path):
    root = make_folder(tmp_path / "d")
    with pytest.raises(DataError, match=r"needs 1000 class folders .*found 3, .*--dataset folder"):
        build_loader(settings(tmp_path, root, dataset="imagenet"))


def test_imagenet22k_by_timm_list_by_json_and_by_list(tmp_path):
    wnids = wordnet_ids(21841)
    assert len(wnids) == 21841 and list(wnids) == sorted(wnids)
    root = make_folder(tmp_path / "22k_in_the_path", classes=(wnids[5], wnids[21840]))
    config = settings(tmp_path, root, dataset="imagenet22K")
    assert num_classes_of(config) == 21841
    assert samples_of(config, "val")[1] == [5, 5, 21840, 21840]
    (root / "val.txt").write_text(f"{wnids[5]}/000.png 17\n")
    assert samples_of(config, "val")[1] == [17]
    (root / "val.txt").unlink()
    (root / "meta_data").mkdir()
    index = root / "meta_data/22k_class_to_idx.json"
    index.write_text(json.dumps({wnids[21840]: 0, wnids[5]: 1, "other": 2}))
    assert num_classes_of(config) == 3
    assert samples_of(config, "val")[1] == [1, 1, 0, 0]
    index.write_text(json.dumps({wnids[5]: 1, "other": 2}))
    with pytest.raises(DataError, match=r"0\.\.n-1"):
        num_classes_of(config)


def test_imagenet22k_names_the_nearest_class(tmp_path):
    root = make_folder(tmp_path / "d", classes=("n00004476",))
    with pytest.raises(
        DataError, match="'n00004476' that is not a known class, did you mean 'n0000447"
    ):
        samples_of(settings(tmp_path, root, dataset="imagenet22K"), "train")


def test_22k_in_a_path_changes_nothing(tmp_path):
    root = make_folder(tmp_path / "my22k")
    assert build_loader(settings(tmp_path, root)).num_classes == 3


# --------------------------------------------------------------------------------------- iNat
def make_inat(root, split, order=(0, 1, 2, 3)):
    images = [{"id": 10 + i, "file_name": f"pictures/{split}{i}.png"} for i in range(4)]
    for i in range(4):
        save(root / f"pictures/{split}{i}.png", i % 2, i)
    annotations = [{"id": i, "image_id": 10 + i, "category_id": (7, 3)[i % 2]} for i in range(4)]
    categories = [{"id": 7, "name": "wren"}, {"id": 3, "name": "oak"}]
    locations = [
        {"id": 10, "lat": 0.0, "lon": 90.0, "date": "2017-03-04 11:00:00+00:00"},
        {"id": 11, "lat": 30.0, "lon": 0.0, "date": "2017-12-31"},
        {"id": 12, "lat": None, "lon": 5.0, "date": None},
    ]  # 13 has none
    content = {
        "images": images,
        "annotations": [annotations[i] for i in order],
        "categories": categories,
    }
    (root / f"{split}2018.json").write_text(json.dumps(content))
    (root / f"{split}2018_locations.json").write_text(json.dumps(locations[::-1]))
    return content


@pytest.fixture
def inat(tmp_path):
    root = tmp_path / "inat"
    for split in ("train", "val"):
        make_inat(root, split, order=(2, 0, 3, 1))  # not the order of the images
    return root


def test_inat18_with_metadata(tmp_path, inat):
    config = settings(tmp_path, inat, "MODEL.TYPE", "intern_image_meta_former", dataset="inat18")
    loaders = build_loader(config)
    assert (loaders.num_classes, loaders.class_names) == (2, ["wren", "oak"])
    ((images, temporal, spatial), targets) = next(iter(loaders.val))
    assert decode(images) == [(0, 0), (1, 1), (0, 2), (1, 3)]
    assert targets.tolist() == [0, 1, 0, 1]
    march_december = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert np.allclose(temporal, march_december, atol=1e-6)
    equator_at_90, north_30 = [0, 1, 0], [math.sqrt(3) / 2, 0, 0.5]
    assert np.allclose(spatial, [equator_at_90, north_30, [0, 0, 0], [0, 0, 0]], atol=1e-6)
    assert temporal.shape == (4, 4) and spatial.shape == (4, 3)
    assert str(temporal.dtype) == str(spatial.dtype) == "torch.float32"
    ((_, temporal, spatial), _) = next(iter(loaders.train))
    assert temporal.shape == (4, 4) and spatial.shape == (4, 3)


def test_inat18_for_a_model_without_metadata(tmp_path, inat):
    (inat / "val2018_locations.json").unlink()
    loaders = build_loader(settings(tmp_path, inat, dataset="inat18"))
    assert everything(loaders.val) == [(0, 0), (1, 1), (0, 2), (1, 3)]


def test_place_and_time_by_hand():
    assert temporal_features("2017-07-01")[:2] == pytest.approx(
        [math.sin(7 * math.pi / 6), math.cos(7 * math.pi / 6)]
    )
    assert temporal_features("2017-13-01") == temporal_features("soon") == [0, 0, 0, 0]
    assert spatial_features(0, 0) == [1, 0, 0]  # a place in the sea, not a missing one
    assert spatial_features(-90, 12) == pytest.approx([0, 0, -1])
    assert spatial_features(None, 0) == spatial_features(float("nan"), 0) == [0, 0, 0]
    assert temporal_features(None) == temporal_features(float("nan")) == [0, 0, 0, 0]


def test_inat18_messages(tmp_path, inat):
    config = settings(tmp_path, inat, "MODEL.TYPE", "intern_image_meta_former", dataset="inat18")
    content = make_inat(inat, "val")
    content["annotations"].pop()
    (inat / "val2018.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="1 images have no annotation, e.g. id 13"):
        build_loader(config)
    content["categories"][0]["name"] = "crow"
    (inat / "val2018.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="differ: crow, wren"):
        build_loader(config)
    (inat / "val2018.json").write_text("{")
    with pytest.raises(DataError, match=r"val2018.json cannot be read as JSON"):
        build_loader(config)
    make_inat(inat, "val")
    (inat / "train2018_locations.json").unlink()
    with pytest.raises(DataError, match=r"train2018_locations.json does not exist; .*visipedia"):
        build_loader(config)
    with pytest.raises(DataError, match="needs DATA.DATASET inat18, got 'folder'"):
        folder = settings(tmp_path, inat, "MODEL.TYPE", "intern_image_meta_former")
        build_loader(folder)


# ------------------------------------------------------------------------------- class counts
def test_class_count_of_the_data_wins_unless_another_was_typed(tmp_path):
    root = make_folder(tmp_path / "d")
    assert num_classes_of(settings(tmp_path, root)) == 3
    assert num_classes_of(settings(tmp_path, root, "MODEL.NUM_CLASSES", 3)) == 3
    with pytest.raises(DataError, match="NUM_CLASSES 1000 was typed, but .* need 3"):
        build_loader(settings(tmp_path, root, "MODEL.NUM_CLASSES", 1000))


def test_a_list_need_not_hold_all_classes_that_were_typed(tmp_path, caplog):
    root = make_folder(tmp_path / "d")
    write_lists(root)
    (root / "val.txt").write_text("cat/000.png 8\n")  # not in the training list, which ends at 2
    with caplog.at_level("INFO"):
        config = settings(tmp_path, root, *LISTS, "MODEL.NUM_CLASSES", 9)
        assert num_classes_of(config) == build_loader(config).num_classes == 9
    assert "train.txt end at 2; the model gets the 9 classes that were typed" in caplog.text
    with pytest.raises(DataError, match="NUM_CLASSES 2 was typed, but .* need 3"):
        build_loader(settings(tmp_path, root, *LISTS, "MODEL.NUM_CLASSES", 2))


def test_22k_head_on_1k_classes(tmp_path):
    root = make_folder(tmp_path / "d", classes=wordnet_ids(1000)[:3])
    config = settings(tmp_path, root, "EVAL_22K_TO_1K", True, dataset="imagenet")
    assert num_classes_of(config) == 21841
    assert build_loader(config, train=False).num_classes == 1000
    with pytest.raises(DataError, match="--eval"):
        build_loader(config)
    with pytest.raises(DataError, match="EVAL_22K_TO_1K True"):
        typed = settings(tmp_path, root, "MODEL.NUM_CLASSES", 21841, dataset="imagenet")
        num_classes_of(typed)
    with pytest.raises(DataError, match="needs DATA.DATASET imagenet, got 'folder'"):
        num_classes_of(settings(tmp_path, root, "EVAL_22K_TO_1K", True))


def test_class_names(tmp_path):
    assert names_for(1000)[1] == "goldfish, Carassius auratus" and len(names_for(21841)) == 21841
    assert names_for(10) is None
    assert len(names_for(settings(tmp_path, "x", dataset="imagenet"))) == 1000
    assert names_for(settings(tmp_path, "x")) is None


# ---------------------------------------------------------------------------------- messages
def test_missing_root_says_what_is_expected_and_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"gone .*does not exist.*train/<class>.*toy_digits"):
        build_loader(settings(tmp_path, tmp_path / "gone"))
    with pytest.raises(DataError, match="type --data-path DIR"):
        build_loader(settings(tmp_path, ""))
    with pytest.raises(DataError, match=r"train\.zip val\.zip"):
        build_loader(settings(tmp_path, "gone", "DATA.ZIP_MODE", True, dataset="imagenet"))
    with pytest.raises(DataError, match=r"train2018\.json.*visipedia"):
        build_loader(settings(tmp_path, "gone", dataset="inat18"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="val does not exist"):
        build_loader(settings(tmp_path, tmp_path / "empty"))


def test_class_folders_that_differ_are_named(tmp_path):
    root = make_folder(tmp_path / "d")
    (root / "val/dog").rename(root / "val/fox")
    message = r"differ; only in .*train: dog; only in .*val: fox"
    with pytest.raises(DataError, match=message):
        build_loader(settings(tmp_path, root))
    with pytest.raises(DataError, match=message):
        build_loader(settings(tmp_path, root), train=False)


def test_empty_class_folder_is_named(tmp_path):
    root = make_folder(tmp_path / "d")
    (root / "train/gnu").mkdir()
    (root / "val/gnu").mkdir()
    with pytest.raises(DataError, match=r"1 of 4 class folders of .*train hold no image: gnu"):
        build_loader(settings(tmp_path, root))
    make_folder(tmp_path / "none", train=0, val=0, classes=())
    (tmp_path / "none/val/a").mkdir(parents=True)
    with pytest.raises(DataError, match="1 of 1 class folders"):
        build_loader(settings(tmp_path, tmp_path / "none"), train=False)


@pytest.mark.parametrize(
    "line, message",
    [
        ("cat/000.png", r"val\.txt:2: expected 'path label', got 'cat/000.png'"),
        ("cat/000.png cat", r"val\.txt:2: expected"),
        ("cat/000.png 3", r"val\.txt:2: label 3 is out of range 0\.\.2"),
        ("cat/000.png -1", r"val\.txt:2: label -1 is out of range"),
    ],
)
def test_bad_list_line_is_named(tmp_path, line, message):
    root = make_folder(tmp_path / "d")
    write_lists(root)
    (root / "val.txt").write_text(f"cat/000.png 0\n{line}\n")
    with pytest.raises(DataError, match=message):
        build_loader(settings(tmp_path, root, *LISTS))


def test_list_messages(tmp_path):
    root = make_folder(tmp_path / "d")
    write_lists(root)
    with pytest.raises(DataError, match=r"VAL_LIST 'gone.txt' does not exist; looked for: .*gone"):
        build_loader(settings(tmp_path, root, *LISTS[:3], "gone.txt"))
    (root / "val.txt").write_text("nothere.png 0\n")
    with pytest.raises(
        DataError, match=r"do not exist; looked for: .*val/nothere.png, .*d/nothere"
    ):
        build_loader(settings(tmp_path, root, *LISTS))
    (root / "val.txt").write_text("\n")
    with pytest.raises(DataError, match=r"val\.txt is empty"):
        build_loader(settings(tmp_path, root, *LISTS))
    with pytest.raises(DataError, match="val has none"):
        build_loader(settings(tmp_path, root, *LISTS[:2]))


def test_zip_messages(tmp_path):
    root = make_folder(tmp_path / "d")
    config = settings(tmp_path, root, "DATA.ZIP_MODE", True)
    with pytest.raises(DataError, match=r"zip archive .*val\.zip does not exist"):
        build_loader(config)
    make_zip(root / "val.zip", root / "val")
    data = (root / "val.zip").read_bytes()
    (root / "train.zip").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"train\.zip cannot be read .*zipfile -t"):
        build_loader(config)
    make_zip(root / "train.zip", root / "train/cat")
    with pytest.raises(DataError, match=r"outside of a class folder.*train_map\.txt"):
        build_loader(config)
    with zipfile.ZipFile(root / "train.zip", "w") as file:
        file.writestr("readme.txt", "x")
    with pytest.raises(DataError, match="holds no image"):
        build_loader(config)


def test_packed_strings():
    strings = ["", "ä/b c.png", "x", "\udcff"]
    packed = PackedStrings(strings)
    assert list(packed) == strings and packed[-1] == strings[-1] and len(packed) == 4
    with pytest.raises(IndexError):
        packed[4]
    assert list(PackedStrings([])) == []
