"""convert.py: a checkpoint becomes a folder for transformers, and a folder a checkpoint."""

import json
import os
import sys

import numpy as np
import pytest
import torch
from helpers import CLASSES as COLOURS
from helpers import NANO, run_program
from huggingface_helpers import CODE, IS_4, tiny_model, transformers
from PIL import Image

import predict
from config import load_config_file
from dataset.transforms import build_transform
from huggingface import InternImageForImageClassification, convert, folder
from huggingface.image_processing import image_size_of, preprocessor_config
from models import build_model
from models.released import released_model
from models.safe_load import load_file


@pytest.fixture(scope="module")
def checkpoint(trained):
    return trained / "ckpt_epoch_best.pth"


@pytest.fixture(scope="module")
def converted(tmp_path_factory, checkpoint):
    """A folder made from the checkpoint of a finished training run. Do not write into it."""
    output = tmp_path_factory.mktemp("converted") / "nano"
    assert convert.main(["--checkpoint", str(checkpoint), "--output", str(output)]) == 0
    return output


def test_the_folder_is_complete(converted):
    names = {file.name for file in converted.iterdir()}
    assert names == {
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json",
        *CODE,
    }  # fmt: skip
    assert len(CODE) == 10
    config = json.loads((converted / "config.json").read_text())
    assert config["model_type"] == "internimage"
    assert config["architectures"] == ["InternImageForImageClassification"]
    assert set(config["auto_map"]) == {
        "AutoConfig", "AutoModel", "AutoModelForImageClassification", "AutoBackbone"
    }  # fmt: skip
    for target in config["auto_map"].values():
        module, name = target.split(".")
        assert f"class {name}(" in (converted / f"{module}.py").read_text()
    assert config["id2label"] == {str(i): name for i, name in enumerate(COLOURS)}
    assert config["label2id"] == {name: i for i, name in enumerate(COLOURS)}
    modes = {oct(file.stat().st_mode & 0o777) for file in converted.iterdir()}
    assert len(modes) == 1  # safetensors writes for the owner only
    assert [path.name for path in converted.parent.iterdir()] == ["nano"]


def test_the_model_card(converted):
    card = (converted / "README.md").read_text()
    head, body = card.removeprefix("---\n").split("---\n", 1)
    for line in (
        "license: mit",
        "library_name: transformers",
        "pipeline_tag: image-classification",
    ):
        assert line in head.splitlines()
    for part in ("# nano\n", "arxiv.org/abs/2211.05778", "4 classes", "32x32", "trust_remote_code",
                 "ckpt_epoch_best.pth", "@inproceedings"):  # fmt: skip
        assert part in body
    assert "{" not in body.split("```bibtex")[0].replace("{'", "")


def test_same_predictions_as_predict_py(converted, checkpoint, colours):
    """The pixels and the logits."""
    files = sorted((colours / "val").rglob("*.png"))[:6]
    args = predict.parse_args(["--resume", str(checkpoint), *map(str, files)])
    classifier, _ = predict.load_classifier(args)
    transform = build_transform(False, classifier.config)
    images = [Image.open(file).convert("RGB") for file in files]
    want_pixels = torch.stack([transform(image) for image in images])
    processor = transformers.CLIPImageProcessor.from_pretrained(converted)
    got_pixels = processor(images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(got_pixels, want_pixels, rtol=0, atol=1e-6)
    model = InternImageForImageClassification.from_pretrained(converted)
    assert not model.training
    with torch.no_grad():
        torch.testing.assert_close(model(want_pixels).logits, classifier.model(want_pixels))


def test_back_and_forth_is_bitwise(converted, checkpoint, tmp_path):
    back = tmp_path / "made" / "back.pth"
    assert convert.main(["--to-pth", str(converted), str(back)]) == 0
    original, again = load_file(checkpoint), load_file(back)
    assert list(again["model"]) and set(again["model"]) == set(original["model"])
    for key, value in original["model"].items():
        assert again["model"][key].dtype == value.dtype
        assert torch.equal(again["model"][key], value), key
    assert again["class_names"] == list(COLOURS)
    assert again["config"]["MODEL"]["INTERN_IMAGE"] == original["config"]["MODEL"]["INTERN_IMAGE"]
    assert again["config"]["DATA"]["IMG_SIZE"] == 32
    assert convert.main(["--checkpoint", str(back), "--output", str(tmp_path / "again")]) == 0
    first, second = ((where / "model.safetensors").read_bytes()
                     for where in (converted, tmp_path / "again"))  # fmt: skip
    assert first == second


def test_predict_reads_a_checkpoint_made_from_a_folder(converted, tmp_path, colours, capsys):
    back = tmp_path / "back.pth"
    assert convert.main(["--to-pth", str(converted), str(back)]) == 0
    image = next((colours / "val" / "red").iterdir())
    capsys.readouterr()
    assert predict.main(["--resume", str(back), str(image), "--topk", "4"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in COLOURS)


def test_moving_average(converted, checkpoint, tmp_path):
    output = tmp_path / "ema"
    assert convert.main(["--checkpoint", str(checkpoint), "--ema", "--output", str(output)]) == 0
    average = load_file(checkpoint)["model_ema"]
    _, state, _ = folder.read(output)
    for key, value in folder.from_huggingface(state).items():
        assert torch.equal(value, average[key]), key
    assert (output / "model.safetensors").read_bytes() != (
        converted / "model.safetensors"
    ).read_bytes()


OPTIONS = """
    LAYER_SCALE: 1e-5
    POST_NORM: True
    DW_KERNEL_SIZE: 5
    REMOVE_CENTER: True
    OFFSET_SCALE: 0.5
"""


def test_by_configuration_file_with_unnamed_classes(tmp_path, capsys):
    """Every option survives the way to the folder and back."""
    text = NANO.replace("    CHANNELS: 16\n", "    CHANNELS: 16" + OPTIONS)
    (tmp_path / "own.yaml").write_text(text)
    config = load_config_file(tmp_path / "own.yaml").clone()
    config.defrost()
    config.MODEL.NUM_CLASSES = 7
    torch.manual_seed(0)
    model = build_model(config)
    torch.save({"module." + k: v for k, v in model.state_dict().items()}, tmp_path / "own.pth")
    arguments = ["--cfg", str(tmp_path / "own.yaml"), "--checkpoint", str(tmp_path / "own.pth")]
    assert convert.main([*arguments, "--output", str(tmp_path / "own")]) == 0
    assert "7 classes (LABEL_0, LABEL_1, ...), 32 pixels" in capsys.readouterr().out
    hf = InternImageForImageClassification.from_pretrained(tmp_path / "own")
    assert hf.config.id2label[6] == "LABEL_6" and hf.config.remove_center
    with torch.no_grad():
        x = torch.randn(1, 3, 32, 32)
        torch.testing.assert_close(hf(x).logits, model.eval()(x))
    assert convert.main(["--to-pth", str(tmp_path / "own"), str(tmp_path / "back.pth")]) == 0
    back = load_file(tmp_path / "back.pth")
    assert back["class_names"] is None
    assert back["config"]["MODEL"]["INTERN_IMAGE"] == config.MODEL.INTERN_IMAGE
    assert back["config"]["MODEL"]["DROP_PATH_RATE"] == config.MODEL.DROP_PATH_RATE


@pytest.mark.parametrize(
    ("name", "section", "top1"),
    [
        ("internimage_s_1k_224", "INTERN_IMAGE", "84.2 %"),
        ("flash_intern_image_s_1k_224", "FLASH_INTERN_IMAGE", "84.4 %"),
    ],
)
def test_a_released_model_by_name(tmp_path, name, section, top1):
    """With all of its options but the size."""
    row = released_model(name)
    sizes = {"CHANNELS": 16, "DEPTHS": [1] * 4, "GROUPS": [1, 2, 4, 8]}
    opts = [word for key in sizes for word in (f"MODEL.{section}.{key}", str(sizes[key]))]
    config = load_config_file(convert.HERE.parent / row.config, opts)
    torch.manual_seed(0)
    model = build_model(config).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "c.pth")
    arguments = ["--model", name, "--checkpoint", str(tmp_path / "c.pth")]
    assert convert.main([*arguments, "--output", str(tmp_path / "hf"), "--opts", *opts]) == 0
    card = (tmp_path / "hf" / "README.md").read_text()
    assert f"# {row.title}\n" in card
    assert "Trained on ImageNet-1K." in card and top1 in card
    hf = InternImageForImageClassification.from_pretrained(tmp_path / "hf")
    assert hf.config.id2label[0].startswith("tench") and hf.num_labels == 1000
    with torch.no_grad():
        x = torch.randn(1, 3, 64, 64)
        torch.testing.assert_close(hf(x).logits, model(x))
    assert convert.main(["--to-pth", str(tmp_path / "hf"), str(tmp_path / "back.pth")]) == 0
    back = load_file(tmp_path / "back.pth")["config"]["MODEL"]
    assert back["TYPE"] == config.MODEL.TYPE and back[section] == config.MODEL[section]


def test_without_a_file_the_released_weights_are_downloaded(tmp_path, monkeypatch):
    asked = []

    def refuse(name):
        asked.append(name)
        raise convert.CheckpointError("no network here")

    monkeypatch.setattr(convert.hub, "checkpoint_path", refuse)
    assert convert.main(["--model", "internimage_t_1k_224", "--output", str(tmp_path / "x")]) == 1
    assert asked == ["internimage_t_1k_224"] and not (tmp_path / "x").exists()


# --- errors ---------------------------------------------------------------------------------------


def message(caplog, *arguments):
    caplog.clear()
    assert convert.main([str(argument) for argument in arguments]) == 1
    assert len(caplog.messages) == 1 or caplog.records[-1].levelname == "ERROR"
    return caplog.messages[-1]


def test_wrong_checkpoints(checkpoint, tmp_path, caplog):
    whole = load_file(checkpoint)
    out = ["--output", tmp_path / "out"]

    def saved(name, **changes):
        torch.save({**whole, **changes}, tmp_path / name)
        return ["--checkpoint", tmp_path / name]

    state = dict(whole["model"])
    bias = state.pop("levels.1.blocks.0.norm2.0.bias")
    assert "1 missing: levels.1.blocks.0.norm2.0.bias)" in message(
        caplog, *saved("a.pth", model=state), *out
    )
    state["levels.1.blocks.0.norm2.0.bias"] = bias[:3]
    assert "1 in size: levels.1.blocks.0.norm2.0.bias (3,) instead of (32,)" in message(
        caplog, *saved("b.pth", model=state), *out
    )
    extra = {**whole["model"], "levels.9.thing": bias}
    assert "1 not in the model: levels.9.thing" in message(
        caplog, *saved("c.pth", model=extra), *out
    )
    headless = {k: v for k, v in whole["model"].items() if not k.startswith("head.")}
    assert "has no classification head" in message(caplog, *saved("d.pth", model=headless), *out)
    assert "carries no configuration: give --model NAME or --cfg FILE" in message(
        caplog, *saved("e.pth", config=None), *out
    )
    assert "has no moving average: leave --ema out" in message(
        caplog, *saved("f.pth", model_ema=None), "--ema", *out
    )
    assert "has 4 classes, internimage_t_1k_224 has 1000" in message(
        caplog, "--model", "internimage_t_1k_224", "--checkpoint", checkpoint, *out
    )
    name = "internimage_h_22ktoinat18_384"
    assert "takes place and date beside the image" in message(
        caplog, "--model", name, "--checkpoint", checkpoint, *out
    )
    assert "Did you mean 'internimage_t_1k_224'?" in message(
        caplog, "--model", "internimage_t_1k_22", "--checkpoint", checkpoint, *out
    )
    assert "does not exist" in message(caplog, "--checkpoint", tmp_path / "no.pth", *out)
    (tmp_path / "cut.pth").write_bytes(checkpoint.read_bytes()[:1000])
    assert "truncated, damaged" in message(caplog, "--checkpoint", tmp_path / "cut.pth", *out)
    assert not (tmp_path / "out").exists()


def test_another_size_is_named(checkpoint, tmp_path, caplog):
    (tmp_path / "big.yaml").write_text(NANO.replace("CHANNELS: 16", "CHANNELS: 32"))
    said = message(caplog, "--cfg", tmp_path / "big.yaml", "--checkpoint", checkpoint,
                   "--output", tmp_path / "out")  # fmt: skip
    assert "the file has channels 16, depths [1, 1, 1, 1], the model channels 32" in said


def test_existing_and_unwritable_outputs(converted, checkpoint, tmp_path, caplog):
    (tmp_path / "there").mkdir()
    source = ["--checkpoint", checkpoint, "--output"]
    assert "there exists: choose another folder" in message(caplog, *source, tmp_path / "there")
    (tmp_path / "file").write_text("")
    assert "cannot be written" in message(caplog, *source, tmp_path / "file" / "out")
    assert "exists: choose another name" in message(
        caplog, "--to-pth", converted, tmp_path / "file"
    )
    assert "cannot be written" in message(
        caplog, "--to-pth", converted, tmp_path / "file" / "x.pth"
    )


def test_a_half_written_folder_never_has_the_final_name(checkpoint, tmp_path, monkeypatch, caplog):
    seen = []

    def full_disk(source, target, **options):
        seen.append(sorted(path.name for path in tmp_path.iterdir()))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder.shutil, "copymode", full_disk)
    said = message(caplog, "--checkpoint", checkpoint, "--output", tmp_path / "out")
    assert "No space left on device" in said
    assert seen == [[f".out.{os.getpid()}.partial"]]
    assert list(tmp_path.iterdir()) == []


def test_the_rest_of_a_killed_program_with_the_same_number(checkpoint, tmp_path):
    rest = tmp_path / f".out.{os.getpid()}.partial"
    rest.mkdir()
    (rest / "half.safetensors").write_text("")
    output = tmp_path / "out"
    assert convert.main(["--checkpoint", str(checkpoint), "--output", str(output)]) == 0
    assert list(tmp_path.iterdir()) == [output] and not (output / "half.safetensors").exists()


def test_folders_that_are_none(converted, tmp_path, caplog):
    target = tmp_path / "x.pth"
    assert "give a folder in the format of transformers" in message(
        caplog, "--to-pth", tmp_path, target
    )
    for name, text in (("bert", '{"model_type": "bert"}'), ("broken", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    assert "is a 'bert' model" in message(caplog, "--to-pth", tmp_path / "bert", target)
    assert "cannot read" in message(caplog, "--to-pth", tmp_path / "broken", target)
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "config.json").write_bytes((converted / "config.json").read_bytes())
    assert "cannot read the weights in" in message(caplog, "--to-pth", cut, target)
    weights = (converted / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "cannot read the weights in" in message(caplog, "--to-pth", cut, target)
    tiny_model("model").save_pretrained(tmp_path / "trunk")
    assert "trunk has no classification head" in message(
        caplog, "--to-pth", tmp_path / "trunk", target
    )
    assert not target.exists()


def test_sharded_and_pickled_folders(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "shards", max_shard_size="500KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    (tmp_path / "pickled").mkdir()
    model.config.save_pretrained(tmp_path / "pickled")
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    for name in ("shards", "pickled"):
        _, state, _ = folder.read(tmp_path / name)
        for key, value in model.state_dict().items():
            assert torch.equal(state[key], value), key


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--checkpoint", "x.pth"], "--output DIR is missing"),
        (["--output", "x"], "--checkpoint FILE is missing"),
        (["--model", "a", "--cfg", "b", "--output", "c"], "give --model or --cfg, not both"),
        (["--to-pth", "a", "b", "--ema"], "--to-pth DIR FILE stands alone, without --ema"),
        (["--outptu", "x"], "did you mean --output?"),
    ],
)
def test_command_line(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        convert.main(arguments)
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_without_transformers(checkpoint, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "transformers", None)
    said = message(caplog, "--checkpoint", checkpoint, "--output", tmp_path / "out")
    assert said.endswith("pip install -r requirements/huggingface.txt")


def test_as_a_program(tmp_path):
    done = run_program("huggingface/convert.py", "-h", cwd=tmp_path)
    assert done.returncode == 0 and "--to-pth DIR FILE" in done.stdout


# --- image processing -----------------------------------------------------------------------------


def picture(width, height):
    """Smooth colours with detail: resizing filters differ on it."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3))
    return Image.fromarray(noise.astype(np.uint8)).resize((width, height), Image.BICUBIC)


def processors(path):
    """All processors that read the folder: {name: (processor, works on PIL images)}."""
    from transformers import AutoImageProcessor, CLIPImageProcessor

    if IS_4:
        slow, fast = {"use_fast": False}, {"use_fast": True}
    else:
        slow, fast = {"backend": "pil"}, {"backend": "torchvision"}
    return {
        "CLIP": (CLIPImageProcessor.from_pretrained(path), IS_4),
        "Auto": (AutoImageProcessor.from_pretrained(path), IS_4),
        "pil": (AutoImageProcessor.from_pretrained(path, **slow), True),
        "torchvision": (AutoImageProcessor.from_pretrained(path, **fast), False),
    }


def write_processor(path, nano_config, **changes):
    config = nano_config
    for key, value in changes.items():
        section, name = key.split("__")
        config[section][name] = value
    settings = preprocessor_config(config.DATA.IMG_SIZE, config.AUG.MEAN, config.AUG.STD,
                                   config.DATA.INTERPOLATION, config.TEST.CROP)  # fmt: skip
    path.mkdir(exist_ok=True)
    (path / "preprocessor_config.json").write_text(json.dumps(settings))
    return build_transform(False, config), settings


ONE_LEVEL = 1 / 255 / 0.224 * 1.01  # of 256, after the normalisation


@pytest.mark.parametrize(
    "changes",
    [{}, {"TEST__CROP": False}, {"DATA__INTERPOLATION": "bilinear", "AUG__MEAN": [0.5, 0.4, 0.3]}],
)
def test_processors_give_the_pixels_of_the_evaluation(tmp_path, nano_config, changes):
    """PIL: the same to the last bit. torchvision: its resizing rounds at most two levels apart."""
    transform, settings = write_processor(tmp_path, nano_config, DATA__IMG_SIZE=64, **changes)
    assert image_size_of(settings) == 64
    for name, (processor, is_pil) in processors(tmp_path).items():
        for width, height in ((64, 64), (130, 97), (97, 130), (333, 500), (40, 61), (66, 64)):
            image = picture(width, height)
            want = transform(image)
            got = processor(image, return_tensors="pt")["pixel_values"][0]
            assert got.shape == want.shape == (3, 64, 64)
            difference = (got - want).abs()
            assert difference.max() <= (1e-6 if is_pil else 2 * ONE_LEVEL), (name, width, height)
            assert difference.mean() < 1e-3


def test_where_the_crops_differ(tmp_path, nano_config):
    """Where 4n + 3 pixels are cut off, torchvision's centre lies one pixel further."""
    transform, _ = write_processor(tmp_path, nano_config, DATA__IMG_SIZE=64)
    image = picture(67, 64)
    want = transform(image)
    processor = processors(tmp_path)["pil"][0]
    got = processor(image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(got[:, :, 1:], want[:, :, :-1])
    assert not torch.equal(got, want)
