"""mmdet and mmseg in one process: any order of imports, and no registered class changes.

Each order is a process of its own, since an import cannot be undone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1]

SETUP = """
import gc, json, sys, warnings
warnings.filterwarnings("ignore")
sys.path.insert(0, "tests")
from mmcv.utils import Registry

def registered():
    found = {}
    for registry in gc.get_objects():
        if isinstance(registry, Registry):
            key = f"{registry.scope}/{registry.name}"
            for name, item in registry.module_dict.items():
                found[f"{key}/{name}"] = f"{item.__module__}.{item.__qualname__}"
    return found
"""

MMSEG_FIRST = """
import mmseg.models, mmseg.datasets, mmseg.apis
mmseg_alone = registered()
sys.modules["mmdet"] = None  # importing mmdet fails as if it were not installed
import segmentors
segmentors.build("upernet")
segmentors.build("segformer")
try:
    segmentors.build("mask2former")
except ImportError as error:
    message = str(error)
del sys.modules["mmdet"]
segmentors.build("mask2former")
import mmdet.models, mmdet.datasets, mmdet.apis
print(json.dumps([mmseg_alone, message, registered()]))
"""

MMDET_FIRST = """
import mmdet.models, mmdet.datasets, mmdet.apis
import mmseg.models, mmseg.datasets, mmseg.apis
before = registered()
import segmentors
segmentors.build("mask2former")
print(json.dumps([before, registered()]))
"""


def run(script: str) -> dict:
    """The JSON that ``script`` prints last."""
    result = subprocess.run(
        [sys.executable, "-c", SETUP + script],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def mmseg_first() -> list:
    return run(MMSEG_FIRST)


@pytest.fixture(scope="module")
def mmdet_first() -> list:
    return run(MMDET_FIRST)


def test_registered_classes_of_both_libraries_stay(mmdet_first):
    """Importing this project and building Mask2Former only adds names."""
    before, after = mmdet_first
    assert len(before) > 500  # both libraries are there
    assert {key: after.get(key) for key in before} == before
    added = {key: value for key, value in after.items() if key not in before}
    assert "mmseg/models/Mask2FormerHead" in added
    assert all(value.startswith(("mmseg_custom.", "mmcv_custom.")) for value in added.values())


def test_the_order_of_imports_changes_nothing(mmseg_first, mmdet_first):
    mmseg_alone, _, after = mmseg_first
    assert {key: after.get(key) for key in mmseg_alone} == mmseg_alone
    assert after == mmdet_first[1]


def test_without_mmdet_only_mask2former_is_missing(mmseg_first):
    message = mmseg_first[1]
    assert "pip install mmdet==2.28.2" in message
    assert "UPerNet and SegFormer do not need it" in message
