"""The installable package: its wheel, imported from elsewhere, without the folder it came from."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers import CLASSIFICATION, environment


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the content of the wheel."""
    source = tmp_path_factory.mktemp("source")  # building writes next to pyproject.toml
    shutil.copy(CLASSIFICATION / "pyproject.toml", source)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(CLASSIFICATION / "models", source / "models", ignore=ignore)
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps"]
    command += ["--quiet", "--wheel-dir", str(source / "wheel"), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert built.returncode == 0, built.stderr
    (wheel,) = (source / "wheel").glob("internimage-*.whl")
    target = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def run(code: str, cwd: Path, *paths: Path) -> subprocess.CompletedProcess:
    variables = environment(PYTHONPATH=":".join(map(str, paths)))
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True)


def test_import(installed, tmp_path):
    code = """
import internimage, timm, torch
from internimage import weights
assert internimage.list_models('*_t_1k_224') == [
    'internimage_t_1k_224', 'flash_intern_image_t_1k_224']
with torch.device('meta'):
    a = internimage.create_model('internimage_t_1k_224', num_classes=3)
    b = timm.create_model('internimage_t_1k_224', num_classes=3)
assert list(a.state_dict()) == list(b.state_dict())
assert len(weights.read_head_map()) == 1000
print(internimage.__file__)
import models  # of this folder, beside the installed one: timm keeps the first
assert models.__file__ != internimage.__file__
"""
    done = run(code, tmp_path, installed, CLASSIFICATION, CLASSIFICATION.parent)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(installed)
    assert "Overwriting" not in done.stderr


def test_without_the_operator(installed, tmp_path):
    code = "import sys; sys.modules['ops_dcnv3'] = None; import internimage"
    done = run(code, tmp_path, installed)
    assert done.returncode == 1
    assert "pip install --no-build-isolation ./ops_dcnv3" in done.stderr.splitlines()[-1]
