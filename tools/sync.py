"""Keeps vendored copies identical to their one source, and generated files equal to their recipe.

    python tools/sync.py            write every copy and generated file that differs
    python tools/sync.py --check    write nothing; exit 1 and name what differs

Each task folder carries the backbone so that it works by itself; only the sources in COPIES are
edited by hand. The table of generated files is GENERATED in `recipes.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from recipes import GENERATED, Recipe, RecipeError

ROOT = Path(__file__).resolve().parents[1]

# {source: [copies]}, relative to the repository's root; a folder stands for its Python files. Files
# are compared byte for byte.
COPIES: dict[str, list[str]] = {
    "LICENSE": ["ops_dcnv3/LICENSE"],
    # Task folders add their copy here when they are created.
    "classification/models/intern_image.py": [
        "detection/mmdet_custom/models/backbones/intern_image.py",
        "segmentation/mmseg_custom/models/backbones/intern_image.py",
        "autonomous_driving/ad_common/backbones/intern_image.py",
    ],
    "classification/models/flash_intern_image.py": [
        "detection/mmdet_custom/models/backbones/flash_intern_image.py",
        "segmentation/mmseg_custom/models/backbones/flash_intern_image.py",
        "autonomous_driving/ad_common/backbones/flash_intern_image.py",
    ],
    "detection/mmdet_custom/models/backbones/registration.py": [
        "autonomous_driving/ad_common/backbones/registration.py"
    ],
    "detection/mmcv_custom": ["segmentation/mmcv_custom", "autonomous_driving/mmcv_custom"],
    "detection/mmdet_custom/datasets/errors.py": [
        "segmentation/mmseg_custom/datasets/errors.py",
        "autonomous_driving/ad_common/datasets/errors.py",
    ],
    **{
        f"autonomous_driving/occupancy_prediction/tools/{name}.sh": [
            f"autonomous_driving/openlane-v2/tools/{name}.sh",
            f"autonomous_driving/Online-HD-Map-Construction/tools/{name}.sh",
        ]
        for name in ("dist_train", "dist_test", "slurm_train", "slurm_test")
    },
    "detection/tests/launch.py": ["segmentation/tests/launch.py"],
    "detection/tests/recipe.py": ["segmentation/tests/recipe.py"],
}
ALIKE = 0.5  # part of a source's lines that another file of its name must have to be called a copy


def expand(root: Path, copies: dict[str, list[str]]) -> dict[str, list[str]]:
    """The table with every folder replaced by its Python files."""
    table: dict[str, list[str]] = {}
    for source, targets in copies.items():
        if not (root / source).is_dir():
            table[source] = targets
            continue
        for file in sorted((root / source).glob("*.py")):
            table[f"{source}/{file.name}"] = [f"{target}/{file.name}" for target in targets]
    return table


def differing(root: Path, copies: dict[str, list[str]]) -> list[tuple[str, str]]:
    """(source, copy) pairs whose bytes differ or whose copy is missing.

    Raises:
        FileNotFoundError: a source in the table does not exist.
    """
    pairs = []
    for source, targets in copies.items():
        if not (root / source).is_file():
            raise FileNotFoundError(f"source {source} in tools/sync.py does not exist")
        wanted = (root / source).read_bytes()
        for target in targets:
            path = root / target
            if not path.is_file() or path.read_bytes() != wanted:
                pairs.append((source, target))
    return pairs


def outdated(root: Path, generated: dict[str, Recipe]) -> dict[str, str]:
    """{generated file: the text it should have}, of those that have another or do not exist.

    Raises:
        RecipeError: a recipe no longer fits its source.
    """
    wanted = {target: recipe.generate(root) for target, recipe in generated.items()}
    return {
        target: text
        for target, text in wanted.items()
        if not (root / target).is_file() or (root / target).read_text(encoding="utf-8") != text
    }


def tracked_files(root: Path) -> list[str]:
    """Paths that git knows or would add, relative to `root`."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return [path for path in result.stdout.split("\0") if path and (root / path).is_file()]


def unlisted(root: Path, copies: dict[str, list[str]], files: list[str]) -> list[tuple[str, str]]:
    """(source, file) pairs: Python files that look like a copy but are not in the table."""
    listed = {*copies, *GENERATED, *(target for targets in copies.values() for target in targets)}
    return [
        (source, file)
        for source in copies
        if source.endswith(".py")
        for file in files
        if Path(file).name == Path(source).name and file not in listed
        if _alike(root / source, root / file)
    ]


def _alike(source: Path, file: Path) -> bool:
    lines, others = (
        {line.strip() for line in path.read_text("utf-8").splitlines()} - {""}
        for path in (source, file)
    )
    return len(lines & others) >= ALIKE * len(lines) > 0


def edited_by_hand(root: Path, target: str) -> bool:
    """Whether a copy has changes that are neither committed nor this program's own."""
    command = ["git", "status", "--porcelain", "--", target]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if result.returncode != 0 or result.stdout[:2] not in (" M", "MM", "AM"):
        return False
    return written_before(root).get(target) != _digest((root / target).read_bytes())


def _record(root: Path) -> Path | None:
    """Where this program notes what it wrote: in git's own folder, so it is never committed."""
    command = ["git", "rev-parse", "--git-path", "sync-written.json"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    return root / result.stdout.strip() if result.returncode == 0 else None


def written_before(root: Path) -> dict[str, str]:
    """{file: SHA-256 of what this program last wrote there}."""
    record = _record(root)
    if record is None or not record.is_file():
        return {}
    return json.loads(record.read_text(encoding="utf-8"))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def note(root: Path, written: dict[str, bytes]) -> None:
    """Remembers what was written, so that the next run may replace it before it is committed."""
    record = _record(root)
    if record is not None:
        digests = {target: _digest(content) for target, content in written.items()}
        write(record, json.dumps(written_before(root) | digests, indent=2).encode())


def write(path: Path, content: bytes) -> None:
    """Replaces a file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def run(
    root: Path,
    copies: dict[str, list[str]],
    check: bool,
    force: bool,
    generated: dict[str, Recipe] | None = None,
) -> int:
    """Checks or writes; returns the exit code."""
    generated = generated or {}
    copies = expand(root, copies)
    strays = unlisted(root, copies, tracked_files(root))
    for source, file in strays:
        print(f"{file} looks like a copy of {source}: list it in tools/sync.py or rename it")
    tasks = [
        (target, source, (root / source).read_bytes()) for source, target in differing(root, copies)
    ]
    tasks += [
        (target, ", ".join(generated[target].sources), text.encode())
        for target, text in outdated(root, generated).items()
    ]
    refused = 0
    written = {}
    for target, source, content in tasks:
        if check:
            relation = "is not what follows from" if target in generated else "differs from"
            print(f"{target} {relation} {source}: run `make sync`")
        elif not force and edited_by_hand(root, target):
            refused += 1
            print(
                f"{target} has uncommitted changes: move them to {source}, "
                "or run tools/sync.py --force to lose them"
            )
        else:
            write(root / target, content)
            written[target] = content
            print(f"wrote {target} from {source}")
    if written:
        note(root, written)
    if check and not tasks and not strays:
        count = sum(map(len, copies.values()))
        print(
            f"{count} vendored {'copy is' if count == 1 else 'copies are'} up to date"
            + (f", and {len(generated)} generated files" if generated else "")
        )
    return 1 if strays or refused or (check and tasks) else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only report; exit 1 on a difference")
    parser.add_argument("--force", action="store_true", help="overwrite copies edited by hand")
    options = parser.parse_args(arguments)
    try:
        return run(ROOT, COPIES, options.check, options.force, GENERATED)
    except (FileNotFoundError, RecipeError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
