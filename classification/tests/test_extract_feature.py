"""extract_feature.py: what is captured, in which order and form, and what wrong input gives."""

import shutil

import numpy as np
import pytest
import torch
from helpers import run_program
from PIL import Image
from torch import nn

import extract_feature
from feature_hooks import capture, flatten
from models import InternImageClassifier
from models.safe_load import load_file


@pytest.fixture
def run(trained):
    """Runs the program on the trained checkpoint."""

    def call(*args: object) -> int:
        checkpoint = str(trained / "ckpt_epoch_best.pth")
        return extract_feature.main(["--resume", checkpoint, *map(str, args)])

    return call


@pytest.fixture
def pictures(tmp_path):
    """Two photographs of different sizes and a broken one."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name, size in (("wide.jpg", (80, 40)), ("tall.png", (32, 48))):
        pixels = generator.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def test_levels_of_several_images(run, pictures, tmp_path, capsys):
    for name in ("out.pth", "out.npz"):
        assert run("--img", pictures, "--save", tmp_path / "made" / name) == 0
    assert f"{pictures / 'wide.jpg'}  32x64 pixels" in capsys.readouterr().out  # not cropped
    found = torch.load(tmp_path / "made" / "out.pth", weights_only=True)
    assert list(found) == [str(pictures / "tall.png"), str(pictures / "wide.jpg")]
    maps = found[str(pictures / "wide.jpg")]
    assert list(maps) == [f"levels.{i}" for i in range(4)]
    assert [tuple(value.shape) for value in maps.values()] == [
        (1, 8, 16, 16), (1, 4, 8, 32), (1, 2, 4, 64), (1, 1, 2, 128)
    ]  # fmt: skip
    with np.load(tmp_path / "made" / "out.npz") as arrays:
        assert len(arrays.files) == 8
        for image, layers in found.items():
            for name, value in layers.items():
                np.testing.assert_array_equal(arrays[f"{image}:{name}"], value.numpy())


def test_memory_that_does_not_suffice(run, pictures, monkeypatch, caplog):
    """In PyTorch's own words on the CPU; other errors of PyTorch are not hidden."""

    def forward(self, images):
        return torch.empty(1 << 60)

    monkeypatch.setattr(InternImageClassifier, "forward", forward)
    assert run("--img", pictures / "wide.jpg") == 1
    assert "wide.jpg: An image of 32x64 pixels does not fit into the memory" in caplog.text
    monkeypatch.setattr(InternImageClassifier, "forward", lambda self, images: images @ images)
    with pytest.raises(RuntimeError, match="size"):
        run("--img", pictures / "wide.jpg")


def test_values_are_those_of_the_evaluation_mode(trained, pictures, tmp_path):
    """Against the model run by hand: BatchNorm statistics, no dropped paths, no gradients."""
    checkpoint = trained / "ckpt_epoch_best.pth"
    flags = ["--resume", str(checkpoint), "--img", str(pictures / "tall.png"), "--crop"]
    keys = ["head", "levels.1.blocks.0.dcn", "conv_head"]
    out = tmp_path / "out.pth"
    assert extract_feature.main([*flags, "--keys", *keys, "--save", str(out)]) == 0
    (found,) = torch.load(out, weights_only=True).values()
    assert list(found) == ["levels.1.blocks.0.dcn", "conv_head", "head"]  # the model's order
    state = load_file(checkpoint)
    model = InternImageClassifier(4, channels=16, depths=[1] * 4, groups=[1, 2, 4, 8]).eval()
    model.load_state_dict(state["model"])
    with Image.open(pictures / "tall.png") as image:
        pixels = np.asarray(image.crop((0, 8, 32, 40)), dtype=np.float32) / 255
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    x = torch.from_numpy(((pixels - mean) / std).transpose(2, 0, 1))[None]
    with torch.no_grad():
        torch.testing.assert_close(found["head"], model(x), rtol=1e-4, atol=1e-5)


def test_save_without_a_name_writes_next_to_each_image(run, pictures):
    assert run("--img", pictures / "*.jpg", pictures / "tall.png", "--save") == 0
    names = sorted(path.name for path in pictures.iterdir())
    assert names == ["tall.png", "tall.pth", "wide.jpg", "wide.pth"]
    assert list(torch.load(pictures / "wide.pth", weights_only=True)) == [
        f"levels.{i}" for i in range(4)
    ]


def test_list_names_every_layer_with_shapes(run, pictures, capsys):
    assert run("--list") == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines()[:-1])
    assert lines["levels.0"].strip() == "(1, 8, 8, 16)" and lines["head"].strip() == "(1, 4)"
    assert lines["levels.2.blocks.0.dcn.offset"].strip() == "(1, 2, 2, 72)"
    names = list(lines)
    assert names.index("patch_embed.conv1") < names.index("levels.0") < names.index("head")
    assert run("--list", "--img", pictures / "wide.jpg") == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines()[:-1])
    assert lines["levels.0"].strip() == "(1, 8, 16, 16)"


def test_wrong_names_give_the_nearest_first(run, pictures, caplog):
    assert run("--img", pictures, "--keys", "levels.1.block.0.dcn") == 1
    rows = [line.strip() for line in caplog.text.splitlines()]
    assert "nearest: levels.1.blocks.0.dcn, " in caplog.text
    listed = rows[rows.index(next(row for row in rows if row.startswith("all "))) + 1 :]
    assert listed[0] == "levels.1.blocks.0.dcn" and "patch_embed" in listed
    assert len(listed) == len(set(listed)) > 100


def test_layers_with_several_outputs_or_calls():
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.ReLU()
            self.split = Split()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return sum(self.split(self.shared(self.shared(x)))["b"])

    class Split(nn.Module):
        def forward(self, x: torch.Tensor) -> dict:
            return {"a": x, "b": (x, 2 * x), "c": "text"}

    model = Pair()
    with capture(model, ["shared", "split"]) as outputs:
        model(torch.ones(1))
    flat = flatten(outputs, ["split", "shared"])
    assert list(flat) == ["split[a]", "split[b][0]", "split[b][1]", "shared[0]", "shared[1]"]
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ZeroDivisionError), capture(model, ["shared"]):
        raise ZeroDivisionError
    assert not model.shared._forward_hooks


def test_layers_that_are_not_called(run, pictures, caplog):
    assert run("--img", pictures / "tall.png", "--keys", "levels", "levels.0") == 0
    assert "layers that the model did not call: levels" in caplog.text


def test_bad_input(run, pictures, tmp_path, caplog, monkeypatch):
    (pictures / "broken.png").write_bytes(b"no image")
    assert run("--img", pictures) == 0 and "skipping unreadable image" in caplog.text
    assert run("--img", pictures / "tall.png", tmp_path / "none.png") == 1
    assert "none.png: no such file" in caplog.text
    assert run("--img", pictures / "broken.png", "--save", tmp_path / "x.pth") == 1
    assert "none of the 1 files could be read" in caplog.text
    (tmp_path / "file").touch()
    assert run("--img", pictures, "--save", tmp_path / "file" / "x.pth") == 1
    assert "x.pth cannot be written" in caplog.text
    shutil.rmtree(pictures)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
    (tmp_path / "no.pth").write_bytes(b"no checkpoint")
    assert extract_feature.main(["--resume", str(tmp_path / "no.pth"), "--list"]) == 1
    assert "cannot be read as a checkpoint" in caplog.text


def test_command_line(nano_yaml, tmp_path, caplog):
    done = run_program("extract_feature.py", "--cfg", nano_yaml, cwd=tmp_path)
    assert done.returncode == 2 and "--img is missing" in done.stderr
    with pytest.raises(SystemExit):
        extract_feature.main(["--cfg", str(nano_yaml), "--img", "x.png", "--save", "x.txt"])
    assert extract_feature.main(["--cfg", str(nano_yaml), "--list"]) == 0
    assert "the weights are random" in caplog.text
    assert extract_feature.main(["--list"]) == 1
    assert "no model: give --resume CKPT" in caplog.text
    assert extract_feature.main(["--cfg", str(nano_yaml), "--ema", "--list"]) == 1
    assert "--ema needs a checkpoint" in caplog.text


def test_images_that_a_model_cannot_take(nano_yaml, pictures, caplog):
    options = ["MODEL.INTERN_IMAGE.USE_CLIP_PROJECTOR", "True", "DATA.IMG_SIZE", "64"]
    flags = ["--cfg", str(nano_yaml), "--opts", *options, "--img", str(pictures / "tall.png")]
    assert extract_feature.main(flags) == 0  # 64x96
    with Image.open(pictures / "tall.png") as image:
        image.resize((64, 80)).save(pictures / "tall.png")
    assert extract_feature.main(flags) == 1
    assert "tall.png: A model with the clip projector" in caplog.text
    assert "--crop cuts the centre square" in caplog.text
    assert extract_feature.main([*flags, "--crop"]) == 0
