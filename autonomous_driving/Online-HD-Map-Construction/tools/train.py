"""Trains an HD map model: `python tools/train.py CONFIG`."""

from __future__ import annotations

import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT.parent)]

from ad_common.apis.train import main

if __name__ == "__main__":
    sys.exit(main("hdmap"))
