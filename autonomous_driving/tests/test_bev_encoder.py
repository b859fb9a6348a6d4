"""The BEV encoder and its builder: batches, history, planted features, keys, gradients."""

from __future__ import annotations

import bev_toys as toys
import numpy as np
import pytest
import torch
from ad_common import geometry as poses
from ad_common.bev import geometry
from mmcv.cnn.bricks.transformer import build_transformer_layer_sequence

CELLS = toys.HEIGHT * toys.WIDTH
GRID_LENGTH = (8 / toys.HEIGHT, 16 / toys.WIDTH)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max())


def moving(east, north, yaw, turn) -> np.ndarray:
    vector = np.linspace(-0.5, 0.5, 18)
    vector[:2], vector[-2:] = (east, north), (yaw, turn)
    return vector


def metas_of_two() -> list[dict]:
    first = toys.meta(toys.rig(3, 0.1), can_bus=moving(1.5, 0.5, 0.3, 10.0))
    second = toys.meta(toys.rig(3, 1.0), can_bus=moving(-0.7, 2.0, 1.5, -25.0))
    second["pad_shape"] = [(32, 40, 3), (28, 48, 3), (32, 48, 3)]
    second["ego2lidar"] = poses.pose_matrix([1, 0, 0, 0.2], [0.5, 0, 0])
    return [first, second]


def run(model, feats, metas, prev_bev=None, has_history=None) -> torch.Tensor:
    batch = len(metas)
    return model.get_bev_features(
        feats,
        toys.normal(CELLS, toys.EMBED, seed=7),
        toys.HEIGHT,
        toys.WIDTH,
        GRID_LENGTH,
        toys.normal(1, toys.EMBED, toys.HEIGHT, toys.WIDTH, seed=8).expand(batch, -1, -1, -1),
        prev_bev,
        metas,
        has_history,
    )


@pytest.mark.parametrize("with_history", [True, False])
def test_a_batch_of_two_equals_two_batches_of_one(with_history):
    model, feats, metas = toys.builder(), toys.features(2), metas_of_two()
    previous = toys.normal(2, CELLS, toys.EMBED, seed=9) if with_history else None
    both = run(model, feats, metas, previous)
    for b in range(2):
        own = previous[b : b + 1] if with_history else None
        alone = run(model, [f[b : b + 1] for f in feats], metas[b : b + 1], own)
        assert relative(both[b], alone[0]) < 1e-9
    assert relative(both[0], both[1]) > 0.01


def test_samples_with_and_without_history_mix():
    model, feats, metas = toys.builder(), toys.features(2), metas_of_two()
    previous = toys.normal(2, CELLS, toys.EMBED, seed=9)
    mixed = run(model, feats, metas, previous, torch.tensor([False, True]))
    first = run(model, [f[:1] for f in feats], metas[:1])
    second = run(model, [f[1:] for f in feats], metas[1:], previous[1:])
    assert relative(mixed[0], first[0]) < 1e-9
    assert relative(mixed[1], second[0]) < 1e-9
    unmixed = run(model, feats, metas, previous)
    assert relative(mixed[0], unmixed[0]) > 0.01


def test_no_history_means_looking_at_the_own_queries():
    # one layer: its queries are those that come in, so they can be handed over as the history
    model = toys.encoder(layers=1)
    query = toys.normal(1, CELLS, toys.EMBED)
    tokens, shapes, starts = toys.builder().flatten_features(toys.features())
    given = dict(
        bev_h=toys.HEIGHT,
        bev_w=toys.WIDTH,
        spatial_shapes=shapes,
        level_start_index=starts,
        img_metas=[toys.meta()],
    )
    without = model(query, tokens, **given)
    assert relative(model(query, tokens, prev_bev=query, **given), without) < 1e-12
    other = model(query, tokens, prev_bev=query + 1, **given)
    assert relative(other, without) > 0.01


def test_intermediate_results_end_with_the_last_one():
    model = toys.encoder(return_intermediate=True)
    tokens, shapes, starts = toys.builder().flatten_features(toys.features())
    levels = dict(spatial_shapes=shapes, level_start_index=starts)
    given = dict(bev_h=toys.HEIGHT, bev_w=toys.WIDTH, img_metas=[toys.meta()], **levels)
    query = toys.normal(1, CELLS, toys.EMBED)
    every = model(query, tokens, **given)
    assert every.shape == (2, 1, CELLS, toys.EMBED)
    model.return_intermediate = False
    assert torch.equal(model(query, tokens, **given), every[1])
    model.layers = model.layers[:1]
    assert torch.equal(model(query, tokens, **given), every[0])


def plain_cross_attention(model):
    """Makes the first cross-attention hand over the mean of its samples, unweighted."""
    attention = model.layers[0].attentions[1]
    inside = attention.deformable_attention
    with torch.no_grad():
        for layer in (inside.sampling_offsets, inside.attention_weights):
            layer.weight.zero_()
            layer.bias.zero_()
        for layer in (inside.value_proj, attention.output_proj):
            layer.weight.copy_(torch.eye(toys.EMBED))
            layer.bias.zero_()
    return attention


def test_a_pillar_sees_the_pixel_that_it_projects_to():
    model = toys.encoder(layers=1)
    attention = plain_cross_attention(model)
    metas = [toys.meta(toys.rig(3, 0.4))]
    query = torch.zeros(1, CELLS, toys.EMBED, dtype=torch.float64)
    seen = model.look(query, toys.HEIGHT, toys.WIDTH, metas)
    points = geometry.reference_points_3d(toys.HEIGHT, toys.WIDTH, toys.RANGE, 2, query)
    tested = 0
    for entry in range(0, len(seen.row), 5):
        camera, cell = int(seen.row[entry]), int(seen.query[entry])
        uv, depth = poses.project(points[cell].numpy(), metas[0]["lidar2img"][camera])
        column, row = np.floor(uv[0] / toys.STRIDES[0]).astype(int)
        height, width = (size // toys.STRIDES[0] for size in toys.IMAGE)
        if depth[0] < 0.1 or not (0 <= column < width and 0 <= row < height):
            continue
        feats = [torch.zeros_like(f) for f in toys.features()]
        feats[0][0, camera, 3, row, column] = 1.0  # the pixel of the lower point
        tokens = torch.cat([f.flatten(3).transpose(2, 3) for f in feats], 2)
        shapes = torch.tensor([f.shape[3:] for f in feats])
        starts = torch.tensor([0, height * width])
        out = attention(
            query, None, tokens, seen=seen, spatial_shapes=shapes, level_start_index=starts
        )
        # 2 of the 8 samples of a head (2 levels of 4 points) are at each of the 2 heights
        gaps = np.abs(uv / toys.STRIDES[0] - 0.5 - [column, row])
        share = np.prod(np.clip(1 - gaps, 0, None), -1).sum() * 2 / 8
        assert out[0, cell, 3].item() == pytest.approx(share / int(seen.cameras[cell]), abs=1e-6)
        assert share > 0.05
        assert out[0, :, :3].abs().max() == 0
        tested += 1
    assert tested >= 5


class LookBack:
    """The encoder reduced to a look at the previous BEV, to follow a feature in it."""

    def __init__(self, **options):
        self.model = toys.builder(**options)
        encoder = self.model.encoder
        encoder.layers = torch.nn.ModuleList([encoder.layers[0]])
        encoder.layers[0].forward = self.take

    def take(self, query, value, *, history, reference_points, **others):
        previous, references = history[::2], reference_points[::2]  # (B, Q, C), (B, Q, 1, 2)
        maps = previous.transpose(1, 2).unflatten(2, (toys.HEIGHT, toys.WIDTH))
        grid = 2 * references - 1
        found = torch.nn.functional.grid_sample(maps, grid, align_corners=False)
        self.current = reference_points[1::2]
        return found[..., 0].transpose(1, 2).detach()


def test_a_feature_of_the_previous_bev_is_found_where_the_thing_is_now():
    # the car drives 2 cells ahead and one to the left, without turning; a thing stays in the world
    look = LookBack()
    thing = torch.zeros(1, CELLS, toys.EMBED, dtype=torch.float64)
    row, column = 3, 8
    thing[0, row * toys.WIDTH + column] = 1.0
    ahead, left, yaw = 2 * GRID_LENGTH[1], 1 * GRID_LENGTH[0], 0.7
    east = ahead * np.cos(yaw) - left * np.sin(yaw)
    north = ahead * np.sin(yaw) + left * np.cos(yaw)
    metas = [toys.meta(can_bus=moving(east, north, yaw, 0.0))]
    found = run(look.model, toys.features(), metas, thing)[0].view(toys.HEIGHT, toys.WIDTH, -1)
    assert found[row - 1, column - 2].min() == pytest.approx(1)
    assert float(found.sum()) == pytest.approx(toys.EMBED)


def test_turning_and_driving_together():
    # the car drives a cell ahead, then turns left by 90 degrees; cells are square
    look = LookBack()
    thing = torch.zeros(1, CELLS, toys.EMBED, dtype=torch.float64)
    side = GRID_LENGTH[0]
    before = np.array([1.5, 2.5]) * side  # in the ego frame of the previous frame
    column, row = np.floor(before / side + [toys.WIDTH / 2, toys.HEIGHT / 2]).astype(int)
    thing[0, row * toys.WIDTH + column] = 1.0
    first_yaw = 0.4
    motion = side * np.array([np.cos(first_yaw), np.sin(first_yaw)])
    metas = [toys.meta(can_bus=moving(*motion, first_yaw + np.pi / 2, 90.0))]
    x, y = before - [side, 0]
    now = np.array([y, -x])  # turned right by 90 degrees
    column, row = np.floor(now / side + [toys.WIDTH / 2, toys.HEIGHT / 2]).astype(int)
    found = run(look.model, toys.features(), metas, thing)[0].view(toys.HEIGHT, toys.WIDTH, -1)
    assert found[row, column].min() == pytest.approx(1)
    assert float(found.sum()) == pytest.approx(toys.EMBED)


def test_the_alias_moves_the_current_references_too():
    metas = [toys.meta(can_bus=moving(2.0, 0.0, 0.0, 0.0))]
    previous = torch.zeros(1, CELLS, toys.EMBED, dtype=torch.float64)
    plain = LookBack()
    run(plain.model, toys.features(), metas, previous)
    legacy = LookBack(encoder_options=dict(legacy_shift_alias=True))
    run(legacy.model, toys.features(), metas, previous)
    cells = geometry.reference_points_2d(toys.HEIGHT, toys.WIDTH, previous)
    torch.testing.assert_close(plain.current[0, :, 0], cells)
    torch.testing.assert_close(legacy.current[0, :, 0], cells + torch.tensor([2 / 16, 0.0]))


@pytest.mark.parametrize("option", ["use_shift", "rotate_prev_bev", "use_can_bus"])
def test_what_is_switched_off_has_no_effect(option):
    other = {"use_shift": (2.0, 1.0, 0, 0), "rotate_prev_bev": (0, 0, 0, 40.0)}
    still = moving(0, 0, 0, 0)
    moved = moving(*other.get(option, (0, 0, 0, 0)))
    if option == "use_can_bus":
        moved[8] += 5
    options = {"use_can_bus": False, option: False}
    previous = toys.normal(1, CELLS, toys.EMBED)
    for switches, same in ((options, True), ({**options, option: True}, False)):
        model = toys.builder(**switches)
        a, b = (
            run(model, toys.features(), [toys.meta(can_bus=c)], previous) for c in (still, moved)
        )
        assert torch.equal(a, b) == same


def test_without_motion_no_can_bus_is_needed():
    model = toys.builder(use_can_bus=False, use_shift=False)
    metas = [toys.meta()]
    del metas[0]["can_bus"]
    assert run(model, toys.features(), metas).isfinite().all()
    with pytest.raises(ValueError, match="need can_bus"):
        run(model, toys.features(), metas, toys.normal(1, CELLS, toys.EMBED))


def test_gradients_reach_every_parameter():
    model = toys.builder(encoder_options=dict(dropout=0.1)).train()
    feats = [f.requires_grad_() for f in toys.features()]
    metas = [toys.meta(can_bus=moving(1, 1, 1, 1))]
    run(model, feats, metas).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert all(f.grad.abs().max() > 0 for f in feats)


def test_cameras_that_see_nothing():
    below = [toys.camera(a, translation=(0, 0, -500.0), focal=200.0) for a in (0, 2, 4)]
    model = toys.builder()
    seen = model.encoder.look(torch.zeros(1), toys.HEIGHT, toys.WIDTH, [toys.meta(below)])
    assert len(seen.row) == 0
    feats = [f.requires_grad_() for f in toys.features()]
    out = run(model, feats, [toys.meta(below)])
    out.sum().backward()
    assert out.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert relative(run(model, toys.features(seed=5), [toys.meta(below)]), out) == 0


LAYER = [
    *(
        f"attentions.0.{part}.{kind}"
        for part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
        for kind in ("weight", "bias")
    ),
    *(
        f"attentions.1.deformable_attention.{part}.{kind}"
        for part in ("sampling_offsets", "attention_weights", "value_proj")
        for kind in ("weight", "bias")
    ),
    *(f"attentions.1.output_proj.{kind}" for kind in ("weight", "bias")),
    *(f"ffns.0.layers.{part}.{kind}" for part in ("0.0", "1") for kind in ("weight", "bias")),
    *(f"norms.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")),
]


def test_the_keys_of_published_checkpoints():
    keys = set(toys.builder().state_dict())
    around = {"level_embeds", "cams_embeds"}
    around |= {f"can_bus_mlp.{i}.{kind}" for i in (0, 2, "norm") for kind in ("weight", "bias")}
    assert keys == around | {f"encoder.layers.{i}.{key}" for i in range(2) for key in LAYER}


def full_size_encoder(layers, pc_range, heights):
    inside = dict(type="MSDeformableAttention3D", embed_dims=256, num_points=8, num_levels=4)
    layer = dict(
        type="BEVFormerLayer",
        attn_cfgs=[
            dict(type="TemporalSelfAttention", embed_dims=256, num_levels=1),
            dict(
                type="SpatialCrossAttention",
                pc_range=pc_range,
                deformable_attention=inside,
                embed_dims=256,
            ),
        ],
        feedforward_channels=512,
        ffn_dropout=0.1,
        operation_order=("self_attn", "norm", "cross_attn", "norm", "ffn", "norm"),
    )
    return dict(
        type="BEVFormerEncoder",
        num_layers=layers,
        pc_range=pc_range,
        num_points_in_pillar=heights,
        return_intermediate=False,
        transformerlayers=layer,
    )


def test_shapes_of_the_published_model():
    config = full_size_encoder(4, [-40, -40, -1, 40, 40, 5.4], 8)
    with torch.device("meta"):
        encoder = build_transformer_layer_sequence(config)
    shapes = {k: tuple(v.shape) for k, v in encoder.layers[3].state_dict().items()}
    assert shapes["attentions.0.sampling_offsets.weight"] == (2 * 8 * 4 * 2, 512)
    assert shapes["attentions.0.attention_weights.weight"] == (2 * 8 * 4, 512)
    assert shapes["attentions.1.deformable_attention.sampling_offsets.weight"] == (
        8 * 4 * 8 * 2,
        256,
    )
    assert shapes["attentions.1.deformable_attention.attention_weights.weight"] == (256, 256)
    assert shapes["ffns.0.layers.0.0.weight"] == (512, 256)
    assert encoder.layers[0].ffns[0].layers[2].p == 0.1


def test_mixed_precision_is_close_and_keeps_the_geometry():
    model = toys.builder().float()
    feats = [f.float() for f in toys.features()]
    metas = [toys.meta(can_bus=moving(1.0, 0.0, 0.0, 5.0))]
    given = (
        toys.normal(CELLS, toys.EMBED).float(),
        toys.HEIGHT,
        toys.WIDTH,
        GRID_LENGTH,
        None,
        toys.normal(1, CELLS, toys.EMBED).float(),
        metas,
    )
    exact = model.get_bev_features(feats, *given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model.get_bev_features([f.bfloat16() for f in feats], *given)
        seen = model.encoder.look(feats[0].bfloat16(), toys.HEIGHT, toys.WIDTH, metas)
    assert seen.points.dtype == torch.float32
    assert float((mixed.float() - exact).detach().abs().mean() / exact.detach().abs().mean()) < 0.05


def test_initialisation_leaves_no_hole():
    config = toys.encoder_config()
    model = toys.bev.BEVBuilder(config, toys.EMBED, len(toys.STRIDES), 3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(1)
    model.init_weights()
    name = "encoder.layers.1.attentions.0.sampling_offsets"
    assert torch.equal(model.state_dict()[f"{name}.bias"], before[f"{name}.bias"])
    assert model.state_dict()[f"{name}.weight"].abs().max() == 0
    assert model.cams_embeds.std() > 0.5  # normal, not Xavier
    ffn = model.encoder.layers[0].ffns[0].layers[1].weight
    assert ffn.abs().max() <= np.sqrt(6 / (16 + 24)) and ffn.std() > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(feats=toys.features()[:1]), "got 1 feature levels"),
        (dict(feats=toys.features(cameras=2)), "got 2 cameras; num_cams is 3"),
        (dict(feats=[f[0] for f in toys.features()]), "feature level 0 has the shape"),
        (dict(metas=[toys.meta()] * 2), "got 2 img_metas for a batch of 1"),
        (dict(metas=[toys.meta(toys.rig(2))]), r"samples \* cameras = 2"),
        (dict(prev_bev=torch.zeros(1, CELLS, 8)), "prev_bev has the shape"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, message):
    given = dict(feats=toys.features(), metas=[toys.meta()], prev_bev=None) | change
    with pytest.raises(ValueError, match=message):
        run(toys.builder(use_can_bus=False), given["feats"], given["metas"], given["prev_bev"])


def test_history_flags_of_another_length():
    previous = toys.normal(1, CELLS, toys.EMBED)
    with pytest.raises(ValueError, match=r"has_history has the shape \(2,\)"):
        run(toys.builder(), toys.features(), [toys.meta()], previous, torch.ones(2).bool())


def test_configs_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="embed_dims is 32, but the encoder has 16"):
        toys.bev.BEVBuilder(toys.encoder_config(), 32)
    with pytest.raises(ValueError, match="pc_range"):
        toys.encoder(pc_range=[0, 0, 0, -1, 1, 1])
