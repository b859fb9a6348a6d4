"""Makes the info files of the data set: `<tag>_infos_temporal_{train,val,test}.pkl`."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from internimage.write_file import replacing

from .annotations import Annotations
from .can_bus import CanBus
from .frames import Frame, make_info
from .nuscenes import Tables

logger = logging.getLogger(__name__)


def prepare(
    root: str | Path,
    out_dir: str | Path,
    *,
    occ_path: str | Path,
    can_bus: str | Path,
    version: str | None,
    tag: str = "occ",
) -> dict[str, Path]:
    """Writes one info file per split that has frames; returns their paths by split.

    Args:
        root: folder with the tables and samples/.
        out_dir: where the info files go.
        occ_path: folder with annotations.json and the labels.
        can_bus: folder that contains can_bus/.
        version: of the tables, `v1.0-*`; None: annotations.json alone describes the frames.
        tag: start of the files' names.

    Raises:
        OSError, ValueError: something is missing or broken, or no frame is left.
    """
    root, annotations = Path(root), Annotations(occ_path)
    if not (Path(can_bus) / "can_bus").is_dir():
        raise FileNotFoundError(
            f"no folder {Path(can_bus) / 'can_bus'}; --canbus is the folder that contains the "
            "unpacked CAN bus expansion of nuScenes"
        )
    scenes = from_annotations(annotations) if version is None else from_tables(root, version)
    infos: dict[str, list[dict[str, Any]]] = {}
    no_can_bus = []
    for scene, frames in scenes:
        split = annotations.split_of(scene, version == "v1.0-test")
        if split is None:
            logger.warning("%s is in no split of %s; skipped", scene, annotations.path)
            continue
        messages = CanBus(can_bus, scene)
        if not messages.messages:
            no_can_bus.append(scene)
        infos.setdefault(split, []).extend(scene_infos(frames, root, annotations, messages))
    if no_can_bus:
        logger.warning("no CAN bus messages, zeros instead: %s", ", ".join(no_can_bus))
    paths = {}
    for split, records in infos.items():
        if not records:
            continue
        paths[split] = Path(out_dir) / f"{tag}_infos_temporal_{split}.pkl"
        with replacing(paths[split]) as temporary:
            contents = {"infos": records, "metadata": {"version": version or "annotations"}}
            temporary.write_bytes(pickle.dumps(contents))
        logger.info("%d frames: %s", len(records), paths[split])
    if not paths:
        raise ValueError(
            f"no frame below {root} is usable: none is annotated in {annotations.path} with its "
            "sensor files in place"
        )
    return paths


def from_tables(root: Path, version: str) -> Iterator[tuple[str, Iterator[Frame]]]:
    """(scene, frames) of all scenes whose lidar files are there."""
    tables = Tables(root, version)
    for scene in tables.scenes:
        lidar = tables.lidar_file(scene)
        if lidar is None or not lidar.is_file():
            logger.warning(
                "%s skipped: %s",
                scene,
                f"its lidar file {lidar} is not there"
                if lidar
                else "the tables name no lidar file",
            )
            continue
        yield scene, tables.frames(scene)


def from_annotations(annotations: Annotations) -> Iterator[tuple[str, Iterator[Frame]]]:
    """(scene, frames) of all scenes, from annotations.json."""
    for scene in annotations.scenes:
        yield scene, annotations.frames(scene)


def scene_infos(
    frames: Iterator[Frame], root: Path, annotations: Annotations, messages: CanBus
) -> Iterator[dict[str, Any]]:
    """Records of a scene's annotated frames."""
    for index, frame in enumerate(frames):
        labels = annotations.labels_of(frame.scene, frame.token)
        if labels is None:
            logger.warning("frame %s of %s is not annotated; skipped", frame.token, frame.scene)
            continue
        yield make_info(frame, root, index, messages.at(frame.timestamp), labels)
