"""BEVFormerOcc: shapes and gradients, batches, history in training and at test time, its loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import occ_model
import pytest
import torch
import torch.nn.functional as F
from mmcv import Config
from mmdet.models import build_detector, build_head
from occ.can_bus import with_motion
from occ.detector import first_needed
from occ.results import unpack
from torch import Tensor

CONFIGS = Path(__file__).resolve().parents[1] / "occupancy_prediction" / "configs"
VOXELS = (occ_model.BEV, occ_model.BEV, 16)


def queue(count: int, seed: int = 0, restart: int = 0) -> tuple[Tensor, dict[int, dict[str, Any]]]:
    """A training queue (count, 6, 3, H, W) and its metas; another scene begins at `restart`."""
    images, metas = occ_model.frames(count, seed)
    joined, last = {}, None
    for i, meta in enumerate(metas):
        follows = i not in (0, restart)
        joined[i] = dict(
            meta,
            prev_bev_exists=follows,
            can_bus=with_motion(meta["can_bus"], last if follows else None),
        )
        last = meta["can_bus"]
    return images, joined


def labels(batch: int) -> tuple[Tensor, Tensor]:
    """Random classes and masks of the BEV grid's size."""
    generator = torch.Generator().manual_seed(7)
    classes = torch.randint(0, 18, (batch, *VOXELS), generator=generator, dtype=torch.uint8)
    return classes, torch.rand(batch, *VOXELS, generator=generator) < 0.3


def test_training_reaches_every_parameter() -> None:
    model = occ_model.build().train()
    images, metas = queue(2)
    classes, mask = labels(1)
    losses = model(
        return_loss=True,
        img=images[None],
        img_metas=[metas],
        voxel_semantics=classes,
        mask_camera=mask,
        mask_lidar=mask,
    )
    assert set(losses) == {"loss_occ"}
    assert 2 < losses["loss_occ"].item() < 5  # ln 18 = 2.9
    losses["loss_occ"].backward()
    # beyond out_indices; behind offsets that are zero at first
    unused = ("levels.3.", "levels.2.downsample", "dcn.dw_conv")
    idle = [
        name
        for name, parameter in model.named_parameters()
        if not any(part in name for part in unused)
        and (parameter.grad is None or not parameter.grad.any())
    ]
    assert idle == []


def test_history_has_no_gradient_and_keeps_the_mode() -> None:
    model = occ_model.build().train()
    model.img_neck.eval()
    images, metas = queue(3)
    images = images[None].requires_grad_()
    bev = model.obtain_history_bev(images[:, :2], [metas])
    assert bev.shape == (1, occ_model.BEV**2, occ_model.DIM)
    assert not bev.requires_grad
    assert model.training and not model.img_neck.training
    same = model.obtain_history_bev(images[:, :2], [metas])
    assert torch.equal(bev, same)  # no dropout, no GridMask


def test_a_batch_is_its_samples() -> None:
    """Also when one sample has a history and another has none."""
    model = occ_model.build().eval()
    queues = [queue(3), queue(3, seed=1, restart=2), queue(3, seed=2, restart=1)]
    classes, mask = labels(3)
    together = torch.stack([images for images, _ in queues])
    metas = [meta for _, meta in queues]
    features = model.extract_img_feat(together[:, 2])
    current = [meta[2] for meta in metas]
    known = torch.tensor([meta["prev_bev_exists"] for meta in current])
    assert known.tolist() == [True, False, True]
    history = model.obtain_history_bev(together[:, :2], metas)
    bev = model.pts_bbox_head.bev_features(features, current, history, known)
    for i in range(3):
        one = slice(i, i + 1)
        own = model.obtain_history_bev(together[one, :2], metas[one])
        assert (own is None) == (not known[i])
        single = model.pts_bbox_head.bev_features(
            [level[one] for level in features], current[one], own
        )
        torch.testing.assert_close(bev[one], single, rtol=1e-4, atol=1e-5)
    loss = model.forward_train(together, metas, classes, mask)["loss_occ"]
    singles = [
        model.forward_train(together[i : i + 1], metas[i : i + 1], classes[i : i + 1])["loss_occ"]
        for i in range(3)
    ]
    torch.testing.assert_close(loss, torch.stack(singles).mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("exists", "first"),
    [
        ([[False, True, True, True]], 0),
        ([[False, True, False, True]], 2),
        ([[False, True, True, False]], 3),
        ([[False, True, True, False], [False, False, True, True]], 1),
        ([[False]], 0),
    ],
)
def test_history_that_nothing_depends_on_is_left_out(exists: list[list[bool]], first: int) -> None:
    metas = [dict(enumerate(dict(prev_bev_exists=e) for e in sample)) for sample in exists]
    assert first_needed(metas, len(exists[0]) - 1) == first


def test_the_bev_online_is_that_of_the_training_queue() -> None:
    model = occ_model.build().eval()
    images, metas = queue(3)
    _, absolute = occ_model.frames(3)
    with torch.no_grad():
        history = model.obtain_history_bev(images[None, :2], [metas])
        trained = model.pts_bbox_head.bev_features(
            model.extract_img_feat(images[None, 2]), [metas[2]], history
        )
        for i in range(3):
            online = model.online_bev(model.extract_img_feat(images[None, i]), absolute[i])
        torch.testing.assert_close(online, trained, rtol=1e-4, atol=1e-5)
        alone = model.pts_bbox_head.bev_features(
            model.extract_img_feat(images[None, 2]), [metas[2]]
        )
    assert (alone - trained).abs().max() > 0.1  # the history does matter


def results(model: Any, images: Tensor, metas: list[dict]) -> list[dict[str, Any]]:
    with torch.no_grad():
        return model(return_loss=False, img=images, img_metas=metas)


@pytest.fixture
def packable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of the tiny grid can be packed."""
    monkeypatch.setattr("occ.results.GRID", VOXELS)


@pytest.mark.usefixtures("packable")
def test_frames_one_by_one_or_as_a_batch() -> None:
    model = occ_model.build().eval()
    images, metas = occ_model.frames(3)
    other, other_metas = occ_model.frames(2, seed=1, scene="b")
    images, metas = torch.cat([images, other]), metas + other_metas
    batch = results(model, images, metas)
    assert [result["token"] for result in batch] == ["a0", "a1", "a2", "b0", "b1"]
    assert unpack(batch[0]["occupancy"]).shape == VOXELS
    model.memory = None
    single = [results(model, images[i : i + 1], metas[i : i + 1])[0] for i in range(5)]
    assert batch == single
    again = results(model, images, metas)  # a second evaluation starts anew
    assert again == batch
    alone = results(model, images[3:4], metas[3:4])
    assert alone[0] == batch[3]  # nothing comes over from another scene
    model.memory = None
    assert results(model, images[1:2], metas[1:2])[0] != batch[1]


@pytest.mark.usefixtures("packable")
def test_without_video_every_frame_is_alone() -> None:
    model = occ_model.build().eval()
    model.video_test_mode = False
    images, metas = occ_model.frames(2)
    both = results(model, images, metas)
    assert both[1:] == results(model, images[1:], metas[1:])
    assert model.memory is None


def test_published_test_pipelines_add_a_list_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("occ.results.GRID", VOXELS)
    model = occ_model.build().eval()
    images, metas = occ_model.frames(1)
    with torch.no_grad():
        assert model(return_loss=False, img=[images], img_metas=[metas]) == results(
            model, images, metas
        )


def test_decoder_keeps_x_y_z_apart() -> None:
    head = occ_model.build().pts_bbox_head.eval()
    bev = torch.randn(1, occ_model.BEV**2, occ_model.DIM)
    changed = bev.clone()
    row, column, height = 2, 6, 11  # y, x, z
    changed[0, row * occ_model.BEV + column, height] += 5  # feature 0 of the voxel
    with torch.no_grad():
        difference = (head(bev) - head(changed)).abs().sum(-1)[0]
    x, y, z = difference.nonzero().T
    assert (x.min(), x.max(), y.min(), y.max(), z.min(), z.max()) == (4, 8, 0, 4, 9, 13)


def test_scores_of_a_coarse_grid_are_interpolated() -> None:
    head = occ_model.build(label_size=(40, 20, 16)).pts_bbox_head.eval()
    bev = torch.randn(1, occ_model.BEV**2, occ_model.DIM)
    with torch.no_grad():
        fine = head(bev)
        coarse = head.transformer.decode(bev, occ_model.BEV, occ_model.BEV)
    assert fine.shape == (1, 40, 20, 16, 18)
    means = fine.unflatten(1, (10, 4)).unflatten(3, (10, 2)).mean((2, 4))
    inner = (slice(None), slice(1, -1), slice(1, -1))
    close = F.cosine_similarity(means[inner].flatten(), coarse[inner].flatten(), dim=0)
    assert close > 0.97
    assert head.classes(fine).dtype == torch.uint8


def test_loss_by_hand_and_mask() -> None:
    head = occ_model.build().pts_bbox_head
    scores = torch.randn(2, *VOXELS, 18)
    classes, mask = labels(2)
    expected = F.cross_entropy(scores.flatten(0, 3), classes.flatten().long())
    torch.testing.assert_close(head.loss(scores, classes, None)["loss_occ"], expected)
    head.use_mask = True
    seen = F.cross_entropy(scores[mask], classes[mask].long())
    torch.testing.assert_close(head.loss(scores, classes, mask)["loss_occ"], seen)
    hidden = torch.where(mask, classes, 0)
    torch.testing.assert_close(head.loss(scores, hidden, mask)["loss_occ"], seen)
    nothing = head.loss(scores, classes, torch.zeros_like(mask))["loss_occ"]
    assert nothing.item() == 0
    with pytest.raises(ValueError, match="mask_camera"):
        head.loss(scores, classes, None)
    with pytest.raises(ValueError, match="label_size"):
        head.loss(scores, classes[:, :5], mask)


def test_wrong_settings() -> None:
    with pytest.raises(TypeError, match="bev_x"):
        occ_model.build(bev_x=3)
    transformer = occ_model.config()["pts_bbox_head"]["transformer"]
    for change, message in ((dict(use_3d=False), "use_3d"), (dict(pillar_h=15), "pillar_h 15")):
        with pytest.raises(ValueError, match=message):
            occ_model.build(transformer={**transformer, **change})


def test_published_settings_of_the_head_are_accepted() -> None:
    settings = occ_model.config()["pts_bbox_head"] | dict(
        in_channels=256,
        num_query=900,
        sync_cls_avg_factor=True,
        with_box_refine=True,
        as_two_stage=False,
    )
    settings["transformer"] |= dict(norm_cfg=dict(type="BN"), norm_cfg_3d=dict(type="BN3d"))
    settings["transformer"] |= dict(use_3d=True, use_conv=False, legacy_shift_axes=True)
    settings["transformer"]["encoder"]["legacy_shift_alias"] = True
    assert build_head(settings).transformer.legacy_shift_axes


# --------------------------------------------------------------------------- full size

ATTENTION = [f"{part}.{kind}" for part in ("sampling_offsets", "attention_weights", "value_proj")
             for kind in ("weight", "bias")]  # fmt: skip
PROJECTION = ["output_proj.weight", "output_proj.bias"]


def expected_head_keys() -> set[str]:
    """Keys of the published checkpoints below `pts_bbox_head`."""
    keys = {"bev_embedding.weight"}
    keys |= {f"positional_encoding.{axis}_embed.weight" for axis in ("row", "col")}
    keys |= {"transformer.level_embeds", "transformer.cams_embeds"}
    keys |= {
        f"transformer.can_bus_mlp.{i}.{k}" for i in ("0", "2", "norm") for k in ("weight", "bias")
    }
    keys |= {f"transformer.predicter.{i}.{k}" for i in (0, 2) for k in ("weight", "bias")}
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    for i in range(2):
        keys |= {
            f"transformer.decoder.{i}.{k}" for k in ("conv.weight", *(f"bn.{n}" for n in norm))
        }
    for i in range(4):
        layer = f"transformer.encoder.layers.{i}"
        keys |= {f"{layer}.attentions.0.{name}" for name in ATTENTION + PROJECTION}
        keys |= {f"{layer}.attentions.1.deformable_attention.{name}" for name in ATTENTION}
        keys |= {f"{layer}.attentions.1.{name}" for name in PROJECTION}
        keys |= {f"{layer}.ffns.0.layers.{j}.{k}" for j in ("0.0", "1") for k in ("weight", "bias")}
        keys |= {f"{layer}.norms.{j}.{k}" for j in range(3) for k in ("weight", "bias")}
    return {f"pts_bbox_head.{key}" for key in keys}


@pytest.mark.parametrize(
    ("name", "millions"), [("bevformer_intern-s_occ", 64.82), ("bevformer_base_occ", 61.25)]
)
def test_full_size(name: str, millions: float) -> None:
    cfg = Config.fromfile(CONFIGS / f"{name}.py")
    with torch.device("meta"):
        model = build_detector(cfg.model)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert {key for key in shapes if key.startswith("pts_bbox_head")} == expected_head_keys()
    neck = {key for key in shapes if key.startswith("img_neck")}
    parts = [("lateral_convs", 3), ("fpn_convs", 4)]
    assert neck == {
        f"img_neck.{part}.{i}.conv.{kind}"
        for part, count in parts
        for i in range(count)
        for kind in ("weight", "bias")
    }
    assert {key.split(".")[0] for key in shapes} == {"img_backbone", "img_neck", "pts_bbox_head"}
    head = "pts_bbox_head."
    assert shapes[f"{head}bev_embedding.weight"] == (40000, 256)
    assert shapes[f"{head}positional_encoding.row_embed.weight"] == (200, 128)
    assert shapes[f"{head}transformer.decoder.0.conv.weight"] == (32, 16, 3, 3, 3)
    assert shapes[f"{head}transformer.predicter.2.weight"] == (18, 64)
    attention = f"{head}transformer.encoder.layers.0.attentions"
    assert shapes[f"{attention}.0.sampling_offsets.weight"] == (8 * 2 * 4 * 2, 512)
    assert shapes[f"{attention}.1.deformable_attention.sampling_offsets.weight"] == (512, 256)
    if "intern" in name:
        trunk = "img_backbone."
        assert shapes[f"{trunk}patch_embed.conv1.weight"] == (40, 3, 3, 3)
        assert shapes[f"{trunk}levels.2.blocks.20.gamma2"] == (320,)
        assert f"{trunk}levels.3.blocks.3.dcn.dw_conv.1.1.weight" in shapes
        assert f"{trunk}levels.3.downsample.conv.weight" not in shapes
