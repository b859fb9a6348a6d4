"""A detector and a data set of two cameras, as small as can be, for tests of the programs.

The detector tells the mean colour of the first camera, and counts the frames that it has seen of a
scene. Imported by a config's `custom_imports`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from ad_common.datasets.errors import DatasetError
from ad_common.detector import MultiViewDetector
from mmcv.runner import BaseModule
from mmdet.datasets.builder import DATASETS
from mmdet.datasets.pipelines import Compose
from mmdet.models.builder import DETECTORS, HEADS
from torch import Tensor, nn

CAMERAS = ("LEFT", "RIGHT")
SCENES = (3, 2)  # frames per scene, over and over
SIZE = (24, 40)  # height, width


@HEADS.register_module()
class GlueToyHead(BaseModule):
    """Colours of the first camera from the mean of its features."""

    def __init__(
        self,
        in_channels: int,
        num_cams: int,
        num_classes: int = 18,
        train_cfg: Any = None,
        test_cfg: Any = None,
    ) -> None:
        super().__init__()
        self.num_cams, self.num_classes = num_cams, num_classes
        self.train_cfg, self.test_cfg = train_cfg, test_cfg
        self.fc = nn.Linear(in_channels, 3)
        self.register_buffer("unit", torch.ones(3), persistent=False)  # mmcv saves it all the same

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        return self.unit * self.fc(levels[-1][:, 0].mean((-2, -1)))  # (B, 3)


@DETECTORS.register_module()
class GlueToyDetector(MultiViewDetector):
    """See the head; `forward_test` carries the count from frame to frame of a scene."""

    seen: tuple[Any, int] = (None, 0)

    def forward_train(self, img: Tensor, img_metas: list[dict], gt_color: Any) -> dict[str, Tensor]:
        wanted = torch.stack(list(gt_color))  # (B, 3)
        found = self.pts_bbox_head(self.extract_img_feat(img))
        return {"loss_color": (found - wanted).square().mean()}

    def forward_test(self, img: Tensor, img_metas: list[dict], **_: Any) -> list[dict[str, Any]]:
        results = []
        for row, meta in zip(self.pts_bbox_head(self.extract_img_feat(img)), img_metas):
            scene = meta["scene_token"]
            self.seen = (scene, self.seen[1] + 1 if scene == self.seen[0] else 1)
            results.append(
                {"token": meta["token"], "color": row.cpu().numpy(), "seen": self.seen[1]}
            )
        return results


@DATASETS.register_module()
class GlueToyData:
    """Frames of a JSON file: token, scene, images and the colour to find."""

    CLASSES = ("red", "green", "blue")

    def __init__(
        self,
        data_root: str,
        ann_file: str,
        pipeline: Sequence[Mapping[str, Any]],
        test_mode: bool = False,
    ) -> None:
        self.root = Path(data_root)
        self.frames = json.loads((self.root / ann_file).read_text())
        self.pipeline = Compose(pipeline)
        self.test_mode = test_mode
        self.flag = np.zeros(len(self.frames), dtype=np.uint8)
        scenes = [frame["scene"] for frame in self.frames]
        self.sequence_starts = [i for i, s in enumerate(scenes) if i == 0 or s != scenes[i - 1]]

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> dict[str, Any]:
        frame = self.frames[index]
        return self.pipeline(
            {
                "token": frame["token"],
                "scene_token": frame["scene"],
                "camera_names": CAMERAS,
                "img_filename": [str(self.root / name) for name in frame["images"]],
                "lidar2img": [np.eye(4)] * len(frame["images"]),
                "gt_color": np.array(frame["color"], dtype=np.float32),
            }
        )

    def evaluate(
        self,
        results: Sequence[Mapping[str, Any]],
        metric: Any = None,
        logger: Any = None,
        eval_fscore: bool = False,
        factor: float = 1.0,
    ) -> dict[str, float]:
        if [r["token"] for r in results] != [f["token"] for f in self.frames]:
            raise DatasetError("the results are not in the order of the data set")
        errors = [np.abs(r["color"] - f["color"]).mean() for r, f in zip(results, self.frames)]
        values = {"mIoU": factor * float(1 - np.mean(errors)), "never": float("nan")}
        return {**values, "F-score": 0.5} if eval_fscore else values

    def format_results(self, results: Sequence[Mapping[str, Any]], submission_prefix: str) -> str:
        Path(submission_prefix).write_text(" ".join(r["token"] for r in results))
        return submission_prefix

    def show(self, results: Sequence[Any], out_dir: str, begin: int = 0, end: int | None = None):
        for index in range(len(results))[begin:end]:
            Path(out_dir, f"{index:04d}.txt").write_text(results[index]["token"])


CONFIG = """
plugin = True
plugin_dir = "projects/plugin/"
custom_imports = dict(imports=["glue_toy"])
data_root = "{folder}/"
model = dict(
    type="GlueToyDetector",
    img_backbone=dict(
        type="InternImage", channels=16, depths=[1, 1, 1, 1], groups=[1, 2, 4, 8], mlp_ratio=1.0,
        layer_scale=1.0, drop_path_rate=0.1, out_indices=(3,)),
    pts_bbox_head=dict(type="GlueToyHead", in_channels=128, num_cams=2),
    train_cfg=dict(pts=dict()), test_cfg=dict(pts=dict()))
norm = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
loading = [dict(type="LoadMultiViewImageFromFiles", to_float32=True)]
making = [
    dict(type="NormalizeMultiviewImage", **norm),
    dict(type="PadMultiViewImage", size_divisor=32),
    dict(type="DefaultFormatBundle3D"),
]
train_pipeline = [
    *loading, dict(type="PhotoMetricDistortionMultiViewImage", contrast_range=(0.9, 1.1)),
    *making, dict(type="CustomCollect3D", keys=["img", "gt_color"])]
test_pipeline = [
    *loading,
    dict(type="MultiScaleFlipAug3D", img_scale=(40, 24), pts_scale_ratio=1, flip=False,
         transforms=[*making, dict(type="CustomCollect3D", keys=["img"])])]
common = dict(type="GlueToyData", data_root=data_root)
data = dict(
    samples_per_gpu=2, workers_per_gpu=0,
    train=dict(ann_file="train.json", pipeline=train_pipeline, **common),
    val=dict(ann_file="val.json", pipeline=test_pipeline, **common),
    test=dict(ann_file="val.json", pipeline=test_pipeline, **common),
    shuffler_sampler=dict(type="DistributedGroupSampler"),
    nonshuffler_sampler=dict(type="DistributedSampler"))
optimizer = dict(
    type="AdamW", lr=2e-3, weight_decay=0.05, constructor="CustomLayerDecayOptimizerConstructor",
    paramwise_cfg=dict(num_layers=4, layer_decay_rate=1.0, depths=[1, 1, 1, 1]))
optimizer_config = dict(grad_clip=dict(max_norm=35.0))
lr_config = dict(policy="step", step=[100])
runner = dict(type="EpochBasedRunner", max_epochs=2)
checkpoint_config = dict(interval=1)
evaluation = dict(interval=1, metric=["mIoU"], save_best="mIoU", pipeline=test_pipeline)
log_config = dict(interval=1, hooks=[dict(type="TextLoggerHook")])
auto_scale_lr = dict(enable=False, base_batch_size=4)
"""


def write_config(path: Path, folder: Path) -> str:
    """Writes `CONFIG` for the data set in `folder`; returns its path."""
    path.write_text(CONFIG.replace("{folder}", str(folder)))
    return str(path)


def write_data(folder: Path, train: int, val: int) -> Path:
    """Writes frames of two images in one noisy colour each."""
    folder.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(0)
    scenes = [i for i, count in enumerate(SCENES * 8) for _ in range(count)]
    for split, count in (("train", train), ("val", val)):
        frames = []
        for index in range(count):
            names = []
            for camera in CAMERAS:
                color = draws.uniform(40, 215, 3)
                noise = draws.normal(0, 8, (*SIZE, 3))
                names.append(f"{split}_{index}_{camera}.png")
                cv2.imwrite(str(folder / names[-1]), np.uint8(np.clip(color + noise, 0, 255)))
                if camera == CAMERAS[0]:
                    wanted = (color[::-1] / 255).tolist()  # written as BGR
            scene = f"{split}-scene-{scenes[index]}"
            frame = {"token": f"{split}-{index}", "scene": scene}
            frames.append({**frame, "images": names, "color": wanted})
        (folder / f"{split}.json").write_text(json.dumps(frames))
    return folder
