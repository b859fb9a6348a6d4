"""Parameters and multiply-adds of a detector: ``python get_flops.py CONFIG [--shape H [W]]``.

What is counted is said in `mmcv_custom/flops.py`. Backbone, neck and RoI heads run on PyTorch's
meta device, where nothing is computed or allocated; the transformer of DETR-like heads, which looks
into its tensors, runs on the CPU on zeros. RoI heads are counted with 1000 boxes and 100 masks, as
mmdet's ``forward_dummy`` does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import mmdet_custom  # noqa: F401  (registers the models)
import torch
from internimage.cli import ArgumentParser, run_program
from mmcv import Config
from mmcv_custom import flops
from mmcv_custom.flops import Counter, Part
from mmdet.models import build_detector
from torch import Tensor, nn


def part_names(model: nn.Module) -> list[str]:
    """The parts of a detector that get a row, in the order of its modules."""
    names = []
    for name, child in model.named_children():
        inner = [f"{name}.{key}" for key, _ in child.named_children() if key.endswith("_head")]
        for key in inner:
            head = model.get_submodule(key)
            stages = isinstance(head, nn.ModuleList)
            names += [f"{key}.{i}" for i in range(len(head))] if stages else [key]
        if not inner:
            names.append(name)
        if hasattr(child, "transformer"):
            transformer = child.transformer
            keys = [
                k
                for k in ("encoder", "decoder")
                if isinstance(getattr(transformer, k, None), nn.Module)
            ]
            names += [f"{name}.transformer.{key}" for key in keys]
    return names


def build(config: Config) -> nn.Module:
    """The detector of a config on the meta device, in evaluation mode, without weights."""
    return flops.build_on_meta(config, build_detector, "a detector")


def count(model: nn.Module, height: int, width: int) -> list[Part]:
    """Counts a detector on the meta device for one image of `height` x `width` pixels.

    Returns:
        The parts in the order of the modules; 'other' last, when there is anything.

    Raises:
        ValueError: the model has no ``forward_dummy``, or takes no image of this size.
    """
    if not hasattr(model, "forward_dummy"):
        raise ValueError(f"{type(model).__name__} has no forward_dummy, by which it is counted")
    counter = Counter(model, part_names(model))
    image = torch.empty(1, 3, height, width, device="meta")
    with torch.no_grad(), counter.flops, flops.quiet():
        features = model.extract_feat(image)
        if hasattr(model, "roi_head"):
            fix_extractors(model.roi_head)
        else:
            flops.on_cpu(model.bbox_head)
            features = [torch.zeros(feature.shape) for feature in features]
            image = torch.zeros(image.shape)
        model.extract_feat = lambda images: features
        model.forward_dummy(image)
    return counter.result()


def fix_extractors(roi_head: nn.Module) -> None:
    """Lets the RoI extractors return the shape of their result: they cannot run on meta tensors."""

    def shape_only(extractor: nn.Module) -> Any:
        size = extractor.roi_layers[0].output_size

        def forward(
            features: Sequence[Tensor], rois: Tensor, roi_scale_factor: Any = None
        ) -> Tensor:
            return features[0].new_empty(len(rois), extractor.out_channels, *size)

        return forward

    for module in roi_head.modules():
        if hasattr(module, "roi_layers"):
            module.forward = shape_only(module)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of get_flops.py."""
    parser = ArgumentParser(
        "get_flops.py", description="Parameters and multiply-adds of a detector", allow_abbrev=False
    )
    flops.add_arguments(parser, (800, 1280))
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Count, print and write; returns the exit code."""
    print(flops.report(args, build, count))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    return run_program(run, parse_args(argv), KeyError, TypeError)


if __name__ == "__main__":
    sys.exit(main())
