"""From what the model returns to predictions in the format of the challenge."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ad_common.datasets.errors import DatasetError, nearest
from internimage.write_file import replacing

from . import bezier
from .devkit.check import HEADER, MOST_AUTHORS, check_predictions, header_problems
from .devkit.collection import FrameKey, frame_text

N_POINTS = 11  # of a lane in a submission, at t = 0, 0.1, ... 1
FILE_NAME = "submission.pkl"
LANE_IDS, ELEMENT_IDS = 1000, 2000  # first ones

DEFAULT_HEADER = {
    "method": "InternImage-S with ROAD_BEVFormer",
    "authors": ["unknown"],
    "e-mail": "unknown@example.com",
    "institution / company": "unknown",
    "country / region": "unknown",
}
SHORT_NAMES = {
    "email": "e-mail",
    "e_mail": "e-mail",
    "institution": "institution / company",
    "company": "institution / company",
    "country": "country / region",
    "region": "country / region",
}


def predictions_of(
    result: Mapping[str, Any], key: FrameKey, legacy_sort: bool = False
) -> dict[str, Any]:
    """What a submission says about a frame; all queries of the model, in their order.

    Args:
        result: of the model: `lc` {control_points (Q, c, 3) metres, scores (Q,)}, `te` {bboxes
            (K, 4) pixels of the original front image, labels (K,), scores (K,)}, `lclc` (Q, Q),
            `lcte` (Q, K).
        key: of the frame, for messages.
        legacy_sort: sort the lanes by rising confidence and leave the edges where they are, so
            that they belong to other lanes: as the published results were made.

    Raises:
        DatasetError: something is missing or has the wrong shape.
    """
    try:
        predictions = _predictions(result, legacy_sort)
        check_predictions(predictions)
    except KeyError as error:
        raise DatasetError(f"result of frame {frame_text(key)}: no {error}") from error
    except (TypeError, ValueError, IndexError) as error:
        raise DatasetError(f"result of frame {frame_text(key)}: {error}") from error
    return predictions


def _predictions(result: Mapping[str, Any], legacy_sort: bool) -> dict[str, Any]:
    lc, te = result["lc"], result["te"]
    control, scores = np.asarray(lc["control_points"]), np.asarray(lc["scores"])
    if control.ndim != 3 or control.shape[2] != 3 or scores.shape != control.shape[:1]:
        raise ValueError(
            f"lc: control_points of shape {control.shape} and scores of shape {scores.shape}, "
            "expected (Q, n, 3) and (Q,)"
        )
    boxes, labels, te_scores = (np.asarray(te[name]) for name in ("bboxes", "labels", "scores"))
    if boxes.shape[1:] != (4,) or not labels.shape == te_scores.shape == boxes.shape[:1]:
        raise ValueError(
            f"te: bboxes of shape {boxes.shape}, labels of shape {labels.shape} and scores of "
            f"shape {te_scores.shape}, expected (K, 4), (K,) and (K,)"
        )
    lines = bezier.evaluate(control, N_POINTS).astype(np.float32)  # (Q, 11, 3)
    order = np.argsort(scores, kind="stable") if legacy_sort else np.arange(len(scores))
    first = max(ELEMENT_IDS, LANE_IDS + len(lines))
    return {
        "lane_centerline": [
            {"id": LANE_IDS + i, "points": lines[j], "confidence": float(scores[j])}
            for i, j in enumerate(order)
        ],
        "traffic_element": [
            {
                "id": first + i,
                "attribute": int(label),
                "points": box.reshape(2, 2).astype(np.float32),
                "confidence": float(score),
            }
            for i, (box, label, score) in enumerate(zip(boxes, labels, te_scores, strict=True))
        ],
        "topology_lclc": np.asarray(result["lclc"], dtype=np.float32),
        "topology_lcte": np.asarray(result["lcte"], dtype=np.float32),
    }


def shuffled(result: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """The same lanes, elements and edge confidences, but the edges between random others.

    What topology scores with it is the level of chance.
    """
    lclc, lcte = np.asarray(result["lclc"]), np.asarray(result["lcte"])
    return {
        **result,
        "lclc": rng.permutation(rng.permutation(lclc, axis=0), axis=1),
        "lcte": rng.permutation(rng.permutation(lcte, axis=0), axis=1),
    }


def make_header(*changes: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields of a submission besides its results.

    Args:
        changes: of `DEFAULT_HEADER`, later ones win. The names may also be those of `SHORT_NAMES`;
            `authors` may be one name.

    Raises:
        DatasetError: an unknown field, or a value that the challenge does not accept.
    """
    header = dict(DEFAULT_HEADER)
    for change in changes:
        for name, value in (change or {}).items():
            field = SHORT_NAMES.get(name, name)
            if field not in HEADER:
                known = [*HEADER, *SHORT_NAMES]
                raise DatasetError(
                    f"a submission has no field {name!r}{nearest(name, known)}; there are "
                    f"{', '.join(HEADER)}"
                )
            header[field] = value
    authors = header["authors"]
    header["authors"] = [authors] if isinstance(authors, str) else list(authors)
    problems = header_problems(header)
    if problems:
        raise DatasetError(f"submission: {problems[0]} (at most {MOST_AUTHORS} authors)")
    return header


def write_submission(
    results: Iterable[Mapping[str, Any]],
    keys: Sequence[FrameKey],
    header: Mapping[str, Any],
    path: str | Path,
    legacy_sort: bool = False,
) -> Path:
    """Writes the pickle of the challenge, whole or not at all; returns its path."""
    frames = {
        key: {"predictions": predictions_of(result, key, legacy_sort)}
        for key, result in zip(keys, results, strict=True)
    }
    with replacing(path) as temporary, temporary.open("wb") as file:
        pickle.dump({**header, "results": frames}, file, protocol=4)
    return Path(path)
