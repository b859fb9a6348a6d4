"""The model that a tool's command line asks for: ``--cfg``, ``--resume``, ``--model`` and so on.

Shared by extract_feature.py, get_flops.py, export.py and tools/visualize.py.
"""

from __future__ import annotations

import argparse
import logging
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import distributed
import predict
from config import ConfigError, is_typed, load_config_file
from dataset.class_names import names_for
from models import build_model
from models.intern_image_meta_former import SPATIAL_DIM, TEMPORAL_DIM

logger = logging.getLogger(__name__)

_NO_MEMORY = re.compile("out of memory|allocate memory")  # GPU, CPU


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

    def __call__(self, images: Tensor) -> Tensor:
        """The logits of images (N, 3, H, W).

        Raises:
            ValueError: the images are too large for the memory, or the model cannot take them.
        """
        try:
            return self.model(*self.inputs(images))
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, RuntimeError) and not _NO_MEMORY.search(str(error)):
                raise
            size = "x".join(map(str, images.shape[2:]))
            raise ValueError(
                f"An image of {size} pixels does not fit into the memory: type a smaller --opts "
                "DATA.IMG_SIZE."
            ) from error

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
    _refuse_both(args)
    opts = list(args.opts or [])
    if args.model:
        return predict.named_config(args.model, opts)
    if not args.cfg:
        raise ConfigError("no model: give --cfg FILE or --model NAME")
    config = load_config_file(args.cfg, opts)
    classes = {"imagenet22K": 21841, "inat18": 8142}.get(config.DATA.DATASET)
    if classes and not is_typed(config, "MODEL.NUM_CLASSES"):
        config = config.clone()
        config.defrost()
        config.MODEL.NUM_CLASSES = classes
        config.freeze()
    return config


def _refuse_both(args: argparse.Namespace) -> None:
    if args.cfg and args.model:
        raise ConfigError(f"give --cfg {args.cfg} or --model {args.model}, not both")


def load(args: argparse.Namespace) -> Source:
    """The model of the command line with its weights.

    ``--model NAME`` loads the released weights, ``--resume`` those of a file; with ``--cfg`` alone
    the weights are random, which a warning says.

    Raises:
        ConfigError, UnknownModelError: as `load_config`.
        CheckpointError: the file cannot be read or does not fit.
        DistributedSetupError: an unknown device.
    """
    _refuse_both(args)
    if args.resume or args.model:
        found, file_name = predict.load_classifier(args)
        weights = f"{file_name}, moving average" if args.ema else file_name
        label = f"{found.config.MODEL.NAME} · {weights}"
        return Source(found.model, found.config, found.device, found.names, label)
    if not args.cfg:
        raise ConfigError("no model: give --resume CKPT, --model NAME or --cfg FILE")
    if args.ema:
        raise ConfigError("--ema needs a checkpoint (--resume)")
    config = load_config(args)
    device = distributed.resolve_device(args.device)
    logger.warning("no checkpoint was given (--resume): the weights are random")
    model = build_model(config).to(device).eval()
    return Source(model, config, device, names_for(config), f"{config.MODEL.NAME} · random weights")
