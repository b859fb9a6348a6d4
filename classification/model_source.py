"""The model that a tool's command line asks for: ``--cfg``, ``--resume``, ``--model`` and so on.

Shared by extract_feature.py, get_flops.py, export.py and tools/visualize.py.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import distributed
import predict
from config import ConfigError, load_config_file
from dataset.class_names import names_for
from models import build_model
from models.intern_image_meta_former import SPATIAL_DIM, TEMPORAL_DIM
from models.released import released_model

logger = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parent


@dataclass
class Source:
    """A model in evaluation mode with its configuration.

    Attributes:
        model: on `device`, `eval()`.
        config: the configuration it was built from.
        device: where it is.
        names: class names in label order, None where they are not known.
        label: which model and which weights, for captions.
    """

    model: nn.Module
    config: Any
    device: torch.device
    names: list[str] | None
    label: str

    @property
    def size(self) -> int:
        """Side of the square images it was trained on, in pixels."""
        return self.config.DATA.IMG_SIZE

    @property
    def num_classes(self) -> int:
        return self.config.MODEL.NUM_CLASSES

    def inputs(self, images: Tensor) -> list[Tensor]:
        """The arguments of `model.forward`: the images, with zeros for metadata if it takes any."""
        return [images, *metadata(self.config, images)]

    def name(self, index: int) -> str:
        """Readable name of a class, ``class 7`` when names are not known."""
        return self.names[index].split(",")[0] if self.names else f"class {index}"


def metadata(config: Any, images: Tensor) -> list[Tensor]:
    """Unknown date and place, zeros (N, 4) and (N, 3), for the model that takes them; else []."""
    if config.MODEL.TYPE.lower() != "intern_image_meta_former":
        return []
    return [images.new_zeros(images.shape[0], width) for width in (TEMPORAL_DIM, SPATIAL_DIM)]


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that say which network."""
    add = parser.add_argument
    add("--cfg", metavar="FILE", help="YAML experiment file")
    add("--model", metavar="NAME", help="released model by name, such as internimage_t_1k_224")
    add(
        "--opts", nargs="+", action="extend", metavar="KEY VALUE", help="override the configuration"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that say which network, which weights and which device."""
    add_config_arguments(parser)
    add = parser.add_argument
    add(
        "--resume",
        metavar="CKPT",
        help="checkpoint: path or https:// address; carries its own configuration if this project "
        "wrote it. With --model: use these weights instead of the released ones",
    )
    add("--ema", action="store_true", help="use the checkpoint's moving average of the weights")
    add("--device", default="auto", help="auto | cpu | cuda | cuda:N")


def load_config(args: argparse.Namespace) -> Any:
    """The configuration of ``--cfg`` or ``--model``, frozen, with the right number of classes.

    Raises:
        ConfigError: none of the two or both, no such file, or a wrong key.
        UnknownModelError: no released model has this name.
    """
    if args.cfg and args.model:
        raise ConfigError(f"give --cfg {args.cfg} or --model {args.model}, not both")
    opts = list(args.opts or [])
    if args.model:
        row = released_model(args.model)
        if row.task != "classification":
            raise ConfigError(f"{args.model} is a {row.task} model: use the tools of {row.task}/")
        fixed = [str(word) for pair in row.config_opts.items() for word in pair]
        config = load_config_file(HERE / row.config, [*fixed, *opts]).clone()
        config.defrost()
        config.MODEL.NUM_CLASSES, config.MODEL.NAME = row.num_classes, row.name
        config.freeze()
        return config
    if not args.cfg:
        raise ConfigError("no model: give --cfg FILE or --model NAME")
    config = load_config_file(args.cfg, opts)
    classes = {"imagenet22K": 21841, "inat18": 8142}.get(config.DATA.DATASET)
    if classes and not any(key == "MODEL.NUM_CLASSES" for key in opts[::2]):
        config = config.clone()
        config.defrost()
        config.MODEL.NUM_CLASSES = classes
        config.freeze()
    return config


def load(args: argparse.Namespace) -> Source:
    """The model of the command line with its weights.

    ``--model NAME`` loads the released weights, ``--resume`` those of a file; with ``--cfg`` alone
    the weights are random, which a warning says.

    Raises:
        ConfigError, UnknownModelError: as `load_config`.
        CheckpointError: the file cannot be read or does not fit.
        DistributedSetupError: an unknown device.
    """
    if args.resume or args.model:
        return _load_trained(args)
    if not args.cfg:
        raise ConfigError("no model: give --resume CKPT, --model NAME or --cfg FILE")
    config = load_config(args)
    if args.ema:
        raise ConfigError("--ema needs a checkpoint (--resume)")
    device = distributed.resolve_device(args.device)
    logger.warning("no checkpoint was given (--resume): the weights are random")
    model = build_model(config).to(device).eval()
    return Source(model, config, device, names_for(config), f"{config.MODEL.NAME} · random weights")


def _load_trained(args: argparse.Namespace) -> Source:
    chosen = argparse.Namespace(**{**vars(args), "model": None})
    if args.model:
        if args.cfg:
            load_config(args)  # refuses both
        row = released_model(args.model)
        fixed = [str(word) for pair in row.config_opts.items() for word in pair]
        chosen.cfg = str(HERE / row.config)
        chosen.opts = [*fixed, *(args.opts or [])]
        if not args.resume:
            from models.hub import checkpoint_path

            chosen.resume = str(checkpoint_path(args.model))
    classifier, file_name = predict.load_classifier(chosen)
    name = args.model or classifier.config.MODEL.NAME
    weights = f"{file_name}, moving average" if args.ema else file_name
    label = f"{name} · {weights}"
    return Source(classifier.model, classifier.config, classifier.device, classifier.names, label)
