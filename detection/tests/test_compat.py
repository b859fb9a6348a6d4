"""The shims: what they give back works, and registered classes stay as they are."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from mmcv.parallel import MMDistributedDataParallel
from mmcv_custom import compat


def test_applying_again_changes_nothing() -> None:
    import mmcv.parallel._functions as functions

    before = functions._get_stream
    compat.apply()
    assert functions._get_stream is before


def test_streams_take_the_index_of_a_gpu() -> None:
    seen = []
    get = compat.with_device_index(seen.append)
    get(3)
    get(torch.device("cpu"))
    assert seen == [torch.device("cuda", 3), torch.device("cpu")]
    from mmcv.parallel._functions import _get_stream

    assert _get_stream(torch.device("cpu")) is None


def test_streams_of_older_torch_are_left_alone() -> None:
    def takes_index(index: int) -> None:
        if index == -1:
            return
        raise TypeError("an index, please")

    assert not compat.takes_device(takes_index)


def test_flag_that_mmcv_reads_is_there() -> None:
    assert MMDistributedDataParallel._use_replicated_tensor_module is False


@pytest.mark.parametrize("name", ["int", "float", "bool", "object"])
def test_old_numpy_names(name: str) -> None:
    assert vars(np)[name] is not None


def test_importing_changes_no_registered_class() -> None:
    code = """
import mmdet.models, mmdet.datasets, mmcv.runner, mmcv.cnn, mmcv.cnn.bricks.transformer, mmdet.core
from mmcv.utils import Registry
import gc, sys
registries = [r for r in gc.get_objects() if isinstance(r, Registry)]
before = {(id(r), name): cls for r in registries for name, cls in r.module_dict.items()}
sys.path.insert(0, '.')
import mmdet_custom
changed = [key[1] for r in registries for name, cls in r.module_dict.items()
           if before.get(key := (id(r), name), cls) is not cls]
added = [name for r in registries for name in r.module_dict if (id(r), name) not in before]
assert not changed, changed
assert 'InternImage' in added and 'CustomLayerDecayOptimizerConstructor' in added, added
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=compat_folder()
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_package_imports_neither_mmdet_nor_mmseg() -> None:
    code = "import sys, mmcv_custom; assert not {'mmdet', 'mmseg'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=compat_folder()
    )
    assert done.returncode == 0, done.stderr[-2000:]


def compat_folder() -> str:
    from runs import DETECTION

    return str(DETECTION)
