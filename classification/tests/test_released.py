"""The table of released models, models by name, and their weights (from a local server)."""

import dataclasses
import gzip
import io
import json
from pathlib import Path

import pytest
import timm
import torch
from helpers import CLASSIFICATION
from hub_server import Hub, tiny_row, use

import get_flops
import main
import predict
from config import load_config_file
from models import (
    FlashInternImage,
    FlashInternImageClassifier,
    InternImage,
    InternImageClassifier,
    create_model,
    fetch,
    list_models,
    released,
    timm_models,
    weights,
)
from models.build import model_arguments as arguments_of
from models.intern_image_meta_former import InternImageMetaFormer
from models.released import UnknownModelError, released_model
from models.safe_load import CheckpointError

NAMES = list_models()
MANIFESTS = json.loads(
    gzip.decompress((Path(__file__).parent / "data" / "state_dicts.json.gz").read_bytes())
)
MANIFEST_OF = {
    "internimage_t_1k_224": "t_1k",
    "internimage_s_1k_224": "s_1k",
    "internimage_l_22kto1k_384": "l_1k",
    "internimage_xl_22kto1k_384": "xl_1k",
    "internimage_h_22kto1k_640": "h_1k",
    "internimage_g_22kto1k_512": "g_1k",
    "internimage_l_22k_384": "l_22k",
    "internimage_h_jointto22k_384": "h_22k",
    "internimage_h_22ktoinat18_384": "h_metaformer_inat18",
    "flash_intern_image_t_1k_224": "flash_t",
    "flash_intern_image_s_1k_224": "flash_s",
    "flash_intern_image_l_22kto1k_384": "flash_l",
}


# ------------------------------------------------------------------------------------- the table
@pytest.mark.parametrize("name", NAMES)
def test_row_agrees_with_its_config(name):
    row = released_model(name)
    opts = [str(word) for pair in row.config_opts.items() for word in pair]
    config = load_config_file(CLASSIFICATION / row.config, opts)
    assert released.model_arguments(name) == arguments_of(config)
    assert row.model == config.MODEL.TYPE and row.input_size == config.DATA.IMG_SIZE
    assert (config.DATA.INTERPOLATION, config.TEST.CROP) == ("bicubic", True)  # as timm is told
    datasets = {
        "imagenet": "ImageNet-1K",
        "imagenet22K": "ImageNet-22K",
        "inat18": "iNaturalist 2018",
    }
    assert datasets[config.DATA.DATASET] == row.dataset


@pytest.mark.parametrize("name", NAMES)
def test_model_of_a_row(name):
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == released_model(name).params
    if name in MANIFEST_OF:
        got = [[key, list(value.shape)] for key, value in model.state_dict().items()]
        assert got == [entry[:2] for entry in MANIFESTS[MANIFEST_OF[name]]["keys"]]


def test_files_of_the_table():
    rows = [released_model(name) for name in list_models(pretrained=True)]
    assert len(rows) == 12 and len({row.hub_file for row in rows}) == 12
    row = released_model("internimage_g_jointto22k_384")
    assert row.url == (
        "https://huggingface.co/OpenGVLab/InternImage/resolve/main/"
        "internimage_g_pretrainto22k_384.pth"
    )
    assert released.find_by_file(row.url) is row and released.find_by_file(row.hub_file) is row
    assert released_model("flash_intern_image_b_1k_224").url is None
    assert released_model("internimage_h_22ktoinat18_384").log.endswith("_22ktoinat18_384.log")


def test_list_models():
    assert NAMES[0] == "internimage_t_1k_224" and len(NAMES) == 16
    assert list_models("*_22k_384", pretrained=True) == [
        "internimage_l_22k_384",
        "internimage_xl_22k_384",
    ]
    assert list_models("flash*", pretrained=True) == [] and len(list_models("flash*")) == 4
    assert list_models(task=None)[: len(NAMES)] == NAMES
    assert list_models(task="segmentation", pattern="nothing*") == []


def test_unknown_name():
    with pytest.raises(UnknownModelError, match="Did you mean 'internimage_xl_22k_384'"):
        create_model("internimage_xl_22k")
    with pytest.raises(ValueError, match="Unknown model 'resnet50'"):
        create_model("resnet50")


def test_files_of_other_tasks(tmp_path, monkeypatch):
    """A second file of rows is seen by the same functions; a name may stand only once."""
    row = {
        "name": "mask_rcnn_internimage_t_fpn_1x_coco",
        "title": "Mask R-CNN",
        "task": "detection",
        "dataset": "COCO",
        "config": "configs/coco/x.py",
    }
    (tmp_path / "released_detection.json").write_text(json.dumps([row]))
    monkeypatch.setattr(released, "FOLDER", tmp_path)
    released._table.cache_clear()
    try:
        assert list_models() == [] and list_models(task="detection") == [row["name"]]
        with pytest.raises(UnknownModelError, match="built in detection/ from configs/coco/x.py"):
            create_model(row["name"])
        released._table.cache_clear()
        (tmp_path / "released_other.json").write_text(json.dumps([row]))
        with pytest.raises(ValueError, match="in the table twice"):
            list_models()
    finally:
        released._table.cache_clear()


# ---------------------------------------------------------------------------------- create_model
def test_classes():
    with torch.device("meta"):
        assert type(create_model("internimage_t_1k_224")) is InternImageClassifier
        assert type(create_model("flash_intern_image_t_1k_224")) is FlashInternImageClassifier
        assert type(create_model("internimage_t_1k_224", features_only=True)) is InternImage
        flash = create_model("flash_intern_image_t_1k_224", features_only=True)
        assert type(flash) is FlashInternImage
        inat = create_model("internimage_h_22ktoinat18_384")
        assert type(inat) is InternImageMetaFormer and inat.num_classes == 8142


@pytest.mark.parametrize("wanted, levels", [((-1, 0), (3, 0)), (2, (2, 3)), ([1], (1,))])
def test_levels_as_in_timm(wanted, levels):
    name = "internimage_t_1k_224"
    with torch.device("meta"):
        assert (
            tuple(create_model(name, features_only=True, out_indices=wanted).out_indices) == levels
        )
        for wrong in (5, (4,), (-5,), (), (1, -3)):
            with pytest.raises(ValueError, match="out_indices must be distinct levels"):
                create_model(name, features_only=True, out_indices=wrong)


def test_levels_need_features_only():
    with pytest.raises(ValueError, match=r"out_indices=\(1,\) .* needs features_only=True"):
        create_model("internimage_t_1k_224", out_indices=(1,))


# --------------------------------------------------------------------------- pretrained weights
@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """(name, weights) of a tiny released model whose checkpoint a local server holds."""
    row = tiny_row("internimage_t_1k_224", num_classes=1000)
    row = dataclasses.replace(row, name="tiny_released")
    name = row.name
    monkeypatch.setitem(released._table(), name, row)
    timm_models.register(row)
    with Hub() as server:
        use(monkeypatch, server.url, tmp_path)
        torch.manual_seed(1)
        model = create_model(name)
        content = io.BytesIO()
        torch.save({"model": model.state_dict()}, content)
        server.files[f"{row.hub_repo}/{row.hub_file}"] = content.getvalue()
        yield name, model.state_dict()
        server.shutdown()


def test_pretrained(tiny):
    name, state = tiny
    model = create_model(name, pretrained=True)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    by_timm = timm.create_model(name, pretrained=True)
    assert all(torch.equal(value, state[key]) for key, value in by_timm.state_dict().items())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), by_timm.eval()(images))


@pytest.mark.parametrize("make", [create_model, timm.create_model])
def test_pretrained_with_a_new_head(tiny, make):
    name, state = tiny
    model = make(name, pretrained=True, num_classes=7)
    own = model.state_dict()
    assert own["head.weight"].shape[0] == 7
    assert all(torch.equal(own[k], v) for k, v in state.items() if not k.startswith("head."))
    assert "head.weight" not in make(name, pretrained=True, num_classes=0).state_dict()


@pytest.mark.parametrize("make", [create_model, timm.create_model])
@pytest.mark.parametrize("in_chans", [1, 4])
def test_pretrained_with_other_channels(tiny, make, in_chans):
    name, state = tiny
    model = make(name, pretrained=True, in_chans=in_chans)
    own, first = model.state_dict(), "patch_embed.conv1.weight"
    if in_chans == 1:
        expected = state[first].sum(1, keepdim=True)
    else:
        expected = state[first].repeat(1, 2, 1, 1)[:, :4] * 3 / 4
    torch.testing.assert_close(own[first], expected)
    assert all(torch.equal(own[k], v) for k, v in state.items() if k != first)


@pytest.mark.parametrize("make", [create_model, timm.create_model])
def test_pretrained_features(tiny, make):
    name, state = tiny
    model = make(name, pretrained=True, features_only=True, out_indices=(1, 3)).eval()
    own = {key.removeprefix("model."): value for key, value in model.state_dict().items()}
    assert all(torch.equal(value, state[key]) for key, value in own.items())
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 64, 64))
    assert [tuple(m.shape) for m in maps] == [(1, 32, 8, 8), (1, 128, 2, 2)]


@pytest.mark.parametrize("make", [create_model, timm.create_model])
@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"layer_scale": 1.0}, "gamma1"), ({"depths": [1, 1, 1, 3]}, "levels.3.blocks")],
)
def test_pretrained_leaves_nothing_random(tiny, make, arguments, named):
    name, _ = tiny
    with pytest.raises(CheckpointError, match=named):
        make(name, pretrained=True, **arguments)


def test_classes_of_a_22k_head(tiny, monkeypatch):
    """1000 classes of a 21841-class checkpoint are picked, not trained anew."""
    name, state = tiny
    rows = weights.read_head_map()
    head = torch.arange(21841.0)[:, None].repeat(1, state["head.weight"].shape[1])
    big = {**state, "head.weight": head, "head.bias": torch.arange(21841.0)}
    monkeypatch.setattr("models.registry.load_file", lambda path: {"model": big})
    model = create_model(name, pretrained=True)
    assert model.head.bias.tolist() == [float(row) for row in rows]


def test_weights_of_ones_own_through_timm(tiny, tmp_path, monkeypatch):
    name, state = tiny
    changed = {
        key: value + 1 if value.is_floating_point() else value for key, value in state.items()
    }
    torch.save({"model": changed}, tmp_path / "own.pth")
    overlay = {"file": str(tmp_path / "own.pth")}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(model.head.bias, changed["head.bias"])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    overlay = {"url": (tmp_path / "own.pth").as_uri()}  # and not the released file
    model = timm.create_model(name, pretrained=True, in_chans=1, pretrained_cfg_overlay=overlay)
    assert torch.equal(model.head.bias, changed["head.bias"])
    with pytest.raises(CheckpointError, match="flash_intern_image_t_1k_224 has no checkpoint"):
        timm.create_model("flash_intern_image_t_1k_224", pretrained=True)


def test_cache_dir_through_timm(tiny, tmp_path):
    timm.create_model(tiny[0], pretrained=True, cache_dir=tmp_path / "mine")
    assert list((tmp_path / "mine").rglob("*.pth"))


# ------------------------------------------------------------------------------ in the programs
def test_fetch_takes_names(tiny):
    path = fetch.fetch(tiny[0])
    assert path.is_file() and path.name == released_model(tiny[0]).hub_file


def test_fetch_prefers_a_file_of_that_name(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / tiny[0]).write_bytes(b"mine")
    assert fetch.fetch(tiny[0]).read_bytes() == b"mine"


def test_fetch_knows_the_address_of_a_released_model(monkeypatch):
    row = released_model("internimage_t_1k_224")
    monkeypatch.setattr("models.hub.checkpoint_path", lambda name: Path("found", name))
    assert fetch.fetch(row.url) == Path("found", row.name)


@pytest.mark.parametrize(
    "text, hint",
    [
        ("pretrained/internimage_l_22k_192to384.pth", "'internimage_l_22k_384' is the released"),
        ("internimage_t_1k_244", "Did you mean 'internimage_t_1k_224'"),
    ],
)
def test_fetch_suggests_names(text, hint):
    with pytest.raises(CheckpointError, match=f"{text} does not exist.*{hint}"):
        fetch.fetch(text)


@pytest.fixture
def nano(monkeypatch, tmp_path, trained, nano_yaml):
    """Name of a released model whose file is that of the trained tiny run."""
    row = dataclasses.replace(
        released_model("internimage_t_1k_224"),
        name="nano_released",
        config=str(nano_yaml),
        config_opts={"DATA.IMG_SIZE": 48},
        arguments={"channels": 16, "depths": [1, 1, 1, 1], "groups": [1, 2, 4, 8]},
        num_classes=4,
    )
    monkeypatch.setitem(released._table(), row.name, row)
    with Hub() as server:
        use(monkeypatch, server.url, tmp_path)
        content = (trained / "ckpt_epoch_best.pth").read_bytes()
        server.files[f"{row.hub_repo}/{row.hub_file}"] = content
        yield row.name
        server.shutdown()


def test_predict_by_name(nano, trained, colours, capsys):
    image = str(colours / "val" / "red" / "000.png")
    assert predict.main(["--model", nano, image, "--device", "cpu"]) == 0
    by_name = capsys.readouterr().out
    assert predict.main(["--resume", nano, image, "--device", "cpu"]) == 0
    assert capsys.readouterr().out == by_name
    file = str(trained / "ckpt_epoch_best.pth")
    size = ["--opts", "DATA.IMG_SIZE", "48"]
    assert predict.main(["--resume", file, image, "--device", "cpu", *size]) == 0
    assert capsys.readouterr().out == by_name
    assert predict.main(["--model", nano, "--resume", file, image, "--device", "cpu"]) == 0
    assert capsys.readouterr().out == by_name


def test_predict_refuses(nano, colours, caplog, capsys):
    image = str(colours / "val" / "red" / "000.png")
    assert predict.main(["--model", "internimage_t_1k_244", image]) == 1
    assert "Did you mean 'internimage_t_1k_224'" in caplog.text
    assert predict.main(["--model", "flash_intern_image_t_1k_224", image]) == 1
    assert "flash_intern_image_t_1k_224 has no checkpoint" in caplog.text
    for flags in ([image], ["--model", nano, "--cfg", "x.yaml", image]):
        with pytest.raises(SystemExit):
            predict.main(flags)
    assert "Give --model NAME" in capsys.readouterr().err


def test_predict_list_models(capsys):
    with pytest.raises(SystemExit) as stop:
        predict.main(["--list-models"])
    lines = capsys.readouterr().out.splitlines()
    assert stop.value.code == 0 and [line.split()[0] for line in lines] == NAMES


def test_main_by_name(nano, nano_yaml, tmp_path, caplog):
    flags = ["--cfg", str(nano_yaml), "--output", str(tmp_path / "run")]
    assert main.main([*flags, "--eval", "--resume", nano]) == 0
    assert main.main([*flags, "--pretrained", nano, "--opts", "TRAIN.EPOCHS", "1"]) == 0
    log = (tmp_path / "run" / "nano" / "log_rank0.txt").read_text()
    assert "Accuracy of the network on the 22 test images" in log
    assert log.count("internimage_t_1k_224.pth") >= 2
    assert main.main([*flags, "--eval", "--resume", "internimage_t_1k_244"]) == 1


def test_fetch_on_the_other_ranks(monkeypatch):
    calls = []
    monkeypatch.setattr("models.hub.checkpoint_path", lambda name: calls.append(name) or Path(name))
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
    monkeypatch.setattr("torch.distributed.broadcast_object_list", lambda values, src: None)
    assert fetch.fetch("internimage_t_1k_224") == Path("internimage_t_1k_224") and len(calls) == 1
    monkeypatch.setattr(
        "torch.distributed.broadcast_object_list",
        lambda values, src: values.__setitem__(0, "rank 0 could not"),
    )
    with pytest.raises(CheckpointError, match="rank 0 could not"):
        fetch.fetch("internimage_t_1k_224")
    assert len(calls) == 1


def test_counted_macs():
    row = released_model("internimage_t_1k_224")
    config = load_config_file(CLASSIFICATION / row.config)
    parts = get_flops.count(config, row.input_size, row.input_size)
    assert sum(part.total_macs for part in parts) / 1e9 == pytest.approx(row.gmacs, abs=0.01)
