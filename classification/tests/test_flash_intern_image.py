"""FlashInternImage against the original implementation, and its options.

`data/flash_forward.npz` holds logits in full; of a feature map its norm, its sum and every
`step`-th entry (of the original's float64 result, rounded to float32).
"""

import gzip
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from weight_recipe import apply_recipe, recipe_cotangent, recipe_input

from config import load_config_file
from models import (
    FlashInternImage,
    FlashInternImageClassifier,
    InternImage,
    InternImageClassifier,
    build_model,
)
from models.safe_load import CheckpointError
from models.weights import load_weights
from ops_dcnv3.modules import DCNv4
from optimizer import build_optimizer

HERE = Path(__file__).parent
DATA = json.loads(gzip.decompress((HERE / "data" / "flash_forward.json.gz").read_bytes()))
CASES = [pytest.param(case, id=case["name"]) for case in DATA["cases"]]
WITH_GRADS = [p for p in CASES if "grads" in p.values[0]]
MANIFESTS = json.loads(gzip.decompress((HERE / "data" / "state_dicts.json.gz").read_bytes()))
EXACT = 1e-11  # float64 against float64, relative to the largest value
# With the test's weights the 30 blocks of T, without normalised masks, multiply an error by 1e5:
# an input that differs by 1e-15 moves the logits by 2e-10.
EXACT_T = 1e-8
ROUNDED = 1e-7  # the stored maps are rounded to float32, which alone is 6e-8
TINY = {"channels": 8, "depths": [1, 1, 2, 1], "groups": [1, 2, 4, 8]}
CONFIGS = {
    "T": "flash_intern_image_t_1k_224.yaml",
    "S": "flash_intern_image_s_1k_224.yaml",
    "B": "flash_intern_image_b_1k_224.yaml",
    "L": "flash_intern_image_l_22kto1k_384.yaml",
}


@pytest.fixture(scope="module")
def arrays():
    with np.load(HERE / "data" / "flash_forward.npz") as file:
        return {key: torch.from_numpy(file[key]).double() for key in file.files}


def build(case):
    model = {"trunk": FlashInternImage, "classifier": FlashInternImageClassifier}[case["model"]]
    return apply_recipe(model(**case["kwargs"]))


def images(case):
    return recipe_input(case["input_shape"], case["input_seed"])


def assert_near(got, want, tolerance):
    assert got.shape == want.shape
    error = ((got - want).abs().max() / want.abs().max()).item()
    assert error < tolerance, f"relative error {error:.2e}"


def assert_map(got, digest):
    """A (N, H, W, C) map has the stored entries, norm and sum."""
    flat = got.flatten()
    norm, total, entries = digest[0].item(), digest[1].item(), digest[2:]
    assert_near(flat[:: DATA["step"]], entries, ROUNDED)
    assert abs(flat.norm().item() - norm) <= ROUNDED * norm
    assert abs(flat.sum().item() - total) <= ROUNDED * norm * len(flat) ** 0.5


def to_digest_order(got, name):
    return got if name.endswith("_nchw") else got.permute(0, 2, 3, 1)


# ---------------------------------------------------------------- the original's numbers


@pytest.mark.parametrize("case", CASES)
def test_forward(case, arrays):
    model = build(case)
    assert sum(p.numel() for p in model.parameters()) == case["n_params"]
    want = {name: arrays[key] for name, key in case["arrays"].items()}
    with torch.no_grad():
        if case["model"] == "classifier":
            logits = want.pop("logits")
            exact = EXACT_T if case["name"].startswith("T_") else EXACT
            assert_near(model(images(case)), logits, exact)
            maps = model.forward_features_seq_out(images(case)) if want else []
            names = [f"stage{i}_nhwc" for i in range(len(maps))]
        else:
            maps = model(images(case))
            names = [f"stage{i}_nchw" for i in case["kwargs"].get("out_indices", range(4))]
    assert names == list(want)
    for got, name in zip(maps, names, strict=True):
        assert got.is_contiguous()
        assert_map(to_digest_order(got, name), want[name])


@pytest.mark.parametrize("name", ["s_like", "b_like", "post_norm_layer_scale"])
def test_float32_and_bfloat16_autocast(name, arrays):
    case = next(case for case in DATA["cases"] if case["name"] == name)
    model = build(case).float()
    want = arrays[case["arrays"]["logits"]]
    x = images(case).float()
    assert_near(model(x).double(), want, 1e-5)  # measured: 7e-7 to 1.5e-6
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(x)
    assert_near(logits.double(), want, 0.1)  # measured: 0.014 to 0.034
    logits.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("case", WITH_GRADS)
def test_parameter_gradients(case):
    model = build(case)
    logits = model(images(case))
    (logits * recipe_cotangent(logits.shape, case["grad_cotangent_seed"])).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert set(grads) == set(case["grads"])
    for name, (norm, total) in case["grads"].items():
        assert abs(grads[name].norm().item() - norm) <= 1e-9 * norm, name
        scale = norm * grads[name].numel() ** 0.5  # bound of a sum of entries of this norm
        assert abs(grads[name].sum().item() - total) <= 1e-9 * scale, name


# ---------------------------------------------------------------- state dicts of the released sizes


def keys_of(model):
    return {key: list(value.shape) for key, value in model.state_dict().items()}


def trunk_of(size):
    """The trunk of a size as detection and segmentation use it."""
    net = load_config_file(HERE.parent / "configs" / CONFIGS[size]).MODEL.FLASH_INTERN_IMAGE
    with torch.device("meta"):
        return FlashInternImage(
            channels=net.CHANNELS, depths=net.DEPTHS, groups=net.GROUPS, layer_scale=1.0,
            offset_scale=net.OFFSET_SCALE, post_norm=net.POST_NORM,
            dw_kernel_size=net.DW_KERNEL_SIZE, dcn_output_bias=net.DCN_OUTPUT_BIAS,
            mlp_fc2_bias=net.MLP_FC2_BIAS, out_indices=(0, 1, 2, 3),
        )  # fmt: skip


@pytest.mark.parametrize(
    "size, count, params",
    [("T", 445, 28666624), ("S", 545, 48490176), ("B", 545, 94897048), ("L", 683, 218914640)],
)
def test_trunk_state_dict(size, count, params):
    """The classifier's keys without its head; T has scales, which its classifier lacks."""
    model = trunk_of(size)
    got = keys_of(model)
    assert len(got) == count
    assert sum(p.numel() for p in model.parameters()) == params
    if size == "B":  # S with other widths
        assert list(got) == list(keys_of(trunk_of("S")))
        return
    manifest = MANIFESTS[f"flash_{size.lower()}"]["keys"]
    want = {key: shape for key, shape, _ in manifest if not key.startswith(("head.", "conv_head."))}
    assert len(manifest) == len(want) + 8
    scales = {key for key in got if key.endswith((".gamma1", ".gamma2"))} - set(want)
    assert len(scales) == (60 if size == "T" else 0)
    assert {key: shape for key, shape in got.items() if key not in scales} == want


def test_state_dict_of_b():
    with torch.device("meta"):
        model = build_model(load_config_file(HERE.parent / "configs" / CONFIGS["B"]))
    assert [key for key, _, _ in MANIFESTS["flash_s"]["keys"]] == list(model.state_dict())
    assert sum(p.numel() for p in model.parameters()) == 97448960
    blocks = [level.blocks[0].dcn.offset_mask.out_features for level in model.levels]
    assert blocks == [192, 384, 760, 1512]


# ---------------------------------------------------------------- options


def test_defaults_are_the_originals():
    model = FlashInternImage(**TINY)
    dcns = [m for m in model.modules() if isinstance(m, DCNv4)]
    assert len(dcns) == 5 and {d.offset_scale for d in dcns} == {0.5}
    assert {d.output_proj.bias for d in dcns} == {None}
    assert {b.mlp.fc2.bias for level in model.levels for b in level.blocks} == {None}
    assert all(b.mlp.fc1.bias is not None for level in model.levels for b in level.blocks)
    assert {d.dw_kernel_size for d in dcns} == {None}
    drop = model.levels[3].blocks[0].drop_path.drop_prob
    assert drop == pytest.approx(0.2)


def test_core_op_of_the_trunk():
    flash = FlashInternImage(**TINY)
    plain = InternImage(core_op="DCNv4", offset_scale=0.5, drop_path_rate=0.2, **TINY)
    assert str(flash).split("\n")[1:] == str(plain).split("\n")[1:]
    with pytest.raises(ValueError, match=r"Unknown core_op 'DCNv3'.*\['DCNv4'\]"):
        FlashInternImage(core_op="DCNv3")


def test_biases_of_dcnv3():
    model = InternImage(mlp_fc2_bias=False, **TINY)
    assert model.levels[0].blocks[0].mlp.fc2.bias is None
    assert InternImage(dcn_output_bias=True, **TINY).levels[0].blocks[0].mlp.fc2.bias is not None
    with pytest.raises(ValueError, match="dcn_output_bias=False needs core_op='DCNv4': DCNv3 alw"):
        InternImage(dcn_output_bias=False, **TINY)


def test_initialisation_leaves_dcnv4_alone():
    torch.manual_seed(0)
    model = FlashInternImage(channels=32, depths=[1, 1], groups=[2, 4])
    dcn = model.levels[1].blocks[0].dcn
    assert not dcn.offset_mask.weight.any() and not dcn.offset_mask.bias.any()
    bound = (6 / (64 + 64)) ** 0.5  # Xavier
    assert 0.9 * bound < dcn.value_proj.weight.abs().max() <= bound
    inside = {m for d in model.modules() if isinstance(d, DCNv4) for m in d.modules()}
    for linear in (m for m in model.modules() if isinstance(m, nn.Linear) and m not in inside):
        assert 0.018 < linear.weight.std() < 0.022


def test_backends_agree():
    x = recipe_input((1, 3, 64, 64), 0)
    models = [
        apply_recipe(FlashInternImageClassifier(num_classes=5, backend=backend, **TINY))
        for backend in (None, "pytorch")
    ]
    torch.testing.assert_close(models[0](x), models[1](x), rtol=1e-11, atol=1e-11)


def test_remove_center_says_that_it_does_nothing(caplog):
    with caplog.at_level(logging.WARNING):
        FlashInternImage(remove_center=True, **TINY)
    assert "remove_center=True has no effect with core_op='DCNv4'" in caplog.text


def test_clip_projector_is_refused():
    with pytest.raises(ValueError, match="use_clip_projector=True is a head of InternImage-H"):
        FlashInternImageClassifier(use_clip_projector=True, **TINY)


def test_an_even_depthwise_kernel_is_refused():
    with pytest.raises(ValueError, match="dw_kernel_size must be odd.*got 4"):
        FlashInternImage(dw_kernel_size=4, **TINY)


def test_use_dcn_v4_op_changes_nothing():
    """The option of detection and segmentation configs: the same sum by another kernel upstream."""
    results = []
    for use_dcn_v4_op in (False, True):
        model = apply_recipe(InternImage(use_dcn_v4_op=use_dcn_v4_op, **TINY))
        x = recipe_input((1, 3, 64, 64), 0).requires_grad_()
        maps = model(x)
        sum(m.square().sum() for m in maps).backward()
        results.append([*maps, x.grad, *(p.grad for p in model.parameters())])
        assert list(model.state_dict())[8:14] == [
            f"levels.0.blocks.0.{key}"
            for key in ("norm1.0.weight", "norm1.0.bias", "dcn.dw_conv.0.weight",
                        "dcn.dw_conv.0.bias", "dcn.dw_conv.1.1.weight", "dcn.dw_conv.1.1.bias")
        ]  # fmt: skip
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


# ---------------------------------------------------------------- from a config


def test_build_model_forwards_every_option():
    options = {
        "CHANNELS": 8, "DEPTHS": [1, 1, 2, 1], "GROUPS": [1, 2, 4, 8], "LAYER_SCALE": "1e-5",
        "OFFSET_SCALE": 2.0, "MLP_RATIO": 2.0, "POST_NORM": True, "RES_POST_NORM": True,
        "CENTER_FEATURE_SCALE": True, "DW_KERNEL_SIZE": 5, "CLS_SCALE": 2.0,
        "LEVEL2_POST_NORM": True, "LEVEL2_POST_NORM_BLOCK_IDS": [1], "NORM_LAYER": "BN",
        "ACT_LAYER": "SiLU", "BACKEND": "pytorch", "DCN_OUTPUT_BIAS": True, "MLP_FC2_BIAS": True,
    }  # fmt: skip
    opts = [
        str(word)
        for key, value in options.items()
        for word in (f"MODEL.FLASH_INTERN_IMAGE.{key}", value)
    ]
    opts += ["MODEL.DROP_PATH_RATE", "0.3", "MODEL.DROP_RATE", "0.1", "MODEL.NUM_CLASSES", "5"]
    got = build_model(load_config_file(HERE.parent / "configs" / CONFIGS["T"], opts))
    want = FlashInternImageClassifier(
        num_classes=5, drop_rate=0.1, drop_path_rate=0.3, layer_scale=1e-5, offset_scale=2.0,
        mlp_ratio=2.0, post_norm=True, res_post_norm=True, center_feature_scale=True,
        dw_kernel_size=5, cls_scale=2.0, level2_post_norm=True, level2_post_norm_block_ids=[1],
        norm_layer="BN", act_layer="SiLU", backend="pytorch", dcn_output_bias=True,
        mlp_fc2_bias=True, **TINY,
    )  # fmt: skip
    assert type(got) is FlashInternImageClassifier
    assert str(got) == str(want)
    assert keys_of(got) == keys_of(want)


def test_learning_rates_of_l():
    """Layer decay 0.9 over 37 blocks, and a tenth of it for every name with 'offset' in it."""
    config = load_config_file(HERE.parent / "configs" / CONFIGS["L"]).clone()
    config.defrost()
    config.TRAIN.BASE_LR = 1.0
    with torch.device("meta"):
        model = build_model(config)
    lr = {group["name"]: group["lr"] for group in build_optimizer(config, model).param_groups}
    assert lr["levels.3.blocks.4.dcn.value_proj.weight"] == 1.0
    assert lr["levels.3.blocks.3.mlp.fc1.weight"] == pytest.approx(0.9)
    assert lr["levels.0.blocks.0.dcn.output_proj.bias"] == pytest.approx(0.9**36)
    for name in ("offset_mask.weight", "offset_mask_dw.weight", "offset_mask_dw.bias"):
        assert lr[f"levels.3.blocks.3.dcn.{name}"] == pytest.approx(0.09)


# ---------------------------------------------------------------- the programs


def test_train_evaluate_and_predict(nano_yaml, colours, tmp_path, capsys):
    import main
    import predict

    cfg = tmp_path / "flash.yaml"
    text = nano_yaml.read_text().replace("TYPE: intern_image", "TYPE: flash_intern_image")
    cfg.write_text(text.replace("INTERN_IMAGE:", "FLASH_INTERN_IMAGE:"))
    output = tmp_path / "run"
    assert main.main(["--cfg", str(cfg), "--output", str(output)]) == 0
    checkpoint = output / "flash" / "ckpt_epoch_best.pth"
    state = torch.load(checkpoint, weights_only=True)["model"]
    assert state["levels.0.blocks.0.dcn.offset_mask.weight"].shape == (32, 16)
    flags = ["--cfg", str(cfg), "--output", str(tmp_path / "eval"), "--resume", str(checkpoint)]
    assert main.main([*flags, "--eval"]) == 0
    accuracies = [
        [line.split("22 test images: ")[1] for line in log.splitlines() if "the network on" in line]
        for log in ((p / "flash/log_rank0.txt").read_text() for p in (output, tmp_path / "eval"))
    ]
    assert accuracies[1] == [max(accuracies[0], key=lambda line: float(line.split("%")[0]))]
    image = colours / "val" / "red" / "000.png"
    assert predict.main(["--resume", str(checkpoint), "--device", "cpu", str(image)]) == 0
    assert "red" in capsys.readouterr().out


@pytest.mark.parametrize("flash_file", [True, False])
def test_weights_of_the_other_operator_are_refused(flash_file):
    models = [
        FlashInternImageClassifier(num_classes=5, **TINY),
        InternImageClassifier(num_classes=5, **TINY),
    ]
    file, model = models if flash_file else models[::-1]
    words = (
        "x.pth was made with DCNv4, the model has DCNv3.*MODEL.TYPE flash_intern_image"
        if flash_file
        else "x.pth was made with DCNv3, the model has DCNv4.*MODEL.TYPE intern_image"
    )
    with pytest.raises(CheckpointError, match=words):
        load_weights(model, {"model": file.state_dict()}, source="x.pth")
