"""Runs every folder's tests and sums them up in one line: `N passed, N failed`.

    python tools/test.py [--jobs N] [FOLDER ...] [-- PYTEST ARGUMENTS]

Top-level module names repeat across the task folders, so each folder has a process of its own. Two
folders run at a time where there are two cores; every line of output names its folder.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = [
    "classification",
    "autonomous_driving",
    "detection",
    "ops_dcnv3",
    "segmentation",
    "tensorrt",
    "tools",
]  # the longest first


def count(report: Path) -> Counter[str]:
    """Passed, failed and skipped tests of one JUnit report."""
    totals: Counter[str] = Counter()
    for suite in ElementTree.parse(report).iter("testsuite"):
        number = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
        failed = number["failures"] + number["errors"]
        totals["failed"] += failed
        totals["skipped"] += number["skipped"]
        totals["passed"] += number["tests"] - failed - number["skipped"]
    return totals


def run(folder: str, arguments: list[str], threads: int, root: Path = ROOT) -> Counter[str]:
    """Runs one folder; a process that dies without a report counts as one failure."""

    def show(line: str) -> None:
        print(f"{folder} | {line}", flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.xml")
        command = [sys.executable, "-m", "pytest", "tests", f"--junitxml={report}", *arguments]
        process = subprocess.Popen(
            command,
            cwd=root / folder,
            env={"OMP_NUM_THREADS": str(threads), **os.environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        for line in process.stdout:
            show(line.rstrip("\n"))
        code = process.wait()
        if not report.exists():
            show(f"pytest ended with code {code} and no report")
            return Counter(failed=1)
        totals = count(report)
        if code not in (0, 1) and not totals["failed"]:
            show(f"pytest ended with code {code}")
            totals["failed"] += 1
        return totals


def main(arguments: list[str]) -> int:
    split = arguments.index("--") if "--" in arguments else len(arguments)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help=", ".join(FOLDERS))
    parser.add_argument("--jobs", type=int, default=min(2, cores or 1), help="folders at a time")
    args = parser.parse_args(arguments[:split])
    unknown = [folder for folder in args.folders if not (ROOT / folder / "tests").is_dir()]
    if unknown:
        parser.error(f"no tests/ in {', '.join(unknown)}; folders: {', '.join(FOLDERS)}")
    if args.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {args.jobs}")
    threads = max(1, (cores or 1) // args.jobs)
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = [
            pool.submit(run, folder, arguments[split + 1 :], threads)
            for folder in args.folders or FOLDERS
        ]
    totals = sum((job.result() for job in jobs), Counter())
    if not totals["passed"] and not totals["failed"]:
        print("no test ran", file=sys.stderr)
        return 5
    skipped = f", {totals['skipped']} skipped" if totals["skipped"] else ""
    print(f"{totals['passed']} passed, {totals['failed']} failed{skipped}")
    return 1 if totals["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
