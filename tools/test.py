"""Runs every folder's tests and sums them up in one line: `N passed, N failed`.

    python tools/test.py [FOLDER ...] [-- PYTEST ARGUMENTS]

Top-level module names repeat across the task folders, so each folder has a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ["tools", "ops_dcnv3", "classification", "detection"]


def count(report: Path) -> dict[str, int]:
    """Passed, failed and skipped tests of one JUnit report."""
    totals = {"passed": 0, "failed": 0, "skipped": 0}
    for suite in ElementTree.parse(report).iter("testsuite"):
        number = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
        failed = number["failures"] + number["errors"]
        totals["failed"] += failed
        totals["skipped"] += number["skipped"]
        totals["passed"] += number["tests"] - failed - number["skipped"]
    return totals


def run(folder: str, arguments: list[str]) -> dict[str, int]:
    """Runs one folder; a process that dies without a report counts as one failure."""
    print(f"== {folder}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.xml")
        command = [sys.executable, "-m", "pytest", "tests", f"--junitxml={report}", *arguments]
        code = subprocess.run(command, cwd=ROOT / folder).returncode
        if not report.exists():
            print(f"{folder}: pytest ended with code {code} and no report")
            return {"passed": 0, "failed": 1, "skipped": 0}
        totals = count(report)
        if code not in (0, 1) and not totals["failed"]:
            print(f"{folder}: pytest ended with code {code}")
            totals["failed"] += 1
        return totals


def main(arguments: list[str]) -> int:
    split = arguments.index("--") if "--" in arguments else len(arguments)
    folders, pytest_arguments = arguments[:split] or FOLDERS, arguments[split + 1 :]
    unknown = [folder for folder in folders if not (ROOT / folder / "tests").is_dir()]
    if unknown:
        print(f"no tests/ in {', '.join(unknown)}; folders: {', '.join(FOLDERS)}", file=sys.stderr)
        return 2
    totals = {"passed": 0, "failed": 0, "skipped": 0}
    for folder in folders:
        for key, number in run(folder, pytest_arguments).items():
            totals[key] += number
    if not totals["passed"] and not totals["failed"]:
        print("no test ran", file=sys.stderr)
        return 5
    skipped = f", {totals['skipped']} skipped" if totals["skipped"] else ""
    print(f"{totals['passed']} passed, {totals['failed']} failed{skipped}")
    return 1 if totals["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
