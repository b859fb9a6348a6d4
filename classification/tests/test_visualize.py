"""tools/visualize.py and visualization/: the numbers behind the pictures, and the pictures."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
from helpers import CLASSIFICATION, run_program
from PIL import Image
from torch import nn

import model_source
from models import FlashInternImageClassifier, InternImageClassifier
from ops_dcnv3.functions import dcnv3
from ops_dcnv3.modules import DCNv3, DCNv4
from visualization import feature_pca, grad_cam, pictures, receptive_field, sampling

pytest.importorskip("matplotlib", reason="pip install -r requirements/tools.txt")

spec = importlib.util.spec_from_file_location(
    "visualize", CLASSIFICATION / "tools" / "visualize.py"
)
visualize = importlib.util.module_from_spec(spec)
spec.loader.exec_module(visualize)
SMALL = {"channels": 16, "depths": (1, 2), "groups": (2, 4), "num_classes": 3}


def source_of(model: nn.Module, config) -> model_source.Source:
    """The model with random offsets and masks."""
    for name, parameter in model.named_parameters():
        if ".offset" in name or ".mask" in name:
            nn.init.normal_(parameter, std=0.1)
    cpu = torch.device("cpu")
    return model_source.Source(model.eval(), config, cpu, ["cat", "dog, hound", "owl"], "test")


@pytest.fixture
def source(nano_config):
    torch.manual_seed(0)
    nano_config.MODEL.NUM_CLASSES = 3
    return source_of(InternImageClassifier(**SMALL), nano_config)


def picture_of(images: torch.Tensor) -> pictures.Picture:
    height, width = images.shape[-2:]
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    return pictures.Picture(CLASSIFICATION / "x.png", images, pixels)


# ---------------------------------------------------------------------------------- sampling points
@pytest.mark.parametrize("options", [{}, {"dw_kernel_size": 5}, {"remove_center": True}])
@pytest.mark.parametrize("kind", [DCNv3, DCNv4])
def test_points_are_those_that_the_layer_samples(kind, options):
    """Sampling the layer's values at the points by hand gives the layer's output."""
    torch.manual_seed(0)
    layer = kind(channels=8, group=2, offset_scale=1.5, **options).eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(1, 6, 7, 8)
    offset, weight = sampling.offset_and_weight(layer, x)
    value = (layer.input_proj if kind is DCNv3 else layer.value_proj)(x)
    sampled = dcnv3(
        value, offset, weight, group=2, offset_scale=1.5, remove_center=layer.remove_center
    )
    torch.testing.assert_close(layer.output_proj(sampled), layer(x), rtol=1e-4, atol=1e-5)


def test_points_of_all_layers(source):
    layers = sampling.layer_points(source, torch.randn(1, 3, 32, 48))
    assert [(layer.level, layer.block) for layer in layers] == [(0, 0), (1, 0), (1, 1)]
    assert [layer.size for layer in layers] == [(8, 12), (4, 6), (4, 6)]
    assert layers[2].x.shape == (4, 6, 4, 9) and layers[2].groups == 4
    torch.testing.assert_close(layers[0].weight.sum(-1), torch.ones(8, 12, 2))
    grid = torch.stack([layers[1].grid_x, layers[1].grid_y], -1).tolist()
    assert grid == [[x, y] for x in (-1, 0, 1) for y in (-1, 0, 1)]
    assert not any(module._forward_pre_hooks for module in source.model.modules())


def regular(level: int, size: tuple[int, int]) -> sampling.LayerPoints:
    """A layer whose points are the 3x3 neighbours with equal weights, two groups."""
    rows, columns = (torch.arange(n).float() for n in size)
    grid_x = torch.tensor([-1.0, 0, 1]).repeat_interleave(3)
    grid_y = torch.tensor([-1.0, 0, 1]).repeat(3)
    shape = (*size, 2, 9)
    x = (columns[None, :, None, None] + grid_x).expand(shape)
    y = (rows[:, None, None, None] + grid_y).expand(shape)
    return sampling.LayerPoints(level, 0, x, y, torch.full(shape, 1 / 9), grid_x, grid_y)


def test_accumulated_points():
    """Two 3x3 means make a triangle; between levels positions double."""
    x, y, share = sampling.accumulate([regular(0, (9, 9)), regular(0, (9, 9))], (4, 4))
    total = torch.zeros(9, 9)
    total.index_put_((y.long(), x.long()), share, accumulate=True)
    triangle = torch.tensor([0.0, 0, 1, 2, 3, 2, 1, 0, 0]) / 9
    torch.testing.assert_close(total, triangle[:, None] * triangle)
    x, y, share = sampling.accumulate([regular(0, (16, 15)), regular(1, (8, 8))], (2, 5))
    assert float(share.sum()) == pytest.approx(1)
    assert (x.min(), x.max(), y.min(), y.max()) == (7, 13, 1, 7)
    _, _, share = sampling.accumulate([regular(0, (4, 4))], (0, 0))
    assert float(share.sum()) == pytest.approx(4 / 9)  # the others lie outside


def test_fractional_points_share_their_weight():
    layer = regular(0, (9, 9))
    moved = sampling.LayerPoints(
        0, 0, layer.x + 0.25, layer.y, layer.weight, layer.grid_x, layer.grid_y
    )
    x, _, share = sampling.accumulate([layer, moved], (4, 4))
    assert float((x * share).sum()) == pytest.approx(4.25)
    assert float(share.sum()) == pytest.approx(1)


# -------------------------------------------------------------------------------- receptive field
def test_receptive_field_of_a_known_network(nano_config):
    """Without offsets: the stem reaches 3 pixels, each 3x3 block of level 0 adds 4, and so on."""
    model = InternImageClassifier(**{**SMALL, "depths": (1, 1)})
    with torch.no_grad():
        for level in model.levels:  # no offset branch: only the sampling grid looks around
            level.blocks[0].dcn.dw_conv[0].weight.zero_()
    source = model_source.Source(model.eval(), nano_config, torch.device("cpu"), None, "test")
    picture = picture_of(torch.randn(1, 3, 64, 96))
    fields = receptive_field.receptive_fields(source, [picture], [0, 1])
    for field, reach in zip(fields, (3 + 4, 3 + 4 + 4 + 8), strict=True):
        rows, columns = np.nonzero(field > 1e-9)
        assert field.sum() == pytest.approx(1)
        assert (rows.min(), rows.max()) == (32 - reach, 32 + reach)
        assert (columns.min(), columns.max()) == (48 - reach, 48 + reach)
    with pytest.raises(ValueError, match="different sizes"):
        other = picture_of(torch.randn(1, 3, 32, 32))
        receptive_field.receptive_fields(source, [picture, other], [0])


def test_squares_that_hold_a_share():
    field = np.zeros((9, 9))
    field[4, 4], field[4, 6], field[0, 4] = 5, 4, 1
    assert receptive_field.square_around(field, (4, 4), 0.5) == 0
    assert receptive_field.square_around(field, (4, 4), 0.9) == 2
    assert receptive_field.square_around(field, (4, 4), 0.95) == 4


# -------------------------------------------------------------------------------------- Grad-CAM
def test_grad_cam_finds_what_a_channel_shows(source):
    """A head that reads one channel: the map is that channel, as far as it is positive."""

    class Head(nn.Module):
        def __init__(self, levels: nn.ModuleList) -> None:
            super().__init__()
            self.levels = levels

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            feature = self.levels[0](x.permute(0, 2, 3, 1))
            means = feature.mean((1, 2))
            return torch.stack([means[:, 0], -means[:, 0], 0 * means[:, 1]], 1)

    source.model = Head(nn.ModuleList([nn.Identity()]))
    images = torch.randn(1, 3, 6, 8)
    picture = picture_of(images)
    found = grad_cam.class_map(source, picture, 0, 0)
    expected = images[0, 0].relu() / images[0, 0].max()
    np.testing.assert_allclose(found.coarse, expected.numpy(), atol=1e-6)
    assert found.fine.shape == (6, 8) and found.fine.max() <= 1
    found = grad_cam.class_map(source, picture, 0, 1)
    np.testing.assert_allclose(
        found.coarse, (-images[0, 0]).relu() / -images[0, 0].min(), atol=1e-6
    )
    assert not grad_cam.class_map(source, picture, 0, 2).coarse.any()
    mean = float(images[0, 0].mean())
    assert grad_cam.class_map(source, picture, 0, None).label == (0 if mean > 0 else 1)


def test_classes_by_number_and_name(source):
    assert grad_cam.find_class(source, None) is None
    assert [grad_cam.find_class(source, text) for text in ("2", "Hound", "dog, hound")] == [2, 1, 1]
    for text, message in (("3", "classes are 0 to 2"), ("houndd", "nearest: hound")):
        with pytest.raises(ValueError, match=message):
            grad_cam.find_class(source, text)
    source.names = None
    with pytest.raises(ValueError, match="names are not known"):
        grad_cam.find_class(source, "owl")


# ------------------------------------------------------------------------------------------- PCA
def test_principal_colours_tell_regions_apart():
    generator = torch.Generator().manual_seed(0)
    kinds = 10 * torch.randn(3, 12, generator=generator)
    feature = 0.01 * torch.randn(8, 9, 12, generator=generator)
    for index in range(3):
        feature[:, 3 * index : 3 * index + 3] += kinds[index]
    (colours, other), explained = feature_pca.principal_colours([feature, feature[:, 3:6]])
    assert colours.shape == (8, 9, 3) and other.shape == (8, 3, 3) and explained > 0.99
    assert colours.min() >= 0 and colours.max() <= 1
    np.testing.assert_allclose(colours[:, 3:6, :2], other[..., :2], atol=1e-9)
    means = [colours[:, 3 * index : 3 * index + 3, :2].mean((0, 1)) for index in range(3)]
    gaps = [np.abs(means[a] - means[b]).max() for a, b in ((0, 1), (0, 2), (1, 2))]
    assert min(gaps) > 0.3
    assert feature_pca.principal_colours([feature[:1, :3]]) == (None, 0.0)
    assert feature_pca.principal_colours([torch.ones(4, 4, 2)]) == (None, 0.0)
    two, _ = feature_pca.principal_colours([feature[..., :2]])
    assert two[0].shape == (8, 9, 3)


# ------------------------------------------------------------------------------------ the program
KINDS = {
    "points": ["--level", "1", "--group", "1", "--depth", "9"],
    "receptive-field": ["--levels", "0", "1", "2"],
    "grad-cam": ["--class", "red", "--level", "1"],
    "pca": [],
}


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_written(kind, trained, colours, tmp_path, capsys):
    out = tmp_path / "made" / "picture.png"
    images = [str(path) for path in sorted((colours / "val" / "red").iterdir())[:2]]
    flags = ["--resume", str(trained / "ckpt_epoch_best.pth"), "--img", *images]
    assert visualize.main([kind, *flags, "--out", str(out), *KINDS[kind]]) == 0
    assert capsys.readouterr().out == f"written: {out}\n"
    with Image.open(out) as picture:
        assert picture.format == "PNG" and picture.width > 500 and picture.height > 300
        pixels = np.asarray(picture.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
    border = np.concatenate([pixels[:2].ravel(), pixels[-2:].ravel(), pixels[:, :2].ravel()])
    assert (border > 200).mean() > 0.9  # nothing is cut off at the top, the bottom or the left
    assert [path.name for path in out.parent.iterdir()] == ["picture.png"]


def test_no_more_images_are_read_than_drawn(trained, colours, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(visualize, "MAX_ROWS", 1)
    images = sorted((colours / "val" / "red").iterdir())
    read = []
    decode = pictures.decode_image
    monkeypatch.setattr(pictures, "decode_image", lambda path: read.append(path) or decode(path))
    flags = ["--resume", str(trained / "ckpt_epoch_best.pth"), "--out", str(tmp_path / "x.png")]
    assert visualize.main(["pca", *flags, "--img", *map(str, images)]) == 0
    assert read == images[:1]
    assert f"the first 1 of {len(images)} images are used" in caplog.text


def test_flash_intern_image(nano_config):
    """DCNv4, whose weights have signs."""
    flash = source_of(FlashInternImageClassifier(**SMALL), nano_config)
    picture = picture_of(torch.randn(1, 3, 32, 32))
    options = {"level": 1, "block": None, "pixel": (1, 2), "group": None, "depth": 2}
    figure = sampling.draw(flash, [picture], **options)
    assert "DCNv4" in figure.get_suptitle()
    text = figure.get_supxlabel()
    assert "output pixel (1, 2), all 4 groups" in text.replace("\n", " ")
    assert "through 2 layers" in text.replace("\n", " ")
    for name, parameter in flash.model.named_parameters():
        if ".offset_mask." in name:
            torch.nn.init.zeros_(parameter)
    right = sampling.draw(flash, [picture], **options).axes[1]
    assert right.get_title() == "through 2 layers: all weights are 0" and not right.collections


def test_bad_requests(trained, colours, tmp_path, caplog):
    out = tmp_path / "x.png"
    red = str(colours / "val" / "red" / "000.png")

    def fails(kind: str, *args: str, image: str = red, place: object = out) -> str:
        caplog.clear()
        flags = ["--resume", str(trained / "ckpt_epoch_best.pth"), "--out", str(place)]
        assert visualize.main([kind, *flags, "--img", image, *args]) == 1
        assert not out.exists()
        return caplog.text

    assert "the model has the levels 0 to 3" in fails("points", "--level", "4")
    assert "level 1 has the blocks 0 to 0" in fails("points", "--level", "1", "--block", "1")
    assert "level 1 has the groups 0 to 1" in fails("points", "--level", "1", "--group", "2")
    text = fails("points", "--level", "1", "--pixel", "4", "0")
    assert "has the rows 0 to 3 and the columns 0 to 3" in text
    assert "--depth must be at least 1" in fails("points", "--depth", "0")
    assert "the model has the levels" in fails("receptive-field", "--levels", "-1")
    assert "the model has the levels" in fails("pca", "--levels", "7")
    assert "its map is a single pixel" in fails("grad-cam")
    assert "nearest: red" in fails("grad-cam", "--class", "redd")
    assert "no such file" in fails("pca", image=str(tmp_path / "none.png"))
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert "none of the 1 files" in fails("pca", image=str(tmp_path / "broken.png"))
    (tmp_path / "file").touch()
    assert "cannot be written" in fails("pca", place=tmp_path / "file" / "x.png")
    assert visualize.main(["pca", "--img", red, "--out", str(out)]) == 1
    assert "no model: give --resume CKPT" in caplog.text


def test_without_matplotlib(trained, colours, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    flags = ["--resume", str(trained / "ckpt_epoch_best.pth"), "--out", str(tmp_path / "x.png")]
    assert visualize.main(["pca", *flags, "--img", str(colours / "val" / "red")]) == 1
    assert "matplotlib is missing" in caplog.text and "requirements/tools.txt" in caplog.text


def test_command_line(tmp_path):
    done = run_program(
        "tools/visualize.py", "pca", "--img", "x.png", "--out", "x.gif", cwd=tmp_path
    )
    assert done.returncode == 2 and "must end in .png" in done.stderr
