"""Every config's data on miniature data sets in the real layout: loaded, trained on, evaluated."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mini_data
import mmcv
import mmdet_custom  # noqa: F401
import numpy as np
import pytest
from mmcv import Config
from mmdet.datasets import CocoDataset, LVISV1Dataset, build_dataset
from mmdet_custom.datasets.checks import DatasetError, build_data
from pycocotools import mask as masks

create_crowd_anno = mini_data.tool("create_crowd_anno")
prepare_dataset = mini_data.tool("prepare_dataset")
CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `data` folder in the working directory, where all configs look."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def load(name: str) -> Config:
    """A config with images a tenth as large."""
    cfg = Config.fromfile(str(CONFIGS / name))
    cfg.data = shrunk(cfg.data)
    return cfg


def shrunk(value: Any) -> Any:
    if isinstance(value, dict):
        new = {key: shrunk(part) for key, part in value.items()}
        for key in ("img_scale", "crop_size"):
            if key in new:
                new[key] = tenth(value[key])
        return type(value)(new)
    if isinstance(value, (list, tuple)):
        return type(value)(shrunk(part) for part in value)
    return value


def tenth(size: Any) -> Any:
    if isinstance(size[0], (list, tuple)):
        return [tenth(part) for part in size]
    return tuple(side // 10 for side in size)


def right_answers(dataset: Any, with_masks: bool = False) -> list[Any]:
    """Results that are exactly the annotations, with a score of 0.9."""
    results = []
    for i in range(len(dataset)):
        truth = dataset.get_ann_info(i)
        boxes = [np.zeros((0, 5), dtype=np.float32) for _ in dataset.CLASSES]
        shapes: list[list[Any]] = [[] for _ in dataset.CLASSES]
        for n, (box, label) in enumerate(zip(truth["bboxes"], truth["labels"])):
            row = np.array([[*box, 0.9]], dtype=np.float32)
            boxes[label] = np.concatenate([boxes[label], row])
            if with_masks:
                size = (mini_data.HEIGHT, mini_data.WIDTH)
                shapes[label].append(masks.frPyObjects(truth["masks"][n], *size)[0])
        results.append((boxes, shapes) if with_masks else boxes)
    return results


def check_training_data(cfg: Config, boxes: int = 2) -> Any:
    """Builds the training data, fetches an image and returns the data set."""
    dataset = build_data(cfg, cfg.data.train)
    sample = dataset[0]
    assert sample["gt_bboxes"].data.shape == (boxes, 4)
    assert sample["gt_bboxes"].data[:, 2].max() <= sample["img"].data.shape[2]
    assert sample["gt_labels"].data.max() < len(dataset.CLASSES)
    return dataset


def check_test_data(cfg: Config) -> Any:
    """Builds the test data, fetches an image and returns the data set."""
    dataset = build_data(cfg, cfg.data.test, {"test_mode": True})
    assert dataset[0]["img"][0].shape[0] == 3
    return dataset


@pytest.mark.parametrize("kind", ["CocoDataset", "FasterCocoDataset"])
def test_coco(root: Path, kind: str) -> None:
    mini_data.write_coco(root, CocoDataset.CLASSES)
    cfg = load("coco/mask_rcnn_internimage_t_fpn_1x_coco.py")
    cfg.data.test.type = kind
    sample = check_training_data(cfg)[0]
    assert len(sample["gt_masks"].data) == 2
    dataset = check_test_data(cfg)
    options = {key: cfg.evaluation[key] for key in ("metric", "classwise")}
    found = dataset.evaluate(right_answers(dataset, with_masks=True), **options)
    assert (found["bbox_mAP"], found["segm_mAP"]) == (1.0, 1.0)
    proposals = dataset.evaluate(right_answers(dataset), metric="proposal")
    assert proposals["AR@100"] == 1.0


def test_lvis(root: Path) -> None:
    mini_data.write_lvis(root, LVISV1Dataset.CLASSES)
    prepare_dataset.prepare_lvis(root)
    cfg = load("lvis/dino_4scale_cbinternimage_h_objects365_lvis_minival_ss.py")
    train = check_training_data(cfg)
    assert type(train).__name__ == "ClassBalancedDataset"
    dataset = check_test_data(cfg)
    assert len(dataset) == 1  # the image of val2017
    found = dataset.evaluate(right_answers(dataset), metric=["bbox"], classwise=True)
    assert found["bbox_AP"] == 1.0
    whole = load("lvis/dino_4scale_cbinternimage_h_objects365_lvis_val_ss.py")
    assert len(build_data(whole, whole.data.test, {"test_mode": True})) == 2


def test_openimages(root: Path) -> None:
    mini_data.write_openimages(root)
    prepare_dataset.prepare_openimages(root)
    cfg = load("openimages/dino_4scale_cbinternimage_h_objects365_openimages_ss.py")
    dataset = check_training_data(cfg)
    assert dataset.get_cat_ids(0) == [0, 2]
    test = check_test_data(cfg)
    answers = right_answers(test)
    scale = [mini_data.WIDTH, mini_data.HEIGHT] * 2 + [1]
    pixels = [[boxes * scale for boxes in image] for image in answers]
    found = test.evaluate(pixels, metric="mAP")
    assert found["mAP"] == pytest.approx(1.0)
    assert test.evaluate(answers, metric="mAP")["mAP"] == 0.0
    (root / "OpenImages" / "annotations" / "validation-image-metas.pkl").unlink()
    with pytest.raises(DatasetError, match="metas.pkl does not exist, and evaluation needs it"):
        check_test_data(cfg)
    (root / "OpenImages" / "annotations" / "bbox_labels_600_hierarchy.json").unlink()
    with pytest.raises(DatasetError, match=r"data.train.hierarchy_file .* does not exist"):
        check_training_data(cfg)


def test_voc_2012_test_before_its_preparation(root: Path) -> None:
    mini_data.write_voc(root / "VOCdevkit" / "VOC2012test", "test", with_objects=False)
    cfg = load("voc/dino_4scale_cbinternimage_h_objects365_voc12.py")
    with pytest.raises(DatasetError, match=r"test0.xml does not exist, .* run tools/prepare_data"):
        check_test_data(cfg)


@pytest.mark.parametrize(("year", "name"), [(7, "VOC2007"), (12, "VOC2012test")])
def test_voc(root: Path, year: int, name: str) -> None:
    devkit = root / "VOCdevkit"
    for folder, split in (("VOC2007", "trainval"), ("VOC2012", "trainval"), (name, "test")):
        mini_data.write_voc(devkit / folder, split)
    cfg = load(f"voc/dino_4scale_cbinternimage_h_objects365_voc{year:02d}.py")
    train = check_training_data(cfg)
    assert len(train) == 3 * 4  # two images of each year, three times
    dataset = check_test_data(cfg)
    assert dataset.year == 2000 + year
    found = dataset.evaluate(right_answers(dataset), metric="mAP")
    assert found["mAP"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<name>dog</name>", "<name>dogs</name>", "dogs, did you mean 'dog'?"),
        ("<xmax>48</xmax>", "<xmax>8</xmax>", "of a dog has no area; correct or remove it"),
        ("<xmax>48</xmax>", "<xmax>wide</xmax>", "must have numbers as xmin, ymin, xmax, ymax"),
        ("</annotation>", "", "test1.xml is not a whole xml file"),
    ],
)
def test_broken_voc(
    root: Path, caplog: pytest.LogCaptureFixture, old: str, new: str, message: str
) -> None:
    mini_data.write_voc(root / "VOCdevkit" / "VOC2007", "test")
    path = root / "VOCdevkit" / "VOC2007" / "Annotations" / "test1.xml"
    path.write_text(path.read_text().replace(old, new))
    cfg = load("voc/dino_4scale_cbinternimage_h_objects365_voc07.py")
    try:
        build_data(cfg, cfg.data.test, {"test_mode": True})
    except DatasetError as error:
        assert message in str(error)
    else:
        assert message in caplog.text


def test_voc_results(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """For the server of VOC 2012: one file per class, with the numbers that its xml files have."""
    tool = mini_data.tool("voc_results")
    mini_data.write_voc(root / "VOCdevkit" / "VOC2012test", "test")
    config = CONFIGS / "voc" / "dino_4scale_cbinternimage_h_objects365_voc12.py"
    cfg = load(str(config))
    answers = right_answers(check_test_data(cfg))
    mmcv.dump(answers, "results.pkl")
    args = ["results.pkl", "--config", str(config), "--out", "out"]
    assert tool.run(tool.parse_args(args)) == 0
    lines = Path("out/comp4_det_test_dog.txt").read_text().splitlines()
    assert lines == ["test0 0.900000 8.00 8.00 48.00 48.00", "test1 0.900000 8.00 8.00 48.00 48.00"]
    assert len(list(Path("out").iterdir())) == 20
    mmcv.dump(answers[:1], "results.pkl")
    assert tool.run_program(tool.run, tool.parse_args(args)) == 1
    assert "results.pkl has 1 images" in caplog.text


def test_crowd_human(root: Path) -> None:
    mini_data.write_crowd_human(root)
    for split in ("train", "val"):
        create_crowd_anno.run(create_crowd_anno.parse_args(["--dataset-split", split]))
    cfg = load("crowd_human/cascade_internimage_xl_fpn_3x_crowd_human.py")
    check_training_data(cfg)
    dataset = check_test_data(cfg)
    assert len(dataset.get_ann_info(0)["bboxes_ignore"]) == 1
    found = dataset.evaluate(right_answers(dataset), metric=cfg.evaluation.metric)
    assert found["bbox_mAP"] == found["AP"] == found["JI"] == 1.0
    assert found["MR"] < 1e-6


def test_objects365(root: Path) -> None:
    """The base file that nothing but pre-training inherits: data sets and pipelines build."""
    base = Config.fromfile(str(CONFIGS / "_base_" / "datasets" / "objects365_detection.py"))
    cfg = Config(dict(data=shrunk(base.data)))
    from mmdet.datasets import Objects365V2Dataset

    folder = root / "Objects365" / "Obj365_v2"
    for split in ("train", "val"):
        names = [f"images/v1/patch{i}/objects365_v1_{i:08d}.jpg" for i in range(2)]
        for name in names:
            mini_data.picture(folder / split / name)
        content = mini_data.coco_json(Objects365V2Dataset.CLASSES, names)
        mini_data.write_json(folder / "annotations" / f"zhiyuan_objv2_{split}.json", content)
    prepare_dataset.prepare_objects365(root)
    assert (folder / "train" / "patch1" / "objects365_v1_00000001.jpg").is_file()
    check_training_data(cfg)
    dataset = check_test_data(cfg)
    assert dataset.evaluate(right_answers(dataset), metric="bbox")["bbox_mAP"] == 1.0


def random_coco(seed: int) -> tuple[dict[str, Any], list[Any]]:
    """Random boxes, masks and crowds of all sizes, and detections near some of them."""
    rng = np.random.default_rng(seed)
    names = ["one", "two", "three"]
    content = mini_data.coco_json(names, [f"{i}.jpg" for i in range(12)])
    height, width = 160, 200
    for row in content["images"]:
        row.update(width=width, height=height)
    content["annotations"].clear()
    results = []

    def diamond(box: Any) -> list[float]:
        x, y, w, h = (float(v) for v in box)
        return [x, y + h / 2, x + w / 2, y, x + w, y + h / 2, x + w / 2, y + h]

    def shape(box: Any) -> dict[str, Any]:
        return masks.frPyObjects([diamond(box)], height, width)[0]

    for image in content["images"]:
        boxes: list[list[list[float]]] = [[] for _ in names]
        shapes: list[list[Any]] = [[] for _ in names]
        for _ in range(rng.integers(0, 9)):
            size = rng.uniform(4, 150, 2) * rng.choice([0.2, 1.0])
            corner = rng.uniform(0, 1, 2) * (np.array([width, height]) - size)
            box = np.concatenate([corner, size])
            label, crowd = int(rng.integers(len(names))), int(rng.random() < 0.2)
            rle = shape(box)
            counts = {"size": [height, width], "counts": rle["counts"].decode()}
            content["annotations"].append(
                dict(
                    id=len(content["annotations"]) + 1,
                    image_id=image["id"],
                    category_id=label + 1,
                    bbox=box.tolist(),
                    area=float(masks.area(rle)),
                    iscrowd=crowd,
                    segmentation=counts if crowd else [diamond(box)],
                )
            )
            for _ in range(rng.integers(0, 4)):
                near = box + rng.normal(0, 4, 4)
                near[2:] = near[2:].clip(2)
                other = label if rng.random() < 0.8 else int(rng.integers(len(names)))
                score = round(float(rng.random()), 1 if rng.random() < 0.3 else 6)  # some ties
                x, y, w, h = near
                boxes[other].append([x, y, x + w, y + h, score])
                shapes[other].append(shape(near))
        arrays = [np.array(part, dtype=np.float32).reshape(-1, 5) for part in boxes]
        results.append((arrays, shapes))
    return content, results


@pytest.mark.parametrize("seed", range(3))
def test_faster_coco_evaluation_equals_pycocotools(root: Path, seed: int) -> None:
    """All twelve numbers of boxes, masks and proposals, to the four decimals mmdet keeps."""
    content, results = random_coco(seed)
    path = mini_data.write_json(root / "random.json", content)
    found: list[dict[str, float]] = []
    for kind in ("CocoDataset", "FasterCocoDataset"):
        dataset = build_dataset(
            dict(
                type=kind,
                ann_file=str(path),
                classes=("one", "two", "three"),
                pipeline=[],
                test_mode=True,
            )
        )
        items = ["mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l", "AR@100", "AR_m@1000"]
        numbers = dataset.evaluate(
            copy.deepcopy(results), metric=["bbox", "segm"], metric_items=items, classwise=True
        )
        boxes = [boxes for boxes, _ in results]
        numbers.update(dataset.evaluate(boxes, metric="proposal"))
        one_threshold = dataset.evaluate(boxes, metric="bbox", iou_thrs=[0.5])
        numbers.update({f"one {key}": value for key, value in one_threshold.items()})
        found.append(numbers)
    assert found[0] == found[1]
    assert 0.02 < found[0]["segm_mAP"] < found[0]["bbox_mAP"] < 0.5


def test_faster_coco_evaluation_leaves_mmdet_as_it_was(root: Path) -> None:
    import mmdet.datasets.coco as module
    from pycocotools.cocoeval import COCOeval

    content, results = random_coco(0)
    path = mini_data.write_json(root / "random.json", content)
    classes = ("one", "two", "three")
    build: Callable[..., Any] = lambda: build_dataset(  # noqa: E731
        dict(type="FasterCocoDataset", ann_file=str(path), classes=classes, pipeline=[])
    )
    with pytest.raises(KeyError, match="metric item"):
        dataset = build()
        dataset.evaluate(results[: len(dataset)], metric="bbox", metric_items=["none"])
    assert module.COCOeval is COCOeval
