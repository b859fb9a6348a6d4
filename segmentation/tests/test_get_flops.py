"""get_flops.py: counts against hand calculations and published figures."""

from __future__ import annotations

import json

import pytest
import runs
import segmentors
from mmcv import Config
from mmseg.models import build_segmentor

FLOPS = runs.program("get_flops")
CONFIGS = runs.FOLDER / "configs"
T = CONFIGS / "ade20k/upernet_internimage_t_512_160k_ade20k.py"


def count(config, *args, capsys):
    assert FLOPS.main([str(config), "--json", "-", *map(str, args)]) == 0
    record = json.loads(capsys.readouterr().out)
    return record, {part["name"]: part for part in record["parts"]}


def tiny(tmp_path, name):
    path = tmp_path / f"{name}.py"
    path.write_text(f"model = {segmentors.config(name).to_dict()!r}\n")
    return path


@pytest.mark.parametrize("name", ["upernet", "segformer", "mask2former"])
def test_parameters_are_those_of_the_real_model(name, tmp_path, capsys):
    config = tiny(tmp_path, name)
    record, parts = count(config, "--shape", 64, capsys=capsys)
    model = build_segmentor(Config.fromfile(config).model)
    assert record["params"] == sum(parameter.numel() for parameter in model.parameters())
    assert parts["backbone"]["params"] == sum(p.numel() for p in model.backbone.parameters())
    assert "other" not in parts
    for key in ("params", "macs", "sampling_macs"):
        assert record[key] == sum(part[key] for part in record["parts"])
    sizes = [256, 64, 16, 4]  # 1, 1, 2 and 1 blocks of 16 to 128 channels, 9 or 25 points
    points = 25 if name == "mask2former" else 9
    blocks = zip((1, 1, 2, 1), sizes, (16, 32, 64, 128))
    sampling = sum(depth * size * points * channels * 5 for depth, size, channels in blocks)
    assert parts["backbone"]["sampling_macs"] in (sampling, sampling * 9 // points)


def test_segformer_head_by_hand(tmp_path, capsys):
    _, parts = count(tiny(tmp_path, "segformer"), "--shape", 64, capsys=capsys)
    sizes = [256, 64, 16, 4]
    one_by_one = sum(size * channels * 32 for size, channels in zip(sizes, (16, 32, 64, 128)))
    fusion = 256 * 4 * 32 * 32
    assert parts["decode_head"]["macs"] == one_by_one + fusion + 256 * 32 * 5


def test_mask2former_pixel_decoder_samples(tmp_path, capsys):
    _, parts = count(tiny(tmp_path, "mask2former"), "--shape", 64, capsys=capsys)
    tokens = 64 + 16 + 4
    assert parts["decode_head.pixel_decoder"]["sampling_macs"] == 2 * 5 * tokens * 3 * 4 * 64


def test_heads_for_training_only_compute_nothing(tmp_path, capsys):
    _, parts = count(tiny(tmp_path, "upernet"), "--shape", 64, capsys=capsys)
    assert parts["auxiliary_head"]["macs"] == 0 < parts["auxiliary_head"]["params"]


def test_the_published_figures_of_upernet_t(capsys):
    """Published: 59M parameters and 944G for 512x2048."""
    record, _ = count(T, capsys=capsys)
    assert record["shape"] == [512, 2048]
    assert round(record["params"] / 1e6) == 59
    assert round(record["macs"] / 1e9) == 944


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([T, "--shape", "0"], "--shape takes H or H W in pixels, got 0"),
        (["missing.py"], "missing.py"),
        ([CONFIGS / "_base_/default_runtime.py"], "has no model"),
        ([T, "--cfg-options", "model.decode_head.type=UperHead"], "UperHead"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_1(arguments, message, caplog):
    assert FLOPS.main([str(word) for word in arguments]) == 1
    assert message in caplog.text
