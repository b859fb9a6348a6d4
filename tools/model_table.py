"""Writes the tables of docs/models.md from the table of released models.

    python tools/model_table.py            write what differs
    python tools/model_table.py --check    write nothing; exit 1 if docs/models.md is out of date

The rows are classification/models/released_*.json; the text around the tables is written by hand.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "models.md"
BEGIN = "<!-- from here: python tools/model_table.py -->"
END = "<!-- to here -->"
METRICS = {
    "top1": "top-1",
    "box_ap": "box AP",
    "box_ap_tta": "box AP, TTA",
    "mask_ap": "mask AP",
    "minival_ap": "minival AP",
    "val_ap": "val AP",
    "val_ap_ms": "val AP, several scales",
    "map": "mAP",
    "voc07_map": "mAP, VOC 2007",
    "voc12_map": "mAP, VOC 2012",
    "miou": "mIoU",
    "miou_ms": "mIoU, several scales",
}


def load_released() -> ModuleType:
    """classification/models/released.py by itself, without PyTorch."""
    path = ROOT / "classification" / "models" / "released.py"
    spec = importlib.util.spec_from_file_location("released", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def tables(rows: Sequence) -> str:
    """One table per task and data set, in the order of the rows."""
    parts = []
    for task in dict.fromkeys(row.task for row in rows):
        of_task = [row for row in rows if row.task == task]
        for dataset in dict.fromkeys(row.dataset for row in of_task):
            title = f"### {task.capitalize()}, {dataset}"
            parts += [title, table([row for row in of_task if row.dataset == dataset])]
    return "\n\n".join(parts)


def table(rows: Sequence) -> str:
    """Markdown table of rows of one task and data set; columns that would be empty are left out."""
    metrics = list(dict.fromkeys(key for row in rows for key in row.metrics))
    header = ["name", "model", "pre-training", "size", "params", "MACs"]
    header += [METRICS.get(key, key) for key in metrics] + ["checkpoint"]
    header += ["transformers", "log", "config"]
    lines = [cells(row, metrics) for row in rows]
    kept = [i for i in range(len(header)) if any(line[i] for line in lines)]
    body = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(line[i] for i in kept) + " |" for line in body)


def cells(row, metrics: Sequence[str]) -> list[str]:
    """The cells of one row."""
    config = f"../{row.task}/{row.config}"
    hub = f"[{row.transformers_repo}](https://huggingface.co/{row.transformers_repo})"
    return [
        f"`{row.name}`",
        row.title,
        row.pretraining or "",
        str(row.input_size or ""),
        with_published(row.params, 1e6, "M", 1, row.published_params),
        with_published(row.gmacs, 1, "G", 2, row.published_flops),
        *(str(row.metrics.get(key, "")) for key in metrics),
        f"[{row.hub_file}]({row.url})" if row.url else "",
        hub if row.transformers_repo else "",
        f"[log]({row.log})" if row.log else "",
        f"[{Path(row.config).name}]({config})",
    ]


def with_published(value: float | None, unit: float, letter: str, digits: int, published) -> str:
    """'29.9 M (30M)': the counted number, and in brackets what was published."""
    if value is None:
        return published or ""
    counted = f"{value / unit:,.{digits}f} {letter}"
    return f"{counted} ({published})" if published else counted


def updated(page: str, content: str) -> str:
    """The page with the text between the two marks replaced.

    Raises:
        ValueError: a mark is missing.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"{PAGE} must contain these two lines once, in this order: {BEGIN} {END}")
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{rest.split(END)[1]}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write the tables of docs/models.md.")
    parser.add_argument("--check", action="store_true", help="only compare, exit 1 on a difference")
    args = parser.parse_args(argv)
    released = load_released()
    rows = [released.released_model(name) for name in released.list_models(task=None)]
    page = PAGE.read_text(encoding="utf-8")
    try:
        wanted = updated(page, tables(rows))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if page == wanted:
        print(f"{PAGE} is up to date ({len(rows)} models)")
        return 0
    if args.check:
        print(f"{PAGE} is out of date: run python tools/model_table.py", file=sys.stderr)
        return 1
    temporary = PAGE.with_name(PAGE.name + ".new")
    temporary.write_text(wanted, encoding="utf-8")
    os.replace(temporary, PAGE)
    print(f"wrote {PAGE} ({len(rows)} models)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
