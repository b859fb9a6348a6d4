"""Shared by the tests of this folder: makes classification/ and the repository root importable."""

import sys
from pathlib import Path

CLASSIFICATION = Path(__file__).resolve().parents[1]
for folder in (CLASSIFICATION, CLASSIFICATION.parent):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
