"""The command line of the synthetic data: equal bytes for equal arguments, and bad input."""

from __future__ import annotations

import hashlib
import runpy
from pathlib import Path
from typing import Any

import pytest
from ad_common import synthetic
from ad_common.synthetic import folder, hdmap, rig

ROOT = Path(__file__).resolve().parents[1]
TINY: dict[str, dict[str, Any]] = {
    "occupancy": {"train_scenes": 1, "val_scenes": 1, "frames": 1, "image_scale": 0.04},
    "openlane": {"train_segments": 1, "val_segments": 1, "frames": 1, "image_scale": 0.03},
    "hdmap": {"train_segments": 1, "val_segments": 1, "frames": 1, "image_scale": 0.03},
}


def digest(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


@pytest.mark.parametrize("kind", TINY)
def test_equal_arguments_give_equal_files(tmp_path: Path, kind: str) -> None:
    assert synthetic.write(kind, tmp_path / "a", **TINY[kind]) is True
    assert synthetic.write(kind, tmp_path / "b", **TINY[kind]) is True
    first = digest(tmp_path / "a")
    assert first == digest(tmp_path / "b") and len(first) > 15
    stamp = (tmp_path / "a").stat().st_mtime_ns
    assert synthetic.write(kind, tmp_path / "a", **TINY[kind]) is False  # it is there already
    assert (tmp_path / "a").stat().st_mtime_ns == stamp
    other = {**TINY[kind], "seed": 1}
    with pytest.raises(FileExistsError, match="--overwrite"):
        synthetic.write(kind, tmp_path / "a", **other)
    assert digest(tmp_path / "a") == first
    assert synthetic.write(kind, tmp_path / "a", **other, overwrite=True) is True
    changed = digest(tmp_path / "a")
    images = [name for name in first if name.endswith(".jpg")]
    assert not any(changed.get(name) == first[name] for name in images)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_larger_set_begins_with_the_smaller_one(tmp_path: Path) -> None:
    options = {**TINY["hdmap"], "test_segments": 0}
    hdmap.write(tmp_path / "small", **options)
    hdmap.write(tmp_path / "large", **{**options, "train_segments": 2})
    small, large = digest(tmp_path / "small"), digest(tmp_path / "large")
    images = [name for name in small if name.endswith(".jpg")]
    assert len(images) == 14 and all(large[name] == small[name] for name in images)


def test_what_is_not_ours_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="not written by this program"):
            hdmap.write(tmp_path, **TINY["hdmap"], overwrite=overwrite)
    with pytest.raises(FileExistsError, match="not written by this program"):
        hdmap.write(tmp_path / "notes.txt", **TINY["hdmap"])
    with pytest.raises(OSError, match="cannot be written"):
        hdmap.write(tmp_path / "notes.txt" / "below", **TINY["hdmap"])
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, image: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(hdmap, "write_jpeg", fail)
    with pytest.raises(OSError, match="disk full"):
        hdmap.write(tmp_path / "out", **TINY["hdmap"])
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    done = folder.write_whole(tmp_path, {"kind": "x"}, lambda out: None, overwrite=False)
    assert done and folder.settings_of(tmp_path) == {"kind": "x"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"train_segments": 0}, "train segments must be from 1"),
        ({"val_segments": -2}, "val segments must be from 1"),
        ({"test_segments": -1}, "test segments must be from 0"),
        ({"frames": 0}, "frames of a segment"),
        ({"image_scale": 0}, "image scale"),
        ({"slope": 3}, "slope must be"),
        ({"intersections": 1.5}, "share of intersections"),
        ({"seed": -1}, "seed must not be negative"),
    ],
)
@pytest.mark.parametrize("kind", ["openlane", "hdmap"])
def test_bad_arguments(tmp_path: Path, kind: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        synthetic.write(kind, tmp_path / "out", **options)


def test_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    main = runpy.run_path(str(ROOT / "tools" / "make_synthetic.py"))["main"]
    sizes = ["--train", "1", "--val", "1", "--test", "0", "--frames", "1", "--scale", "0.03"]
    out = tmp_path / "out"
    assert main(["hdmap", str(out), *sizes]) == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    assert (out / "train_annotations.json").is_file()
    assert main(["hdmap", str(out), *sizes]) == 0
    assert capsys.readouterr().out == f"already there: {out}\n"
    assert main(["hdmap", str(out), *sizes, "--seed", "1"]) == 1
    assert "add --overwrite" in caplog.messages[-1]
    assert main(["openlane", str(tmp_path / "other"), "--frames", "0"]) == 1
    assert caplog.messages[-1].endswith("must be from 1 to 40, got 0")
    assert main(["occupancy", str(tmp_path / "other"), "--version", "v1.0-mimi"]) == 1
    assert caplog.messages[-1].endswith("did you mean v1.0-mini?")
    with pytest.raises(SystemExit) as stop:
        main(["hdmap", str(out), "--trian", "3"])
    assert stop.value.code == 2 and "did you mean --train?" in capsys.readouterr().err


def test_rig_scales_with_the_images() -> None:
    full, half = rig.build(rig.ARGOVERSE2, 1.0), rig.build(rig.ARGOVERSE2, 0.5)
    assert (full[0].width, full[0].height) == (1550, 2048)
    point = np_point = [12.0, 1.0, 0.5, 1.0]
    for one, two in zip(full, half):
        a, b = one.ego2img @ point, two.ego2img @ np_point
        assert a[2] == pytest.approx(b[2]) and a[0] / 2 == pytest.approx(b[0])
    ahead = full[0].ego2img @ [30, 0, full[0].cam2ego[2, 3], 1]
    assert ahead[:2] / ahead[2] == pytest.approx([776, 1013])
    names = [camera.name for camera in full]
    left = full[names.index("ring_side_left")].cam2ego[:3, 2]
    assert left[1] > 0.9  # it looks to the left
