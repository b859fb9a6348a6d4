"""Every published configuration builds the model whose weights were released: keys, shapes, order.

Built on the meta device: the largest has 3 billion parameters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mmdet_custom  # noqa: F401  registers the models
import pytest
import recipe
import torch
from internimage.released import list_models, released_model
from mmcv import Config
from mmdet.models import build_detector
from torch import nn

FOLDER = Path(__file__).parents[1]
MANIFESTS = recipe.load_json("manifests/index.json")
CONFIGS = sorted(
    str(path.relative_to(FOLDER))
    for path in (FOLDER / "configs").glob("*/*.py")
    if path.parent.name not in ("_base_", "toy")
)


RELEASED = [released_model(name) for name in list_models(task="detection")]
Manifest = list[list[Any]]  # [key, shape, dtype] in the order of the state dict


def build(config: str) -> nn.Module:
    """The detector of a configuration file, without memory for its weights."""
    with torch.device("meta"):
        return build_detector(Config.fromfile(FOLDER / config).model)


def manifest(name: str) -> Manifest:
    """The stored list of a configuration, or what follows from those of its relatives."""
    if name in RELATIVES:
        return RELATIVES[name]()
    entry = MANIFESTS[name]
    return recipe.load_json(f"manifests/{MANIFESTS[entry.get('alias_of', name)]['file']}")


def mask_rcnn_s() -> Manifest:
    """B with 5/7 of the channels and groups (80 of 112), in the backbone and where it is read."""
    return [
        [key, [n * 5 // 7 if n % 7 == 0 else n for n in shape], dtype]
        if key.startswith(("backbone.", "neck.lateral_convs."))
        else [key, shape, dtype]
        for key, shape, dtype in manifest("mask_rcnn_internimage_b_fpn_1x_coco")
    ]


def cascade_xl() -> Manifest:
    """The RoI heads of L behind the trunk of XL, which the CrowdHuman model has too."""
    trunk = manifest("cascade_internimage_xl_fpn_3x_crowd_human")
    heads = manifest("cascade_internimage_l_fpn_1x_coco")
    return [e for e in trunk if not e[0].startswith("roi_head.")] + [
        e for e in heads if e[0].startswith("roi_head.")
    ]


def dino_h() -> Manifest:
    """The composite model with its first trunk only."""
    composite = manifest("dino_4scale_cbinternimage_h_objects365_coco_ss")
    kept = [
        e for e in composite if not e[0].startswith(("backbone.cb_modules.1.", "backbone.cb_l"))
    ]
    return [
        [key.replace("backbone.cb_modules.0.", "backbone.").replace("neck.0.", "neck."), *rest]
        for key, *rest in kept
    ]


RELATIVES = {
    "mask_rcnn_internimage_s_fpn_1x_coco": mask_rcnn_s,
    "mask_rcnn_internimage_s_fpn_3x_coco": mask_rcnn_s,
    "cascade_internimage_xl_fpn_1x_coco": cascade_xl,
    "cascade_internimage_xl_fpn_3x_coco": cascade_xl,
    "dino_4scale_internimage_h_objects365_coco_ss": dino_h,
}


def test_manifests_cover_the_published_configurations():
    listed = {entry["config"]: name for name, entry in MANIFESTS.items()}
    assert len(CONFIGS) == 23
    assert set(listed) | {f"configs/coco/{name}.py" for name in RELATIVES} == set(CONFIGS)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: Path(config).stem)
def test_configuration_builds_the_released_model(config):
    model = build(config)
    state = model.state_dict()
    assert all(value.is_meta for value in state.values())
    built = [[key, list(v.shape), str(v.dtype).removeprefix("torch.")] for key, v in state.items()]
    name = next((n for n, entry in MANIFESTS.items() if entry["config"] == config), None)
    assert built == manifest(name or Path(config).stem)
    count = sum(p.numel() for p in model.parameters())
    if name is not None:
        assert count == MANIFESTS[name]["params"]
    assert {row.params for row in RELEASED if row.config == config} <= {count}
