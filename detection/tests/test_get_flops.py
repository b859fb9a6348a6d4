"""get_flops.py: counts against hand calculations and published figures, composite backbones too."""

import json
from pathlib import Path

import pytest
from mmcv import Config
from mmdet.models import build_detector

import get_flops

DETECTION = Path(__file__).resolve().parents[1]
TOY = DETECTION / "configs/toy"
MASK_RCNN = TOY / "mask_rcnn_internimage_nano_toy.py"
DINO = TOY / "dino_internimage_nano_toy.py"
CB_DINO = TOY / "cb_dino_internimage_nano_toy.py"


def count(config, *args, capsys):
    assert get_flops.main([str(config), "--json", "-", *map(str, args)]) == 0
    record = json.loads(capsys.readouterr().out)
    return record, {part["name"]: part for part in record["parts"]}


def blocks_sampling(height, width):
    """5 MACs for each of 9 points of each channel: 1, 1, 2 and 1 blocks of 16 to 128 channels."""
    depths, total = (1, 1, 2, 1), 0
    for level, depth in enumerate(depths):
        size = -(-height // (4 << level)) * -(-width // (4 << level))
        total += depth * 5 * 9 * size * (16 << level)
    return total


@pytest.mark.parametrize("config", [MASK_RCNN, DINO, CB_DINO], ids=lambda path: path.stem)
def test_parameters_are_those_of_the_real_model(config, capsys):
    record, parts = count(config, "--shape", 64, capsys=capsys)
    model = build_detector(Config.fromfile(config).model)
    assert record["params"] == sum(parameter.numel() for parameter in model.parameters())
    backbone = sum(parameter.numel() for parameter in model.backbone.parameters())
    assert parts["backbone"]["params"] == backbone
    for key in ("params", "macs", "sampling_macs"):
        assert record[key] == sum(part[key] for part in record["parts"])


def test_neck_heads_and_sampling_by_hand(capsys):
    record, parts = count(MASK_RCNN, "--shape", 64, 96, capsys=capsys)
    assert record["shape"] == [64, 96]
    sizes = [16 * 24, 8 * 12, 4 * 6, 2 * 3]
    lateral = sum(size * channels * 48 for size, channels in zip(sizes, (16, 32, 64, 128)))
    assert parts["neck"]["macs"] == lateral + sum(sizes) * 9 * 48 * 48
    assert parts["rpn_head"]["macs"] == sum(sizes) * (9 * 48 * 48 + 48 * 3 * (1 + 4))
    box = 49 * 48 * 192 + 192 * 192 + 192 * (6 + 4 * 5)
    assert parts["roi_head.bbox_head"]["macs"] == 1000 * box
    assert parts["backbone"]["sampling_macs"] == blocks_sampling(64, 96)
    assert record["sampling_macs"] == blocks_sampling(64, 96)


def test_deformable_attention_and_the_composite_backbone(capsys):
    dino, parts = count(DINO, "--shape", 64, capsys=capsys)
    tokens = 64 + 16 + 4
    points = 3 * 4  # levels, points
    assert parts["bbox_head.transformer.encoder"]["sampling_macs"] == 2 * 5 * tokens * points * 64
    assert parts["bbox_head.transformer.decoder"]["sampling_macs"] == 2 * 5 * 30 * points * 64
    both, cb_parts = count(CB_DINO, "--shape", 64, capsys=capsys)
    assert cb_parts["backbone"]["sampling_macs"] == 2 * blocks_sampling(64, 64)
    assert both["macs"] - cb_parts["backbone"]["macs"] == dino["macs"] - parts["backbone"]["macs"]


def test_the_published_figures_of_mask_rcnn_t(capsys):
    """Published: 49M parameters and 270G for 1280x800, by a counter that also takes norms."""
    config = DETECTION / "configs/coco/mask_rcnn_internimage_t_fpn_1x_coco.py"
    record, _ = count(config, capsys=capsys)
    assert record["shape"] == [800, 1280]
    assert round(record["params"] / 1e6) == 49
    assert 268e9 < record["macs"] < 270e9


def test_dcnv4_costs_the_same_samples(capsys):
    plain, _ = count(MASK_RCNN, "--shape", 64, capsys=capsys)
    flag = "model.backbone.use_dcn_v4_op=True"
    other, _ = count(MASK_RCNN, "--shape", 64, "--cfg-options", flag, capsys=capsys)
    assert other["sampling_macs"] == plain["sampling_macs"]
    assert other["params"] == plain["params"]


def test_table_size_and_file(capsys, tmp_path):
    path = tmp_path / "made" / "counts.json"
    assert get_flops.main([str(MASK_RCNN), "--shape", "50", "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert "MaskRCNN, one image of 64x64 pixels" in out
    assert [line.split()[0] for line in out.splitlines()[4:9]] == [
        part["name"] for part in json.loads(path.read_text())["parts"]
    ]
    assert out.splitlines()[10].startswith("total  ")
    flags = ["--shape", "50", "--size-divisor", "-1"]
    assert count(MASK_RCNN, *flags, capsys=capsys)[0]["shape"] == [50, 50]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([MASK_RCNN, "--shape", "0"], "--shape takes H or H W in pixels, got 0"),
        ([MASK_RCNN, "--shape", "1", "2", "3"], "got 1 2 3"),
        ([MASK_RCNN, "--size-divisor", "0"], "got 0"),
        (["missing.py"], "missing.py"),
        ([DETECTION / "configs/_base_/default_runtime.py"], "has no model"),
        ([MASK_RCNN, "--cfg-options", "model.neck.type=FPM"], "FPM"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_1(arguments, message, caplog):
    assert get_flops.main([str(word) for word in arguments]) == 1
    assert message in caplog.text


def test_unknown_flag_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as stop:
        get_flops.main([str(MASK_RCNN), "--shapes", "64"])
    assert stop.value.code == 2
    assert "did you mean --shape?" in capsys.readouterr().err
