"""Options of the models: what they do, and what is refused with which words."""

import math

import pytest
import torch
from timm.layers import DropPath, GluMlp, Mlp
from torch import nn
from weight_recipe import apply_recipe, recipe_input

from models import InternImage, InternImageClassifier, InternImageMetaFormer, build_model
from models.build import number_or_none
from models.intern_image import apply_mlp
from ops_dcnv3.modules import DCNv3

TINY = {"channels": 8, "depths": [1, 1, 2, 1], "groups": [1, 2, 4, 8]}


def trunk(**kwargs):
    return InternImage(**{**TINY, **kwargs})


def classifier(**kwargs):
    return InternImageClassifier(**{**TINY, "num_classes": 5, **kwargs})


def images(size=64, count=2):
    return recipe_input((count, 3, size, size), 0)


# ---------------------------------------------------------------- outputs


@pytest.mark.parametrize("out_indices", [[0, 1, 2, 3], [1, 3], [3], [2, 0]])
def test_out_indices(out_indices):
    model = apply_recipe(trunk(out_indices=out_indices))
    everything = apply_recipe(trunk())(images())
    maps = model(images())
    assert len(maps) == len(out_indices)
    for i, got in zip(out_indices, maps, strict=True):
        assert got.shape == (2, 8 * 2**i, 16 // 2**i, 16 // 2**i)
        assert torch.equal(got, everything[i])


def test_classifier_shapes():
    model = apply_recipe(classifier())
    assert model(images()).shape == (2, 5)
    assert model.forward_features(images()).shape == (2, 96)  # 64 channels times cls_scale 1.5
    assert [tuple(x.shape) for x in model.forward_features_seq_out(images())] == [
        (2, 16, 16, 8),
        (2, 8, 8, 16),
        (2, 4, 4, 32),
        (2, 2, 2, 64),
    ]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"res_post_norm": True},
        {"res_post_norm": True, "layer_scale": 1.0},
        {"res_post_norm": True, "post_norm": True, "center_feature_scale": True},
        {"use_clip_projector": True, "remove_center": True},
    ],
)
def test_every_trained_parameter_gets_a_gradient(options):
    """DistributedDataParallel stops at the second step when one does not."""
    model = apply_recipe(classifier(**options))
    model(images()).sum().backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_five_levels():
    model = apply_recipe(trunk(depths=[1] * 5, groups=[1, 2, 4, 8, 16]))
    assert model(images(128))[-1].shape == (2, 128, 2, 2)


def test_half_precision_weights_give_half_outputs():
    model = apply_recipe(classifier()).bfloat16()
    assert model(images().bfloat16()).dtype == torch.bfloat16


# ---------------------------------------------------------------- training behaviour


def test_checkpointing_changes_nothing():
    results = []
    for with_cp in (False, True):
        model = apply_recipe(classifier(with_cp=with_cp, level2_post_norm=False)).train()
        x = images().requires_grad_()
        logits = model(x)
        logits.square().sum().backward()
        results.append([logits, x.grad, *(p.grad for p in model.parameters())])
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-12, atol=1e-12)


def test_checkpointing_recomputes_with_the_same_dropped_paths():
    grads = []
    for with_cp in (False, True):
        torch.manual_seed(3)
        model = apply_recipe(classifier(with_cp=with_cp, drop_path_rate=0.5, drop_rate=0.2)).train()
        torch.manual_seed(4)
        model(images()).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-12, atol=1e-12)


def test_checkpointing_runs_blocks_twice():
    model = apply_recipe(trunk(with_cp=True))
    calls = []
    model.levels[2].blocks[1].dcn.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        model(images())
    assert len(calls) == 1  # without gradients there is nothing to recompute
    model(images())[-1].sum().backward()
    assert len(calls) == 3


def test_train_and_eval_return_the_model():
    model = trunk(frozen_stages=1)
    assert model.train() is model
    assert model.eval() is model
    assert model.train(False) is model


@pytest.mark.parametrize("frozen_stages", [-1, 0, 2, 4])
def test_frozen_stages(frozen_stages):
    model = trunk(frozen_stages=frozen_stages, norm_layer="BN", drop_rate=0.1).train()
    frozen = [model.patch_embed, model.pos_drop] if frozen_stages >= 0 else []
    frozen += model.levels[: max(frozen_stages, 0)]
    frozen_modules = {m for part in frozen for m in part.modules()}
    frozen_params = {p for part in frozen for p in part.parameters()}
    for module in model.modules():
        if module not in (model, model.levels):
            assert module.training == (module not in frozen_modules)
    for parameter in model.parameters():
        assert parameter.requires_grad == (parameter not in frozen_params)


def test_frozen_levels_keep_their_statistics():
    model = trunk(frozen_stages=1, norm_layer="BN").train()
    before = {k: v.clone() for k, v in model.state_dict().items() if "running_mean" in k}
    model(images().float())
    moved = {k for k, v in before.items() if not torch.equal(v, model.state_dict()[k])}
    assert not any(k.startswith(("patch_embed.", "levels.0.")) for k in moved)
    assert any(k.startswith("levels.1.") for k in moved)


def drop_paths(model):
    return [
        block.drop_path.drop_prob if isinstance(block.drop_path, DropPath) else 0.0
        for level in model.levels
        for block in level.blocks
    ]


def test_drop_path_types():
    linear = drop_paths(trunk(drop_path_rate=0.4))
    assert linear == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert drop_paths(trunk(drop_path_rate=0.4, drop_path_type="uniform")) == [0.4] * 5
    assert drop_paths(trunk()) == [0.0] * 5


def test_drop_rate_reaches_stem_and_mlps():
    model = trunk(drop_rate=0.3)
    rates = [m.p for m in model.modules() if isinstance(m, nn.Dropout)]
    assert rates == [0.3] * (1 + 2 * 5)
    assert {m.p for m in trunk().modules() if isinstance(m, nn.Dropout)} == {0.0}


def test_every_parameter_of_the_classifier_gets_a_gradient():
    model = apply_recipe(classifier(center_feature_scale=True, layer_scale=0.1)).train()
    model(images()).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


# ---------------------------------------------------------------- initialisation


def test_initialisation():
    torch.manual_seed(0)
    model = InternImageMetaFormer(
        channels=32, depths=[1, 1], groups=[2, 4], layer_scale=0.25, num_classes=64,
        center_feature_scale=True, use_clip_projector=True,
    )  # fmt: skip
    block = model.levels[1].blocks[0]
    assert (block.gamma1 == 0.25).all() and (block.gamma2 == 0.25).all()
    for linear in (block.dcn.offset, block.dcn.mask):
        assert not linear.weight.any() and not linear.bias.any()
    bound = math.sqrt(6 / (64 + 64))  # Xavier
    assert 0.9 * bound < block.dcn.input_proj.weight.abs().max() <= bound
    inside = {m for d in model.modules() if isinstance(d, DCNv3) for m in d.modules()}
    linears = [m for m in model.modules() if isinstance(m, nn.Linear) and m not in inside]
    # per block 2 (MLP), clip projector 4, metadata 2 * 3 + 1, head 1
    assert len(linears) == 2 * 2 + 4 + 7 + 1
    for linear in linears:
        assert linear.bias is None or not linear.bias.any()
        if linear.weight.numel() > 1000:
            assert 0.018 < linear.weight.std() < 0.022


def test_a_new_block_starts_as_an_ordinary_convolution():
    """Zero offsets: moving the image by a whole period moves the features, and nothing else."""
    model = trunk(depths=[1], groups=[2], channels=8).double().eval()
    x = images(64, 1)
    shifted = model(torch.roll(x, 8, dims=-1))[0][..., 8:12, 8:12]
    assert torch.allclose(shifted, torch.roll(model(x)[0], 2, dims=-1)[..., 8:12, 8:12])


# ---------------------------------------------------------------- refused arguments


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"core_op": "DCNv3_pytroch"}, "core_op 'DCNv3_pytroch'.*mean 'DCNv3_pytorch'"),
        ({"act_layer": "Gelu"}, "act_layer 'Gelu'.*mean 'GELU'"),
        ({"norm_layer": "BN2"}, "norm_layer 'BN2'.*mean 'BN'"),
        ({"drop_path_type": "liner"}, "drop_path_type 'liner'.*mean 'linear'"),
        ({"drop_rate": 1.0}, "drop_rate must be .*got 1.0"),
        ({"drop_path_rate": -0.1}, "drop_path_rate must be .*got -0.1"),
        ({"depths": []}, "depths needs at least one block"),
        ({"depths": [1, 0, 2, 1]}, r"depths needs at least one block.*\[1, 0, 2, 1\]"),
        ({"depths": [1, 1, 2]}, "3 depths .* 4 groups"),
        ({"channels": 9}, "channels must be even.*got 9"),
        ({"groups": [1, 3, 4, 8]}, r"Level 1 has 16 channels.*groups\[1\]=3"),
        ({"groups": [1, 2, 0, 8]}, r"groups\[2\]=0"),
        ({"out_indices": [0, 4]}, r"between 0 and 3, got \[0, 4\]"),
        ({"out_indices": [1, 1]}, r"distinct levels.*\[1, 1\]"),
        ({"out_indices": []}, r"distinct levels.*\[\]"),
        ({"frozen_stages": 5}, "frozen_stages.*got 5"),
        ({"frozen_stages": -2}, "frozen_stages.*got -2"),
        ({"level2_post_norm": True}, "needs level2_post_norm_block_ids.*None"),
        ({"level2_post_norm": True, "level2_post_norm_block_ids": [2]}, r"0 and 1 .*\[2\]"),
        ({"level2_post_norm": True, "level2_post_norm_block_ids": [1, 1]}, r"distinct.*\[1, 1\]"),
        ({"core_op": "DCNv3_pytorch", "backend": "cpp"}, "contradicts backend='cpp'"),
        ({"dw_kernel_size": 4}, "dw_kernel_size must be odd, got 4"),
    ],
)
def test_refused(kwargs, words):
    with pytest.raises(ValueError, match=words):
        trunk(**kwargs)


def test_refused_level2_post_norm_without_a_level_2():
    with pytest.raises(ValueError, match="needs a level 2"):
        InternImage(
            channels=8, depths=[1, 1], groups=[1, 2], level2_post_norm=True,
            level2_post_norm_block_ids=[0],
        )  # fmt: skip


def test_refused_layer_scale():
    with pytest.raises(TypeError, match="layer_scale must be a number or None, got '1e-5'"):
        trunk(layer_scale="1e-5")


def test_refused_heads():
    with pytest.raises(ValueError, match=r"use_clip_projector=True.*norm_layer='BN'"):
        classifier(use_clip_projector=True, norm_layer="BN")
    with pytest.raises(ValueError, match=r"last two levels.*\[1\]"):
        classifier(use_clip_projector=True, depths=[1], groups=[1])
    with pytest.raises(ValueError, match=r"num_classes .*got -1"):
        classifier(num_classes=-1)
    with pytest.raises(ValueError, match="cls_scale must be above 0, got 0"):
        classifier(cls_scale=0)
    with pytest.raises(ValueError, match="num_classes of 1 or more, got 0"):
        InternImageMetaFormer(**TINY, num_classes=0)


def test_clip_projector_refuses_image_sizes_before_it_computes():
    model = apply_recipe(classifier(use_clip_projector=True))
    model.patch_embed.register_forward_hook(lambda *_: pytest.fail("the stem ran"))
    with pytest.raises(ValueError, match=r"80x64 pixels.*multiples of 32"):
        model(recipe_input((1, 3, 80, 64), 0))


@pytest.mark.parametrize("size", [(32, 64), (60, 60), (64, 49)])
def test_clip_projector_takes_sizes_whose_last_maps_fit(size):
    assert apply_recipe(classifier(use_clip_projector=True))(
        recipe_input((1, 3, *size), 0)
    ).shape == (1, 5)


def test_metadata_of_the_wrong_shape_is_refused():
    model = apply_recipe(InternImageMetaFormer(**TINY, num_classes=5))
    temporal, spatial = torch.zeros(2, 4).double(), torch.zeros(2, 3).double()
    assert model(images(), temporal, spatial).shape == (2, 5)
    with pytest.raises(ValueError, match=r"temporal must be \(N, 4\), got \(2, 3\)"):
        model(images(), spatial, temporal)


# ---------------------------------------------------------------- from a config


@pytest.fixture
def config():
    from config import default_config

    config = default_config()
    config.MODEL.INTERN_IMAGE.CHANNELS = 8
    config.MODEL.INTERN_IMAGE.DEPTHS = [1, 1, 2, 1]
    config.MODEL.INTERN_IMAGE.GROUPS = [1, 2, 4, 8]
    config.MODEL.NUM_CLASSES = 5
    return config


def test_build_model_forwards_every_option(config):
    net = config.MODEL.INTERN_IMAGE
    config.MODEL.TYPE = "intern_image"
    config.MODEL.DROP_RATE, config.MODEL.DROP_PATH_RATE = 0.1, 0.3
    config.MODEL.DROP_PATH_TYPE = "uniform"
    config.TRAIN.USE_CHECKPOINT = True
    net.LAYER_SCALE, net.OFFSET_SCALE, net.MLP_RATIO = "1e-5", 2.0, 2.0
    net.POST_NORM = net.RES_POST_NORM = net.CENTER_FEATURE_SCALE = net.REMOVE_CENTER = True
    net.DW_KERNEL_SIZE, net.CLS_SCALE = 5, 2.0
    net.LEVEL2_POST_NORM, net.LEVEL2_POST_NORM_BLOCK_IDS = True, [1]
    net.NORM_LAYER, net.ACT_LAYER, net.BACKEND = "BN", "SiLU", "pytorch"
    got = build_model(config)
    want = classifier(
        drop_rate=0.1, drop_path_rate=0.3, drop_path_type="uniform", with_cp=True,
        layer_scale=1e-5, offset_scale=2.0, mlp_ratio=2.0, post_norm=True, res_post_norm=True,
        center_feature_scale=True, remove_center=True, dw_kernel_size=5, cls_scale=2.0,
        level2_post_norm=True, level2_post_norm_block_ids=[1], norm_layer="BN", act_layer="SiLU",
        backend="pytorch",
    )  # fmt: skip
    assert type(got) is InternImageClassifier
    assert str(got) == str(want)
    assert [(k, v.shape) for k, v in got.state_dict().items()] == [
        (k, v.shape) for k, v in want.state_dict().items()
    ]
    assert got.levels[0].with_cp and got.levels[0].blocks[0].gamma1[0].item() == pytest.approx(1e-5)


def test_build_model_types(config):
    assert type(build_model(config)) is InternImageClassifier  # the default type
    config.MODEL.TYPE = "intern_image_meta_former"
    assert type(build_model(config)) is InternImageMetaFormer
    config.MODEL.TYPE = "intern_imag"
    with pytest.raises(ValueError, match=r"MODEL.TYPE 'intern_imag'.*mean 'intern_image'"):
        build_model(config)


@pytest.mark.parametrize(
    ("value", "number"), [(None, None), ("None", None), ("1e-5", 1e-5), (1e-5, 1e-5), ("1", 1)]
)
def test_layer_scale_from_yaml(value, number):
    assert number_or_none(value, "KEY") == number


@pytest.mark.parametrize("value", ["small", "[1]", ""])
def test_layer_scale_from_yaml_refused(value):
    with pytest.raises(ValueError, match="KEY must be a number or None"):
        number_or_none(value, "KEY")


# --- the MLP's shorter way ------------------------------------------------------------------------


def plain_mlp():
    torch.manual_seed(0)
    return Mlp(8, 32, drop=0.5).eval()


def test_the_short_mlp_gives_the_same():
    mlp, x = plain_mlp(), torch.randn(2, 5, 8)
    with torch.no_grad():
        torch.testing.assert_close(apply_mlp(mlp, x), mlp(x), rtol=1e-5, atol=1e-5)


def test_the_short_mlp_keeps_dropout_that_somebody_switched_on():
    mlp, x = plain_mlp(), torch.randn(2, 5, 8)
    mlp.drop2.train()
    with torch.no_grad():
        assert (apply_mlp(mlp, x) == 0).any()


@pytest.mark.parametrize("part", ["", "act", "drop1", "norm"])
def test_hooks_inside_the_mlp_run(part):
    mlp, seen = plain_mlp(), []
    mlp.get_submodule(part).register_forward_hook(lambda *_: seen.append(part))
    with torch.no_grad():
        apply_mlp(mlp, torch.randn(2, 5, 8))
    assert seen == [part]


def test_another_mlp_is_called():
    mlp, x = GluMlp(8, 32).eval(), torch.randn(2, 5, 8)
    with torch.no_grad():
        torch.testing.assert_close(apply_mlp(mlp, x), mlp(x))
