"""nuScenes with the occupancy labels of Occ3D (arXiv 2304.14365), as BEVFormer reads it.

A training sample is a queue of frames that ends with the one whose labels count; a test sample is
one frame, and the detector keeps what it saw before.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ad_common.datasets.errors import DatasetError, listed, nearest
from ad_common.datasets.formatting import join_queue
from ad_common.datasets.pickles import read_pickle
from ad_common.geometry import intrinsic_4x4, inverse_pose, pose_matrix
from mmdet.datasets.builder import DATASETS
from mmdet.datasets.pipelines import Compose
from torch.utils.data import Dataset

from .can_bus import SIZE, with_motion, with_pose
from .classes import CLASSES, PALETTE, read_labels
from .frames import CAMERAS
from .metrics import OccupancyFScore, OccupancyMIoU
from .results import unpack, write_for_viewing, write_submission

logger = logging.getLogger(__name__)

METRICS = ("mIoU", "F-score")
ALIASES = {"bbox": "mIoU", "miou": "mIoU", "fscore": "F-score"}  # bbox: the published scripts' name
PUBLISHED = (  # settings of published configs that say nothing about occupancy
    "classes",
    "modality",
    "use_valid_flag",
    "bev_size",
    "box_type_3d",
    "filter_empty_gt",
    "samples_per_gpu",
)


@DATASETS.register_module()
class NuSceneOcc(Dataset):
    """The frames of an info file, in the order of time.

    Args:
        data_root: folder with samples/ and the labels.
        ann_file: info file, made by tools/create_data.py or published; what it says about boxes,
            sweeps and points is not used.
        pipeline: steps for a frame.
        queue_length: frames of a training sample; at least 1.
        test_mode: samples of one frame, without labels.
        max_frames: keep only the first frames; None: all.
        others: settings of published configs that change nothing here (`PUBLISHED`).

    Attributes:
        sequence_starts: indexes of the first frames of the scenes; no process of several that test
            begins within a scene.

    Raises:
        OSError, ValueError: the info file is missing or not one.
    """

    CLASSES = CLASSES
    PALETTE = PALETTE.tolist()

    def __init__(
        self,
        data_root: str,
        ann_file: str,
        pipeline: Sequence[dict[str, Any]],
        queue_length: int = 4,
        test_mode: bool = False,
        max_frames: int | None = None,
        **others: Any,
    ) -> None:
        for name in others:
            if name not in PUBLISHED:
                known = (*PUBLISHED, "ann_file", "pipeline", "queue_length", "max_frames")
                raise DatasetError(f"NuSceneOcc has no {name!r}{nearest(name, known)}")
        if queue_length < 1:
            raise DatasetError(f"queue_length must be at least 1, got {queue_length}")
        self.data_root = Path(data_root)
        self.ann_file = ann_file
        self.queue_length = queue_length
        self.test_mode = test_mode
        self.data_infos = read_infos(ann_file)[:max_frames]
        self.pipeline = Compose(pipeline)
        self.flag = np.zeros(len(self), dtype=np.uint8)
        scenes = [info["scene_token"] for info in self.data_infos]
        self.sequence_starts = [i for i, s in enumerate(scenes) if i == 0 or s != scenes[i - 1]]

    def __len__(self) -> int:
        return len(self.data_infos)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Frame `index` through the pipeline, in training with the frames before it."""
        return self.frame(index) if self.test_mode else self.queue(index)

    def frame(self, index: int) -> dict[str, Any]:
        """One frame through the pipeline."""
        return self.pipeline(self.get_data_info(index))

    def queue(self, index: int) -> dict[str, Any]:
        """Frame `index` and those before it (BEVFormer, section 3.6).

        Of the `queue_length` frames before it one is left out at random, so that the model sees
        several speeds. Before the first frame of the data set, the first is repeated, and a
        repeated frame begins anew. The motion in `can_bus` is that since the frame before in the
        queue.
        """
        before = np.arange(index - self.queue_length, index)
        kept = np.delete(before, np.random.randint(self.queue_length))
        frames, last = [], None
        for i in (*np.maximum(kept, 0), index):
            results = self.get_data_info(int(i))
            absolute, place = results["can_bus"], (results["scene_token"], results["token"])
            follows = last is not None and last[0] == place[0] and last[1] != place[1]
            results["prev_bev_exists"] = follows
            results["can_bus"] = with_motion(absolute, last[2] if follows else None)
            last = (*place, absolute)
            frames.append(self.pipeline(results))
        return join_queue(frames)

    def get_data_info(self, index: int) -> dict[str, Any]:
        """What the pipeline starts from: paths, calibration and pose of a frame.

        Raises:
            DatasetError: a camera is missing, or a calibration is not one.
        """
        info = self.data_infos[index]
        missing = [name for name in CAMERAS if name not in info["cams"]]
        if missing:
            raise DatasetError(f"frame {info['token']} has no camera {listed(missing)}")
        ego2lidar = inverse_pose(
            self.pose(info, info["lidar2ego_rotation"], info["lidar2ego_translation"], "lidar2ego")
        )
        can_bus = np.asarray(info["can_bus"], dtype=np.float64)
        if can_bus.shape != (SIZE,):
            raise DatasetError(
                f"frame {info['token']}: can_bus has the shape {can_bus.shape}, not {(SIZE,)}; "
                f"make {self.ann_file} again with tools/create_data.py"
            )
        return {
            "token": info["token"],
            "sample_idx": info["token"],
            "scene_token": info["scene_token"],
            "frame_idx": info["frame_idx"],
            "prev_idx": info["prev"],
            "next_idx": info["next"],
            "timestamp": info["timestamp"] / 1e6,  # seconds
            "camera_names": CAMERAS,
            "img_filename": [self.path_of(info["cams"][name]["data_path"]) for name in CAMERAS],
            "lidar2img": [self.lidar2img(info, name) for name in CAMERAS],
            "ego2lidar": ego2lidar,
            "can_bus": with_pose(
                can_bus, info["ego2global_rotation"], info["ego2global_translation"]
            ),
            "occ_gt_path": info.get("occ_gt_path"),
        }

    def lidar2img(self, info: Mapping[str, Any], camera: str) -> np.ndarray:
        """(4, 4) projection of lidar coordinates into a camera's image."""
        record = info["cams"][camera]
        try:
            rotation, translation = (
                record["sensor2lidar_rotation"],
                record["sensor2lidar_translation"],
            )
            intrinsic = intrinsic_4x4(record["cam_intrinsic"])
        except (KeyError, ValueError) as error:
            raise DatasetError(
                f"frame {info['token']}: {camera} has no calibration: {error}"
            ) from error
        return intrinsic @ inverse_pose(self.pose(info, rotation, translation, camera))

    @staticmethod
    def pose(info: Mapping[str, Any], rotation: Any, translation: Any, what: str) -> np.ndarray:
        """(4, 4) matrix of a pose, or an error that names frame and sensor."""
        try:
            return pose_matrix(rotation, translation)
        except ValueError as error:
            raise DatasetError(f"frame {info['token']}: pose of {what}: {error}") from error

    def path_of(self, path: str) -> str:
        """Where an image is: as the info file says, or the same place below `data_root`."""
        if not Path(path).is_file() and "samples" in Path(path).parts:
            parts = Path(path).parts
            moved = self.data_root.joinpath(*parts[parts.index("samples") :])
            if moved.is_file():
                return str(moved)
        return path

    def evaluate(
        self,
        results: Sequence[Mapping[str, Any]],
        metric: str | Sequence[str] | None = None,
        logger: logging.Logger | None = None,
        eval_fscore: bool = False,
    ) -> dict[str, float]:
        """Compares predictions with the labels, on voxels that a camera sees.

        Args:
            results: one per frame of this data set, in its order.
            metric: names out of `METRICS`; default mIoU. The published scripts' `bbox` is mIoU.
            logger: gets the table of classes.
            eval_fscore: adds the F-score.

        Returns:
            percentages: `mIoU`, `IoU/<class>`, `F-score`.

        Raises:
            DatasetError: results of other frames, an unknown metric, or no labels.
        """
        metrics = chosen_metrics(metric) | ({"F-score"} if eval_fscore else set())
        self.check_results(results)
        miou, f_score = OccupancyMIoU(), OccupancyFScore()
        for result, info in zip(results, self.data_infos, strict=True):
            labels = self.labels(info)
            prediction = unpack(result["occupancy"])
            if "mIoU" in metrics:
                miou.add(prediction, labels.semantics, labels.mask_camera)
            if "F-score" in metrics:
                f_score.add(prediction, labels.semantics, labels.mask_camera)
        values = miou.summary() if "mIoU" in metrics else {}
        if "F-score" in metrics:
            values["F-score"] = f_score.mean()
        table = "\n".join(f"  {name:28s} {value:6.2f}" for name, value in values.items())
        (logger or logging.getLogger(__name__)).info(
            "occupancy of %d frames, in percent (nan: a class that is nowhere):\n%s",
            len(self),
            table,
        )
        return values

    def format_results(
        self, results: Sequence[Mapping[str, Any]], submission_prefix: str | None = None
    ) -> str:
        """Writes the submission for the benchmark's server; returns the path of its zip file.

        Args:
            results: one per frame, as for `evaluate`.
            submission_prefix: folder of the files; the zip file has its name.

        Raises:
            DatasetError: no folder given, or results of other frames.
        """
        if not submission_prefix:
            raise DatasetError("say where with --eval-options submission_prefix=DIR")
        self.check_results(results)
        return str(write_submission(results, submission_prefix))

    def show(
        self,
        results: Sequence[Mapping[str, Any]],
        out_dir: str,
        begin: int = 0,
        end: int | None = None,
    ) -> None:
        """Writes `NNNN.npz` files with `pred`, `token` and, where there are labels, `gt`.

        Args:
            results: one per frame, as for `evaluate`.
            out_dir: folder of the files.
            begin: first frame.
            end: frame after the last; None: all.
        """
        self.check_results(results)
        for index in range(len(self))[begin:end]:
            info = self.data_infos[index]
            labels = self.labels(info).semantics if info.get("occ_gt_path") else None
            write_for_viewing(out_dir, index, results[index], labels)

    def labels(self, info: Mapping[str, Any]) -> Any:
        """A frame's labels, or a DatasetError that says why there are none."""
        if not info.get("occ_gt_path"):
            raise DatasetError(
                f"frame {info['token']} has no labels; use --format-only for the test split"
            )
        try:
            return read_labels(self.data_root / info["occ_gt_path"])
        except (OSError, ValueError) as error:
            raise DatasetError(f"frame {info['token']}: {error}") from error

    def check_annotations(self) -> None:
        """Raises DatasetError unless all frames name labels, and the first one's can be read."""
        bare = [info for info in self.data_infos if not info.get("occ_gt_path")]
        self.labels((bare or self.data_infos)[0])

    def check_results(self, results: Sequence[Mapping[str, Any]]) -> None:
        """Raises DatasetError unless there is one result per frame, in order."""
        if len(results) != len(self):
            raise DatasetError(f"{len(results)} results for {len(self)} frames of {self.ann_file}")
        for result, info in zip(results, self.data_infos, strict=True):
            if result["token"] != info["token"]:
                raise DatasetError(
                    f"a result for frame {result['token']} where {info['token']} is expected; the "
                    "results must be in the order of the data set"
                )


def read_infos(path: str | Path) -> list[dict[str, Any]]:
    """The records of an info file, by time.

    Raises:
        OSError: no such file.
        DatasetError: it is not a pickle of plain values and numpy arrays, or not of info records.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no info file {path}; make it with tools/create_data.py")
    try:
        infos = sorted(read_pickle(path)["infos"], key=lambda info: info["timestamp"])
        wanted = ("token", "scene_token", "cams", "can_bus", "lidar2ego_rotation")
        lacking = [key for info in infos for key in wanted if key not in info]
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{path} is not a readable info file ({type(error).__name__}: {error}); make it again "
            "with tools/create_data.py"
        ) from error
    if lacking or not infos:
        raise DatasetError(
            f"{path} has no frames" if not infos else f"a frame in {path} has no {lacking[0]}"
        )
    return infos


def chosen_metrics(metric: str | Sequence[str] | None) -> set[str]:
    """The metrics that names stand for; an unknown one is a DatasetError."""
    names = [metric] if isinstance(metric, str) else list(metric or ("mIoU",))
    chosen = set()
    for name in names:
        known = ALIASES.get(name, name)
        if known not in METRICS:
            options = (*METRICS, *ALIASES)
            raise DatasetError(
                f"unknown metric {name!r}{nearest(name, options)}; there are {listed(METRICS)}"
            )
        chosen.add(known)
    return chosen
