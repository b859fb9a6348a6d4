"""get_flops.py: counts equal to an independent analytic count of every configuration."""

import argparse
import json

import pytest
import torch
from helpers import CLASSIFICATION
from torch.utils.flop_counter import FlopCounterMode

import get_flops
import model_source
from models import build_model

# parameters, 1e9 MACs of convolutions and linear layers, 1e9 MACs of sampling: an analytic count,
# layer by layer, that shares no code with the one here
EXPECTED = {
    "inaturalist2018/internimage_h_22ktoinat18_384": (1096197516, 535.084, 2.356),
    "internimage_t_1k_224": (29918424, 4.786, 0.099),
    "internimage_s_1k_224": (50079880, 8.173, 0.133),
    "internimage_b_1k_224": (97461832, 15.997, 0.186),
    "internimage_l_22kto1k_384": (223334810, 106.888, 0.904),
    "internimage_xl_22kto1k_384": (334819780, 161.805, 1.125),
    "internimage_h_22kto1k_640": (1089636760, 1486.324, 6.543),
    "internimage_g_22kto1k_512": (3076373352, 2705.243, 5.851),
}


def config_of(path: str):
    return model_source.load_config(argparse.Namespace(cfg=path, model=None, opts=None))


@pytest.mark.parametrize("name", EXPECTED)
def test_counts_of_the_released_configurations(name):
    config = config_of(str(CLASSIFICATION / "configs" / f"{name}.yaml"))
    size = config.DATA.IMG_SIZE
    parts = get_flops.count(config, size, size)
    found = get_flops.record(config, parts, size, size)
    params, macs, sampling = EXPECTED[name]
    assert found["params"] == params
    assert found["conv_linear_macs"] / 1e9 == pytest.approx(macs, rel=1e-3)
    assert found["sampling_macs"] / 1e9 == pytest.approx(sampling, rel=5e-3)  # 3 digits above
    assert found["macs"] == found["conv_linear_macs"] + found["sampling_macs"]


@pytest.mark.parametrize("kind", ["intern_image", "flash_intern_image"])
def test_parts_add_up_and_match_a_real_forward_pass(kind, nano_config):
    """The same model on the CPU, where the operator itself is seen by PyTorch's counter."""
    nano_config.MODEL.TYPE = kind
    section = nano_config.MODEL[kind.upper()]
    section.CHANNELS, section.DEPTHS, section.GROUPS = 16, [1, 2, 1], [1, 2, 4]
    parts = get_flops.count(nano_config, 33, 48)
    assert [part.name for part in parts] == [
        "stem", "level 0", "downsample 0", "level 1", "downsample 1", "level 2", "head"
    ]  # fmt: skip
    assert [part.output for part in parts][1::2] == [(9, 12, 16), (5, 6, 32), (3, 3, 64)]
    model = build_model(nano_config).eval()
    assert sum(part.params for part in parts) == sum(p.numel() for p in model.parameters())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 33, 48))
    assert sum(part.total_macs for part in parts) == pytest.approx(
        counter.get_total_flops() / 2, rel=1e-9
    )
    for level, blocks, pixels, points in ((0, 1, 108, 9), (1, 2, 30, 9), (2, 1, 9, 9)):
        channels = 16 * 2**level
        assert parts[2 * level + 1].sampling_macs == blocks * 5 * pixels * points * channels


def test_command_line(tmp_path, nano_yaml, capsys, caplog):
    assert get_flops.main(["--model", "internimage_t_1k_224"]) == 0
    printed = capsys.readouterr().out
    assert "total                    29.918 M  4.885 G            0.099 G" in printed
    assert "level 3       7x7x512" in printed and "Not counted" in printed
    assert (
        get_flops.main(["--model", "internimage_t_1k_224", "--opts", "MODEL.NUM_CLASSES", "7"]) == 0
    )
    assert "internimage_t_1k_224, 7 classes, " in capsys.readouterr().out
    path = tmp_path / "made" / "counts.json"
    flags = ["--cfg", str(nano_yaml), "--shape", "64", "96"]
    assert get_flops.main([*flags, "--json", str(path)]) == 0
    capsys.readouterr()
    assert get_flops.main([*flags, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(path.read_text()) and found["shape"] == [64, 96]
    one = get_flops.count(config_of(str(nano_yaml)), 64, 64)[1].macs
    assert found["parts"][1]["conv_linear_macs"] == one * 3 // 2


def test_errors(nano_yaml, tmp_path, caplog):
    for flags, text in (
        ([], "no model: give --cfg FILE or --model NAME"),
        (["--model", "internimage_t"], "Did you mean 'internimage_t_1k_224'"),
        (["--cfg", "none.yaml"], "none.yaml does not exist"),
        (["--cfg", str(nano_yaml), "--model", "internimage_t_1k_224"], "not both"),
        (["--cfg", str(nano_yaml), "--shape", "0"], "--shape takes H or H W"),
        (["--cfg", str(nano_yaml), "--json", str(tmp_path)], "cannot be written"),
        (["--model", "internimage_h_22kto1k_640", "--shape", "100"], "multiples of 32"),
    ):
        caplog.clear()
        assert get_flops.main(flags) == 1
        assert text in caplog.text
