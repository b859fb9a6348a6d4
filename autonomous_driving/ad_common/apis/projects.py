"""What the programs have to know about each of the three projects."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Project:
    """One project.

    Attributes:
        package: imported before anything is built; registers models, data sets and steps.
        title: what it does, for --help.
        synthetic: its name for tools/make_synthetic.py.
        data: what to download for its real data.
        format_option: the option of `format_results` with the path to write.
        format_name: default of that path, in the work dir.
        class_counts: settings of the model that must have this value.
        metrics: what --eval takes; the first is the default.
        fscore: test.py has --eval_fscore.
        split: what test.py takes by default, `data.val` or `data.test`. Where it is 'val', the
            test split has no annotations.
    """

    package: str
    title: str
    synthetic: str
    data: str
    format_option: str
    format_name: str
    metrics: tuple[str, ...]
    class_counts: Mapping[str, int] = field(default_factory=dict)
    fscore: bool = False
    split: str = "test"


PROJECTS = {
    "occ": Project(
        package="occ",
        title="3-D occupancy prediction",
        synthetic="occupancy",
        data="nuScenes, its CAN bus expansion and the labels of Occ3D",
        format_option="submission_prefix",
        format_name="submission",
        metrics=(
            "mIoU",
            "F-score",
            "fscore",
            "bbox",
        ),  # "bbox" of published scripts means the default
        class_counts={"pts_bbox_head.num_classes": 18},
        fscore=True,
    ),
    "olv2": Project(
        package="olv2",
        title="lane topology (OpenLane-V2)",
        synthetic="openlane",
        data="OpenLane-V2, subset A",
        format_option="dump_dir",
        format_name="submission",
        metrics=("OpenLane-V2", "bbox"),
        class_counts={"pts_bbox_head.num_classes": 1, "bbox_head.num_classes": 13},
    ),
    "hdmap": Project(
        package="hdmap",
        title="online HD maps",
        synthetic="hdmap",
        data="the images of OpenLane-V2, subset A, and the annotations of the HD map challenge",
        format_option="out_dir",
        format_name="submission",
        metrics=("chamfer", "mAP", "bbox"),
        split="val",
    ),
}


def load_project(name: str) -> Project:
    """A project of the table, its package imported."""
    project = PROJECTS[name]
    importlib.import_module(project.package)
    return project
