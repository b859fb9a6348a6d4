"""The full-size configs: built without memory, their sizes and the names of their weights."""

from __future__ import annotations

from pathlib import Path

import hdmap  # noqa: F401 - registers the parts
import pytest
import torch
from ad_common.backbones.intern_image import InternImage
from mmcv import Config
from mmdet.models import build_detector

CONFIGS = Path(__file__).resolve().parent.parent / "Online-HD-Map-Construction/configs"


def build(name: str) -> tuple[Config, torch.nn.Module]:
    """A config and its model on the meta device."""
    cfg = Config.fromfile(str(CONFIGS / name))
    with torch.device("meta"):
        return cfg, build_detector(cfg.model)


@pytest.fixture(scope="module")
def full() -> tuple[Config, torch.nn.Module]:
    return build("vectormapnet_intern.py")


def named(prefix: str, *names: str) -> set[str]:
    """weight and bias of modules below a prefix."""
    return {f"{prefix}.{name}.{kind}" for name in names for kind in ("weight", "bias")}


def batch_norm(name: str) -> set[str]:
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return {f"{name}.{kind}" for kind in ("weight", "bias", *buffers)}


def encoder_keys() -> set[str]:
    size = dict(channels=80, depths=[4, 4, 21, 4], groups=[5, 10, 20, 40])
    with torch.device("meta"):
        backbone = InternImage(**size, layer_scale=1.0, post_norm=True)
    keys = {f"backbone.img_backbone.{key}" for key in backbone.state_dict()}
    for level in range(4):
        for kind in ("lateral_convs", "fpn_convs"):
            conv = f"backbone.img_neck.{kind}.{level}"
            keys |= {f"{conv}.conv.weight"} | batch_norm(f"{conv}.bn")
        for block in range(level):
            keys |= named(f"backbone.upsample.fscale.{level}.{block}", "gn", "conv")
    keys |= named("backbone", "outconvs")
    return keys | {"backbone.bev_planes", "backbone.masked_embeds.weight"}


def neck_keys() -> set[str]:
    keys = {"neck.0.weight", "neck.5.weight"} | batch_norm("neck.1")
    for block in ("neck.4.0", "neck.4.1"):
        for number in (1, 2):
            keys |= {f"{block}.conv{number}.weight"} | batch_norm(f"{block}.bn{number}")
    return keys


def attention_keys(name: str) -> set[str]:
    return {f"{name}.in_proj_weight", f"{name}.in_proj_bias"} | named(name, "out_proj")


def detector_keys() -> set[str]:
    net = "head.det_net"
    keys = {f"{net}.canvas_size", f"{net}.transformer.level_embeds"}
    tables = ("query_embedding", "bbox_embedding", "label_embed")
    keys |= {f"{net}.{table}.weight" for table in tables}
    keys |= named(net, "input_proj", "img_coord_embed", "transformer.reference_points_embed")
    for i in range(6):
        keys |= named(f"{net}.pre_branches", f"cls.{i}", *(f"reg.{i}.{j}" for j in (0, 1, 3, 4, 6)))
        layer = f"{net}.transformer.decoder.layers.{i}"
        keys |= attention_keys(f"{layer}.attentions.0.attn")
        parts = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
        keys |= named(f"{layer}.attentions.1", *parts)
        keys |= named(
            layer, "ffns.0.layers.0.0", "ffns.0.layers.1", *(f"norms.{j}" for j in range(3))
        )
    return keys


def generator_keys() -> set[str]:
    net = "head.gen_net"
    keys = {f"{net}.canvas_size"} | named(
        net, "_project_to_logits", "input_proj", "img_coord_embed"
    )
    tables = ("label_embed", "coord_embed", "pos_embeddings", "bbox_context_embed", "vertex_embed")
    keys |= {f"{net}.{table}.weight" for table in tables}
    for i in range(6):
        layer = f"{net}.decoder.layers.{i}"
        keys |= attention_keys(f"{layer}.self_attn") | attention_keys(f"{layer}.multihead_attn")
        keys |= named(layer, "linear1", "linear2", "norm1", "norm2", "norm3")
        keys |= {f"{layer}.res_weight{j}" for j in (1, 2, 3)}
    return keys


def test_names_of_the_weights(full: tuple[Config, torch.nn.Module]) -> None:
    noise = {f"head.augmentation.{n}" for n in ("canvas_size", "shift_scale", "scaling_size")}
    expected = encoder_keys() | neck_keys() | detector_keys() | generator_keys() | noise
    assert set(full[1].state_dict()) == expected


def test_shapes_of_the_weights(full: tuple[Config, torch.nn.Module]) -> None:
    state = full[1].state_dict()
    expected = {
        "backbone.bev_planes": (4, 100, 200, 3),
        "backbone.outconvs.weight": (128, 524, 3, 3),
        "backbone.img_neck.lateral_convs.3.conv.weight": (128, 640, 1, 1),
        "neck.0.weight": (64, 128, 7, 7),
        "neck.5.weight": (128, 64, 1, 1),
        "head.det_net.query_embedding.weight": (120, 512),
        "head.det_net.bbox_embedding.weight": (2, 512),
        "head.det_net.transformer.level_embeds": (1, 256),
        "head.det_net.pre_branches.cls.0.weight": (3, 512),
        "head.det_net.pre_branches.reg.5.6.weight": (2, 256),
        "head.gen_net.coord_embed.weight": (2, 256),
        "head.gen_net.pos_embeddings.weight": (500, 256),
        "head.gen_net.bbox_context_embed.weight": (3, 256),
        "head.gen_net.vertex_embed.weight": (201, 256),
        "head.gen_net._project_to_logits.weight": (201, 256),
    }
    assert {name: tuple(state[name].shape) for name in expected} == expected


def test_six_names_share_one_branch(full: tuple[Config, torch.nn.Module]) -> None:
    branches = full[1].head.det_net.pre_branches
    for kind in ("cls", "reg"):
        assert len(branches[kind]) == 6 and len(set(map(id, branches[kind]))) == 1


@pytest.mark.parametrize(
    ("name", "millions"), [("vectormapnet_intern.py", 60.645), ("vectormapnet.py", 35.988)]
)
def test_sizes(name: str, millions: float) -> None:
    _, model = build(name)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


def test_map_is_25_by_50(full: tuple[Config, torch.nn.Module]) -> None:
    model = full[1]
    assert model.neck(torch.zeros(1, 128, 100, 200, device="meta")).shape == (1, 128, 25, 50)
    pyramid = [torch.zeros(7, 128, 64 >> i, 120 >> i, device="meta") for i in range(4)]
    assert model.backbone.upsample(pyramid).shape == (7, 128, 64, 120)


def test_settings_of_the_training(full: tuple[Config, torch.nn.Module]) -> None:
    cfg = full[0]
    assert cfg.optimizer.paramwise_cfg.custom_keys.backbone.lr_mult == 0.1
    assert cfg.optimizer_config.grad_clip.max_norm == 3.5
    assert cfg.data.samples_per_gpu == 5 and cfg.runner.max_epochs == 130


def test_slips_of_the_published_model_are_off(full: tuple[Config, torch.nn.Module]) -> None:
    """And stand where the README says: data.val.pipeline.3."""
    data = full[0].data
    for part in (data.val, data.test):
        assert part.pipeline[3].type == "PadMultiViewImages"
        assert part.pipeline[3].change_intrinsics is False
    tokens = next(s for s in data.train.pipeline if s.type == "PolygonizeLocalMapBbox")
    assert tokens.legacy_truncate is False


@pytest.mark.parametrize("name", ["map_nano.py", "map_nano_overfit.py"])
def test_toy_configs_build(name: str) -> None:
    cfg, model = build(f"toy/{name}")
    assert sum(p.numel() for p in model.parameters()) < 1e6
    pipeline = cfg.train_pipeline
    canvas = next(s for s in pipeline if s.type == "PolygonizeLocalMapBbox").canvas_size
    assert tuple(canvas) == tuple(model.head.canvas_size)
