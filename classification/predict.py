"""Classify images: ``python predict.py --model NAME INPUT...``.

NAME is a released model (``--list-models``), whose weights are downloaded; ``--resume CKPT`` takes
a checkpoint instead. INPUT is an image, a folder (searched in all depths) or a glob pattern. Prints
the most likely classes, and on request writes a contact sheet (PNG) and JSON lines.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
for folder in (str(HERE.parent), str(HERE)):
    if folder not in sys.path:
        sys.path.insert(0, folder)

import torch
from PIL import Image
from torch import nn

import contact_sheet
import distributed
from cli import ArgumentParser, run_program
from config import ConfigError, config_from_dict, default_config, is_typed, load_config_file
from dataset.class_names import names_for, wordnet_ids
from dataset.decode import DECODE_ERRORS, decode_image
from dataset.transforms import build_transform
from models import build_model, list_models, weights
from models.fetch import fetch, released
from models.released import UnknownModelError, released_model
from models.safe_load import CheckpointError, load_file
from models.write_file import replacing

logger = logging.getLogger(__name__)

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
)


@dataclass
class Prediction:
    """Result for one image: classes from most to least likely, and the true class if known."""

    path: Path
    classes: list[int]
    probabilities: list[float]
    truth: int | None = None

    @property
    def correct(self) -> bool | None:
        return None if self.truth is None else self.classes[0] == self.truth


@dataclass
class Classifier:
    """A model with what is needed to read an image and to name a class."""

    model: nn.Module
    config: Any
    device: torch.device
    names: list[str] | None
    num_classes: int
    label_of_folder: dict[str, int] = field(default_factory=dict)

    def name(self, index: int) -> str:
        """Readable name of a class, ``class 7`` when names are not known."""
        return self.names[index] if self.names else f"class {index}"

    def truth(self, path: Path) -> int | None:
        """True class from the name of the folder the image lies in, None when it names no class."""
        return self.label_of_folder.get(path.resolve().parent.name)


class _ListModels(argparse.Action):
    """``--list-models``: prints the released models and ends the program."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any) -> None:
        for row in map(released_model, list_models()):
            top1 = f"top-1 {row.metrics['top1']}" if row.metrics else ""
            origin = "" if row.hub_file else "no weights to download"
            cells = [f"{row.name:34}", f"{row.dataset:17}", f"{row.input_size}", f"{top1:10}"]
            print("  ".join([*cells, f"{row.params / 1e6:6.0f} M", origin]).rstrip())
        parser.exit()


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of predict.py."""
    parser = ArgumentParser("predict.py", description="Classify images", allow_abbrev=False)
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="image, folder or glob pattern")
    add("--model", metavar="NAME", help="released model; its weights are downloaded (once)")
    add("--list-models", action=_ListModels, nargs=0, help="list the names and stop")
    add("--cfg", metavar="FILE", help="YAML experiment file (default: the one in the checkpoint)")
    add(
        "--resume",
        metavar="CKPT",
        help="checkpoint: path, https:// address or released model; with --model NAME, weights for "
        "that model",
    )
    add("--ema", action="store_true", help="use the checkpoint's moving average of the weights")
    add("--topk", type=int, default=5, help="classes to print for each image (default: 5)")
    add("--device", default="auto", help="auto | cpu | cuda | cuda:N")
    add("--out", metavar="PNG", help="write a contact sheet")
    add("--json", metavar="FILE", help="write one JSON object per image")
    add("--batch-size", type=int, default=16, help="images per forward pass (default: 16)")
    add(
        "--opts", nargs="+", action="extend", metavar="KEY VALUE", help="override the configuration"
    )
    args = parser.parse_args(argv)
    if not args.model and not args.resume:
        parser.error("which model? Give --model NAME (see --list-models) or --resume CKPT")
    if args.model and args.cfg:
        parser.error(f"--model {args.model} has its configuration: leave --cfg {args.cfg} out")
    for name in ("topk", "batch_size"):
        if getattr(args, name) < 1:
            parser.error(
                f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}"
            )
    if args.out and Path(args.out).suffix.lower() not in Image.registered_extensions():
        parser.error(f"--out {args.out} does not end like a picture, such as sheet.png")
    return args


def find_images(inputs: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Image files behind paths, folders and patterns, without repetitions.

    Returns:
        The files, and a message for each input that gives none.
    """
    found: dict[Path, None] = {}
    problems = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            files = sorted(
                p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()
            )
            if not files:
                problems.append(f"{text}: no image in this folder ({', '.join(sorted(SUFFIXES))})")
        elif path.is_file():
            files = [path]
        else:
            files = [Path(name) for name in sorted(glob.glob(text, recursive=True))]
            files = [p for p in files if p.is_file()]
            if not files:
                problems.append(f"{text}: no such file, folder or match")
        found.update(dict.fromkeys(files))
    return list(found), problems


def _checkpoint_config(checkpoint: dict[str, Any], opts: Sequence[str], source: str) -> Any:
    saved = checkpoint.get("config")
    if not isinstance(saved, dict):
        raise ConfigError(f"{source} carries no configuration: give the YAML with --cfg FILE")
    return config_from_dict(_known_only(saved, default_config()), opts)


def _known_only(tree: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """Without keys that other versions of the program wrote into their checkpoints."""
    return {
        key: _known_only(value, known[key]) if isinstance(known[key], dict) else value
        for key, value in tree.items()
        if key in known
    }


def named_config(name: str, opts: Sequence[str]) -> Any:
    """The configuration of a released model, with its number of classes unless one was typed.

    Raises:
        UnknownModelError: no released classification model has this name.
        ConfigError: a wrong key or value in `opts`.
    """
    row = released_model(name)
    if row.task != "classification":
        raise UnknownModelError(f"{name} is a {row.task} model: use the programs of {row.task}/")
    fixed = [str(word) for pair in row.config_opts.items() for word in pair]
    config = load_config_file(HERE / row.config, [*fixed, *opts]).clone()
    config.defrost()
    config.MODEL.NAME = name
    if not is_typed(config, "MODEL.NUM_CLASSES"):
        config.MODEL.NUM_CLASSES = row.num_classes
    config.freeze()
    return config


def load_classifier(args: argparse.Namespace) -> tuple[Classifier, str]:
    """Build the model of a checkpoint; returns it and the checkpoint's file name.

    Raises:
        ConfigError: no configuration, or a wrong one.
        UnknownModelError: no released model has this name.
        CheckpointError: the file cannot be had or read, has no head or does not fit.
    """
    name = args.model
    if args.resume and not name and not args.cfg:
        row = released(args.resume)
        name = row.name if row else None
    config = named_config(name, args.opts or []) if name else None
    path = fetch(args.resume or name)
    checkpoint = load_file(path)
    if args.ema:
        if not checkpoint.get("model_ema"):
            raise CheckpointError(f"{path} has no moving average: leave --ema out")
        checkpoint["model"] = checkpoint["model_ema"]
    opts = args.opts or []
    if args.cfg:
        config = load_config_file(args.cfg, opts)
    elif config is None:
        config = _checkpoint_config(checkpoint, opts, str(path))
    classes = weights.head_classes(checkpoint)
    if classes is None:
        raise CheckpointError(f"{path} has no classification head (head.weight)")
    config = config.clone()
    config.defrost()
    config.MODEL.NUM_CLASSES = classes
    config.freeze()
    device = distributed.resolve_device(args.device)
    model = build_model(config)
    weights.load_weights(model, checkpoint, source=str(path), evaluation=True)
    names = checkpoint.get("class_names")
    labels: dict[str, int] = {}
    if not (isinstance(names, list) and len(names) == classes):
        names = names_for(config)
        if names is not None:
            labels = {wnid: index for index, wnid in enumerate(wordnet_ids(classes))}
    elif classes in (weights.CLASSES_1K, weights.CLASSES_22K) and names == names_for(classes):
        labels = {wnid: index for index, wnid in enumerate(wordnet_ids(classes))}
    if names is not None:
        labels = {**{name: index for index, name in enumerate(names)}, **labels}
    classifier = Classifier(model.to(device).eval(), config, device, names, classes, labels)
    return classifier, path.name


def _batches(
    paths: Sequence[Path], transform: Any, size: int, bad: list[str]
) -> Iterator[tuple[list[Path], torch.Tensor]]:
    images: list[torch.Tensor] = []
    kept: list[Path] = []
    for path in paths:
        try:
            images.append(transform(decode_image(path)))
            kept.append(path)
        except DECODE_ERRORS as error:
            bad.append(f"{path}: {error}")
            logger.warning("skipping unreadable image %s: %s", path, error)
        if len(kept) == size:
            yield kept, torch.stack(images)
            images, kept = [], []
    if kept:
        yield kept, torch.stack(images)


@torch.no_grad()
def predict(
    classifier: Classifier, paths: Sequence[Path], topk: int, batch_size: int, bad: list[str]
) -> Iterator[Prediction]:
    """Classify files one batch at a time; unreadable ones are appended to ``bad`` and skipped."""
    config, device = classifier.config, classifier.device
    transform = build_transform(False, config)
    with_metadata = config.MODEL.TYPE == "intern_image_meta_former"
    if with_metadata:
        logger.info("this model also takes place and date, which files do not have: zeros are used")
    for kept, images in _batches(paths, transform, batch_size, bad):
        inputs = [images.to(device)]
        if with_metadata:
            inputs += [torch.zeros(len(kept), n, device=device) for n in (4, 3)]
        output = classifier.model(*inputs).float().softmax(dim=1).cpu()  # (N, classes)
        best = output.topk(min(topk, output.shape[1]), dim=1)
        rows = zip(kept, best.indices.tolist(), best.values.tolist(), strict=True)
        for path, classes, probabilities in rows:
            yield Prediction(path, classes, probabilities, classifier.truth(path))


def _report(classifier: Classifier, prediction: Prediction) -> None:
    note = {None: "", True: "  (correct)"}.get(
        prediction.correct, f"  (true class: {classifier.name(prediction.truth or 0)})"
    )
    print(f"{prediction.path}{note}")
    for index, probability in zip(prediction.classes, prediction.probabilities, strict=True):
        print(f"  {100 * probability:6.2f}%  {classifier.name(index)}")


def _json_record(classifier: Classifier, prediction: Prediction) -> dict[str, Any]:
    topk = [
        {"class": index, "name": classifier.name(index), "probability": probability}
        for index, probability in zip(prediction.classes, prediction.probabilities, strict=True)
    ]
    record: dict[str, Any] = {"file": str(prediction.path), "topk": topk}
    if prediction.truth is not None:
        record |= {"label": prediction.truth, "label_name": classifier.name(prediction.truth),
                   "correct": prediction.correct}  # fmt: skip
    return record


def _cards(classifier: Classifier, predictions: Sequence[Prediction]) -> list[contact_sheet.Card]:
    return [
        contact_sheet.Card(
            prediction.path,
            classifier.name(prediction.classes[0]),
            prediction.probabilities[0],
            None if prediction.truth is None else classifier.name(prediction.truth),
            prediction.correct,
        )
        for prediction in predictions
    ]


def run(args: argparse.Namespace) -> int:
    """Predict, print and write; returns the exit code: 1 also when an input gave no file."""
    paths, problems = find_images(args.inputs)
    for problem in problems:
        logger.error("%s", problem)
    if not paths:
        logger.error("nothing to classify")
        return 1
    classifier, checkpoint_name = load_classifier(args)
    bad: list[str] = []
    predictions: list[Prediction] = []
    with contextlib.ExitStack() as stack:
        lines = None
        if args.json:
            temporary = stack.enter_context(replacing(args.json))
            lines = stack.enter_context(temporary.open("w", encoding="utf-8"))
        for prediction in predict(classifier, paths, args.topk, args.batch_size, bad):
            _report(classifier, prediction)
            predictions.append(prediction)
            if lines is not None:
                lines.write(json.dumps(_json_record(classifier, prediction)) + "\n")
    known = [prediction for prediction in predictions if prediction.truth is not None]
    right = sum(bool(prediction.correct) for prediction in known)
    count = len(predictions)
    summary = f"{count} image{'' if count == 1 else 's'}"
    if known:
        summary += f", accuracy {100 * right / len(known):.1f}% ({right} of {len(known)} labelled)"
    if bad:
        summary += f", {len(bad)} unreadable and skipped"
    print(summary)
    if not predictions:
        logger.error("none of the %d files could be read", len(paths))
        return 1
    if args.out:
        origin = f"{classifier.config.MODEL.NAME} · {checkpoint_name}"
        caption = [origin, summary]
        sheet = contact_sheet.draw_sheet(
            _cards(classifier, predictions), "InternImage predictions", caption
        )
        with replacing(args.out) as temporary:
            sheet.save(temporary)
        print(f"contact sheet: {args.out}")
    return 1 if problems else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    return run_program(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
