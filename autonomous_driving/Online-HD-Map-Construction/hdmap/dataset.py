"""Frames of Argoverse 2 with the lines of their local map, as mmdet takes them."""

from __future__ import annotations

import logging
import os.path
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ad_common.datasets.errors import DatasetError, nearest
from mmcv.utils import print_log
from mmdet.datasets.builder import DATASETS
from mmdet.datasets.pipelines import Compose
from torch.utils.data import Dataset

from .annotations import all_truth, camera_matrices, image_root, load_frames
from .drawing import save_frame
from .evaluation import evaluate_lines, table
from .submission import FILE_NAME, collect, make_meta, read_submission, write_submission
from .tokens import CLASSES

logger = logging.getLogger(__name__)

TRIES = 100  # frames that are drawn before a training sample is given up
METRICS = ("chamfer", "mAP", "bbox")  # names of the one metric; the last of published scripts


@DATASETS.register_module()
class AV2Dataset(Dataset):
    """Argoverse 2 in the format of the online HD map challenge.

    A sample has the images and calibrations of all cameras in the file's order, and in training the
    annotated lines. A training frame without lines is replaced by another one, drawn at random.

    Args:
        ann_file: {segment: [frame, ...]} as json, see `annotations`; perhaps relative to
            `data_root`.
        pipeline: the steps.
        data_root: folder that has the images in argoverse2/, see `annotations.image_root`; default:
            that of `ann_file`.
        interval: use every so manieth frame.
        test_mode: frames may have no annotation, and none is given out.
        meta: changes of the submission's `meta` block.

    Raises:
        DatasetError: the annotations cannot be used; see `load_frames`. In training also: no frame
            has lines.
    """

    CLASSES = CLASSES

    def __init__(
        self,
        ann_file: str,
        pipeline: Sequence[dict[str, Any]],
        data_root: str | None = None,
        interval: int = 1,
        test_mode: bool = False,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
            raise DatasetError(f"interval must be a whole number from 1 on, it is {interval!r}")
        if data_root is not None and not Path(ann_file).exists():
            ann_file = os.path.join(data_root, ann_file)
        self.ann_file = str(ann_file)
        self.test_mode = test_mode
        self.meta = make_meta(meta)
        self.frames = load_frames(self.ann_file)[::interval]
        self.image_root = image_root(data_root or Path(self.ann_file).parent, self.frames[0])
        self.tokens = [frame["token"] for frame in self.frames]
        self.flag = np.zeros(len(self.frames), dtype=np.uint8)  # one group for mmdet's samplers
        self.pipeline = Compose(pipeline)
        with_lines = [i for i, frame in enumerate(self.frames) if any(_lines(frame))]
        self.with_lines = np.array(with_lines, dtype=np.int64)
        if not test_mode and not with_lines:
            raise DatasetError(
                f"{self.ann_file}: none of {len(self)} frames has lines to train on (the test "
                "split has no annotations)"
            )

    def check_annotations(self) -> None:
        """Raises DatasetError for frames that cannot be evaluated."""
        all_truth(self.frames, self.ann_file)

    def check_fields(self, fields: Mapping[str, Any]) -> None:
        """Raises DatasetError for fields that a submission does not have."""
        make_meta(self.meta, fields)

    def __len__(self) -> int:
        return len(self.frames)

    def get_data_info(self, index: int) -> dict[str, Any]:
        """What the pipeline starts from.

        Raises:
            DatasetError: a calibration is not as it must be; names the frame and the camera.
        """
        frame = self.frames[index]
        matrices = camera_matrices(frame)
        info = {
            "token": frame["token"],
            "timestamp": frame["timestamp"],
            "scene_token": frame["segment_id"],
            "sample_idx": index,
            "camera_names": list(matrices),
            "img_filename": [
                os.path.join(self.image_root, sensor["image_path"])
                for sensor in frame["sensor"].values()
            ],
            "lidar2img": list(matrices.values()),  # from the ego frame
        }
        if not self.test_mode:
            info["annotation"] = dict(zip(CLASSES, _lines(frame), strict=True))
        return info

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A sample, from another frame when this one has no lines to train on.

        Raises:
            DatasetError: no frame has lines inside the region of the pipeline.
        """
        if self.test_mode:
            return self.pipeline(self.get_data_info(index))
        for _ in range(TRIES):
            if any(_lines(self.frames[index])):
                sample = self.pipeline(self.get_data_info(index))
                if sample is not None:
                    return sample
            index = int(np.random.choice(self.with_lines))
        raise DatasetError(f"{self.ann_file}: no line lies inside the region; check roi_size")

    def evaluate(
        self,
        results: Sequence[Mapping[str, Any]] | str | Path,
        metric: str | Sequence[str] | None = None,
        logger: Any = None,
    ) -> dict[str, float]:
        """Chamfer average precisions, see `evaluation.evaluate_lines`.

        Args:
            results: of the model, one per frame; or the path of a submission.
            metric: "chamfer" (or "mAP", "bbox"); there is no other one.
            logger: gets the table; as in mmdet.

        Returns:
            "mAP", "CLASS_AP", "CLASS_AP@THRESHOLD" in 0..1.

        Raises:
            DatasetError: another metric, frames without annotation, or wrong results.
        """
        for name in [metric] if isinstance(metric, str) else metric or ():
            if name not in METRICS:
                raise DatasetError(
                    f"there is no metric {name!r}{nearest(name, METRICS)}; use chamfer"
                )
        truth = all_truth(self.frames, self.ann_file)
        if isinstance(results, (str, Path)):
            predicted = read_submission(results)
        else:
            predicted = collect(results, self.tokens)
        metrics = evaluate_lines(predicted, truth)
        print_log("\n" + table(metrics), logger=logger)
        return metrics

    def format_results(
        self, results: Sequence[Mapping[str, Any]], out_dir: str | Path = ".", **meta: Any
    ) -> str:
        """Writes the submission.

        Args:
            results: of the model, one per frame.
            out_dir: folder that gets submission_vector.json, or the path of a .json file.
            meta: changes of the `meta` block.

        Returns:
            the path of the file.

        Raises:
            DatasetError: wrong results, or an unknown field of `meta`.
            OSError: the file cannot be written.
        """
        path = Path(out_dir)
        if path.suffix != ".json":
            path = path / FILE_NAME
        predicted = collect(results, self.tokens)
        return str(write_submission(predicted, make_meta(self.meta, meta), path))

    def show(
        self,
        results: Sequence[Mapping[str, Any]],
        out_dir: str | Path,
        begin: int = 0,
        end: int | None = None,
        threshold: float = 0.3,
    ) -> None:
        """Draws frames into `out_dir`/SEGMENT/TIMESTAMP.jpg, truth over prediction.

        Args:
            results: of the model, one per frame.
            out_dir: folder, made if it is missing.
            begin: first frame that is drawn.
            end: frame after the last one; None: all.
            threshold: least score that is drawn.
        """
        predicted = collect(results, self.tokens)
        for frame in self.frames[begin:end]:
            path = Path(out_dir) / frame["segment_id"] / f"{frame['token']}.jpg"
            save_frame(path, frame, self.image_root, predicted[frame["token"]], threshold)


def _lines(frame: Mapping[str, Any]) -> list[list[np.ndarray]]:
    """The annotated lines of a frame, per class; empty for a frame without annotation."""
    annotation = frame["annotation"]
    return [annotation[name] if annotation else [] for name in CLASSES]
