"""Vendored copies: the repository has no drift, and the tool finds and mends it."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOOLS))
import sync  # noqa: E402


def test_the_repository_has_no_drift():
    differing = sync.differing(sync.ROOT, sync.expand(sync.ROOT, sync.COPIES))
    assert not differing, f"{differing} differ: run `make sync`"


@pytest.mark.skipif(not (sync.ROOT / ".git").exists(), reason="not a git checkout")
def test_the_repository_has_no_unlisted_copy():
    table = sync.expand(sync.ROOT, sync.COPIES)
    strays = sync.unlisted(sync.ROOT, table, sync.tracked_files(sync.ROOT))
    assert not strays, f"list these in tools/sync.py: {strays}"


COPIES = {"a/model.py": ["b/model.py", "c/d/model.py"]}


@pytest.fixture
def tree(tmp_path):
    """A small repository with one source, one equal copy and one missing copy."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.py").write_text("x = 1\n")
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.com"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "start"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    return tmp_path


def test_check_names_what_differs_and_writes_nothing(tree, capsys):
    assert sync.run(tree, COPIES, check=True, force=False) == 1
    assert "c/d/model.py differs from a/model.py: run `make sync`" in capsys.readouterr().out
    assert not (tree / "c").exists()


def test_sync_writes_and_then_check_passes(tree, capsys):
    (tree / "a/model.py").write_text("x = 2\n")
    assert sync.run(tree, COPIES, check=False, force=False) == 0
    assert (tree / "b/model.py").read_text() == (tree / "c/d/model.py").read_text() == "x = 2\n"
    assert sync.run(tree, COPIES, check=True, force=False) == 0
    assert "2 vendored copies are up to date" in capsys.readouterr().out


def test_a_fix_in_the_wrong_place_is_not_lost(tree, capsys):
    (tree / "b/model.py").write_text("x = 3  # a fix\n")
    assert sync.run(tree, COPIES, check=False, force=False) == 1
    assert "b/model.py has uncommitted changes: move them to a/model.py" in capsys.readouterr().out
    assert "a fix" in (tree / "b/model.py").read_text()
    assert sync.run(tree, COPIES, check=False, force=True) == 0
    assert (tree / "b/model.py").read_text() == "x = 1\n"


def test_its_own_output_may_be_replaced_before_it_is_committed(tree, capsys):
    """Edit, sync, edit, sync; but an edit of the copy in between is kept."""
    for text in ("x = 4\n", "x = 5\n"):
        (tree / "a/model.py").write_text(text)
        assert sync.run(tree, COPIES, check=False, force=False) == 0
        assert (tree / "b/model.py").read_text() == text
    (tree / "b/model.py").write_text("x = 5  # a fix\n")
    assert sync.run(tree, COPIES, check=False, force=False) == 1
    assert "b/model.py has uncommitted changes" in capsys.readouterr().out
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=tree, capture_output=True, text=True, check=True
    )
    assert "sync-written" not in status.stdout


def test_an_unlisted_copy_is_found(tree, capsys):
    (tree / "e").mkdir()
    (tree / "e/model.py").write_text("x = 1\n")
    sync.run(tree, COPIES, check=False, force=False)
    assert sync.run(tree, COPIES, check=True, force=False) == 1
    assert "e/model.py looks like a copy of a/model.py" in capsys.readouterr().out


def test_a_drifted_copy_is_found_and_a_namesake_is_not(tree):
    (tree / "a/model.py").write_text("x = 1\ny = 2\nz = 3\n")
    for folder, text in (("e", "x = 1\ny = 2\nz = 4\n"), ("f", "import os\n\nx = 1\n")):
        (tree / folder).mkdir()
        (tree / folder / "model.py").write_text(text)
    found = sync.unlisted(tree, COPIES, sync.tracked_files(tree))
    assert found == [("a/model.py", "e/model.py")]


def test_a_folder_stands_for_its_files(tree):
    (tree / "a/other.py").write_text("y = 2\n")
    assert sync.run(tree, {"a": ["g"]}, check=False, force=False) == 1  # b/model.py is not listed
    assert (tree / "g/other.py").read_text() == "y = 2\n"
    assert sync.expand(tree, {"a": ["g"]})["a/model.py"] == ["g/model.py"]
    assert sync.run(tree, {"a": ["b", "g"]}, check=True, force=False) == 1  # b/other.py is missing
    sync.run(tree, {"a": ["b", "g"]}, check=False, force=False)
    assert sync.run(tree, {"a": ["b", "g"]}, check=True, force=False) == 0


def test_a_missing_source_is_an_error(tree):
    with pytest.raises(FileNotFoundError, match=r"source no/such\.py in tools/sync\.py"):
        sync.run(tree, {"no/such.py": []}, check=True, force=False)
