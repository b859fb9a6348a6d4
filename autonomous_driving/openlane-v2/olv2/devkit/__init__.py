"""The data format and the metrics of OpenLane-V2: collect, check, evaluate."""

from .check import check_results
from .collect import collect, collect_all
from .collection import ATTRIBUTES, CAMERAS, load_collection
from .evaluate import evaluate

__all__ = [
    "ATTRIBUTES",
    "CAMERAS",
    "check_results",
    "collect",
    "collect_all",
    "evaluate",
    "load_collection",
]
