"""export.py and onnx_export.py: ONNX files compute what the models compute, at every size."""

import sys

import numpy as np
import pytest
import torch
from helpers import run_program
from torch import nn

import export
import onnx_export
from models import FlashInternImageClassifier, InternImageClassifier, InternImageMetaFormer
from models.safe_load import load_file
from ops_dcnv3.functions import Geometry, dcnv3_fused

onnx = pytest.importorskip("onnx", reason="pip install -r requirements/tools.txt")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

SMALL = {"channels": 16, "depths": (1, 1), "groups": (1, 2), "num_classes": 7}
VARIANTS = {
    "B": (InternImageClassifier, {"post_norm": True, "layer_scale": 0.5, "offset_scale": 2.0}),
    "H": (
        InternImageClassifier,
        {
            "depths": (1, 1, 1),
            "groups": (1, 2, 4),
            "res_post_norm": True,
            "dw_kernel_size": 5,
            "use_clip_projector": True,
            "level2_post_norm": True,
            "level2_post_norm_block_ids": (0,),
            "center_feature_scale": True,
            "remove_center": True,
        },
    ),
    "flash": (FlashInternImageClassifier, {"dw_kernel_size": 3, "offset_scale": 0.5}),
    "metadata": (InternImageMetaFormer, {"depths": (1,), "groups": (1,)}),
}


def build(variant: str) -> nn.Module:
    """A model whose offsets, masks and statistics are not those of initialisation."""
    torch.manual_seed(0)
    kind, options = VARIANTS[variant]
    model = kind(**{**SMALL, **options})
    for name, parameter in model.named_parameters():
        if ".offset" in name or ".mask" in name:
            nn.init.normal_(parameter, std=0.3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


def arguments(variant: str, *shape: int) -> list[torch.Tensor]:
    extra = [torch.randn(shape[0], 4), torch.randn(shape[0], 3)] if variant == "metadata" else []
    return [torch.randn(shape[0], 3, *shape[1:]), *extra]


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_size_computes_what_pytorch_computes(variant, tmp_path, monkeypatch):
    is_large = variant == "B"  # as if one file could not hold the weights
    if is_large:
        monkeypatch.setattr(onnx_export, "SINGLE_FILE_LIMIT", 1000)
    model, path = build(variant), tmp_path / "made" / "model.onnx"
    onnx_export.export_onnx(model, arguments(variant, 1, 64, 64), path, dynamic=True)
    runtime = onnx_export.OnnxModel(path)
    sizes = [(1, 64, 64), (3, 48, 80), (2, 16, 16)]
    if variant != "H":
        sizes += [(1, 33, 50), (1, 8, 8)]  # the last map is one pixel
    for shape in sizes:
        result = onnx_export.compare(model, runtime, arguments(variant, *shape))
        assert result.error < 2e-5 * max(1, result.largest) and result.largest > 0.05, result
    names = [item.name for item in runtime.session.get_inputs()]
    assert names == ["input", "temporal", "spatial"][: len(names)]
    assert [item.name for item in runtime.session.get_outputs()] == ["output"]
    file = onnx.load(path)
    assert {entry.domain: entry.version for entry in file.opset_import}[""] >= 16
    assert {node.domain for node in file.graph.node} == {""} and not file.functions
    blocks = sum(model.depths)
    assert sum(node.op_type == "GridSample" for node in file.graph.node) == blocks
    written = ["model.onnx", "model.onnx.data"] if is_large else ["model.onnx"]
    assert sorted(p.name for p in path.parent.iterdir()) == written


def test_command_line(trained, tmp_path, monkeypatch, capsys, caplog):
    """Also: the comparison is with the model, not with the exporter's word for it."""
    path = tmp_path / "nano.onnx"
    flags = ["--resume", str(trained / "ckpt_epoch_best.pth"), "--output", str(path)]
    assert export.main(["--onnx", *flags, "--shape", "32", "48"]) == 0
    printed = capsys.readouterr().out
    assert "fixed shape" in printed and "same in ONNX Runtime on 1x3x32x48" in printed
    assert onnx_export.OnnxModel(path).input_shape == [1, 3, 32, 48]
    before = path.read_bytes()
    assert export.main(["--onnx", *flags, "--shape", "32", "48", "96"]) == 1
    assert "--shape takes H or H W" in caplog.text
    assert path.read_bytes() == before
    with pytest.raises(onnx_export.ExportError, match="cannot run the file on"):
        onnx_export.OnnxModel(path)(torch.zeros(1, 3, 64, 64))
    monkeypatch.setattr(onnx_export, "export_onnx", lambda *args, **options: None)
    assert export.main(["--onnx", *flags, "--shape", "32", "48", "--ema"]) == 1
    assert "DIFFERENT" in capsys.readouterr().out
    assert "does not compute what the model computes" in caplog.text


def test_errors(trained, nano_yaml, tmp_path, caplog, monkeypatch):
    checkpoint = str(trained / "ckpt_epoch_best.pth")

    def fails(*args: str) -> str:
        caplog.clear()
        assert export.main(list(args)) == 1
        return caplog.text

    assert "no TensorRT engine can be built yet" in fails("--trt")
    assert "does not exist" in fails("--onnx", "--ckpt_dir", str(tmp_path))
    text = fails("--onnx", "--model_name", "internimage_t_1k_22")
    assert "did you mean 'internimage_t_1k_224'" in text
    assert "leave out --resume" in fails("--onnx", "--ckpt_dir", "x", "--resume", checkpoint)
    (tmp_path / "file").touch()
    for output in (tmp_path / "file" / "x.onnx", tmp_path):
        text = fails("--onnx", "--resume", checkpoint, "--output", str(output))
        assert f"{output} cannot be written" in text
    (tmp_path / "no.pth").write_bytes(b"no checkpoint")
    text = fails("--onnx", "--cfg", str(nano_yaml), "--resume", str(tmp_path / "no.pth"))
    assert "cannot be read as a checkpoint" in text
    state = load_file(checkpoint)
    del state["config"]
    torch.save(state, tmp_path / "t.pth")
    text = fails("--onnx", "--cfg", str(nano_yaml), "--resume", str(tmp_path / "t.pth"),
                 "--opts", "MODEL.INTERN_IMAGE.CHANNELS", "24", "MODEL.INTERN_IMAGE.GROUPS",
                 "[1, 1, 1, 1]")  # fmt: skip
    assert "does not fit this model" in text
    assert "Unknown model" in fails("--onnx", "--model", "internimage_t_1k_225")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxscript", None)
        assert "pip install -r requirements/tools.txt" in fails("--onnx", "--resume", checkpoint)
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    assert "needs torch 2.6" in fails("--onnx", "--resume", checkpoint)
    done = run_program("export.py", cwd=tmp_path)
    assert done.returncode == 2 and "give --onnx" in done.stderr


def test_size_that_the_projector_cannot_take(tmp_path):
    model, path = build("H"), tmp_path / "x.onnx"
    with pytest.raises(ValueError, match="multiples of 16"):
        onnx_export.export_onnx(model, arguments("H", 1, 40, 64), path)
    assert not list(tmp_path.iterdir())
    shapes = onnx_export.check_shapes(64, 64, 1, True, onnx_export.size_multiple(model))
    assert len(shapes) == 3 and all(h % 16 == 0 and w % 16 == 0 for _, h, w in shapes)


@pytest.mark.parametrize("name", ["internimage_t_1k_224", "internimage_h_22kto1k_384"])
def test_configurations_by_upstream_name(name):
    assert export.find_config(name).stem == name


def evaluate(value: torch.Tensor, offset_mask: torch.Tensor, *options: object) -> np.ndarray:
    """What the graph of the operator computes, node by node in ONNX Runtime."""
    import onnx_dcnv3

    return onnx_dcnv3.dcnv3_fused(value.numpy(), offset_mask.numpy(), *options).value


@pytest.mark.parametrize("softmax, interleaved", [(True, False), (False, True)])
@pytest.mark.parametrize(
    "sizes",
    [
        {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)},
        {"kernel_size": (3, 5), "stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
        {"kernel_size": (5, 3), "stride": (1, 3), "padding": (2, 2), "dilation": (2, 1)},
        {"kernel_size": (4, 2), "stride": (1, 1), "padding": (1, 1), "dilation": (2, 1)},
    ],
)
@pytest.mark.parametrize("remove_center", [False, True])
def test_graph_of_the_operator_in_every_geometry(sizes, remove_center, softmax, interleaved):
    """Points far outside of the image, padding after the masks, uneven kernels."""
    torch.manual_seed(1)
    numbers = [number for pair in sizes.values() for number in pair]
    geometry = Geometry(*numbers, 2, 4, 1.5, remove_center)
    value = torch.randn(2, 9, 12, 8)
    offset_mask = 3 * torch.randn(2, *geometry.output_size(9, 12), 2 * geometry.points * 3 + 5)
    expected = dcnv3_fused(
        value, offset_mask, **sizes, group=2, offset_scale=1.5, remove_center=remove_center,
        softmax=softmax, interleaved=interleaved,
    ).numpy()  # fmt: skip
    got = evaluate(value, offset_mask, *geometry, softmax, interleaved)
    assert got.shape == expected.shape and np.abs(expected).max() > 0.5
    assert np.abs(got - expected).max() < 1e-5 * max(1, np.abs(expected).max())
