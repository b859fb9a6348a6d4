"""docs/models.md shows the table of released models."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import model_table  # noqa: E402


def test_page_is_up_to_date(capsys):
    assert model_table.main(["--check"]) == 0, capsys.readouterr().err


def test_every_model_and_config_is_there():
    released = model_table.load_released()
    page = model_table.PAGE.read_text(encoding="utf-8")
    for name in released.list_models(task=None):
        row = released.released_model(name)
        assert f"`{name}`" in page and (row.url is None or row.url in page)
        assert (ROOT / row.task / row.config).is_file()


def test_changed_table(tmp_path, monkeypatch, capsys):
    page = tmp_path / "models.md"
    page.write_text(f"Before.\n\n{model_table.BEGIN}\nold\n{model_table.END}\n\nAfter.\n")
    monkeypatch.setattr(model_table, "PAGE", page)
    assert model_table.main(["--check"]) == 1 and "old" in page.read_text()
    assert "run python tools/model_table.py" in capsys.readouterr().err
    assert model_table.main([]) == 0
    text = page.read_text()
    assert text.startswith("Before.") and text.endswith("After.\n") and "old" not in text
    assert "| `internimage_t_1k_224` | InternImage-T |" in text and "29.9 M (30M)" in text
    assert model_table.main(["--check"]) == 0
    page.write_text("no marks")
    assert model_table.main([]) == 1 and page.read_text() == "no marks"


@pytest.mark.parametrize(
    "value, published, expected", [(None, "30M", "30M"), (None, None, ""), (2e6, None, "2.0 M")]
)
def test_numbers(value, published, expected):
    assert model_table.with_published(value, 1e6, "M", 1, published) == expected
