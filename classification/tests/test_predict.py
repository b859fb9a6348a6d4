"""predict.py: what it prints and writes, which names it uses, what it does with bad input."""

import json

import pytest
import torch
from helpers import CLASSES, run_program
from PIL import Image

import predict
from contact_sheet import Card, draw_sheet, font, shorten, wrap
from models.safe_load import load_file


def run(checkpoint, *args) -> int:
    return predict.main(["--resume", str(checkpoint), "--device", "cpu", *map(str, args)])


@pytest.fixture
def checkpoint(trained):
    return trained / "ckpt_epoch_best.pth"


def test_folder_agrees_with_the_evaluation(checkpoint, nano_yaml, colours, tmp_path, capsys):
    out, lines = tmp_path / "made" / "sheet.png", tmp_path / "made" / "out.jsonl"
    flags = ["--cfg", nano_yaml, "--topk", 3, "--out", out, "--json", lines, "--batch-size", 5]
    assert run(checkpoint, *flags, colours / "val") == 0
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(records) == 22 and all(len(record["topk"]) == 3 for record in records)
    accuracy = 100 * sum(record["correct"] for record in records) / 22
    assert accuracy == pytest.approx(load_file(checkpoint)["max_accuracy"])
    assert f"22 images, accuracy {accuracy:.1f}% (" in capsys.readouterr().out
    for record in records:
        assert CLASSES[record["label"]] == record["label_name"] == record["file"].split("/")[-2]
        shares = [row["probability"] for row in record["topk"]]
        assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1.00001
        assert all(CLASSES[row["class"]] == row["name"] for row in record["topk"])
    with Image.open(out) as sheet:
        assert sheet.format == "PNG" and sheet.width > 600 and sheet.height > 600


def test_configuration_of_the_checkpoint_is_enough(checkpoint, colours, tmp_path, capsys):
    image = colours / "val" / "red" / "000.png"
    assert run(checkpoint, image) == 0
    from_checkpoint = capsys.readouterr().out
    assert from_checkpoint.startswith(str(image)) and from_checkpoint.count("%  ") == 4
    assert run(checkpoint, image, "--opts", "DATA.IMG_SIZE", "64") == 0
    assert capsys.readouterr().out != from_checkpoint
    bare = {k: v for k, v in load_file(checkpoint).items() if k != "config"}
    torch.save(bare, tmp_path / "bare.pth")
    assert run(tmp_path / "bare.pth", image) == 1


def test_keys_of_other_versions_in_the_configuration_are_ignored(checkpoint, colours, tmp_path):
    state = load_file(checkpoint)
    state["config"]["native_amp"] = True
    state["config"]["MODEL"]["SOMETHING_ELSE"] = {"A": 1}
    torch.save(state, tmp_path / "x.pth")
    assert run(tmp_path / "x.pth", colours / "val" / "red" / "000.png") == 0


def test_unreadable_images_are_named_and_skipped(checkpoint, colours, tmp_path, capsys, caplog):
    (tmp_path / "broken.png").write_bytes(b"no image")
    good = (colours / "val" / "green" / "000.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(good[: len(good) // 2])
    assert run(checkpoint, tmp_path) == 1
    assert "broken.png" in caplog.text and "cut.png" in caplog.text
    assert "none of the 2 files could be read" in caplog.text
    (tmp_path / "fine.png").write_bytes(good)
    assert run(checkpoint, tmp_path) == 0
    assert "1 image, 2 unreadable and skipped" in capsys.readouterr().out


def test_inputs(colours, tmp_path):
    red = colours / "val" / "red"
    pattern, folder, file = str(red / "00[01].png"), str(red), str(red / "000.png")
    found, problems = predict.find_images([file, pattern, folder, "none.png", str(tmp_path)])
    assert [path.name for path in found] == [f"00{i}.png" for i in range(5)]
    assert len(problems) == 2 and "none.png" in problems[0] and str(tmp_path) in problems[1]
    found, _ = predict.find_images([str(colours / "val")])
    assert len(found) == 22
    found, _ = predict.find_images([str(colours / "**" / "000.png")])
    assert len(found) == 8


def test_names_without_class_names(checkpoint, nano_config, colours, tmp_path, capsys):
    """ImageNet names by class count, else numbers; folders named by WordNet id give the truth."""
    from config import config_to_dict
    from models import build_model

    image = colours / "val" / "red" / "000.png"
    state = load_file(checkpoint)
    state["class_names"] = None
    torch.save(state, tmp_path / "x.pth")
    assert run(tmp_path / "x.pth", image) == 0
    assert "class 3" in capsys.readouterr().out
    nano_config.MODEL.NUM_CLASSES, nano_config.DATA.DATASET = 1000, "imagenet"
    model = build_model(nano_config)
    with torch.no_grad():
        model.head.bias[0] = 100.0
    saved = {"model": model.state_dict(), "config": config_to_dict(nano_config)}
    torch.save(saved, tmp_path / "y.pth")
    (tmp_path / "n01440764").mkdir()
    (tmp_path / "n01440764" / "fish.png").write_bytes(image.read_bytes())
    assert run(tmp_path / "y.pth", tmp_path / "n01440764") == 0
    printed = capsys.readouterr().out
    assert "tench" in printed and "accuracy 100.0% (1 of 1 labelled)" in printed


def test_imagenet_names_are_not_given_to_other_data(nano_config, colours, tmp_path, capsys):
    from config import config_to_dict
    from models import build_model

    nano_config.MODEL.NUM_CLASSES = 1000  # a folder or list of 1000 other classes
    state = {"model": build_model(nano_config).state_dict()}
    torch.save({**state, "config": config_to_dict(nano_config)}, tmp_path / "x.pth")
    assert run(tmp_path / "x.pth", colours / "val" / "red" / "000.png") == 0
    assert capsys.readouterr().out.count("%  class ") == 5


def test_moving_average(checkpoint, colours, tmp_path, capsys, caplog):
    image = colours / "val" / "red" / "000.png"
    state = load_file(checkpoint)
    torch.save({**state, "model": state["model_ema"]}, tmp_path / "average.pth")
    assert run(tmp_path / "average.pth", image) == 0
    average = capsys.readouterr().out
    assert run(checkpoint, image, "--ema") == 0
    assert capsys.readouterr().out == average
    assert run(checkpoint, image) == 0
    assert capsys.readouterr().out != average
    del state["model_ema"]
    torch.save(state, tmp_path / "none.pth")
    assert run(tmp_path / "none.pth", image, "--ema") == 1
    assert "has no moving average" in caplog.text


def test_files_that_are_there_are_replaced_by_whole_ones(
    checkpoint, colours, tmp_path, monkeypatch, caplog
):
    image, rows, sheet = colours / "val/red/000.png", tmp_path / "rows.json", tmp_path / "x.png"
    rows.write_text("before")
    sheet.mkdir()
    assert run(checkpoint, image, "--json", rows, "--out", sheet) == 1
    assert f"{sheet} cannot be written (it is a folder)" in caplog.text
    assert rows.read_text().startswith("{")

    def full(*args):
        raise OSError(28, "No space left on device")

    rows.write_text("before")
    monkeypatch.setattr(predict, "_json_record", full)
    assert run(checkpoint, image, "--json", rows) == 1
    assert rows.read_text() == "before" and len(list(tmp_path.iterdir())) == 2


def test_command_line(checkpoint, tmp_path, caplog):
    done = run_program("predict.py", "--resume", checkpoint, "--topp", "3", "x.png", cwd=tmp_path)
    assert done.returncode == 2 and "did you mean --topk?" in done.stderr
    with pytest.raises(SystemExit):
        predict.main(["--resume", "x", "--topk", "0", "x.png"])
    with pytest.raises(SystemExit):
        run(checkpoint, "x.png", "--out", tmp_path / "sheet.xyz")
    assert run("none.pth", checkpoint) == 1
    assert run(checkpoint, "none.png") == 1
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    assert run(checkpoint, tmp_path / "a.png", tmp_path / "none.png") == 1  # one is missing
    assert run(checkpoint, tmp_path / "a.png", "--opts", "DATA.IMG_SIZE.X", "3") == 1
    assert "--opts: unknown configuration key 'DATA.IMG_SIZE.X'" in caplog.text


# --------------------------------------------------------------------------------- contact sheet
def test_wrapping():
    face = font(16)
    text = "great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias"
    for lines in (1, 2, 3):
        rows = wrap(text, face, 150, lines)
        assert len(rows) == lines and all(face.getlength(row) <= 150 for row in rows)
        assert rows[-1].endswith("…")
    rows = wrap(text, face, 150, 99)
    assert " ".join(rows) == text
    long = wrap("x" * 80, face, 100, 99)
    assert "".join(long) == "x" * 80 and all(face.getlength(row) <= 100 for row in long)
    assert wrap("", face, 100, 2) == [""]
    short = shorten("a_long_file_name_0001.jpg", face, 120)
    assert face.getlength(short) <= 120 and short.startswith("a_") and short.endswith(".jpg")


def test_sheet_colours_tell_right_from_wrong(colours):
    path = colours / "val" / "grey" / "000.png"
    colour = {None: (59, 111, 182), True: (46, 139, 87), False: (200, 67, 58)}
    for correct, wanted in colour.items():
        truth = None if correct is None else "grey"
        sheet = draw_sheet([Card(path, "grey", 0.9, truth, correct)], "title", ["caption"])
        found = {value for _, value in sheet.getcolors(1 << 20)}
        assert wanted in found
        assert not (set(colour.values()) - {wanted}) & found
    many = draw_sheet([Card(path, "grey", 0.5)] * 130, "title", ["caption"])
    assert many.width <= 2 * 28 + 8 * 250
