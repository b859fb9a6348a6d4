"""Small models for the tests of exports, with offsets, masks and statistics that matter."""

import torch
from torch import nn

from models import FlashInternImageClassifier, InternImageClassifier, InternImageMetaFormer

SMALL = {"channels": 16, "depths": (1, 1), "groups": (1, 2), "num_classes": 7}
VARIANTS = {
    "B": (InternImageClassifier, {"post_norm": True, "layer_scale": 0.5, "offset_scale": 2.0}),
    "H": (
        InternImageClassifier,
        {
            "depths": (1, 1, 1),
            "groups": (1, 2, 4),
            "res_post_norm": True,
            "dw_kernel_size": 5,
            "use_clip_projector": True,
            "level2_post_norm": True,
            "level2_post_norm_block_ids": (0,),
            "center_feature_scale": True,
            "remove_center": True,
        },
    ),
    "flash": (FlashInternImageClassifier, {"dw_kernel_size": 3, "offset_scale": 0.5}),
    "metadata": (InternImageMetaFormer, {"depths": (1,), "groups": (1,)}),
}


def build(variant: str) -> nn.Module:
    """One of the variants, see `stir`."""
    torch.manual_seed(0)
    kind, options = VARIANTS[variant]
    return stir(kind(**{**SMALL, **options}))


def stir(model: nn.Module) -> nn.Module:
    """Offsets, masks and statistics are not those of initialisation."""
    for name, parameter in model.named_parameters():
        if ".offset" in name or ".mask" in name:
            nn.init.normal_(parameter, std=0.3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


def arguments(variant: str, *shape: int) -> list[torch.Tensor]:
    extra = [torch.randn(shape[0], 4), torch.randn(shape[0], 3)] if variant == "metadata" else []
    return [torch.randn(shape[0], 3, *shape[1:]), *extra]
