"""tools/test.py: counts, one process per folder, and what dies without a report."""

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import test as runner

MIXED = """
import os
import pytest

def test_right(): assert os.environ["OMP_NUM_THREADS"]
def test_wrong(): assert False
@pytest.mark.skip(reason="example")
def test_skipped(): pass
@pytest.fixture
def broken(): raise RuntimeError
def test_error(broken): pass
"""


def write(root, folder, text):
    path = root / folder / "tests" / "test_it.py"
    path.parent.mkdir(parents=True)
    path.write_text(text)


def test_counts(tmp_path, capfd):
    write(tmp_path, "one", MIXED)
    assert runner.run("one", [], 1, tmp_path) == Counter(passed=1, failed=2, skipped=1)
    lines = capfd.readouterr().out.splitlines()
    assert lines and all(line.startswith("one | ") for line in lines)


def test_arguments_reach_pytest(tmp_path):
    write(tmp_path, "one", MIXED)
    assert runner.run("one", ["-k", "right"], 1, tmp_path) == Counter(passed=1, failed=0, skipped=0)


def test_death_is_a_failure(tmp_path, capfd):
    write(tmp_path, "one", "import os\nos._exit(3)\n")
    assert runner.run("one", [], 1, tmp_path)["failed"] == 1
    assert "ended with code 3 and no report" in capfd.readouterr().out


def test_sum_and_exit_code(tmp_path, monkeypatch, capfd):
    write(tmp_path, "one", MIXED)
    write(tmp_path, "two", "def test_right(): pass\n")
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    monkeypatch.setattr(runner, "run", lambda f, a, t, run=runner.run: run(f, a, t, tmp_path))
    assert runner.main(["one", "two"]) == 1
    assert capfd.readouterr().out.splitlines()[-1] == "2 passed, 2 failed, 1 skipped"
    assert runner.main(["two"]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == "1 passed, 0 failed"
    assert runner.main(["two", "--", "-k", "nothing"]) != 0
