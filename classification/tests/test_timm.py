"""timm's own model tests, for every released model in tiny form; pretrained weights through timm.

The first half does what timm's tests/test_models.py does for a model of timm.
"""

import math

import pytest
import timm
import torch
from hub_server import TINY_SIZE, tiny_row
from timm.data import resolve_data_config
from timm.models import FeatureInfo, group_parameters
from timm.optim import create_optimizer_v2, param_groups_layer_decay

from models import released, timm_models
from models.intern_image_meta_former import InternImageMetaFormer
from models.released import list_models, released_model
from models.timm_interface import TimmInterface

NAMES = list_models()
SIZE = TINY_SIZE


TINY = [f"test_{name}" for name in NAMES]


@pytest.fixture(autouse=True, scope="module")
def _tiny_models():
    """Registers each released model's options with few channels and blocks."""
    table = released._table()
    for name in NAMES:
        small = tiny_row(name)
        table[small.name] = small
        timm_models.register(small)
    yield
    for name in TINY:
        del table[name]


@pytest.fixture(params=TINY)
def name(request):
    return request.param


@pytest.fixture
def images():
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def create(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs)


# ------------------------------------------------------------------------- as in timm's own tests
def test_forward_and_gradient_checkpointing(name, images):
    model = create(name).eval()
    outputs = model(images)
    assert outputs.shape == (2, 10) and not outputs.isnan().any()
    model.set_grad_checkpointing()
    assert all(level.with_cp for level in model.levels)
    torch.testing.assert_close(model(images), outputs)


def test_backward(name, images):
    model = create(name, num_classes=42).train()
    outputs = model(images)
    outputs.mean().backward()
    assert outputs.shape == (2, 42) and not outputs.isnan().any()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_default_cfg(name, images):
    model = create(name).eval()
    cfg, state = model.default_cfg, model.state_dict()
    pool = tuple(cfg["pool_size"])
    features = model.forward_features(images)
    assert features.shape == (2, model.num_features, *pool)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    torch.testing.assert_close(model.forward_head(features), model(images))
    model.reset_classifier(0)
    assert model.num_classes == 0
    torch.testing.assert_close(model(images), pooled)
    model.reset_classifier(0, "")
    unpooled = model(images)
    assert unpooled.dim() == 4 and unpooled.shape[2:] == pool
    other = create(name, num_classes=0, global_pool="").eval()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(images), unpooled)
    classifiers = cfg["classifier"] if isinstance(cfg["classifier"], tuple) else [cfg["classifier"]]
    for key in (*classifiers, cfg["first_conv"]):
        assert f"{key}.weight" in state
    assert cfg["input_size"] == (3, SIZE, SIZE) and cfg["architecture"] == name
    data = resolve_data_config(model=model)
    assert data["crop_pct"] == 1.0 and data["interpolation"] == "bicubic"
    assert data["input_size"] == (3, SIZE, SIZE) and data["mean"] == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_features_only(name, images, memory_format):
    model = create(name, features_only=True).eval().to(memory_format=memory_format)
    info = model.feature_info
    assert info.channels() == [16, 32, 64, 128] and info.reduction() == [4, 8, 16, 32]
    maps = model(images.contiguous(memory_format=memory_format))
    assert len(maps) == 4
    for channels, reduction, feature in zip(info.channels(), info.reduction(), maps):
        side = math.ceil(SIZE / reduction)
        assert feature.shape == (2, channels, side, side) and not feature.isnan().any()


@pytest.mark.parametrize("out_indices", [(0, 2), (-1,), 2])
def test_features_of_some_levels(name, images, out_indices):
    whole = create(name, features_only=True).eval()(images)
    model = create(name, features_only=True, out_indices=out_indices).eval()
    wanted = whole[-2:] if out_indices == 2 else [whole[i] for i in out_indices]
    for got, expected in zip(model(images), wanted, strict=True):
        torch.testing.assert_close(got, expected)
    last = 2 if out_indices == (0, 2) else 3
    assert len(model.model.levels) == last + 1 and model.model.levels[-1].downsample is None
    loss = sum(feature.mean() for feature in model.train()(images))
    loss.backward()
    unused = {n for n, p in model.named_parameters() if p.grad is None and p.requires_grad}
    assert unused == set()  # nothing is left that DistributedDataParallel would wait for


def test_forward_intermediates(name, images):
    model = create(name).eval()
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    final, maps = model.forward_intermediates(images)
    assert [m.shape[1] for m in maps] == info.channels()
    torch.testing.assert_close(final, model.forward_features(images))
    for form in ("NHWC", "NCHW"):
        some = model.forward_intermediates(
            images, [0, -2], norm=True, stop_early=True, output_fmt=form, intermediates_only=True
        )
        for got, expected in zip(some, (maps[0], maps[2]), strict=True):
            expected = expected.permute(0, 2, 3, 1) if form == "NHWC" else expected
            torch.testing.assert_close(got, expected)
    early, _ = model.forward_intermediates(images, [1], stop_early=True)
    torch.testing.assert_close(early, maps[1])
    with pytest.raises(ValueError, match="output_fmt 'NLC'"):
        model.forward_intermediates(images, output_fmt="NLC")
    model.set_grad_checkpointing()
    torch.testing.assert_close(model.forward_intermediates(images)[0], final)


def test_reset_classifier(name, images):
    model = create(name).eval()
    before = model.get_classifier()
    model.reset_classifier(3)
    assert model(images).shape == (2, 3) and model.get_classifier() is not before
    pool = "map" if model.use_clip_projector else "max"
    averaged = model.forward_head(model.forward_features(images), pre_logits=True)
    model.reset_classifier(5, pool)
    assert model(images).shape == (2, 5) and model.global_pool == pool
    pooled = model.forward_head(model.forward_features(images), pre_logits=True)
    assert model.use_clip_projector or not torch.allclose(pooled, averaged)
    with pytest.raises(ValueError, match="num_classes=0 with it"):
        model.reset_classifier(5, "")
    with pytest.raises(ValueError, match="global_pool 'token'"):
        model.reset_classifier(5, "token")
    with pytest.raises(ValueError, match="num_classes must be 0 or more, got -1"):
        model.reset_classifier(-1)


# ------------------------------------------------------------------------------------- training
def test_layers_of_the_parameters(name):
    model = create(name)
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(layers) == {n for n, _ in model.named_parameters()}
    for key, layer in layers.items():
        _, level, kind, index, *_ = [*key.split("."), "", "", ""]
        if key.startswith("patch_embed."):
            assert layer == 0
        elif kind == "blocks":
            assert layer == 1 + [0, 1, 2, 4][int(level)] + int(index)
        elif kind == "post_norms":
            assert layer == 4  # they follow block 1 of level 2
        elif kind in ("norm", "downsample") and level != "3":
            assert layer == 1 + [0, 1, 2, 4][int(level) + 1]
        else:
            assert layer == 6
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert coarse["levels.2.blocks.1.norm1.0.weight"] == 3 and coarse["head.weight"] == 5
    assert max(coarse.values()) == 5


def test_optimizer_with_layer_decay(name):
    model = create(name)
    groups = param_groups_layer_decay(model, weight_decay=0.1, layer_decay=0.5)
    scales = {group["lr_scale"] for group in groups}
    assert scales == {0.5**k for k in range(7)}
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.1, layer_decay=0.5)
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    parameters = dict(model.named_parameters())
    assert model.no_weight_decay() == set()
    assert of[id(parameters["head.weight"])]["weight_decay"] == 0.1
    assert of[id(parameters["head.bias"])]["weight_decay"] == 0.0
    assert of[id(parameters["levels.0.blocks.0.norm1.0.weight"])]["weight_decay"] == 0.0
    assert of[id(parameters["patch_embed.conv1.weight"])]["lr_scale"] == 0.5**6


def test_dropout_and_stochastic_depth(images):
    name = TINY[0]
    model = create(name)
    assert model.drop_rate == 0 and "DropPath" not in repr(model)  # the recipe's value is left out
    assert "DropPath" in repr(create(name, drop_path_rate=0.3))
    model = create(name, drop_rate=0.5).train()
    x = torch.ones(2, model.num_features, 2, 2)
    zeros = (model.forward_head(x, pre_logits=True) == 0).float().mean()
    assert 0.3 < zeros < 0.7
    assert create(name, proj_drop_rate=0.2).pos_drop.p == 0.2
    with pytest.raises(ValueError, match="drop_rate must be at least 0 and less than 1, got 1.5"):
        create(name, drop_rate=1.5)


# ----------------------------------------------------------------------------------- differences
def test_same_numbers_and_keys_as_the_own_classes(name, images):
    from models.build import MODEL_TYPES
    from models.released import model_arguments

    ours = create(name).eval()
    arguments = {**model_arguments(name), "drop_path_rate": 0.0}
    own = MODEL_TYPES[released_model(name).model](**arguments).eval()
    assert list(own.state_dict()) == list(ours.state_dict())
    own.load_state_dict(ours.state_dict())
    inputs = [images]
    if isinstance(own, InternImageMetaFormer):
        inputs += [torch.zeros(2, 4), torch.zeros(2, 3)]
        meta = [torch.rand(2, 4), torch.rand(2, 3)]
        torch.testing.assert_close(ours(images, *meta), own(images, *meta))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), own(*inputs))


def test_in_chans(name):
    model = create(name, in_chans=5, num_classes=0).eval()
    assert model(torch.randn(1, 5, SIZE, SIZE)).shape == (1, model.head_hidden_size)


def test_refused():
    name = TINY[0]
    with pytest.raises(ValueError, match="output_stride must be 32, got 16"):
        create(name, output_stride=16)
    with pytest.raises(ValueError, match="feature_cls='hook' does not work"):
        create(name, features_only=True, feature_cls="hook")
    with pytest.raises(ValueError, match="in_chans must be at least 1, got 0"):
        create(name, in_chans=0)
    with pytest.raises(ValueError, match="cannot take images of 48x48"):
        create("test_internimage_h_22kto1k_640").eval()(torch.randn(1, 3, 48, 48))


def test_registry():
    assert set(NAMES) <= set(timm.list_models())
    names = list_models("internimage*", pretrained=True)
    assert set(names) <= set(timm.list_models("internimage*", pretrained=True))
    assert "flash_intern_image_t_1k_224" not in timm.list_models(pretrained=True)
    cfg = timm.get_pretrained_cfg("internimage_l_22k_384")
    assert cfg.hf_hub_filename == "internimage_l_22k_192to384.pth" and cfg.num_classes == 21841
    assert cfg.url == released_model("internimage_l_22k_384").url
    assert cfg.input_size == (3, 384, 384) and cfg.pool_size == (12, 12)
    assert timm.get_pretrained_cfg("internimage_g_22kto1k_512").pool_size == (32, 32)
    with torch.device("meta"):
        model = timm.create_model("internimage_t_1k_224")
    assert isinstance(model, TimmInterface) and model.num_classes == 1000
    timm_models.register(released_model("internimage_t_1k_224"))  # a second time: nothing happens


# ------------------------------------------------------------------------------ compile, export
needs_new_torch = pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"), reason="torch.compile and export of torch 2.7"
)


@needs_new_torch
@pytest.mark.parametrize("name", [TINY[0], "test_internimage_h_22kto1k_640"])
def test_export(name, images):
    model = create(name).eval()
    program = torch.export.export(model, (images,), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), model(images))


@needs_new_torch
def test_compile(images):
    model = create(TINY[0]).eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images))
