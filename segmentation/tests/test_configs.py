"""Every config against the published values, and against the parts that it names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import mmseg_custom  # noqa: F401
import pytest
from mmcv import Config
from mmseg.datasets.builder import DATASETS, PIPELINES
from mmseg.datasets.pipelines import Compose

FOLDER = Path(__file__).resolve().parents[1]
CONFIGS = FOLDER / "configs"
# the published values, one config per line; num_classes is the data set's own count
FACTS = json.loads((FOLDER / "tests" / "data" / "configs.json").read_text())
HUB = "https://huggingface.co/OpenGVLab/InternImage/resolve/main/"
BACKBONE_DEFAULTS = dict(
    dw_kernel_size=None,
    res_post_norm=False,
    level2_post_norm=False,
    level2_post_norm_block_ids=None,
    center_feature_scale=False,
    layer_scale=None,
    offset_scale=1.0,
    post_norm=False,
    with_cp=False,
    mlp_ratio=4.0,
    norm_layer="LN",
    core_op="DCNv3",
    out_indices=[0, 1, 2, 3],
)
SHOWN = {  # arguments of transforms that the published values name
    "LoadAnnotations": ["reduce_zero_label"],
    "Resize": ["img_scale", "ratio_range", "keep_ratio"],
    "RandomCrop": ["crop_size", "cat_max_ratio"],
    "RandomFlip": ["prob"],
    "Pad": ["size"],
    "ResizeToMultiple": ["size_divisor"],
    "MultiScaleFlipAug": ["img_scale", "img_ratios", "flip"],
}


@pytest.fixture(scope="module", params=sorted(FACTS))
def config(request):
    """(name, resolved config, published values)"""
    return request.param, Config.fromfile(CONFIGS / request.param), FACTS[request.param]


def plain(value):
    """Tuples as lists, as json has them."""
    return json.loads(json.dumps(value))


def hub_file(address):
    assert address is None or address.startswith(HUB), address
    return address and address.removeprefix(HUB)


def written(steps):
    """A pipeline in one line: Name(argument=value, ...) > ..."""
    parts = []
    for step in steps:
        shown = [f"{key}={plain(step[key])}" for key in SHOWN.get(step["type"], []) if key in step]
        inner = f"[{written(step['transforms'])}]" if "transforms" in step else ""
        parts.append(step["type"] + (f"({', '.join(shown)})" if shown else "") + inner)
    return " > ".join(parts)


def types(part):
    """All values of `type` in a model config."""
    found = set()
    if isinstance(part, dict):
        found |= {part["type"]} if isinstance(part.get("type"), str) else set()
        part = list(part.values())
    if isinstance(part, (list, tuple)):
        for value in part:
            found |= types(value)
    return found


def test_every_published_config_is_there():
    files = {str(path.relative_to(CONFIGS)) for path in CONFIGS.glob("[!_]*/*.py")}
    assert set(FACTS) <= files


def test_model(config):
    _, cfg, fact = config
    model = plain(cfg.model)
    assert model["type"] == fact["type"]
    backbone = {
        key: model["backbone"].get(key, default) for key, default in BACKBONE_DEFAULTS.items()
    }
    expected = {**BACKBONE_DEFAULTS, **fact["backbone"]}
    given = {**backbone, **{key: model["backbone"][key] for key in fact["backbone"]}}
    assert given == expected
    init = model["backbone"].get("init_cfg") or {}
    assert hub_file(init.get("checkpoint")) == fact["pretrained"]
    for name in ("decode_head", "auxiliary_head"):
        head = fact.get(name)
        assert (name in model) == (head is not None)
        if head is not None:
            assert {key: model[name][key] for key in head} == head
    assert model["test_cfg"] == fact["test_cfg"]
    assert types(model) == set(fact["model_types"])


def test_schedule(config):
    _, cfg, fact = config
    assert [cfg.runner.type, cfg.runner.max_iters] == fact["runner"]
    optimizer = plain(cfg.optimizer)
    assert optimizer.pop("constructor") == "CustomLayerDecayOptimizerConstructor"
    assert optimizer.pop("paramwise_cfg") == fact["paramwise"]
    assert optimizer == fact["optimizer"]
    assert cfg.optimizer_config.get("grad_clip") == fact["grad_clip"]
    assert {key: str(value) for key, value in cfg.lr_config.items()} == fact["lr_config"]
    assert cfg.evaluation == fact["evaluation"]
    assert cfg.checkpoint_config == fact["checkpoint"]
    assert hub_file(cfg.load_from) == fact["load_from"]
    assert cfg.get("fp16") is None
    assert not cfg.get("custom_hooks")


def test_data(config):
    _, cfg, fact = config
    for split, expected in (
        ("train", fact["train"]),
        ("val", fact["test"]),
        ("test", fact["test"]),
    ):
        part = plain(cfg.data[split])
        assert {key: part[key] for key in expected} == expected
    assert cfg.data.samples_per_gpu == fact["samples_per_gpu"]
    assert cfg.data.workers_per_gpu == fact["workers_per_gpu"]
    assert written(cfg.data.train.pipeline) == fact["train_pipeline"]
    assert written(cfg.data.test.pipeline) == fact["test_pipeline"]


def test_pipelines_can_be_built(config):
    _, cfg, _ = config
    for split in ("train", "val", "test"):
        Compose(cfg.data[split].pipeline)
        for step in cfg.data[split].pipeline:
            for inner in step.get("transforms", [step]):
                if inner["type"] == "Normalize":
                    assert inner["mean"] == [123.675, 116.28, 103.53]
                    assert inner["std"] == [58.395, 57.12, 57.375]
                    assert inner["to_rgb"]
                if inner["type"] == "Pad":
                    assert (inner["pad_val"], inner["seg_pad_val"]) == (0, 255)


def test_heads_fit_the_data_sets(config):
    _, cfg, fact = config
    for split in ("train", "test"):
        part = cfg.data[split]
        names = DATASETS.get(part.type).CLASSES
        for step in part.pipeline:
            names = getattr(PIPELINES.get(step["type"]), "CLASSES", None) or names
        for head in ("decode_head", "auxiliary_head"):
            if head in cfg.model:
                assert cfg.model[head].num_classes == len(names)
    kept = fact.get("released_num_classes")
    assert cfg.get("released_head") == (kept and dict(num_classes=kept, trained=19, mode="trim"))


@pytest.mark.parametrize("name", [name for name in sorted(FACTS) if "mask2former" in name])
def test_mask2former_sizes(name):
    cfg = Config.fromfile(CONFIGS / name)
    head = cfg.model.decode_head
    assert head.loss_cls.class_weight == [1.0] * head.num_classes + [0.1]
    wide = re.match("ade20k|coco", name) is not None
    width, heads, pixel_ffn, query_ffn = (1024, 32, 4096, 4096) if wide else (256, 8, 1024, 2048)
    encoder, decoder = head.pixel_decoder.encoder, head.transformer_decoder
    assert (head.feat_channels, head.out_channels) == (width, width)
    assert head.positional_encoding.num_feats * 2 == width
    assert head.pixel_decoder.positional_encoding.num_feats * 2 == width
    assert (encoder.num_layers, decoder.num_layers) == (6, 9)
    for part, ffn in ((encoder, pixel_ffn), (decoder, query_ffn)):
        layer = part.transformerlayers
        assert (layer.attn_cfgs.embed_dims, layer.attn_cfgs.num_heads) == (width, heads)
        assert (layer.ffn_cfgs.embed_dims, layer.ffn_cfgs.feedforward_channels) == (width, ffn)
    assert decoder.transformerlayers.feedforward_channels == query_ffn
    weights = [head[loss].loss_weight for loss in ("loss_cls", "loss_mask", "loss_dice")]
    assert weights == [2.0, 5.0, 5.0]
    train = cfg.model.train_cfg
    assert (train.num_points, train.oversample_ratio) == (12544, 3.0)
    costs = [train.assigner[cost].weight for cost in ("cls_cost", "mask_cost", "dice_cost")]
    assert costs == [2.0, 5.0, 5.0]


def test_every_base_is_used():
    used = set()
    for path in CONFIGS.rglob("*.py"):
        text = path.read_text()
        block = re.search(r"^_base_ = (\[.*?\]|\".*?\")", text, re.S | re.M)
        for base in re.findall(r"\"(.+?)\"", block[1]) if block else []:
            used.add((path.parent / base).resolve())
    assert {path.resolve() for path in (CONFIGS / "_base_").rglob("*.py")} <= used
