"""models/map22kto1k.txt and the class lists it is made from."""

import importlib.util
from pathlib import Path

from timm.data import ImageNetInfo

from dataset.class_names import wordnet_ids

META = Path(__file__).resolve().parents[1] / "meta_data"
LINES = (META.parent / "models" / "map22kto1k.txt").read_text().split("\n")
MAP = [int(line) for line in LINES[:-1]]
TEDDY = 850


def test_the_map_has_one_22k_index_per_1k_class():
    assert LINES[-1] == "" and len(MAP) == 1000
    assert len(set(MAP)) == 1000 and min(MAP) >= 0 and max(MAP) < 21841


def test_every_line_names_the_same_wordnet_id_but_one():
    small, large = wordnet_ids(1000), wordnet_ids(21841)
    other = [i for i, row in enumerate(MAP) if large[row] != small[i]]
    assert other == [TEDDY]
    assert set(small) - set(large) == {small[TEDDY]} == {"n04399382"}


def test_the_teddy_bear_is_a_toy():
    info = ImageNetInfo("imagenet-22k")
    assert "teddy bear" in ImageNetInfo("imagenet-1k").index_to_description(TEDDY)
    assert info.index_to_description(MAP[TEDDY]) == "toy"


def test_the_script_that_wrote_the_file_agrees(capsys, monkeypatch):
    spec = importlib.util.spec_from_file_location("make_map", META / "make_map22kto1k.py")
    make_map = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_map)
    monkeypatch.setattr("sys.argv", ["make_map22kto1k.py", "--check"])
    assert make_map.compute_map() == MAP
    assert make_map.main() == 0 and "up to date" in capsys.readouterr().out
