"""Tiny image data sets for the tests; the colour of an image tells its label and its number."""

import zipfile
from pathlib import Path

from PIL import Image

HEADER = "DATA:\n  DATASET: {dataset}\n  IMG_SIZE: 32\n  BATCH_SIZE: 4\n  NUM_WORKERS: 0\n"


def colour(label: int, number: int) -> tuple[int, int, int]:
    """The colour of image ``number`` of class ``label``: red is 10 * label, green the number."""
    return 10 * label, number, 200


def save(path: Path, label: int, number: int, size=(40, 36)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour(label, number)).save(path)


def make_folder(root: Path, train=3, val=2, classes=("cat", "dog", "eel")) -> Path:
    """root/{train,val}/<class>/<number>.png with ``train`` and ``val`` images per class."""
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            for number in range(count):
                save(root / split / name / f"{number:03d}.png", label, number)
    return root


def make_zip(archive: Path, folder: Path, prefix: str = "") -> None:
    """Pack the files below ``folder`` as prefix/<relative path>."""
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*.png")):
            file.write(path, prefix + str(path.relative_to(folder)))


def settings(tmp_path: Path, root: Path | str, *opts, dataset="folder"):
    """A configuration for ``root`` without random augmentation or mixing, plus ``opts`` pairs."""
    from config import load_config_file

    path = tmp_path / "tiny.yaml"
    path.write_text(HEADER.format(dataset=dataset))
    plain = ["AUG.MIXUP", 0, "AUG.CUTMIX", 0, "AUG.REPROB", 0, "AUG.AUTO_AUGMENT", "none"]
    plain += ["AUG.COLOR_JITTER", 0, "AUG.MEAN", "[0,0,0]", "AUG.STD", "[1,1,1]"]
    return load_config_file(path, ["DATA.DATA_PATH", str(root), *plain, *opts])


def decode(images) -> list[tuple[int, int]]:
    """(label, number) of each image in a batch (N, 3, H, W), read from the centre pixel."""
    centre = (images[:, :2, 16, 16] * 255).round().int().tolist()
    return [(red // 10, green) for red, green in centre]
