"""torch.export programs and AOTInductor packages compute what the models compute, at every size."""

import shutil
import subprocess
import sys

import pytest
import torch
from export_models import VARIANTS, arguments, build
from helpers import CLASSIFICATION, environment

import export
import export_inputs
from models import onnx_check, torch_export
from models.onnx_export import ExportError

pytestmark = pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"), reason="torch.export programs need torch 2.7"
)


def capture(variant: str) -> tuple:
    """A model, its program with batch, height and width open, and those axes."""
    model, inputs = build(variant), arguments(variant, 2, 64, 96)
    axes = export_inputs.open_axes(model, inputs, "shape")
    return model, torch_export.export_program(model, inputs, axes), axes


def assert_same(model, runtime, inputs) -> None:
    result = onnx_check.compare(model, runtime, inputs)
    assert result.error < 1e-5 * result.largest and result.largest > 0.01, result


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_program_read_back_computes_what_the_model_computes(variant, tmp_path):
    model, program, axes = capture(variant)
    path = tmp_path / "made" / "model.pt2"
    torch_export.write_program(program, path, None)
    runtime = torch_export.Program(path)
    sizes = [(1, 64, 64), (3, 48, 80)] + ([(2, 33, 50)] if variant != "H" else [])
    for shape in sizes:
        assert_same(model, runtime, arguments(variant, *shape))
    smallest = {"B": 9, "flash": 9, "metadata": 5, "H": 32}[variant]  # two rows in the last map
    assert torch_export.smallest_sizes(program, axes) == {
        "batch": 1, "height": smallest, "width": smallest
    }  # fmt: skip
    with pytest.raises(ExportError, match=r"cannot run on \(1, 3, 4, 64\)"):
        runtime(*arguments(variant, 1, 4, 64))


@pytest.mark.skipif(not any(map(shutil.which, torch_export.COMPILERS)), reason="no C++ compiler")
def test_a_compiled_package_computes_what_the_model_computes(tmp_path):
    model, program, _ = capture("metadata")
    path = tmp_path / "model.aoti.pt2"
    torch_export.write_package(program, path, None)
    runtime = torch_export.Package(path)
    for shape in ((1, 64, 64), (3, 48, 80), (2, 33, 50)):
        assert_same(model, runtime, arguments("metadata", *shape))
    assert [file.name for file in tmp_path.iterdir()] == ["model.aoti.pt2"]


def test_command_line(trained, tmp_path, capsys, caplog, monkeypatch):
    flags = ["--resume", str(trained / "ckpt_epoch_best.pth"), "--output", str(tmp_path / "n.pt2")]
    assert export.main([*flags, "--pt2", "--dynamic", "--shape", "64", "48"]) == 0
    printed = capsys.readouterr().out
    assert all(f"torch.export, {size}: same" in printed for size in ("1x3x64x48", "1x3x64x113"))
    assert "torch.export program, open: batch from 1, height from 33, width from 33" in printed
    before = (tmp_path / "n.pt2").read_bytes()
    assert export.main([*flags, "--pt2", "--dynamic"]) == 1
    assert "takes images from 33x33, not 32x32: give a larger --shape" in caplog.text

    compare = onnx_check.compare
    monkeypatch.setattr(
        onnx_check,
        "compare",
        lambda model, runtime, *rest: compare(model, lambda *x: runtime(*x) + 1e-3, *rest),
    )
    assert export.main([*flags, "--pt2"]) == 1
    assert "n.pt2 was not written: it does not compute" in caplog.text
    assert (tmp_path / "n.pt2").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    assert "torch.export, 1x3x32x32: DIFFERENT" in capsys.readouterr().out
    assert export.main([*flags, "--pt2", "--no-check"]) == 0
    assert "DIFFERENT" not in capsys.readouterr().out
    monkeypatch.setattr(torch_export.shutil, "which", lambda name: None)
    assert export.main([*flags, "--aoti"]) == 1
    assert "AOTInductor needs a C++ compiler, one of c++, g++, clang++" in caplog.text


@pytest.mark.parametrize("name", ["n.pt2", "n.aoti.pt2", "n.engine", "n.onnx"])
def test_names_of_the_files(name, nano_yaml, tmp_path, monkeypatch):
    """Each kind of file has its own ending, whichever one was asked for."""
    written = []
    monkeypatch.setattr(torch_export, "export_program", lambda *args: None)
    monkeypatch.setattr(torch_export, "smallest_sizes", lambda *args: {})
    for kind in ("program", "package"):
        monkeypatch.setattr(
            torch_export, f"write_{kind}", lambda program, path, verify: written.append(path)
        )
    monkeypatch.setattr(
        export.onnx_export, "export_onnx", lambda *args, **options: written.append(args[2])
    )
    monkeypatch.setattr(export.Export, "report", lambda *args: None)
    flags = ["--onnx", "--pt2", "--aoti", "--cfg", str(nano_yaml)]
    assert export.main([*flags, "--output", str(tmp_path / name)]) == 0
    assert [path.name for path in written] == ["n.onnx", "n.pt2", "n.aoti.pt2"]


def test_a_full_disk(nano_yaml, tmp_path):
    """As a limit on the size of files; the process ends in its own words, nothing is left."""
    program = (
        "import resource, sys, export\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "sys.exit(export.main(sys.argv[1:]))"
    )
    flags = ["--cfg", nano_yaml, "--output", tmp_path / "n.onnx", "--exporter", "torchscript"]
    for kind, ending in (("--pt2", "pt2"), ("--onnx", "onnx")):
        command = map(str, [sys.executable, "-c", program, kind, *flags])
        done = subprocess.run(
            list(command), cwd=CLASSIFICATION, env=environment(), capture_output=True, text=True
        )
        assert done.returncode == 1, done.stderr
        message = f"ERROR {tmp_path}/n.{ending} cannot be written (File too large): free some space"
        assert done.stderr.splitlines()[-1] == message
        assert not list(tmp_path.iterdir())


def test_files_that_are_none(tmp_path, capsys):
    with pytest.raises(ExportError, match=r"no.pt2 does not exist"):
        torch_export.Program(tmp_path / "no.pt2")
    (tmp_path / "text.pt2").write_text("no program")
    for kind in (torch_export.Program, torch_export.Package):
        with pytest.raises(ExportError, match=r"text.pt2 cannot be read"):
            kind(tmp_path / "text.pt2")
    with pytest.raises(SystemExit):
        export.parse_args(["--pt2", "--inline"])
    assert "--inline is for --onnx and --trt" in capsys.readouterr().err
