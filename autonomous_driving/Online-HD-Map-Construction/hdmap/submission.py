"""The file that the challenge's server takes: submission_vector.json.

    {"meta": {...}, "results": {token: {"vectors": [[[x, y], ...], ...], "scores": [...],
                                        "labels": [...]}}}

Coordinates are metres in the ego frame, labels are indices into `CLASSES`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ad_common.datasets.errors import DatasetError, listed, nearest
from internimage.write_file import replacing

from .annotations import as_line, read_json
from .evaluation import Lines
from .tokens import CLASSES

logger = logging.getLogger(__name__)

FILE_NAME = "submission_vector.json"
LARGEST = 250  # megabytes that the server takes
DECIMALS = 4  # of coordinates in metres and of scores
META: dict[str, Any] = {
    "use_lidar": False,
    "use_camera": True,
    "use_external": False,
    "output_format": "vector",
    "method": "",
    "authors": "",
    "e-mail": "",
    "institution / company": "",
    "country / region": "",
}
SHORT_NAMES = {  # for the command line
    "email": "e-mail",
    "institution": "institution / company",
    "company": "institution / company",
    "country": "country / region",
    "region": "country / region",
}


def make_meta(*tables: Mapping[str, Any] | None) -> dict[str, Any]:
    """The `meta` block: the defaults, changed by each table in turn.

    Raises:
        DatasetError: an unknown field.
    """
    meta = dict(META)
    for table in tables:
        for key, value in (table or {}).items():
            name = SHORT_NAMES.get(key, key)
            if name not in META:
                known = (*META, *SHORT_NAMES)
                raise DatasetError(
                    f"the submission has no field {key!r}{nearest(key, known)}; there are "
                    f"{listed(known, len(known))}"
                )
            meta[name] = value
    return meta


def result_lines(result: Mapping[str, Any], where: str) -> Lines:
    """The lines of a model's output or of a frame in a submission; those of one point are refused.

    Raises:
        DatasetError: `vectors`, `scores` or `labels` is missing or wrong.
    """
    if not isinstance(result, Mapping):
        raise DatasetError(f"{where}: expected vectors, scores and labels, got {result!r:.60}")
    lost = [key for key in ("vectors", "scores", "labels") if key not in result]
    if lost:
        raise DatasetError(f"{where}: no {listed(lost)}; a frame has vectors, scores and labels")
    vectors = [as_line(v, f"{where}, vector {i}") for i, v in enumerate(result["vectors"])]
    for i, line in enumerate(vectors):
        if len(line) < 2:
            raise DatasetError(f"{where}, vector {i}: has {len(line)} points; a line has two")
    try:
        scores = np.asarray(result["scores"], dtype=np.float64).reshape(-1)
        labels = np.asarray(result["labels"], dtype=np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{where}: scores and labels must be lists of numbers") from error
    if not len(vectors) == len(scores) == len(labels):
        raise DatasetError(
            f"{where}: {len(vectors)} vectors, {len(scores)} scores and {len(labels)} labels; "
            "there must be as many of each"
        )
    if not np.isfinite(scores).all():
        raise DatasetError(f"{where}: scores that are not finite")
    wrong = labels[~np.isin(labels, range(len(CLASSES)))]
    if len(wrong):
        raise DatasetError(
            f"{where}: label {wrong[0]:g}; labels are 0 to {len(CLASSES) - 1} ({listed(CLASSES)})"
        )
    return Lines(vectors, labels.astype(np.int64), scores)


def write_submission(
    predicted: Mapping[str, Lines], meta: Mapping[str, Any], path: str | Path
) -> Path:
    """Writes the file, whole or not at all; warns when the server would refuse its size.

    Raises:
        OSError: it cannot be written; names it.
    """
    results = {
        token: {
            "vectors": [np.round(line[:, :2], DECIMALS).tolist() for line in lines.vectors],
            "scores": np.round(lines.scores, DECIMALS + 2).tolist(),
            "labels": np.asarray(lines.labels).tolist(),
        }
        for token, lines in predicted.items()
    }
    path = Path(path)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"meta": dict(meta), "results": results}))
    size = path.stat().st_size / 2**20
    if size > LARGEST:
        logger.warning(
            "%s has %.0f MB, the server takes %d: keep fewer lines per frame", path, size, LARGEST
        )
    empty = [name for name in META if meta.get(name) == ""]
    if empty:
        logger.info(
            "the server wants %s; give them as --eval-options method=... or edit 'meta' in %s",
            listed(empty, len(empty)),
            path,
        )
    return path


def read_submission(path: str | Path) -> dict[str, Lines]:
    """The predicted lines of a submission by token.

    Raises:
        DatasetError: it cannot be read, or a frame is not as it must be; names the frame.
    """
    content = read_json(path, "tools/test.py --format-only writes such a file")
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, dict):
        raise DatasetError(f"{path} is no submission: it must hold {{meta, results}}")
    return {token: result_lines(r, f"{path}, frame {token}") for token, r in results.items()}


def collect(results: Iterable[Mapping[str, Any]], tokens: list[str]) -> dict[str, Lines]:
    """The lines that a model gave, by token.

    Args:
        results: one per frame, in the order of the data set.
        tokens: of the data set.

    Raises:
        DatasetError: the numbers differ, or a result is of another frame or not as it must be.
    """
    results = list(results)
    if len(results) != len(tokens):
        raise DatasetError(
            f"there are {len(results)} results for {len(tokens)} frames; test the whole data set"
        )
    predicted = {}
    for token, result in zip(tokens, results, strict=True):
        predicted[token] = result_lines(result, f"result of frame {token}")
        other = result.get("token", token)
        if str(other) != token:
            raise DatasetError(
                f"the result of frame {other} is where frame {token} belongs; the results must be "
                "in the order of the data set"
            )
    return predicted
