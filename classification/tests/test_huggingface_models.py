"""The models for transformers: keys, numbers, outputs, losses, initial weights, errors."""

import gzip
import hashlib
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_helpers import CLASSES, assert_same_weights, pixels, tiny_config, tiny_model
from weight_recipe import recipe_input, recipe_weight

import huggingface
from huggingface import InternImageConfig
from huggingface.configuration_internimage import HEAD_FIELDS, TRUNK_FIELDS
from huggingface.folder import from_huggingface, to_huggingface
from models import InternImage, InternImageClassifier
from models.released import model_arguments, released_model

DATA = Path(__file__).parent / "data"
MANIFESTS = json.loads(gzip.decompress((DATA / "huggingface_keys.json.gz").read_bytes()))
CASES = {
    case["name"]: case
    for case in json.loads(gzip.decompress((DATA / "models_forward.json.gz").read_bytes()))
    if case["model"] == "classifier"
}


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MANIFESTS)
def test_keys_of_the_published_folders(name):
    """Key names, shapes, types and order of the original's folders."""
    manifest = MANIFESTS[name]
    arguments = model_arguments(manifest["model"])
    arguments["num_labels"] = arguments.pop("num_classes")
    model_class = getattr(huggingface, manifest["class"])
    with torch.device("meta"):
        model = model_class(InternImageConfig(**arguments))
    keys = [
        [key, list(value.shape), str(value.dtype).removeprefix("torch.")]
        for key, value in model.state_dict().items()
    ]
    if "keys" in manifest:
        assert keys == manifest["keys"]
    assert len(keys) == manifest["n_keys"]
    assert hashlib.sha256(json.dumps(keys).encode()).hexdigest() == manifest["sha256"]
    assert sum(p.numel() for p in model.parameters()) == manifest["params"]


def test_keys_of_the_three_models_agree():
    """The two models without a head have a part of the classifier's keys."""
    keys = {kind: set(tiny_model(kind).state_dict()) for kind in CLASSES}
    assert keys["model"] == keys["backbone"] < keys["classifier"]


def test_renaming_is_reversible():
    state = InternImageClassifier(**_arguments(layer_scale=1.0)).state_dict()
    there = to_huggingface(state)
    assert "model.levels.0.blocks.0.layer_scale1" in there
    assert not any("gamma" in key for key in there)
    assert list(from_huggingface(there)) == list(state)


def _arguments(**changes):
    return {"channels": 16, "depths": [1, 2, 1, 1], "groups": [1, 2, 4, 8], **changes}


# --- numbers --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arrays():
    with np.load(DATA / "models_forward.npz") as file:
        return {key: torch.from_numpy(file[key]).double() for key in file.files}


def from_case(case):
    """The model of a stored case with the weights of the recipe, float64."""
    arguments = dict(case["kwargs"])
    arguments["num_labels"] = arguments.pop("num_classes", 1000)
    model = huggingface.InternImageForImageClassification(InternImageConfig(**arguments))
    old = from_huggingface(model.state_dict())
    weights = {key: recipe_weight(key, value.shape) for key, value in old.items()}
    model.load_state_dict(to_huggingface(weights))
    return model.eval().double()


def relative_error(got, want):
    assert got.shape == want.shape
    return ((got - want).abs().max() / want.abs().max()).item()


@pytest.mark.parametrize(
    "name",
    ["T_64x96", "base_odd_65x50", "post_norm_layer_scale", "res_post_norm", "remove_center",
     "tiny_h", "tiny_g", "norm_bn", "three_levels", "num_classes0"],
)  # fmt: skip
def test_forward_against_the_original(name, arrays):
    case = CASES[name]
    model = from_case(case)
    want = {key: arrays[stored] for key, stored in case["arrays"].items()}
    with torch.no_grad():
        output = model(recipe_input(case["input_shape"], case["input_seed"]))
    assert relative_error(output.logits, want.pop("logits")) < 1e-11
    assert len(output.hidden_states) == len(want)
    for i, got in enumerate(output.hidden_states):
        expected = want[f"stage{i}_nhwc"].permute(0, 3, 1, 2)
        assert relative_error(got, expected) < 1e-7  # stored in float32


@pytest.mark.parametrize("name", ["base", "post_norm_layer_scale", "tiny_g"])
def test_plain_pytorch_operator_in_the_folder(name, arrays, monkeypatch):
    """The files that stand in for ops_dcnv3, forward and gradient."""
    from huggingface import layers_internimage as layers
    from huggingface import plain_internimage as plain
    from huggingface import trunk_internimage as trunk
    from huggingface.dcnv3_internimage import DCNv3

    images = recipe_input(CASES[name]["input_shape"], CASES[name]["input_seed"])
    want = from_case(CASES[name])
    want(images).logits.sum().backward()
    for module in (layers, trunk):
        monkeypatch.setattr(module, "DCNv3", DCNv3)
        for function in ("apply_conv", "apply_linear", "is_untouched"):
            monkeypatch.setattr(module, function, getattr(plain, function))
    model = from_case(CASES[name])
    assert type(model.model.levels[0].blocks[0].dcn).__module__ == "huggingface.dcnv3_internimage"
    with torch.no_grad():  # another path than with gradients
        assert relative_error(model(images).logits, arrays[CASES[name]["arrays"]["logits"]]) < 1e-11
    model(images).logits.sum().backward()
    for (key, ours), theirs in zip(model.named_parameters(), want.parameters()):
        if theirs.grad is not None and theirs.grad.norm() > 1e-9:
            assert relative_error(ours.grad, theirs.grad) < 1e-8, key


def test_plain_pytorch_dcnv4():
    from huggingface.dcnv4_internimage import DCNv4 as Plain
    from ops_dcnv3.modules import DCNv4

    torch.manual_seed(0)
    options = {"channels": 32, "group": 2, "center_feature_scale": True, "dw_kernel_size": 3}
    ours, theirs = Plain(**options).double(), DCNv4(**options).double()
    weights = {k: torch.randn_like(v) * 0.1 for k, v in theirs.state_dict().items()}
    for layer in (ours, theirs):
        layer.load_state_dict(weights)
    x = torch.randn(2, 6, 5, 32, dtype=torch.float64)
    assert relative_error(ours(x), theirs(x)) < 1e-12
    with pytest.raises(RuntimeError, match="backend 'cpp' is one of the package ops_dcnv3"):
        Plain(**options, backend="cpp")


def test_stochastic_depth_and_mlp_are_those_of_timm():
    from timm.layers import DropPath, Mlp

    from huggingface import layers_internimage as layers

    torch.manual_seed(0)
    ours, theirs = layers.Mlp(8, 16, bias=(True, False)), Mlp(8, 16, bias=(True, False))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 4, 4, 8)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(layers.DropPath(0.5).eval()(x), x)
    ones = torch.ones(2000, 1, 2)
    dropped = layers.DropPath(0.25).train()(ones)
    torch.testing.assert_close(dropped.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert torch.equal(dropped[..., 0], dropped[..., 1])  # whole samples
    assert abs(dropped.mean() - DropPath(0.25).train()(ones).mean()) < 0.1


# --- outputs --------------------------------------------------------------------------------------

SHAPES = [(2, 16, 16, 16), (2, 32, 8, 8), (2, 64, 4, 4), (2, 128, 2, 2)]


def test_outputs_of_the_model():
    model = tiny_model("model")
    with torch.no_grad():
        output = model(pixels())
        maps = model.model(pixels())
    assert list(output) == ["last_hidden_state", "pooler_output", "hidden_states"]
    assert [tuple(x.shape) for x in output.hidden_states] == SHAPES
    for got, want in zip(output.hidden_states, maps):
        assert torch.equal(got, want)
    assert torch.equal(output.last_hidden_state, maps[-1])
    torch.testing.assert_close(output.pooler_output, maps[-1].mean((2, 3)))
    with torch.no_grad():
        last, pooled, hidden = model(pixels(), return_dict=False)
    assert torch.equal(last, maps[-1]) and pooled.shape == (2, 128) and len(hidden) == 4
    without = model(pixels(), output_hidden_states=False)
    assert list(without) == ["last_hidden_state", "pooler_output"]


def test_outputs_of_the_classifier():
    model = tiny_model()
    labels = torch.tensor([1, 4])
    output = model(pixels(), labels=labels)
    assert list(output) == [
        "loss", "logits", "hidden_states", "last_hidden_state", "pooler_output"
    ]  # fmt: skip
    assert output.logits.shape == (2, 5) and output.pooler_output.shape == (2, 192)
    assert torch.equal(output.logits, model.model(pixels()))
    assert torch.equal(output.logits, model.model.head(output.pooler_output))
    assert [tuple(x.shape) for x in output.hidden_states] == SHAPES
    loss, logits, *_ = model(pixels(), labels=labels, return_dict=False)
    assert torch.equal(loss, output.loss) and torch.equal(logits, output.logits)
    assert "loss" not in model(pixels())
    assert "hidden_states" not in model(pixels(), output_hidden_states=False)


def test_outputs_of_the_backbone():
    model = tiny_model("backbone", out_features=["stage2", "stage4"])
    output = model(pixels())
    assert [tuple(x.shape) for x in output.feature_maps] == [SHAPES[1], SHAPES[3]]
    assert output.hidden_states is None
    assert model.channels == [32, 128] and model.out_indices in ([1, 3], (1, 3))
    assert all(x.is_contiguous() for x in output.feature_maps)
    hidden = model(pixels(), output_hidden_states=True).hidden_states
    assert [tuple(x.shape) for x in hidden] == SHAPES
    assert [tuple(x.shape) for x in model(pixels(), return_dict=False)[0]] == [SHAPES[1], SHAPES[3]]
    by_number = tiny_model("backbone", out_indices=(0, 1))
    assert by_number.out_features == ["stage1", "stage2"]
    assert tiny_model("backbone").out_features == ["stage4"]
    with pytest.raises(ValueError, match="stage7"):
        tiny_config(out_features=["stage7"])


def test_losses():
    images = pixels()
    single = tiny_model()
    labels = torch.tensor([0, 3])
    output = single(images, labels=labels)
    torch.testing.assert_close(
        output.loss, torch.nn.functional.cross_entropy(output.logits, labels)
    )
    several = tiny_model()
    targets = torch.tensor([[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]).float()
    output = several(images, labels=targets)
    torch.testing.assert_close(
        output.loss, torch.nn.functional.binary_cross_entropy_with_logits(output.logits, targets)
    )
    one = tiny_model(num_labels=1)
    numbers = torch.tensor([0.5, -1.0])
    output = one(images, labels=numbers)
    torch.testing.assert_close(
        output.loss, torch.nn.functional.mse_loss(output.logits[:, 0], numbers)
    )
    output.loss.backward()
    assert one.model.patch_embed.conv1.weight.grad.norm() > 0


# --- configuration --------------------------------------------------------------------------------


def test_the_configuration_has_the_arguments_of_the_network():
    """A new argument of the canonical classes must appear here, with the same default."""
    trunk = inspect.signature(InternImage).parameters
    head = inspect.signature(InternImageClassifier).parameters
    config = InternImageConfig()
    assert set(TRUNK_FIELDS) == set(trunk) - {"out_indices"}
    assert set(HEAD_FIELDS) == set(head) - {"num_classes", "trunk"}
    for name in (*TRUNK_FIELDS, *HEAD_FIELDS):
        default = (trunk if name in trunk else head)[name].default
        default = list(default) if isinstance(default, tuple) else default
        assert getattr(config, name) == default, name


def test_configuration_round_trip(tmp_path):
    config = tiny_config(layer_scale=1e-5, out_indices=[0, 2], with_cp=True, drop_path_rate=0.3)
    config.save_pretrained(tmp_path)
    again = InternImageConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert again.out_features == ["stage1", "stage3"] and again.num_labels == 5
    assert again.hidden_sizes == [16, 32, 64, 128]


def test_configuration_of_the_originally_published_folders(tmp_path):
    """Their fields are the model's arguments, with `num_classes` for the labels."""
    fields = model_arguments("internimage_t_1k_224")
    fields.pop("backend")
    text = json.dumps(
        {
            "architectures": ["InternImageModelForImageClassification"],
            "model_type": "internimage",
            "torch_dtype": "float32",
            "transformers_version": "4.37.2",
            **fields,
        }
    )
    (tmp_path / "config.json").write_text(text)
    config = InternImageConfig.from_pretrained(tmp_path)
    assert config.num_labels == config.num_classes == 1000
    assert config.drop_path_rate == fields["drop_path_rate"]
    assert InternImageConfig.from_pretrained(tmp_path, num_labels=7).num_labels == 7
    assert InternImageConfig(num_classes=3, id2label={0: "a", 1: "b"}).num_labels == 2
    assert huggingface.InternImageModelForImageClassification is CLASSES["classifier"]


def test_values_that_no_model_has_are_refused():
    for changes, message in (
        ({"core_op": "DCNv5"}, "Unknown core_op 'DCNv5'.*Did you mean 'DCNv"),
        ({"groups": [1, 2, 4]}, "depths and groups need one entry per level"),
        ({"groups": [3, 2, 4, 8]}, r"cannot be split into groups\[0\]=3"),
        ({"use_clip_projector": True, "norm_layer": "BN"}, "needs norm_layer='LN'"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny_model(**changes)


def test_a_misspelt_field_is_reported(caplog):
    import logging

    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)  # transformers' loggers do not propagate
    try:
        InternImageConfig(chanels=32)
    finally:
        logger.removeHandler(caplog.handler)
    assert "no field 'chanels', which has no effect; did you mean 'channels'?" in (
        " ".join(record.getMessage() for record in caplog.records)
    )


def test_wrong_images_are_refused():
    model = tiny_model()
    for wrong, message in (
        (None, "pixel_values is missing"),
        (torch.zeros(3, 64, 64), r"must be \(N, 3, H, W\), got \(3, 64, 64\)"),
        (torch.zeros(1, 64, 64, 3), r"must be \(N, 3, H, W\), got \(1, 64, 64, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model(wrong)
    clip = tiny_model(use_clip_projector=True)
    for kind in (model, clip):
        with pytest.raises(TypeError, match='must be a tensor, got list.*return_tensors="pt"'):
            kind([pixels()])
    with pytest.raises(ValueError, match="cannot take images of 80x80 pixels"):
        clip(pixels(1, 80))


# --- initial weights, training --------------------------------------------------------------------

EVERYTHING = {
    "layer_scale": 0.01,
    "center_feature_scale": True,
    "use_clip_projector": True,
    "level2_post_norm": True,
    "level2_post_norm_block_ids": [0],
}


@pytest.mark.parametrize("changes", [{}, EVERYTHING, {"core_op": "DCNv4", "dw_kernel_size": 3}])
def test_initial_weights_are_distributed_like_the_original_network(changes):
    torch.manual_seed(0)
    ours = from_huggingface(CLASSES["classifier"](tiny_config(**changes)).state_dict())
    torch.manual_seed(1)
    arguments = {k: v for k, v in changes.items()}
    theirs = InternImageClassifier(**_arguments(num_classes=5, **arguments)).state_dict()
    assert list(ours) == list(theirs)
    for key, want in theirs.items():
        got, want = ours[key].double(), want.double()
        if want.unique().numel() == 1:
            assert torch.equal(got, want), key
        elif want.numel() >= 500:
            assert abs(got.std() / want.std() - 1) < 0.15, key
            assert abs(got.abs().max() / want.abs().max() - 1) < 0.6, key
        else:
            assert 0.4 < got.std() / want.std() < 2.5, key
        assert not torch.equal(got, want) or want.unique().numel() == 1, key


def test_training_moves_every_weight():
    model = tiny_model().train()
    model(pixels(), labels=torch.tensor([0, 1])).loss.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def count_block_calls(model):
    """How often the blocks run in a forward and backward pass, and the gradients."""
    calls = []
    blocks = [block for level in model.model.levels for block in level.blocks]
    hooks = [b.register_forward_pre_hook(lambda *_: calls.append(1)) for b in blocks]
    model.train()
    model(pixels(), labels=torch.tensor([0, 1])).loss.backward()
    for hook in hooks:
        hook.remove()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return len(calls) / len(blocks), gradients


@pytest.mark.parametrize("options", [None, {"use_reentrant": False}, {"use_reentrant": True}])
def test_gradient_checkpointing_recomputes_the_blocks(options):
    plain_calls, plain = count_block_calls(tiny_model())
    model = tiny_model()
    assert not model.is_gradient_checkpointing
    model.gradient_checkpointing_enable(options)
    assert model.is_gradient_checkpointing
    calls, gradients = count_block_calls(model)
    assert (plain_calls, calls) == (1, 2)
    for key, want in plain.items():
        torch.testing.assert_close(gradients[key], want, rtol=1e-4, atol=1e-6)
    model.gradient_checkpointing_disable()
    assert count_block_calls(model)[0] == 1


@pytest.mark.parametrize("options", [None, {"use_reentrant": True}])
@pytest.mark.parametrize("frozen_stages", [0, 2])
def test_gradient_checkpointing_above_frozen_stages(frozen_stages, options):
    """Trains the first block that is not frozen, whose input needs no gradient, too."""
    _, plain = count_block_calls(tiny_model(frozen_stages=frozen_stages))
    model = tiny_model(frozen_stages=frozen_stages)
    model.gradient_checkpointing_enable(options)
    _, gradients = count_block_calls(model)
    assert list(gradients) == list(plain)
    for key, want in plain.items():
        torch.testing.assert_close(gradients[key], want, rtol=1e-4, atol=1e-6)


def test_gradient_checkpointing_from_the_configuration():
    model = tiny_model(with_cp=True)
    assert model.is_gradient_checkpointing and count_block_calls(model)[0] == 2


def test_frozen_stages_stay_frozen(tmp_path):
    tiny_model(frozen_stages=1).save_pretrained(tmp_path)
    model = CLASSES["classifier"].from_pretrained(tmp_path).train()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert not any(name.startswith(("model.patch_embed", "model.levels.0")) for name in trained)
    assert any(name.startswith("model.levels.1") for name in trained)
    assert not model.model.levels[0].training and model.model.levels[1].training


def test_hidden_states_do_not_change_the_weights_of_a_saved_model(tmp_path):
    """Every kind of model: the file gives the same tensors bit for bit."""
    for kind in CLASSES:
        model = tiny_model(kind, **EVERYTHING)
        model.save_pretrained(tmp_path / kind)
        assert (tmp_path / kind / "model.safetensors").is_file()
        assert_same_weights(model, CLASSES[kind].from_pretrained(tmp_path / kind))


def test_released_model_names_exist():
    for manifest in MANIFESTS.values():
        assert released_model(manifest["model"]).transformers_repo.endswith(manifest["model"])
