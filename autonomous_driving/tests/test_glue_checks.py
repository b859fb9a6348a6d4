"""What is wrong with a config or a data set is said before a run starts."""

from __future__ import annotations

from pathlib import Path

import glue_runs as runs
import glue_toy
import numpy as np
import pytest
import torch
from ad_common import checks
from ad_common.apis.projects import load_project
from ad_common.datasets.errors import DatasetError
from ad_common.detector import without_augmentations
from mmcv import Config
from mmcv_custom.runtime import ConfigError, load_config


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """The toy's config with two frames of data."""
    data = glue_toy.write_data(tmp_path / "data", train=2, val=1)
    return Config.fromfile(glue_toy.write_config(tmp_path / "toy.py", data))


def test_a_sound_config_passes(config: Config) -> None:
    project = load_project("occ")
    checks.check_config(config, project)
    assert len(checks.build_data(config, "train", project)) == 2
    assert checks.build_data(config, "val", project, test_mode=True).test_mode


@pytest.mark.parametrize(
    ("project", "changes", "message"),
    [
        (
            "occ",
            {"model.pts_bbox_head.num_classes": 17},
            "num_classes is 17.*18 classes; set it to 18",
        ),
        ("olv2", {"model.bbox_head.num_classes": 12}, "bbox_head.num_classes is 12.*13 classes"),
        (
            "hdmap",
            {"model.neck": {"layers": [{"num_cams": 7}]}},
            r"disagree.*pts_bbox_head.num_cams=2, model.neck.layers\[0\].num_cams=7",
        ),
        (
            "occ",
            {"data.nonshuffler_sampler.type": "DistributedGroupSampler"},
            "nonshuffler_sampler.type 'DistributedGroupSampler'.*only be 'DistributedSampler'",
        ),
    ],
)
def test_contradictions_in_a_config(
    config: Config, project: str, changes: dict, message: str
) -> None:
    if project == "olv2":
        changes["model.pts_bbox_head.num_classes"] = 1
    config.merge_from_dict(changes)
    with pytest.raises(ConfigError, match=message):
        checks.check_config(config, load_project(project))


@pytest.mark.parametrize(
    ("project", "words"),
    [
        ("occ", "nuScenes, its CAN bus expansion.*make_synthetic.py occupancy data/toy"),
        ("olv2", "OpenLane-V2, subset A.*make_synthetic.py openlane data/toy"),
        ("hdmap", "HD map challenge.*make_synthetic.py hdmap data/toy"),
    ],
)
def test_missing_data_says_what_to_download(config: Config, project: str, words: str) -> None:
    wrapped = {"type": "RepeatDataset", "times": 2, "dataset": config.data.train}
    config.data.train.data_root = "data/nowhere"
    config.data.train = wrapped
    with pytest.raises(DatasetError, match=f"data.train.data_root: data/nowhere .*{words}"):
        checks.build_data(config, "train", load_project(project))


def test_a_data_set_without_frames(config: Config) -> None:
    Path(config.data_root, "train.json").write_text("[]")
    with pytest.raises(DatasetError, match="data.train has no frames"):
        checks.build_data(config, "train", load_project("occ"))


def test_looking_at_the_first_frame_draws_nothing(config: Config) -> None:
    def draws() -> tuple[float, float]:
        return float(np.random.rand()), float(torch.rand(()))

    np.random.seed(1), torch.manual_seed(1)
    expected = draws()
    np.random.seed(1), torch.manual_seed(1)
    dataset = checks.build_data(config, "train", load_project("occ"))
    assert draws() == expected
    dataset[0]
    np.random.seed(1), torch.manual_seed(1)
    dataset[0]
    assert draws() != expected  # the pipeline does draw


def test_several_augmentations_are_refused() -> None:
    batch = {"img": [torch.ones(1)], "img_metas": [[{"a": 1}]], "other": "kept"}
    assert without_augmentations(batch) == {
        "img": torch.ones(1),
        "img_metas": [{"a": 1}],
        "other": "kept",
    }
    with pytest.raises(ValueError, match="got 2 of them"):
        without_augmentations({"img_metas": [[{}], [{}]]})


def test_the_detector_tells_images_of_a_wrong_shape(config: Config) -> None:
    from mmdet.models import build_detector

    model = build_detector(config.model)
    levels = model.extract_img_feat(torch.zeros(2, 2, 3, 32, 64))
    assert [tuple(level.shape) for level in levels] == [(2, 2, 128, 1, 2)]
    with pytest.raises(ValueError, match=r"\(batch, cameras, 3, H, W\), got \(2, 3, 32, 64\)"):
        model.extract_img_feat(torch.zeros(2, 3, 32, 64))


@pytest.mark.parametrize("project", runs.FOLDERS)
def test_every_config_of_a_project_is_sound(project: str) -> None:
    folder = runs.DRIVING / runs.FOLDERS[project] / "configs"
    paths = [*folder.glob("*.py"), *folder.glob("toy/*.py")]
    assert len(paths) >= 3
    for path in paths:
        checks.check_config(load_config(str(path)), load_project(project))
