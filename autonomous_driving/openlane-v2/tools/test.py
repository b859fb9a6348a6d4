"""Tests a lane topology model: `python tools/test.py CONFIG CHECKPOINT --eval`."""

from __future__ import annotations

import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT.parent)]

from ad_common.apis.test import main

if __name__ == "__main__":
    sys.exit(main("olv2"))
