"""The shims: what they give back works, and registered classes stay as they are."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import runs
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
    """In a process of its own. What both task folders have needs neither of their libraries."""
    code = """
import mmcv_custom, gc, sys
assert not {'mmdet', 'mmseg'} & set(sys.modules)
from mmcv.runner import HOOKS, OPTIMIZER_BUILDERS
assert 'CustomLayerDecayOptimizerConstructor' in OPTIMIZER_BUILDERS.module_dict
ours = [cls for r in (HOOKS, OPTIMIZER_BUILDERS) for cls in r.module_dict.values()
        if cls.__module__.startswith('mmcv_custom')]
assert {cls.__name__ for cls in ours} == {
    'AmpOptimizerHook', 'CustomLayerDecayOptimizerConstructor', 'SeedHook',
    'StopAtInvalidLossHook'}, ours
import mmdet.models, mmdet.datasets, mmcv.runner, mmcv.cnn, mmcv.cnn.bricks.transformer, mmdet.core
from mmcv.utils import Registry
registries = [r for r in gc.get_objects() if isinstance(r, Registry)]
before = {(id(r), name): cls for r in registries for name, cls in r.module_dict.items()}
import mmdet_custom
changed = [key[1] for r in registries for name, cls in r.module_dict.items()
           if before.get(key := (id(r), name), cls) is not cls]
added = [name for r in registries for name in r.module_dict if (id(r), name) not in before]
assert not changed, changed
assert 'InternImage' in added and 'DINOHead' in added, added
"""
    done = runs.shell(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr[-2000:]
