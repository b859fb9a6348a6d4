"""Every converter on a miniature of the published folders, up to a sample that the config loads."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path

import mmseg
import mmseg_custom  # noqa: F401
import numpy as np
import pytest
from mmcv import Config
from mmseg.datasets import PascalContextDataset59
from mmseg_custom.datasets.checks import build_data
from mmseg_custom.datasets.mapillary import MapillaryDataset
from PIL import Image
from scipy.io import savemat

FOLDER = Path(__file__).resolve().parents[1]
TOOLS = FOLDER / "tools" / "convert_datasets"


@pytest.fixture
def convert(monkeypatch, capsys):
    """Runs a converter in this process; what it prints. Errors are raised."""

    def call(name, *args):
        monkeypatch.syspath_prepend(str(TOOLS))
        program = importlib.import_module(name)
        assert program.run(program.parse_args([str(arg) for arg in args])) == 0
        return capsys.readouterr().out

    yield call
    forget_converters()


def write(path, labels=None):
    """A picture, or a mask of indices."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros((4, 6, 3)) if labels is None else labels
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


def labels_of(path):
    return np.array(Image.open(path)).tolist()


def loaded(config, root, split="train", num_samples=None):
    """The data set of a config in another folder, checked, and one sample of it."""
    cfg = Config.fromfile(FOLDER / "configs" / config)
    cfg.merge_from_dict({f"data.{split}.data_root": str(root)})
    data = build_data(cfg, cfg.data[split], None if split == "train" else dict(test_mode=True))
    assert num_samples is None or len(data) == num_samples
    return data[0]


def test_cityscapes(tmp_path, convert):
    city = tmp_path / "leftImg8bit" / "train" / "aachen"
    masks = tmp_path / "gtFine" / "train" / "aachen"
    frame = "aachen_000000_000019"
    write(city / f"{frame}_leftImg8bit.png")
    rows = [[0, 7, 8, 11, 26, 33]] * 3 + [[1, 2, 3, 24, 255, 31]]
    write(masks / f"{frame}_gtFine_labelIds.png", rows)
    write(masks / f"{frame}_gtFine_color.png")
    write(masks / f"{frame}_gtFine_instanceIds.png", rows)
    assert "1 masks written" in convert("cityscapes", tmp_path, "--workers", 2)
    made = masks / f"{frame}_gtFine_labelTrainIds.png"
    assert labels_of(made) == [[255, 0, 1, 2, 13, 18]] * 3 + [[255, 255, 255, 11, 255, 16]]
    assert "0 masks written" in convert("cityscapes", tmp_path, "--workers", 1)
    sample = loaded("cityscapes/upernet_internimage_t_512x1024_160k_cityscapes.py", tmp_path)
    assert sample["gt_semantic_seg"].data.shape == (1, 512, 1024)
    # the masks of train_extra, named after the frame and already in training classes
    extra = tmp_path / "refinement_final" / "train_extra" / "ulm"
    write(tmp_path / "leftImg8bit" / "train_extra" / "ulm" / "ulm_000000_000001_leftImg8bit.png")
    write(extra / "ulm_000000_000001_leftImg8bit.png", [[0, 18, 255, 1, 2, 3]] * 4)
    folder = ("--folder", "refinement_final/train_extra", "--workers", 1)
    convert("cityscapes", tmp_path, *folder, "--train-ids")
    assert labels_of(extra / "ulm_000000_000001_gtFine_labelTrainIds.png")[0][1] == 18
    name = "cityscapes/segformer_internimage_l_512x1024_160k_mapillary2cityscapes.py"
    loaded(name, tmp_path, num_samples=2)


def test_cityscapes_without_masks(tmp_path, convert):
    with pytest.raises(FileNotFoundError, match="gtFine_trainvaltest"):
        convert("cityscapes", tmp_path)
    (tmp_path / "gtFine").mkdir()
    with pytest.raises(ValueError, match="no mask"):
        convert("cityscapes", tmp_path)


def test_coco_stuff10k(tmp_path, convert):
    for split in ("train", "test"):
        name = f"COCO_train2014_00000000000{len(split)}"
        (tmp_path / "imageLists").mkdir(exist_ok=True)
        (tmp_path / "imageLists" / f"{split}.txt").write_text(f"{name}\n")
        write(tmp_path / "images" / f"{name}.jpg")
        (tmp_path / "annotations").mkdir(exist_ok=True)
        labels = np.array([[0, 1, 11, 13, 92, 182]] * 4, np.uint8)
        savemat(tmp_path / "annotations" / f"{name}.mat", {"S": labels})
    convert("coco_stuff10k", tmp_path, "--workers", 1)
    made = tmp_path / "annotations/train2014/COCO_train2014_000000000005_labelTrainIds.png"
    # 182 ids, 11 of them unused: 13 is the 12th class, 92 the 81st
    assert labels_of(made)[0] == [0, 1, 11, 12, 81, 171]
    config = "coco_stuff10k/mask2former_internimage_h_512_40k_cocostuff164k_to_10k.py"
    sample = loaded(config, tmp_path, num_samples=1)
    assert len(sample["gt_labels"].data) == len(sample["gt_masks"].data) > 0
    assert set(sample["gt_labels"].data.tolist()) <= {0, 10, 11, 80, 170}
    loaded(config, tmp_path, "test")


def test_coco_stuff164k(tmp_path, convert):
    for split in ("train2017", "val2017"):
        write(tmp_path / "images" / split / "000000000009.jpg")
        write(
            tmp_path / "annotations" / split / "000000000009.png", [[255, 0, 10, 12, 91, 181]] * 4
        )
    convert("coco_stuff164k", tmp_path, "--workers", 1)
    made = tmp_path / "annotations" / "val2017" / "000000000009_labelTrainIds.png"
    assert labels_of(made)[0] == [255, 0, 10, 11, 80, 170]
    assert "0 masks written" in convert("coco_stuff164k", tmp_path, "--workers", 1)
    config = "coco_stuff164k/mask2former_internimage_h_896_80k_cocostuff164k.py"
    loaded(config, tmp_path, num_samples=1)
    write(tmp_path / "annotations" / "val2017" / "7.png", [[11]])  # street sign occurs nowhere
    with pytest.raises(ValueError, match=r"7\.png holds values \[11\]"):
        convert("coco_stuff164k", tmp_path, "--workers", 1)


def mmsegs_table(name):
    """The table `clsID_to_trID` of mmseg's own converter, which comes with its wheel."""
    path = Path(mmseg.__file__).parent / ".mim" / "tools" / "convert_datasets" / f"{name}.py"
    if not path.is_file():
        pytest.skip("this installation of mmseg has no tools")
    spec = importlib.util.spec_from_file_location(f"mmseg_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.clsID_to_trID


def test_coco_stuffs_tables_are_mmsegs(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    used = importlib.import_module("coco_stuff10k").USED
    assert mmsegs_table("coco_stuff10k") == {0: 0, **{old: i + 1 for i, old in enumerate(used)}}
    classes = importlib.import_module("coco_stuff164k").CLASSES
    assert mmsegs_table("coco_stuff164k") == {**classes, 255: 255}
    forget_converters()


def forget_converters():
    """Their names are common ones (`common`, `mapillary`)."""
    for path in TOOLS.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_pascal_context(tmp_path, convert):
    root, labels = tmp_path / "VOC2010", tmp_path / "trainval"
    names = ["accordion", *PascalContextDataset59.CLASSES, "zebra"]
    labels.mkdir()
    (labels / "labels.txt").write_text("".join(f"{i + 1}: {n}\n" for i, n in enumerate(names)))
    for split, name in (("train", "2008_000002"), ("val", "2008_000003")):
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(f"{name}\n2008_000009\n")
        write(root / "JPEGImages" / f"{name}.jpg")
        map_ = np.array([[1, 2, 60, 61, 2, 3]] * 4, np.uint16)
        savemat(labels / f"{name}.mat", {"LabelMap": map_})
    printed = convert("pascal_context", root, "--labels", labels, "--workers", 1)
    assert "1 training and 1 validation images" in printed
    made = root / "SegmentationClassContext" / "2008_000002.png"
    assert labels_of(made)[0] == [0, 1, 59, 0, 1, 2]
    config = "pascal_context/mask2former_internimage_h_480_40k_pascal_context_59.py"
    sample = loaded(config, root, num_samples=1)
    assert set(sample["gt_labels"].data.tolist()) <= {0, 1, 58}
    (labels / "labels.txt").write_text("1: aeroplane\n")
    with pytest.raises(ValueError, match="does not name bag, bed"):
        convert("pascal_context", root, "--labels", labels)


class FakeHdf5:
    """Stands for h5py: `File` gives the arrays of a version 7.3 file, axes reversed."""

    def __init__(self, arrays):
        self.arrays = arrays

    def File(self, path, mode):
        return self

    def __enter__(self):
        return self.arrays

    def __exit__(self, *error):
        pass


@pytest.mark.parametrize("version", ["7", "7.3"])
def test_nyu_depth_v2(tmp_path, convert, monkeypatch, version):
    pictures = np.arange(4 * 6 * 3 * 3, dtype=np.uint8).reshape(4, 6, 3, 3)  # (H, W, 3, N)
    labels = np.zeros((4, 6, 3), np.uint16)
    labels[0, 1] = (1, 2, 894)
    path = tmp_path / "nyu_depth_v2_labeled.mat"
    if version == "7":
        savemat(path, {"images": pictures, "labels": labels})
    else:
        path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
        with pytest.raises(FileNotFoundError, match=r"splits\.mat"):
            convert("nyu_depth_v2", tmp_path)
    savemat(tmp_path / "splits.mat", {"trainNdxs": [[1], [3]], "testNdxs": [[2]]})
    mapping = np.arange(894) % 40 + 1
    savemat(tmp_path / "classMapping40.mat", {"mapClass": mapping[None]})
    if version == "7.3":
        monkeypatch.setitem(sys.modules, "h5py", None)
        with pytest.raises(ValueError, match="pip install h5py"):
            convert("nyu_depth_v2", tmp_path)
        fake = FakeHdf5({"images": pictures.T, "labels": labels.T})
        monkeypatch.setitem(sys.modules, "h5py", fake)
    printed = convert("nyu_depth_v2", tmp_path, "--workers", 1)
    assert "2 training and 1 test images" in printed
    assert labels_of(tmp_path / "label40" / "0003.png")[0][1] == 893 % 40 + 1
    assert labels_of(tmp_path / "image" / "0002.png") == pictures[..., 1].tolist()
    assert (tmp_path / "train.txt").read_text() == "0001\n0003\n"
    config = "nyu_depth_v2/mask2former_internimage_h_480_40k_nyu.py"
    loaded(config, tmp_path, num_samples=2)
    loaded(config, tmp_path, "test", num_samples=1)


@pytest.mark.parametrize("version", ["1.2", "2.0"])
def test_mapillary(tmp_path, convert, version):
    labels = "labels" if version == "1.2" else "v1.2/labels"
    for split in ("training", "validation"):
        write(tmp_path / split / "images" / "a.jpg")
        write(tmp_path / split / labels / "a.png", [[13, 0, 65, 255, 55, 2]] * 4)
    config = [{"readable": name} for name in MapillaryDataset.CLASSES]
    (tmp_path / "config_v1.2.json").write_text(json.dumps({"labels": config}))
    convert("mapillary", tmp_path)
    assert labels_of(tmp_path / "training" / "labels" / "a.png")[0][0] == 13
    name = "mapillary/mask2former_internimage_h_896x896_80k_mapillary.py"
    sample = loaded(name, tmp_path, num_samples=2)
    assert set(sample["gt_labels"].data.tolist()) <= {0, 1, 13}
    (tmp_path / "training" / labels / "a.png").unlink()
    with pytest.raises(ValueError, match="1 images without a mask, first a"):
        convert("mapillary", tmp_path)
    (tmp_path / "config_v1.2.json").write_text(json.dumps({"labels": config[1:]}))
    with pytest.raises(ValueError, match="has 65 classes.*'Ground Animal' / 'Bird'"):
        convert("mapillary", tmp_path)


def test_ade20k_needs_no_converter(tmp_path):
    for split in ("training", "validation"):
        write(tmp_path / "images" / split / "ADE_train_00000001.jpg")
        write(
            tmp_path / "annotations" / split / "ADE_train_00000001.png", [[0, 1, 150, 0, 0, 7]] * 4
        )
    name = "ade20k/upernet_internimage_t_512_160k_ade20k.py"
    sample = loaded(name, tmp_path, num_samples=1)
    assert set(sample["gt_semantic_seg"].data.unique().tolist()) <= {0, 149, 6, 255}
    loaded(name, tmp_path, "val")


def test_colour_masks(tmp_path, convert):
    picture = np.zeros((2, 3, 3), np.uint8)
    picture[0] = (255, 0, 0)
    write(tmp_path / "raw" / "sub" / "a.png", picture)
    (tmp_path / "colours.txt").write_text("0 0 0 background\n#ff0000 roof\n")
    options = ("--colours", tmp_path / "colours.txt", "--workers", 1)
    convert("colour_masks", tmp_path / "raw", tmp_path / "masks", *options)
    assert labels_of(tmp_path / "masks" / "sub" / "a.png") == [[1, 1, 1], [0, 0, 0]]
    picture[1, 2] = (1, 2, 3)
    write(tmp_path / "raw" / "sub" / "a.png", picture)
    with pytest.raises(ValueError, match=r"a\.png: 1 of 6 pixels .* #010203"):
        convert("colour_masks", tmp_path / "raw", tmp_path / "masks", *options)
    convert("colour_masks", tmp_path / "raw", tmp_path / "masks", *options, "--ignore-others")
    assert labels_of(tmp_path / "masks" / "sub" / "a.png") == [[1, 1, 1], [0, 0, 255]]
    (tmp_path / "colours.txt").write_text("0 0 0 background\nred roof\n")
    with pytest.raises(ValueError, match="'red roof' is not"):
        convert("colour_masks", tmp_path / "raw", tmp_path / "masks", *options)


def test_a_converter_ends_with_one_line_and_code_1(tmp_path, monkeypatch, caplog):
    from internimage.cli import run_program

    monkeypatch.syspath_prepend(str(TOOLS))
    program = importlib.import_module("cityscapes")
    assert run_program(program.run, program.parse_args([str(tmp_path)])) == 1
    assert "does not exist: unpack" in caplog.text
