"""Parameters and multiply-adds of a segmentor: ``python get_flops.py CONFIG [--shape H [W]]``.

What is counted is said in `mmcv_custom/flops.py`. The network runs once on the whole image, as in
`test_cfg.mode='whole'`, with the heads of training left out. UPerNet and SegFormer run on PyTorch's
meta device, where nothing is computed or allocated; the head of Mask2Former, whose deformable
attention looks into its tensors, runs on the CPU on zeros (gigabytes for the largest models).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import mmseg_custom  # noqa: F401  (registers the models)
import torch
from internimage.cli import ArgumentParser, run_program
from mmcv import Config
from mmcv.ops import MultiScaleDeformableAttention
from mmcv_custom import flops
from mmcv_custom.flops import Counter, Part
from mmseg.models import build_segmentor
from torch import nn


def part_names(model: nn.Module) -> list[str]:
    """The parts of a segmentor that get a row, in the order of its modules."""
    names = []
    for name, child in model.named_children():
        names += [name, f"{name}.pixel_decoder"] if hasattr(child, "pixel_decoder") else [name]
    return names


def build(config: Config) -> nn.Module:
    """The segmentor of a config on the meta device, in evaluation mode, without weights."""
    return flops.build_on_meta(config, build_segmentor, "a segmentor")


def count(model: nn.Module, height: int, width: int) -> list[Part]:
    """Counts a segmentor on the meta device for one image of `height` x `width` pixels.

    Returns:
        The parts in the order of the modules; 'other' last, when there is anything. Heads for
        training only have parameters and no multiply-adds.
    """
    counter = Counter(model, part_names(model))
    image = torch.empty(1, 3, height, width, device="meta")
    metas = [{"img_shape": (height, width, 3), "ori_shape": (height, width, 3), "flip": False}]
    with torch.no_grad(), counter.flops, flops.quiet():
        features = model.extract_feat(image)
        head = model.decode_head
        if any(isinstance(module, MultiScaleDeformableAttention) for module in head.modules()):
            flops.on_cpu(head)
            features = [torch.zeros(feature.shape) for feature in features]
        counter.enter("decode_head")(head, None)  # hooks do not see what is not `forward`
        head.forward_test(features, metas, model.test_cfg)
        counter.leave(head, None, None)
    return counter.result()


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of get_flops.py."""
    parser = ArgumentParser(
        "get_flops.py",
        description="Parameters and multiply-adds of a segmentor",
        allow_abbrev=False,
    )
    flops.add_arguments(parser, (512, 2048))
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
