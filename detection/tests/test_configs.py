"""Every config against the published settings in data/configs.json; its pipelines run."""

from __future__ import annotations

import copy
import json
import math
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import mmdet_custom  # noqa: F401
import numpy as np
import pytest
import torch
from config_words import describe, leaf, plain
from mmcv import Config, ConfigDict
from mmcv.runner import build_optimizer
from mmcv_custom.runtime import load_config
from mmdet.datasets.pipelines import Compose
from mmdet.utils import update_data_root
from torch import nn

FOLDER = Path(__file__).parents[1]
STORED = json.loads((Path(__file__).parent / "data" / "configs.json").read_text())
NAMES = sorted(STORED["configs"])


@pytest.fixture(scope="module")
def resolved() -> dict[str, Config]:
    """All configs, read once."""
    return {name: Config.fromfile(str(FOLDER / "configs" / name)) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_the_published_settings(name: str, resolved: dict[str, Config]) -> None:
    stored = dict(STORED["configs"][name])
    stored.pop("result")
    for key in ("train_pipeline", "test_pipeline"):
        stored[key] = STORED["pipelines"][stored[key]]
    stored["checkpoint"] = {"save_last": True, **stored["checkpoint"]}  # mmcv's default
    described = describe(resolved[name])
    assert resolved[name].optimizer.type == "AdamW"
    assert plain(resolved[name].data.val) == plain(resolved[name].data.test)
    for key, value in stored.items():
        assert described[key] == value, key


def test_data_in_another_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """mmdet's environment variable for it needs `data_root` in the config."""
    monkeypatch.setenv("MMDET_DATASETS", "/mnt/lvis/")
    cfg = Config.fromfile(str(FOLDER / "configs" / next(n for n in NAMES if "lvis_val" in n)))
    update_data_root(cfg)
    assert cfg.data.train.dataset.ann_file == "/mnt/lvis/annotations/lvis_v1_train.json"
    assert cfg.data.test.img_prefix == "/mnt/lvis/"


@pytest.mark.parametrize("name", NAMES)
def test_data_root_on_the_command_line(name: str) -> None:
    """All annotations and images move; what is given for one of them has precedence."""
    own = {"data_root": "/mnt/x", "data.val.img_prefix": "/mnt/y"}
    cfg = load_config(str(FOLDER / "configs" / name), own)
    assert cfg.data_root == "/mnt/x" and cfg.data.val.img_prefix == "/mnt/y"
    for split in ("train", "test"):
        settings = leaf(cfg.data[split])
        for key in ("ann_file", "img_prefix"):
            paths = settings[key] if isinstance(settings[key], list) else [settings[key]]
            assert all(path.startswith("/mnt/x/") for path in paths), paths


def test_every_config_has_an_entry() -> None:
    found = {
        str(path.relative_to(FOLDER / "configs"))
        for path in (FOLDER / "configs").glob("*/*.py")
        if path.parent.name not in ("_base_", "toy")
    }
    assert found == set(NAMES)


def test_every_base_file_is_used(resolved: dict[str, Config]) -> None:
    """A base file that no config inherits is a leftover; Objects365 is there for pre-training."""
    base = FOLDER / "configs" / "_base_"
    used: set[Path] = set()

    def visit(path: Path) -> None:
        text = path.read_text()
        for line in text.split("_base_ = ", 1)[1:]:
            value = line.split("]", 1)[0] if line.startswith("[") else line.split("\n", 1)[0]
            for part in value.split('"')[1::2]:
                inherited = (path.parent / part).resolve()
                used.add(inherited)
                visit(inherited)

    for path in (FOLDER / "configs").glob("*/*.py"):
        visit(path)
    left = {path.name for path in base.rglob("*.py")} - {path.name for path in used}
    assert left == {"objects365_detection.py"}


@pytest.mark.parametrize("name", NAMES)
def test_custom_hooks(name: str, resolved: dict[str, Config]) -> None:
    hooks = plain(resolved[name].custom_hooks)
    if "cascade" in name and "3x_coco" in name:
        assert hooks == [{"type": "ExpMomentumEMAHook", "momentum": 1e-4, "priority": 49}]
    else:
        assert hooks == [{"type": "NumClassCheckHook"}]


def test_what_the_r_cnn_configs_share(resolved: dict[str, Config]) -> None:
    for name, cfg in resolved.items():
        if "dino" in name:
            continue
        cascade = "cascade" in name
        model = cfg.model
        anchors = model.rpn_head.anchor_generator
        assert (anchors.scales, anchors.ratios) == ([8], [0.5, 1.0, 2.0])
        assert anchors.strides == [4, 8, 16, 32, 64]
        assert model.rpn_head.loss_bbox.get("beta") == (1 / 9 if cascade else None)
        rpn = model.train_cfg.rpn
        thresholds = [rpn.assigner[key] for key in ("pos_iou_thr", "neg_iou_thr", "min_pos_iou")]
        assert thresholds == [0.7, 0.3, 0.3]
        assert (rpn.sampler.num, rpn.sampler.pos_fraction) == (256, 0.5)
        assert model.train_cfg.rpn_proposal.nms_pre == 2000
        assert model.train_cfg.rpn_proposal.max_per_img == (2000 if cascade else 1000)
        stages = model.train_cfg.rcnn if cascade else [model.train_cfg.rcnn]
        for stage, iou in zip(stages, (0.5, 0.6, 0.7)):
            assert stage.assigner.pos_iou_thr == stage.assigner.min_pos_iou == iou
            assert stage.assigner.match_low_quality is not cascade
            assert (stage.sampler.num, stage.sampler.pos_fraction) == (512, 0.25)
        heads = model.roi_head.bbox_head if cascade else [model.roi_head.bbox_head]
        stds = [head.bbox_coder.target_stds for head in heads]
        wanted = [[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]]
        assert stds == wanted[: len(heads)]
        if cascade:
            assert model.roi_head.stage_loss_weights == [1, 0.5, 0.25]
        if cascade and "crowd" not in name:
            assert all(head.reg_decoded_bbox for head in heads)
            assert {head.loss_bbox.loss_weight for head in heads} == {10.0}


def test_what_the_dino_configs_share(resolved: dict[str, Config]) -> None:
    for name, cfg in resolved.items():
        if "dino" not in name:
            continue
        head = cfg.model.bbox_head
        transformer = head.transformer
        assert transformer.two_stage_num_proposals == head.num_query == 900
        assert transformer.encoder.num_layers == transformer.decoder.num_layers == 6
        large = "_h_" in name or "_g_" in name
        assert head.dn_cfg.group_cfg.num_dn_queries == (1000 if large else 100)
        assert head.dn_cfg.noise_scale == dict(label=0.5, box=1.0)
        ffn = transformer.encoder.transformerlayers.get("ffn_cfgs", {}).get("type")
        assert ffn == ("EfficientFFN" if "_g_" in name else None)
        weights = [head[key].loss_weight for key in ("loss_cls", "loss_bbox", "loss_iou")]
        assert weights == [1.0, 5.0, 2.0]
        costs = cfg.model.train_cfg.assigner
        assert [costs[key].weight for key in ("cls_cost", "reg_cost", "iou_cost")] == [
            2.0,
            5.0,
            2.0,
        ]


@pytest.mark.parametrize("index", range(len(STORED["pipelines"])))
def test_every_pipeline_runs(index: int, resolved: dict[str, Config]) -> None:
    """On one small image, shrunk from 1333 to 133 pixels and so on."""
    for name in NAMES:
        entry = STORED["configs"][name]
        if index in (entry["train_pipeline"], entry["test_pipeline"]):
            break
    training = index == entry["train_pipeline"]
    data = resolved[name].data.train if training else resolved[name].data.test
    steps = shrink(plain(leaf(data)["pipeline"]))
    rng = np.random.default_rng(0)
    masks = any(step.get("with_mask") for step in steps)
    for seed in range(3):  # both policies of AutoAugment
        np.random.seed(seed)
        results: dict[str, Any] = {
            "img_info": {"filename": "none.png", "height": 96, "width": 128},
            "img_prefix": None,
            "bbox_fields": [],
            "mask_fields": [],
            "seg_fields": [],
            "ann_info": {
                "bboxes": np.array([[8, 8, 120, 90], [20, 30, 50, 60]], dtype=np.float32),
                "labels": np.array([0, 0]),
                "masks": [[[8, 8, 120, 8, 120, 90, 8, 90]], [[20, 30, 50, 30, 50, 60]]],
            },
        }
        image = rng.integers(0, 255, (96, 128, 3), dtype=np.uint8)
        results.update(
            filename="none.png",
            ori_filename="none.png",
            img=image,
            img_shape=image.shape,
            ori_shape=image.shape,
            img_fields=["img"],
        )
        out = Compose(steps[1:])(results)  # without reading the file
        image = out["img"].data if training else out["img"][0]
        assert image.shape[0] == 3
        assert image.shape[1] % 32 == image.shape[2] % 32 == 0
        assert ("gt_masks" in out) == masks


def shrink(steps: list[dict]) -> list[dict]:
    """The pipeline at a tenth of its sizes."""
    for step in steps:
        for key in ("img_scale", "crop_size"):
            if key in step:
                step[key] = tenth(step[key])
        for policy in step.get("policies", []):
            shrink(policy)
        shrink(step.get("transforms", []))
    return steps


def tenth(size: Any) -> Any:
    if isinstance(size[0], list):
        return [tenth(part) for part in size]
    return tuple(side // 10 for side in size)


class Stand(nn.Module):
    """A model with one parameter at each depth that the rules name."""

    def __init__(self, depths: list[int]) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.patch_embed = nn.Module()
        self.backbone.patch_embed.conv1 = nn.Conv2d(3, 2, 1)
        self.backbone.levels = nn.ModuleList()
        for depth in depths:
            level = nn.Module()
            level.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(depth))
            self.backbone.levels.append(level)
        self.head = nn.Linear(2, 2)


@pytest.mark.parametrize("name", NAMES)
def test_the_rates_of_the_optimizer(name: str, resolved: dict[str, Config]) -> None:
    """First layer: rate ** (layers + 1) of the full rate or a tenth; heads: the full rate."""
    cfg = resolved[name]
    model = Stand(cfg.model.backbone.depths)
    optimizer = build_optimizer(model, copy.deepcopy(ConfigDict(cfg.optimizer)))
    assert isinstance(optimizer, torch.optim.AdamW)

    def rate(parameter: nn.Parameter) -> float:
        groups = optimizer.param_groups
        return next(g["lr"] for g in groups if any(p is parameter for p in g["params"]))

    first = rate(model.backbone.patch_embed.conv1.weight)
    assert rate(model.head.weight) == pytest.approx(cfg.optimizer.lr)
    rules = cfg.optimizer.paramwise_cfg
    if "layer_decay_rate" in rules:
        assert sum(cfg.model.backbone.depths) == rules.num_layers
        assert list(rules.depths) == list(cfg.model.backbone.depths)
        expected = cfg.optimizer.lr * math.pow(rules.layer_decay_rate, rules.num_layers + 1)
        if cfg.model.backbone.type == "InternImage":
            assert first == pytest.approx(expected)
    else:
        assert first == pytest.approx(0.1 * cfg.optimizer.lr)


def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    """docs/detection_data.md: pre-training on Objects365."""
    text = (FOLDER.parent / "docs" / "detection_data.md").read_text()
    code = text.split("```python\n", 1)[1].split("```", 1)[0]
    path = tmp_path / "configs" / "coco" / "own.py"
    path.parent.mkdir(parents=True)
    path.write_text(code)
    (tmp_path / "configs" / "_base_").symlink_to(FOLDER / "configs" / "_base_")
    cfg = Config.fromfile(str(path))
    assert cfg.model.bbox_head.num_classes == 365
    assert cfg.data.train.type == "Objects365V2Dataset"
    assert cfg.data.train.ann_file.endswith("zhiyuan_objv2_train.json")
    assert (cfg.runner.type, cfg.runner.max_iters) == ("IterBasedRunner", 1000000)


def test_released_models_name_these_configs(resolved: dict[str, Config]) -> None:
    """Class counts and published figures of the released checkpoints agree with the configs'."""
    rows = json.loads(files("internimage").joinpath("released_detection.json").read_text())
    named = 0
    for row in rows:
        if not row["config"]:
            continue
        name = row["config"].removeprefix("configs/")
        heads = find_counts(resolved[name].model)
        assert heads == {row["num_classes"]}, name
        folder = name.split("/")[0]  # LVIS and VOC have two configs for one checkpoint
        alike = [name] if folder == "coco" else [n for n in NAMES if n.startswith(folder)]
        published = " ".join(STORED["configs"][n]["result"] for n in alike)
        assert {str(value) for value in row["metrics"].values()} <= set(
            re.findall(r"\d+\.\d+", published)
        ), name
        named += 1
    assert named == 18


def find_counts(part: Any) -> set[int]:
    """Every `num_classes` of a model's settings."""
    if isinstance(part, dict):
        own = {part["num_classes"]} if "num_classes" in part else set()
        return own.union(*(find_counts(value) for value in part.values()))
    if isinstance(part, list):
        return set().union(*(find_counts(value) for value in part))
    return set()
