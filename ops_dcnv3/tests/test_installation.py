"""Where the package is found, what it reports, and installing without a compiler."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from ops_dcnv3.functions import available_backends
from ops_dcnv3.functions.backends import ABI_VERSION, OLD_TORCH, TRITON_INSTALLED, extension

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent


def python(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("folder", [ROOT, ROOT / "classification", Path("/")], ids=str)
def test_the_compiled_part_is_found_from_every_folder(folder):
    """In the repository's root the source folder shadows the installed package."""
    result = python(
        "-c",
        "from ops_dcnv3.functions import available_backends; print(available_backends())",
        cwd=folder,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(available_backends())


def test_report():
    result = python("-m", "ops_dcnv3", cwd="/")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "cpu tensors use" in result.stdout and "self-test on cpu" in result.stdout
    assert "passed" in result.stdout
    assert "Triton kernels: " in result.stdout
    if "cpp" in available_backends():
        assert f"compiled kernels: CPU ({extension.cpu_level()}" in result.stdout


def test_report_with_triton():
    """In its interpreter it needs no GPU, and the self-test runs through it."""
    if not TRITON_INSTALLED or OLD_TORCH:
        pytest.skip("Triton 3 is not installed")
    environment = {"TRITON_INTERPRET": "1", "OPS_DCNV3_BACKEND": "triton"}
    result = python("-m", "ops_dcnv3", cwd="/", **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Triton kernels: there" in result.stdout
    assert "self-test on cpu (triton): passed" in result.stdout


@pytest.mark.parametrize("wrong", ["grad_input * 1.001", "grad_input * float('nan')"])
def test_report_fails_when_a_kernel_is_wrong(wrong):
    code = (
        "import sys, torch\n"
        "from ops_dcnv3 import __main__ as report\n"
        "class Wrong(torch.autograd.Function):\n"
        "    forward = staticmethod(lambda ctx, mask: mask.clone())\n"
        f"    backward = staticmethod(lambda ctx, grad_input: {wrong})\n"
        "right = report.dcnv3\n"
        "report.dcnv3 = lambda x, o, mask, **kw: right(x, o, Wrong.apply(mask), **kw)\n"
        "sys.exit(report.main())"
    )
    result = python("-c", code, cwd="/")
    assert result.returncode == 1 and "FAILED" in result.stdout, result.stdout + result.stderr


@pytest.mark.parametrize(
    "name, message",
    [
        ("cuda", "backend 'cuda' runs on cuda tensors, got a cpu tensor"),
        ("fast", "unknown backend 'fast'; choose one of cpp, cuda, triton, pytorch"),
    ],
)
def test_report_with_a_backend_that_cannot_run(name, message):
    result = python("-m", "ops_dcnv3", cwd="/", OPS_DCNV3_BACKEND=name)
    assert result.returncode == 1
    assert f"self-test on cpu: FAILED, dcnv3: {message}" in result.stdout, result.stderr
    assert "Traceback" not in result.stderr


def test_report_with_a_backend_for_one_device():
    """Kernels for the CPU only are no reason to fail where there is no GPU."""
    if "cpp" not in available_backends():
        pytest.skip("needs the C++ kernels")
    result = python("-m", "ops_dcnv3", cwd="/", OPS_DCNV3_BACKEND="cpp", CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "cuda tensors cannot be used: dcnv3: backend 'cpp' runs on cpu" in result.stdout


def test_importing_prints_nothing():
    result = python("-W", "error", "-c", "import ops_dcnv3.modules", cwd="/")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_only_the_extension_is_imported():
    """Code that imports nothing but `DCNv3` finds the operator defined."""
    code = (
        "import torch, DCNv3; x = torch.randn(1, 4, 4, 8)\n"
        "print(DCNv3.dcnv3_forward(x, torch.zeros(1, 4, 4, 36), torch.ones(1, 4, 4, 18),"
        " 3, 3, 1, 1, 1, 1, 1, 1, 2, 4, 1.0, 256, False).shape)"
    )
    result = python("-c", code, cwd="/")
    assert result.stdout.strip() == "torch.Size([1, 4, 4, 8])", result.stderr


@pytest.fixture(scope="module")
def wheel_without_compiler(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "ops_dcnv3"
    shutil.copytree(PACKAGE, source, ignore=shutil.ignore_patterns("build", "tests", "*.egg-info"))
    left = source / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    for folder_left in (left, source / "build" / "lib"):  # of builds with and without a compiler
        (folder_left / "ops_dcnv3").mkdir(parents=True)
        (folder_left / "DCNv3.cpython-stale.so").touch()
        (folder_left / "ops_dcnv3" / "setup.py").touch()
    result = python(
        "-m", "pip", "wheel", "-v", "--no-build-isolation", "--no-deps", "-w", str(folder), ".",
        cwd=source, CXX="no-such-compiler",
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return next(folder.glob("*.whl")), result.stdout + result.stderr


def test_no_compiler_and_what_earlier_builds_left(wheel_without_compiler):
    with zipfile.ZipFile(wheel_without_compiler[0]) as wheel:
        names = wheel.namelist()
    assert "DCNv3.py" in names and "ops_dcnv3/functions/reference.py" in names
    assert not [name for name in names if "DCNv3.cpython" in name or "setup.py" in name]


def test_source_distribution_is_complete(tmp_path):
    """Everything that a build reads: headers, and the stand-in's text."""
    code = f"import setuptools.build_meta as m; print(m.build_sdist({str(tmp_path)!r}))"
    source = tmp_path / "ops_dcnv3"
    shutil.copytree(PACKAGE, source, ignore=shutil.ignore_patterns("build", "tests", "*.egg-info"))
    result = python("-c", code, cwd=source, OPS_DCNV3_CUDA="0")
    assert result.returncode == 0, result.stdout + result.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    wanted = [*source.glob("csrc/*"), *source.glob("compat/*.py"), source / "README.md"]
    assert {str(path.relative_to(source)) for path in wanted} <= names


def test_no_compiler_installs_and_says_so(wheel_without_compiler, tmp_path):
    wheel, log = wheel_without_compiler
    assert "no C++ compiler was found (CXX=no-such-compiler)" in log
    zipfile.ZipFile(wheel).extractall(tmp_path)
    assert not list(tmp_path.glob("DCNv3*.so"))
    report = python("-m", "ops_dcnv3", cwd="/", PYTHONPATH=str(tmp_path))
    assert report.returncode == 0, report.stdout + report.stderr
    assert "no C++ compiler was found" in report.stdout
    assert "cpu tensors use pytorch" in report.stdout and "passed" in report.stdout
    assert "to compile: pip install" in report.stdout


def test_no_compiler_layer_and_original_names_work(wheel_without_compiler, tmp_path):
    zipfile.ZipFile(wheel_without_compiler[0]).extractall(tmp_path)
    code = (
        "import torch, DCNv3 as e\n"
        "from ops_dcnv3.modules import DCNv3\n"
        "DCNv3(16, group=2)(torch.randn(1, 4, 4, 16)).sum().backward()\n"
        "x, o, m = torch.randn(1, 4, 4, 8), torch.randn(1, 4, 4, 36), torch.rand(1, 4, 4, 18)\n"
        "s = (3, 3, 1, 1, 1, 1, 1, 1, 2, 4, 1.0)\n"
        "y = e.dcnv3_forward(x, o, m, *s, 256, False)\n"
        "print(e.compiled, y.shape, len(e.dcnv3_backward(x, o, m, *s, y, 256, False)))\n"
    )
    result = python("-c", code, cwd="/", PYTHONPATH=str(tmp_path))
    assert result.stdout.strip() == "False torch.Size([1, 4, 4, 8]) 3", result.stderr


@pytest.mark.parametrize(
    "environment, message",
    [
        ({"OPS_DCNV3_CUDA": "yes"}, "OPS_DCNV3_CUDA must be 0 or 1, got 'yes'"),
        ({"OPS_DCNV3_CUDA": "1", "CXX": "no-such-compiler"}, "OPS_DCNV3_CUDA=1, but no C++"),
    ],
)
def test_a_demand_that_cannot_be_met_is_an_error(environment, message):
    result = python("setup.py", "--version", cwd=PACKAGE, **environment)
    assert result.returncode != 0 and message in result.stderr


def test_a_module_for_another_version_is_refused(tmp_path):
    (tmp_path / "DCNv3.py").write_text("compiled = True\nabi_version = 0\ntorch_version = 'x'\n")
    code = "from ops_dcnv3.functions import backends as b; print(b.unavailable_reason)"
    result = python("-c", code, cwd="/", PYTHONPATH=str(tmp_path))
    message = f"has interface version 0, this package needs {ABI_VERSION}"
    assert message in result.stdout, result.stderr


def test_a_module_for_another_torch_is_refused(tmp_path):
    (tmp_path / "DCNv3.py").write_text(
        f"compiled = True\nabi_version = {ABI_VERSION}\ntorch_version = '1.0.0'\n"
        "cuda_architectures = ''\n"
    )
    code = "from ops_dcnv3.functions import backends as b; print(b.unavailable_reason)"
    result = python("-c", code, cwd="/", PYTHONPATH=str(tmp_path))
    assert "was built with torch 1.0.0" in result.stdout, result.stderr


@pytest.mark.parametrize(
    "attribute",
    ["__file__ = '/elsewhere/DCNv3.so'", "__path__ = ['/elsewhere/DCNv3']"],
    ids=["module", "folder"],
)
def test_another_module_of_that_name_is_no_obstacle(attribute):
    """The original package's extension has the same name; so may a folder on the path."""
    code = (
        "import sys, types\n"
        "sys.modules['DCNv3'] = module = types.ModuleType('DCNv3')\n"
        f"module.{attribute}\n"
        "from ops_dcnv3.functions import backends as b; print(b.unavailable_reason)"
    )
    result = python("-c", code, cwd="/")
    assert "is another package's" in result.stdout, result.stderr
    assert "/elsewhere/DCNv3" in result.stdout
