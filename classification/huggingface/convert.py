"""Convert a checkpoint into a folder for transformers, or back.

    python huggingface/convert.py --model internimage_t_1k_224 --checkpoint FILE.pth --output DIR
    python huggingface/convert.py --checkpoint output/run/ckpt_epoch_best.pth --output DIR
    python huggingface/convert.py --to-pth DIR FILE.pth

Without --checkpoint the released weights of --model are downloaded. Without --model and --cfg the
configuration is read from the checkpoint, where this project's training writes it.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
for place in (str(HERE.parents[1]), str(HERE.parent)):
    if place not in sys.path:
        sys.path.insert(0, place)

import torch

from cli import ArgumentParser
from config import (
    ConfigError,
    config_from_dict,
    config_to_dict,
    default_config,
    load_config_file,
)
from dataset.class_names import names_for
from models import hub
from models.build import model_arguments
from models.fetch import fetch
from models.released import ReleasedModel, released_model
from models.safe_load import CheckpointError, load_file
from models.weights import extract_state

logger = logging.getLogger(__name__)

INSTALL = "pip install -r requirements/huggingface.txt"
# Arguments of a model that are not under their upper-case name in its section of the configuration.
_PLACES = {
    "drop_rate": ("MODEL", "DROP_RATE"),
    "drop_path_rate": ("MODEL", "DROP_PATH_RATE"),
    "drop_path_type": ("MODEL", "DROP_PATH_TYPE"),
    "with_cp": ("TRAIN", "USE_CHECKPOINT"),
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of convert.py."""
    parser = ArgumentParser(
        "convert.py", description="Checkpoint to transformers folder, or back", allow_abbrev=False
    )
    add = parser.add_argument
    add("--model", metavar="NAME", help="released model, such as internimage_t_1k_224")
    add("--cfg", metavar="FILE", help="YAML experiment file, for weights of your own")
    add("--opts", nargs="+", action="extend", metavar="KEY VALUE", help="override --cfg")
    add("--checkpoint", metavar="FILE", help=".pth file or https:// address")
    add("--ema", action="store_true", help="use the checkpoint's moving average of the weights")
    add("--output", metavar="DIR", help="folder to write; must not exist")
    add("--to-pth", nargs=2, metavar=("DIR", "FILE"), help="the other direction")
    args = parser.parse_args(argv)
    if args.to_pth:
        others = ("model", "cfg", "opts", "checkpoint", "output", "ema")
        typed = [f"--{name}" for name in others if getattr(args, name)]
        if typed:
            parser.error(f"--to-pth DIR FILE stands alone, without {', '.join(typed)}")
    elif not args.output:
        parser.error("--output DIR is missing (or --to-pth DIR FILE)")
    elif args.model and args.cfg:
        parser.error("give --model or --cfg, not both")
    elif not args.checkpoint and not args.model:
        parser.error("--checkpoint FILE is missing (only --model NAME can be downloaded)")
    return args


def _load_config(args: argparse.Namespace, row: ReleasedModel | None, saved: Any) -> Any:
    """The configuration tree by --model, --cfg or out of the checkpoint."""
    if row is not None:
        fixed = [str(word) for pair in row.config_opts.items() for word in pair]
        return load_config_file(HERE.parent / row.config, [*fixed, *(args.opts or [])])
    if args.cfg:
        return load_config_file(args.cfg, args.opts or [])
    if not isinstance(saved, dict):
        raise ConfigError(
            f"{args.checkpoint} carries no configuration: give --model NAME or --cfg FILE"
        )
    return config_from_dict(_known_only(saved, default_config()), args.opts or [])


def _known_only(tree: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """Without keys that other versions of the program wrote into their checkpoints."""
    return {
        key: _known_only(value, known[key]) if isinstance(known[key], dict) else value
        for key, value in tree.items()
        if key in known
    }


def _check_head(state: dict[str, Any], source: Path) -> None:
    if "head.weight" not in state:
        raise CheckpointError(
            f"{source} has no classification head (head.weight); only classifiers are converted"
        )


def _class_names(config: Any, checkpoint: dict[str, Any], classes: int) -> list[str] | None:
    names = checkpoint.get("class_names")
    if isinstance(names, list) and len(names) == classes:
        return [str(name) for name in names]
    return names_for(classes) if config.DATA.DATASET in ("imagenet", "imagenet22K") else None


def convert(args: argparse.Namespace) -> str:
    """Writes --output; returns what to tell the user.

    Raises:
        CheckpointError: the weights cannot be read or do not fit.
        ConfigError, ValueError: the configuration cannot be used.
        OSError: the folder exists or cannot be written.
    """
    from huggingface import InternImageConfig, folder
    from huggingface.image_processing import preprocessor_config
    from huggingface.model_card import model_card

    output = Path(args.output)
    if output.exists():
        raise FileExistsError(f"{output} exists: choose another folder, or remove it first")
    row = released_model(args.model) if args.model else None
    if row is not None and row.task != "classification":
        raise ConfigError(f"{row.name} is a {row.task} model; only classifiers are converted")
    path = fetch(args.checkpoint) if args.checkpoint else hub.checkpoint_path(args.model)
    checkpoint = load_file(path)
    config = _load_config(args, row, checkpoint.get("config"))
    if config.MODEL.TYPE == "intern_image_meta_former":
        raise ConfigError(
            f"{config.MODEL.NAME} takes place and date beside the image (MODEL.TYPE "
            "intern_image_meta_former), for which transformers has no kind of model"
        )
    if args.ema:
        if not checkpoint.get("model_ema"):
            raise CheckpointError(f"{path} has no moving average: leave --ema out")
        checkpoint["model"] = checkpoint["model_ema"]
    state = extract_state(checkpoint, str(path))
    _check_head(state, path)
    classes = state["head.weight"].shape[0]
    if row is not None and classes != row.num_classes:
        raise CheckpointError(
            f"{path} has {classes} classes, {row.name} has {row.num_classes}: for weights of your "
            "own give --cfg FILE instead of --model"
        )
    arguments = {key: value for key, value in model_arguments(config).items()
                 if key != "num_classes"}  # fmt: skip
    names = _class_names(config, checkpoint, classes)
    hf_config = InternImageConfig(**arguments, **folder.labels(names, classes))
    model = folder.build(hf_config, state, str(path))
    size, aug = config.DATA.IMG_SIZE, config.AUG
    processor = preprocessor_config(
        size, aug.MEAN, aug.STD, config.DATA.INTERPOLATION, config.TEST.CROP
    )
    params = sum(parameter.numel() for parameter in model.parameters())
    title = row.title if row is not None else config.MODEL.NAME
    card = model_card(title, output.name, hf_config, size, params, path.name, row)
    folder.write(output, model, processor, card)
    labels = "named" if names else "LABEL_0, LABEL_1, ..."
    return f"{output}: {params / 1e6:.1f} M parameters, {classes} classes ({labels}), {size} pixels"


def to_pth(source: Path, target: Path) -> str:
    """Writes the weights of a folder as a checkpoint; returns what to tell the user.

    Raises:
        CheckpointError: the folder is not one of this model, or it cannot be read.
        OSError: the file exists or cannot be written.
    """
    from huggingface import folder
    from huggingface.image_processing import image_size_of
    from models.write_file import replacing

    if target.exists():
        raise FileExistsError(f"{target} exists: choose another name, or remove it first")
    hf_config, state, processor = folder.read(source)
    state = folder.from_huggingface(state)
    _check_head(state, source)
    folder.build(hf_config, state, str(source))
    config = _config_tree(hf_config, image_size_of(processor), target.stem)
    names = folder.class_names(hf_config)
    with replacing(target) as temporary:
        torch.save({"model": state, "class_names": names, "config": config}, temporary)
    return f"{target}: {len(state)} tensors, {hf_config.num_labels} classes"


def _config_tree(hf_config: Any, image_size: int, name: str) -> dict[str, Any]:
    """The configuration that builds the model, so that predict.py needs no --cfg."""
    config = default_config()
    is_flash = hf_config.core_op == "DCNv4"
    section = "FLASH_INTERN_IMAGE" if is_flash else "INTERN_IMAGE"
    config.MODEL.TYPE = section.lower()
    config.MODEL.NAME = name
    config.MODEL.NUM_CLASSES = hf_config.num_labels
    config.DATA.IMG_SIZE = image_size
    for key, value in hf_config.classifier_arguments().items():
        if key in _PLACES:
            node, upper = _PLACES[key]
            config[node][upper] = value
        elif key.upper() in config.MODEL[section]:
            config.MODEL[section][key.upper()] = "" if key == "backend" and not value else value
    return config_to_dict(config_from_dict(config_to_dict(config)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    try:
        import safetensors  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        logger.error("convert.py needs transformers and safetensors (%s): %s", error, INSTALL)
        return 1
    try:
        print(to_pth(*map(Path, args.to_pth)) if args.to_pth else convert(args))
    except (CheckpointError, OSError, ValueError, TypeError) as error:
        logger.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
