"""The published configs build at full size, with the parameter names of the published weights."""

from __future__ import annotations

import re
from itertools import product

import ad_common  # noqa: F401 - registers
import olv2  # noqa: F401 - registers
import pytest
import torch
from mmcv import Config
from mmdet.models import build_detector
from olv2_small import CONFIGS

LINEAR = (".weight", ".bias")
ATTENTION = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
SELF_ATTENTION = ("attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight")
SELF_ATTENTION = (*SELF_ATTENTION, "attn.out_proj.bias")


def names(*parts: str | tuple | range) -> set[str]:
    """All combinations of the parts, put together."""
    choices = [[p] if isinstance(p, str) else [str(x) for x in p] for p in parts]
    return {"".join(choice) for choice in product(*choices)}


def feed_forward(prefix: str, layers: range, norms: range) -> set[str]:
    """Keys of the feed-forward nets and norms of transformer layers."""
    return names(prefix, layers, ".ffns.0.layers.", ("0.0", "1"), LINEAR) | names(
        prefix, layers, ".norms.", norms, LINEAR
    )


def decoder(prefix: str) -> set[str]:
    """Keys of six decoder layers with self-attention and deformable attention."""
    six = range(6)
    return (
        names(prefix, six, ".attentions.0.", SELF_ATTENTION)
        | names(prefix, six, ".attentions.1.", ATTENTION, LINEAR)
        | feed_forward(prefix, six, range(3))
    )


def expected_keys(laterals: int) -> set[str]:
    """Keys outside of the image backbone; `laterals` levels enter the pyramid."""
    bev, lane, box = "bev_constructor.", "pts_bbox_head.", "bbox_head."
    layer, six = bev + "encoder.layers.", range(6)
    inner = ATTENTION[:3]
    keys = names("img_neck.lateral_convs.", range(laterals), ".conv", LINEAR)
    keys |= names("img_neck.fpn_convs.", range(4), ".conv", LINEAR)
    keys |= names(bev, ("bev_embedding.weight", "level_embeds", "cams_embeds"))
    keys |= names(bev, "can_bus_mlp.", ("0", "2", "norm"), LINEAR)
    keys |= names(bev, "positional_encoding.", ("row", "col"), "_embed.weight")
    keys |= names(layer, range(3), ".attentions.0.", ATTENTION, LINEAR)
    keys |= names(layer, range(3), ".attentions.1.deformable_attention.", inner, LINEAR)
    keys |= names(layer, range(3), ".attentions.1.output_proj", LINEAR)
    keys |= feed_forward(layer, range(3), range(3))
    keys |= names(lane, ("code_weights", "query_embedding.weight"))
    keys |= names(lane, "cls_branches.", six, ".", (0, 1, 3, 4, 6), LINEAR)
    keys |= names((lane, box), "reg_branches.", six, ".", (0, 2, 4), LINEAR)
    keys |= names((lane, box), "transformer.reference_points", LINEAR)
    keys |= decoder(lane + "transformer.decoder.layers.")
    keys |= names(box, ("query_embedding.weight", "transformer.level_embeds"))
    keys |= names(box, "cls_branches.", six, LINEAR)
    keys |= names(box, "transformer.encoder.layers.", six, ".attentions.0.", ATTENTION, LINEAR)
    keys |= feed_forward(box + "transformer.encoder.layers.", six, range(2))
    keys |= decoder(box + "transformer.decoder.layers.")
    parts = ("MLP_o1", "MLP_o2", "classifier")
    keys |= names(("lclc_head.", "lcte_head."), parts, ".layers.", range(3), LINEAR)
    return keys


@pytest.fixture(scope="module", params=[("internimage-s", 4), ("baseline_large", 3)], ids=str)
def built(request):
    """A published config's model without memory, and the number of levels in its pyramid."""
    config, laterals = request.param
    with torch.device("meta"):
        return build_detector(Config.fromfile(CONFIGS / f"{config}.py").model), laterals


def test_keys_are_those_of_published_checkpoints(built):
    model, laterals = built
    keys = {key for key in model.state_dict() if not key.startswith("img_backbone.")}
    assert keys == expected_keys(laterals)


def test_shapes_are_those_of_the_paper(built):
    shapes = {key: tuple(value.shape) for key, value in built[0].state_dict().items()}
    assert shapes["bev_constructor.bev_embedding.weight"] == (100 * 200, 256)
    assert shapes["bev_constructor.cams_embeds"] == (7, 256)
    assert shapes["bev_constructor.positional_encoding.row_embed.weight"] == (100, 128)
    assert shapes["bev_constructor.positional_encoding.col_embed.weight"] == (200, 128)
    assert shapes["pts_bbox_head.code_weights"] == (15,)
    assert shapes["pts_bbox_head.query_embedding.weight"] == (100, 512)
    assert shapes["pts_bbox_head.transformer.reference_points.weight"] == (3, 256)
    assert shapes["pts_bbox_head.cls_branches.0.6.weight"] == (1, 256)
    assert shapes["pts_bbox_head.reg_branches.5.4.weight"] == (15, 256)
    assert shapes["bbox_head.cls_branches.0.weight"] == (13, 256)
    assert shapes["bbox_head.transformer.level_embeds"] == (4, 256)
    for head in ("lclc_head", "lcte_head"):
        assert shapes[f"{head}.MLP_o2.layers.2.weight"] == (128, 256)
        assert shapes[f"{head}.classifier.layers.2.weight"] == (1, 256)


def test_numbers_of_parameters(built):
    """Heads: by the layers' sizes; InternImage-S: that of the classifier without its head."""
    model, laterals = built
    counts = {
        name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()
    }
    mlp = 2 * (256 * 256 + 256) + 256 * 128 + 128
    classifier = 2 * (256 * 256 + 256) + 256 + 1
    assert counts["lclc_head"] == counts["lcte_head"] == 2 * mlp + classifier
    assert counts["pts_bbox_head"] == 5_765_027
    assert counts["bbox_head"] == 8_381_032
    assert counts["bev_constructor"] == 7_667_648
    backbone = {4: 48.3e6, 3: 23.5e6}[laterals]
    assert counts["img_backbone"] == pytest.approx(backbone, rel=0.01)


def test_the_backbone_is_internimage_s(built):
    model, laterals = built
    if laterals == 3:
        assert type(model.img_backbone).__name__ == "ResNet"
        assert not model.img_backbone.layer1[0].conv1.weight.requires_grad  # the frozen stage
        assert model.img_backbone.layer2[0].conv1.weight.requires_grad
        return
    keys = {re.sub(r"\d+", "N", key) for key in model.img_backbone.state_dict()}
    assert "levels.N.blocks.N.dcn.dw_conv.N.N.weight" in keys
    assert "levels.N.downsample.norm.N.weight" in keys
    depths = [len(level.blocks) for level in model.img_backbone.levels]
    assert depths == [4, 4, 21, 4]
