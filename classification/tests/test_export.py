"""export.py: ONNX files compute what the models compute, at every size; options and errors."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from export_models import VARIANTS, arguments, build, stir
from helpers import run_program
from torch import nn

import export
import export_inputs
from config import load_config_file
from models import (
    InternImage,
    build_model,
    onnx_check,
    onnx_dcnv3,
    onnx_export,
)
from models.safe_load import load_file

onnx = pytest.importorskip("onnx", reason="pip install -r requirements/tools.txt")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


def write(model: nn.Module, inputs: list, path, **options) -> str:
    """An exported file with batch, height and width open."""
    names = export_inputs.INPUT_NAMES[: len(inputs)]
    axes = export_inputs.open_axes(model, inputs, "shape")
    return onnx_export.export_onnx(model, inputs, path, input_names=names, axes=axes, **options)


def assert_same(model: nn.Module, runtime, inputs: list) -> None:
    result = onnx_check.compare(model, runtime, inputs)
    assert result.error < 1e-5 * result.largest and result.largest > 0.01, result


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_size_computes_what_pytorch_computes(variant, tmp_path, monkeypatch):
    is_large = variant == "B"  # as if one file could not hold the weights
    if is_large:
        monkeypatch.setattr(onnx_export, "SINGLE_FILE_LIMIT", 1000)
    model, path = build(variant), tmp_path / "made" / "model.onnx"
    assert write(model, arguments(variant, 2, 64, 96), path) == "dynamo"
    onnx_check.check_file(path)
    runtime = onnx_check.OnnxModel(path)
    sizes = [(1, 64, 64), (3, 48, 80), (2, 16, 16)]
    if variant != "H":
        sizes += [(1, 33, 50), (1, 8, 8)]  # the last map is one pixel
    for shape in sizes:
        assert_same(model, runtime, arguments(variant, *shape))
    names = [item.name for item in runtime.session.get_inputs()]
    assert names == ["input", "temporal", "spatial"][: len(names)]
    assert [item.name for item in runtime.session.get_outputs()] == ["output"]
    file = onnx.load(path)
    assert {entry.domain: entry.version for entry in file.opset_import} == {"": 18, "mmdeploy": 1}
    blocks = sum(model.depths)
    assert sum(node.op_type == "TRTDCNv3" for node in file.graph.node) == blocks
    assert len(file.functions) == 1
    written = ["model.onnx", "model.onnx.data"] if is_large else ["model.onnx"]
    assert sorted(p.name for p in path.parent.iterdir()) == written


NAMES = ["t_1k_224", "s_1k_224", "b_1k_224", "l_22kto1k_384", "xl_22kto1k_384", "h_22kto1k_640",
         "g_22kto1k_512"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_configurations_at_tiny_width(name, tmp_path):
    """Options of InternImage-T to -G by the TorchScript exporter, in every other of its ways."""
    path, size = export.find_config(f"internimage_{name}"), (1, 64, 128)
    assert path.stem == f"internimage_{name}"
    tiny = ["MODEL.INTERN_IMAGE.CHANNELS", 16, "MODEL.INTERN_IMAGE.DEPTHS", "[1, 1, 2, 1]",
            "MODEL.INTERN_IMAGE.GROUPS", "[1, 2, 4, 8]", "MODEL.NUM_CLASSES", 5,
            "MODEL.INTERN_IMAGE.LEVEL2_POST_NORM_BLOCK_IDS", "[1]"]  # fmt: skip
    torch.manual_seed(0)
    model = stir(build_model(load_config_file(path, list(map(str, tiny)))))
    ways = {"opset": 16 + NAMES.index(name) % 5, "simplify": name[0] in "sh"}
    ways["inline"] = name[0] in "slg"
    traced = export_inputs.traced_size(model, size, "shape")
    file = tmp_path / "tiny.onnx"
    inputs = [torch.randn(traced[0], 3, *traced[1:])]
    assert write(model, inputs, file, exporter="torchscript", **ways) == "torchscript"
    runtime = onnx_check.OnnxModel(file)
    for batch, height, width in export_inputs.check_sizes(model, size, "shape"):
        assert_same(model, runtime, [torch.randn(batch, 3, height, width)])
    assert bool(onnx.load(file).functions) != ways["inline"]


OPENVINO = """
import sys, numpy, openvino
exact = {"INFERENCE_PRECISION_HINT": "f32"}  # it computes in bfloat16 where the CPU can
model = openvino.Core().compile_model(sys.argv[1], "CPU", exact)
images = numpy.load(sys.argv[2])
numpy.savez(sys.argv[3], **{name: model([images[name]])[0] for name in images.files})
"""


@pytest.mark.parametrize("variant, exporter", [("H", "torchscript"), ("flash", "dynamo")])
def test_openvino_runs_the_inlined_file(variant, exporter, tmp_path):
    python = os.environ.get("OPENVINO_PYTHON", sys.executable)
    run = [python, "-c", "import openvino"]
    if subprocess.run(run, capture_output=True, timeout=120).returncode:
        pytest.skip("pip install openvino, or name an interpreter that has it in OPENVINO_PYTHON")
    model, path = build(variant), tmp_path / "inlined.onnx"
    write(model, arguments(variant, 2, 64, 96), path, exporter=exporter, inline=True)
    images = [arguments(variant, *size)[0] for size in [(2, 64, 96), (1, 80, 48), (3, 32, 64)]]
    np.savez(tmp_path / "images.npz", *[image.numpy() for image in images])
    files = [path, tmp_path / "images.npz", tmp_path / "got.npz"]
    command = [python, "-c", OPENVINO, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    got = np.load(files[2])
    for name, image in zip(got.files, images, strict=True):
        assert_same(model, lambda _, name=name: got[name], [image])


def test_command_line(trained, tmp_path, monkeypatch, capsys, caplog):
    """Also: the comparison is with the model, not with the exporter's word for it."""
    path = tmp_path / "nano.onnx"
    flags = ["--onnx", "--resume", str(trained / "ckpt_epoch_best.pth"), "--output", str(path)]
    assert export.main([*flags, "--shape", "32", "48"]) == 0
    printed = capsys.readouterr().out
    assert "onnx.checker: valid" in printed and "ONNX Runtime, 1x3x32x48: same" in printed
    assert "dynamo, TRTDCNv3 nodes with their definition, fixed shape" in printed
    assert onnx_check.OnnxModel(path).input_shape == [1, 3, 32, 48]
    before = path.read_bytes()
    assert export.main([*flags, "--shape", "32", "48", "96"]) == 1
    assert "--shape takes H or H W" in caplog.text
    with pytest.raises(onnx_export.ExportError, match="cannot run the file on"):
        onnx_check.OnnxModel(path)(torch.zeros(1, 3, 64, 64))

    import onnx_ir

    def wrong(*args: object) -> object:
        model = by_torchscript(*args)
        bias = model.graph.initializers["head.bias"]
        bias.const_value = onnx_ir.tensor(bias.const_value.numpy() + 1e-3, name=bias.name)
        return model

    by_torchscript = onnx_export._by_torchscript
    monkeypatch.setattr(onnx_export, "_by_torchscript", wrong)
    flags += ["--exporter", "torchscript", "--ema"]
    assert export.main(flags) == 1
    assert "DIFFERENT, largest difference 1.0e-03" in capsys.readouterr().out
    assert "was not written: it does not compute what the model computes" in caplog.text
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    assert export.main([*flags, "--tolerance", "0.01"]) == 0
    assert export.main([*flags, "--no-check"]) == 0
    assert "ONNX Runtime" in capsys.readouterr().out.split("written")[0]
    assert path.read_bytes() != before


def test_options(trained, tmp_path, monkeypatch, capsys, caplog):
    """What is left open, the type, the fallback."""
    path = tmp_path / "nano.onnx"
    flags = ["--onnx", "--resume", str(trained / "ckpt_epoch_best.pth"), "--output", str(path)]
    quick = [*flags, "--exporter", "torchscript"]
    assert export.main([*quick, "--dynamic", "batch", "--batch-size", "2"]) == 0
    assert onnx_check.OnnxModel(path).input_shape == ["batch", 3, 32, 32]
    printed = capsys.readouterr().out
    assert all(f"{batch}x3x32x32: same" in printed for batch in (2, 3, 5))
    assert export.main([*quick, "--dynamic", "--inline", "--simplify", "--opset", "20"]) == 0
    assert onnx_check.OnnxModel(path).input_shape == ["batch", 3, "height", "width"]
    assert "opset 20, torchscript, standard operators, open: batch, height, width" in (
        capsys.readouterr().out
    )
    single = path.stat().st_size
    assert export.main([*flags, "--fp16", "--dynamic", "--exporter", "dynamo"]) == 0
    assert path.stat().st_size < 0.7 * single
    (entry,) = onnx.load(path).graph.input
    assert entry.type.tensor_type.elem_type == onnx.TensorProto.FLOAT

    def broken(*args: object) -> None:
        raise RuntimeError("outside") from ValueError("the reason\nmore")

    monkeypatch.setattr(onnx_export, "_by_dynamo", broken)
    assert export.main(flags) == 0
    assert "the dynamo exporter failed (ValueError: the reason)" in caplog.text
    before = path.read_bytes()
    assert export.main([*flags, "--exporter", "dynamo"]) == 1
    assert "cannot export this model (exporter dynamo: ValueError: the reason)" in caplog.text
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    assert export.main([*flags, "--exporter", "dynamo"]) == 1
    assert "the dynamo exporter needs torch 2.6" in caplog.text


def test_errors(trained, nano_yaml, tmp_path, caplog, monkeypatch):
    checkpoint = str(trained / "ckpt_epoch_best.pth")

    def fails(*args: str) -> str:
        caplog.clear()
        assert export.main(list(args)) == 1
        return caplog.text

    assert "does not exist" in fails("--onnx", "--ckpt_dir", str(tmp_path))
    text = fails("--onnx", "--model_name", "internimage_t_1k_22")
    assert "did you mean 'internimage_t_1k_224'" in text
    assert "leave out --resume" in fails("--onnx", "--ckpt_dir", "x", "--resume", checkpoint)
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for output in (tmp_path / "file" / "x.onnx", tmp_path, tmp_path / "pipe"):
        text = fails("--onnx", "--resume", checkpoint, "--output", str(output))
        assert f"{output} cannot be written" in text
    assert (tmp_path / "pipe").is_fifo()
    for opset in ("15", "99"):
        text = fails("--onnx", "--resume", checkpoint, "--opset", opset)
        assert f"opset {opset} cannot be written: choose 16 to " in text
    text = fails("--onnx", "--resume", checkpoint, "--opset", "17", "--exporter", "dynamo")
    assert "opset 17 cannot be written: choose 18 to " in text
    for content in (b"no checkpoint", b"junk"):
        (tmp_path / "no.pth").write_bytes(content)
        text = fails("--onnx", "--cfg", str(nano_yaml), "--resume", str(tmp_path / "no.pth"))
        assert "cannot be read as a checkpoint" in text
    state = load_file(checkpoint)
    del state["config"]
    torch.save(state, tmp_path / "t.pth")
    text = fails("--onnx", "--cfg", str(nano_yaml), "--resume", str(tmp_path / "t.pth"),
                 "--opts", "MODEL.INTERN_IMAGE.CHANNELS", "24", "MODEL.INTERN_IMAGE.GROUPS",
                 "[1, 1, 1, 1]")  # fmt: skip
    assert "does not fit this model" in text
    text = fails("--onnx", "--cfg", str(nano_yaml), "--opts", "MODEL.INTERN_IMAGE.CORE_OP", "DCNv5")
    assert "did you mean" in text and "DCNv5" in text
    assert "Unknown model" in fails("--onnx", "--model", "internimage_t_1k_225")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "pip install -r requirements/tools.txt" in fails("--onnx", "--resume", checkpoint)
    done = run_program("export.py", cwd=tmp_path)
    assert done.returncode == 2 and "give --onnx" in done.stderr


def test_size_that_the_projector_cannot_take(nano_yaml, tmp_path, caplog):
    model, path = build("H"), tmp_path / "x.onnx"
    with pytest.raises(ValueError, match="multiples of 16"):
        onnx_export.export_onnx(model, arguments("H", 1, 40, 64), path)
    sizes = export_inputs.check_sizes(model, (1, 64, 64), "shape")
    assert len(sizes) == 4 and all(h % 16 == 0 and w % 16 == 0 for _, h, w in sizes)
    assert export_inputs.profile(model, (4, 80, 64), "shape") == (
        (1, 32, 32), (4, 80, 64), (4, 160, 128)
    )  # fmt: skip
    flags = ["--onnx", "--cfg", str(nano_yaml), "--output", str(path), "--shape", "72", "64"]
    assert export.main([*flags, "--opts", "MODEL.INTERN_IMAGE.USE_CLIP_PROJECTOR", "True"]) == 1
    assert "sides are multiples of 32, not 72x64" in caplog.text
    assert not list(tmp_path.iterdir())


def test_other_code_that_exports_a_backbone(tmp_path):
    """As mmdeploy does: torch.onnx.export by itself, several maps, the definition added after."""
    import onnx_ir

    torch.manual_seed(0)
    model = stir(InternImage(channels=16, depths=(1, 1), groups=(1, 2))).eval()
    path, images = tmp_path / "backbone.onnx", torch.randn(2, 3, 32, 48)
    axes = {"images": {0: "batch", 2: "height", 3: "width"}}
    with onnx_dcnv3.torchscript_symbolics(16):
        torch.onnx.export(
            model, (images,), path, dynamo=False, opset_version=16, input_names=["images"],
            dynamic_axes=axes,
        )  # fmt: skip
    file = onnx_ir.load(path)
    assert onnx_dcnv3.add_function(file)
    onnx_ir.save(file, path)
    onnx_check.check_file(path)
    images = torch.randn(1, 3, 41, 34)
    with torch.no_grad():
        expected = model(images)
    got = onnx_check.OnnxModel(path).outputs(images)
    assert len(got) == len(expected) == 2
    for value, wanted in zip(got, expected):
        assert np.abs(value - wanted.numpy()).max() < 1e-5 * np.abs(value).max()
