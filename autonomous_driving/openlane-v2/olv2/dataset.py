"""OpenLane-V2, subset A: frames of seven cameras with lanes, traffic elements and topology.

Source: OpenLane-V2 (arXiv 2304.10440).
"""

from __future__ import annotations

import logging
import math
import os.path
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ad_common.datasets.errors import DatasetError, listed, nearest
from ad_common.geometry import ego_to_image, matrix_to_quaternion, pose_matrix, yaw_of
from mmcv.utils import print_log
from mmdet.datasets.builder import DATASETS
from mmdet.datasets.pipelines import Compose
from torch.utils.data import Dataset

from .devkit.collection import (
    ATTRIBUTES,
    CAMERAS,
    PREPROCESS,
    check_attributes,
    frame_text,
    load_collection,
)
from .devkit.evaluate import Evaluation
from .results import FILE_NAME, N_POINTS, make_header, predictions_of, shuffled, write_submission

logger = logging.getLogger(__name__)

METRICS = ("OpenLane-V2", "bbox")  # names of the one metric; the last of published scripts
SHUFFLE_SEED = 0


@DATASETS.register_module()
class OpenLaneV2SubsetADataset(Dataset):
    """The frames of a collection that tools/preprocess.py wrote.

    A sample has the images of all cameras in the order of the file, the front one first, their
    projections from the ego frame (as `lidar2img`), and in training the annotation.

    Args:
        data_root: folder with the images and the collection.
        collection: name of the collection without .pkl.
        pipeline: the steps.
        test_mode: frames may have no annotation, and none is given out.
        meta_root: folder with the collection, if it is another one.
        cameras: those that are used; the first one is that of the traffic elements.
        interval: use every so manieth frame.
        header: changes of a submission's fields, see `results.DEFAULT_HEADER`.

    Raises:
        OSError: there is no such collection.
        ValueError: it is broken. In training also: a frame has no annotation.
    """

    CLASSES = ATTRIBUTES

    def __init__(
        self,
        data_root: str,
        collection: str,
        pipeline: Sequence[dict[str, Any]],
        test_mode: bool = False,
        meta_root: str | None = None,
        cameras: Sequence[str] = CAMERAS,
        interval: int = 1,
        header: Mapping[str, Any] | None = None,
    ) -> None:
        for camera in cameras:
            if camera not in CAMERAS:
                raise DatasetError(
                    f"camera {camera!r}{nearest(camera, CAMERAS)}; there are {', '.join(CAMERAS)}"
                )
        if not cameras or cameras[0] != CAMERAS[0]:
            raise DatasetError(
                f"cameras {list(cameras)}: the first one must be {CAMERAS[0]}, whose image the "
                "traffic elements are in"
            )
        if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
            raise DatasetError(f"interval must be a whole number from 1 on, it is {interval!r}")
        self.data_root = str(data_root)
        self.path = Path(meta_root or data_root) / f"{str(collection).removesuffix('.pkl')}.pkl"
        self.test_mode = test_mode
        self.cameras = tuple(cameras)
        self.header = make_header(header)
        frames = load_collection(self.path)
        self.keys = list(frames)[::interval]
        self.frames = [frames[key] for key in self.keys]
        self.flag = np.zeros(len(self.frames), dtype=np.uint8)  # one group for mmdet's samplers
        self.pipeline = Compose(pipeline)
        if not self.frames:
            raise DatasetError(f"{self.path} has no frames")
        if not test_mode:
            self._need_annotations("to train on")

    def _need_annotations(self, what_for: str) -> None:
        bare = [k for k, f in zip(self.keys, self.frames, strict=True) if not f.get("annotation")]
        if bare:
            raise DatasetError(
                f"{self.path}: {len(bare)} of {len(self)} frames have no annotation {what_for}, "
                f"the first one is {frame_text(bare[0])} (the test split has none)"
            )

    def check_annotations(self) -> None:
        """Raises DatasetError for frames that cannot be evaluated."""
        self._need_annotations("to evaluate with")

    def check_fields(self, fields: Mapping[str, Any]) -> None:
        """Raises DatasetError for fields that a submission does not have."""
        make_header(self.header, fields)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A sample of the pipeline."""
        return self.pipeline(self.get_data_info(index))

    def get_data_info(self, index: int) -> dict[str, Any]:
        """What the pipeline starts from.

        Raises:
            DatasetError: cameras, calibration, pose or annotation are not as they must be; names
                the frame.
        """
        key, frame = self.keys[index], self.frames[index]
        sensors = self._sensors(index)
        try:
            matrices = [camera_projection(name, sensor) for name, sensor in sensors.items()]
            can_bus = pose_vector(frame.get("pose") or {})
            paths = [
                os.path.join(self.data_root, _part(sensor, "image_path", f"camera {name}"))
                for name, sensor in sensors.items()
            ]
            annotation = {} if self.test_mode else get_targets(frame["annotation"])
        except ValueError as error:
            raise DatasetError(f"frame {frame_text(key)}: {error}") from error
        return {
            "token": frame_text(key),
            "sample_idx": key[2],
            "scene_token": key[1],
            "timestamp": frame.get("timestamp", key[2]),
            "camera_names": list(sensors),
            "img_filename": paths,
            "img_paths": paths,
            "lidar2img": matrices,  # from the ego frame
            "can_bus": can_bus,
            **annotation,
        }

    def _sensors(self, index: int) -> dict[str, Mapping[str, Any]]:
        """The cameras that are used; checks that they are there, in the right order."""
        found = self.frames[index].get("sensor") or {}
        missing = [name for name in self.cameras if name not in found]
        name = f"frame {frame_text(self.keys[index])}"
        if missing:
            raise DatasetError(f"{name}: no camera {', '.join(missing)} (it has {listed(found)})")
        sensors = {camera: sensor for camera, sensor in found.items() if camera in self.cameras}
        if tuple(sensors) != self.cameras:
            raise DatasetError(
                f"{name}: cameras in the order {', '.join(sensors)}; a model has learnt them in "
                f"the order {', '.join(self.cameras)}"
            )
        return sensors

    def evaluate(
        self,
        results: Sequence[Mapping[str, Any]],
        metric: str | Sequence[str] | None = None,
        logger: Any = None,
        metric_version: str = "v1.1",
        legacy_sort: bool = False,
        shuffle_topology: bool = False,
        dump: bool = False,
        dump_dir: str | Path = ".",
        visualization: bool = False,
        visualization_dir: str | Path = "visualization",
        visualization_num: int = 10,
        **header: Any,
    ) -> dict[str, float]:
        """The OpenLane-V2 score and its parts, see `devkit.evaluate`.

        Args:
            results: of the model, one per frame.
            metric: "OpenLane-V2" (or "bbox"); there is no other one.
            logger: gets a line; as in mmdet.
            metric_version: definition of the topology part, "v1.0" (published) or "v1.1".
            legacy_sort: see `results.predictions_of`.
            shuffle_topology: see `results.shuffled`: the level of chance.
            dump: also write the submission, to `dump_dir`.
            dump_dir: see `format_results`.
            visualization: also draw frames, see `show`.
            visualization_dir: folder for them.
            visualization_num: how many.
            **header: fields of the submission.

        Returns:
            "OpenLane-V2 Score", "DET_l", "DET_t", "TOP_ll", "TOP_lt", "F-Score for 3D Lane", 0..1.

        Raises:
            DatasetError: another metric, frames without annotation, or wrong results.
        """
        for name in [metric] if isinstance(metric, str) else metric or ():
            if name not in METRICS:
                raise DatasetError(f"no metric {name!r}{nearest(name, METRICS)}; use {METRICS[0]}")
        header = make_header(self.header, header)
        self.check_annotations()
        self._check_number(results)
        evaluation = Evaluation(metric_version)
        rng = np.random.default_rng(SHUFFLE_SEED)
        for key, frame, result in zip(self.keys, self.frames, results, strict=True):
            result = shuffled(result, rng) if shuffle_topology else result
            predictions = predictions_of(result, key, legacy_sort)
            evaluation.add(evaluated(frame["annotation"]), predictions)
        if dump:
            path = self.format_results(results, dump_dir, legacy_sort, **header)
            print_log(f"submission in {path}", logger=logger)
        if visualization:
            self.show(results, visualization_dir, end=visualization_num)
        return evaluation.values()

    def format_results(
        self,
        results: Sequence[Mapping[str, Any]],
        dump_dir: str | Path = ".",
        legacy_sort: bool = False,
        **header: Any,
    ) -> str:
        """Writes the submission.

        Args:
            results: of the model, one per frame.
            dump_dir: folder that gets submission.pkl, or the path of a .pkl file.
            legacy_sort: see `results.predictions_of`.
            **header: changes of its fields.

        Returns:
            the path of the file.

        Raises:
            DatasetError: wrong results, or an unknown field.
            OSError: the file cannot be written.
        """
        self._check_number(results)
        header = make_header(self.header, header)
        path = Path(dump_dir)
        path = path if path.suffix == ".pkl" else path / FILE_NAME
        return str(write_submission(results, self.keys, header, path, legacy_sort))

    def show(
        self,
        results: Sequence[Mapping[str, Any]],
        show_dir: str | Path,
        begin: int = 0,
        end: int | None = None,
    ) -> None:
        """Draws the frames from `begin` to before `end`, see `drawing.draw_frame`."""
        from .drawing import save_frame  # matplotlib only where it is needed

        self._check_number(results)
        for index in range(len(self))[begin:end]:
            key, frame = self.keys[index], self.frames[index]
            predictions = predictions_of(results[index], key)
            save_frame(self.data_root, key, frame, predictions, show_dir)

    def _check_number(self, results: Sequence[Any]) -> None:
        if len(results) != len(self):
            raise DatasetError(
                f"{len(results)} results for {len(self)} frames of {self.path}: they are from "
                "another data set"
            )


def camera_projection(name: str, sensor: Mapping[str, Any]) -> np.ndarray:
    """(4, 4) float64 from the ego frame to the pixels of a camera.

    Raises:
        ValueError: a part of the calibration is missing or has the wrong shape.
    """
    where = f"camera {name}"
    extrinsic, intrinsic = (_part(sensor, part, where) for part in ("extrinsic", "intrinsic"))
    rotation = _part(extrinsic, "rotation", f"{where}, extrinsic")
    translation = _part(extrinsic, "translation", f"{where}, extrinsic")
    matrix = _part(intrinsic, "K", f"{where}, intrinsic")
    try:
        return ego_to_image(matrix, pose_matrix(rotation, translation))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def pose_vector(pose: Mapping[str, Any]) -> np.ndarray:
    """(18,) float64: position [0:3] (m), quaternion [3:7], heading [-2] (rad), [-1] (degrees).

    The heading is from 0 to a full turn; what a CAN bus would add (7:16) is zero.
    """
    vector = np.zeros(18)
    rotation = np.asarray(_part(pose, "rotation", "pose"), dtype=np.float64)
    vector[:3] = _part(pose, "translation", "pose")
    vector[3:7] = matrix_to_quaternion(rotation)
    vector[-2] = yaw_of(rotation) % (2 * math.pi)
    vector[-1] = math.degrees(vector[-2])
    return vector


def get_targets(annotation: Mapping[str, Any]) -> dict[str, Any]:
    """The annotation as the pipeline takes it; shapes stay right with no lane or no element.

    Returns:
        `gt_lc` list of (points, 3); `gt_lc_labels` (n,) zeros; `gt_te` (k, 4) x1, y1, x2, y2 in
        pixels of the stored front image; `gt_te_labels` (k,); `gt_topology_lclc` (n, n);
        `gt_topology_lcte` (n, k).

    Raises:
        ValueError: a part is missing, a matrix has the wrong size, an attribute is unknown.
    """
    lanes, elements, lclc, lcte = (
        _part(annotation, name, "annotation")
        for name in ("lane_centerline", "traffic_element", "topology_lclc", "topology_lcte")
    )
    check_attributes(elements)
    n, k = len(lanes), len(elements)
    boxes = [_part(element, "points", "traffic element") for element in elements]
    return {
        "gt_lc": [_part(lane, "points", "lane") for lane in lanes],
        "gt_lc_labels": np.zeros(n, dtype=np.int64),
        "gt_te": np.array(boxes, dtype=np.float32).reshape(k, 4),
        "gt_te_labels": np.array([e["attribute"] for e in elements], dtype=np.int64),
        "gt_topology_lclc": _edges(lclc, (n, n), "topology_lclc"),
        "gt_topology_lcte": _edges(lcte, (n, k), "topology_lcte"),
    }


def evaluated(annotation: Mapping[str, Any]) -> dict[str, Any]:
    """The annotation with 11 points per lane, as collections for evaluation have it.

    So the frames of a training collection, with 201 points, can be evaluated too.
    """
    lanes = []
    for lane in annotation["lane_centerline"]:
        points = np.asarray(lane["points"])
        step, rest = divmod(len(points) - 1, N_POINTS - 1)
        lanes.append({**lane, "points": points[::step] if step > 1 and not rest else points})
    return {**annotation, "lane_centerline": lanes}


def _edges(value: Any, shape: tuple[int, int], name: str) -> np.ndarray:
    edges = np.asarray(value, dtype=np.float32)
    if edges.shape != shape and not (edges.size == 0 and 0 in shape):
        raise ValueError(f"{name} of shape {edges.shape}, expected {shape}")
    return edges.reshape(shape)


def _part(group: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in group:
        raise ValueError(f"{where}: no {name!r}; write the collection anew with {PREPROCESS}")
    return group[name]
