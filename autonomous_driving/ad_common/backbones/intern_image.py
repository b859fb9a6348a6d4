# Kept identical in every task folder.
# Edit classification/models/intern_image.py, then run `make sync`.
"""The InternImage trunk (arXiv 2211.05778, section 3.2): stem, levels of DCNv3 blocks.

One level is a row of equal blocks; between two levels the map is halved and the channels doubled:

    images (N, 3, H, W)
      stem         two 3x3 convolutions of stride 2      (N, H/4,  W/4,  C)
      level 0      depths[0] blocks                      (N, H/4,  W/4,  C)     -> output 0
      downsample   one 3x3 convolution of stride 2       (N, H/8,  W/8,  2C)
      level 1      depths[1] blocks                      (N, H/8,  W/8,  2C)    -> output 1
      downsample   one 3x3 convolution of stride 2       (N, H/16, W/16, 4C)
      level 2      depths[2] blocks                      (N, H/16, W/16, 4C)    -> output 2
      downsample   one 3x3 convolution of stride 2       (N, H/32, W/32, 8C)
      level 3      depths[3] blocks                      (N, H/32, W/32, 8C)    -> output 3

(sizes that do not divide are rounded up). A block is a transformer's block with the attention
replaced by DCNv3: ``x + dcn(norm1(x))``, then ``x + mlp(norm2(x))``.

The stacking rules of section 3.2 leave four numbers of a model free: C (a level has twice the
channels of the one before); the width of a group (the same in all levels); the depth of levels 0, 1
and 3 (the same); the depth of level 2 (at least that). The sizes of the paper's table 1, which are
those of the released models:

    name   channels   depths          groups             further options
    T      64         4, 4, 18, 4     4, 8, 16, 32
    S      80         4, 4, 21, 4     5, 10, 20, 40      layer_scale, post_norm
    B      112        4, 4, 21, 4     7, 14, 28, 56      layer_scale, post_norm
    L      160        5, 5, 22, 5     10, 20, 40, 80     layer_scale, post_norm, offset_scale 2
    XL     192        5, 5, 24, 5     12, 24, 48, 96     layer_scale, post_norm, offset_scale 2
    H      320        6, 6, 32, 6     10, 20, 40, 80     res_post_norm, dw_kernel_size 5,
                                                         level2_post_norm, center_feature_scale
    G      512        2, 2, 48, 4     16, 32, 64, 128    post_norm, dw_kernel_size 5,
                                                         level2_post_norm, center_feature_scale

Tensors are channels-last (N, H, W, C) inside, which is what DCNv3 samples; the inputs and the
outputs of the trunk are NCHW. The parameters have the names of the original implementation, so its
checkpoints load.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Sequence

import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ops_dcnv3.functions import apply_conv, apply_linear, is_untouched
from ops_dcnv3.modules import DCNv3, DCNv4

__all__ = ["InternImage"]

logger = logging.getLogger(__name__)

CORE_OPS = ("DCNv3", "DCNv3_pytorch", "DCNv4")
ACT_LAYERS = {"GELU": nn.GELU, "ReLU": nn.ReLU, "SiLU": nn.SiLU}
NORM_LAYERS = ("LN", "BN")
DROP_PATH_TYPES = ("linear", "uniform")


class Permute(nn.Module):
    """Reorders the axes of a tensor; a layer, so that it can stand in an ``nn.Sequential``."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.dims)

    def extra_repr(self) -> str:
        return ", ".join(str(dim) for dim in self.dims)


def to_channels_last() -> Permute:
    """Layer (N, C, H, W) -> (N, H, W, C)."""
    return Permute(0, 2, 3, 1)


def to_channels_first() -> Permute:
    """Layer (N, H, W, C) -> (N, C, H, W)."""
    return Permute(0, 3, 1, 2)


def build_norm(
    channels: int,
    norm_layer: str,
    *,
    channels_first_in: bool = False,
    channels_first_out: bool = False,
) -> nn.Sequential:
    """A normalisation over the channels, with the layout changes it needs around it.

    LayerNorm wants channels-last, BatchNorm channels-first. The layout changes count in the keys of
    a state dict ("norm.0.weight", or "norm.1.weight" when one of them comes first).

    Args:
        channels: C.
        norm_layer: 'LN' (eps 1e-6) or 'BN' (eps 1e-5).
        channels_first_in: the input is (N, C, H, W) instead of (N, H, W, C).
        channels_first_out: the output is (N, C, H, W) instead of (N, H, W, C).
    """
    layers: list[nn.Module] = []
    norm_is_first = norm_layer == "BN"
    if channels_first_in != norm_is_first:
        layers.append(to_channels_first() if norm_is_first else to_channels_last())
    layers.append(nn.BatchNorm2d(channels) if norm_is_first else nn.LayerNorm(channels, eps=1e-6))
    if channels_first_out != norm_is_first:
        layers.append(to_channels_first() if channels_first_out else to_channels_last())
    return nn.Sequential(*layers)


def init_linear_layers(module: nn.Module) -> None:
    """Truncated normal (std 0.02) weights and zero biases for every Linear below ``module``.

    DCNv3 and DCNv4 are left alone: they start with zero offsets and Xavier projections.
    """
    if isinstance(module, (DCNv3, DCNv4)):
        return
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    for child in module.children():
        init_linear_layers(child)


class Stem(nn.Module):
    """Two 3x3 convolutions of stride 2: (N, in_chans, H, W) -> (N, H/4, W/4, C) (section 3.2)."""

    def __init__(self, channels: int, act_layer: str, norm_layer: str, in_chans: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, channels // 2, 3, stride=2, padding=1)
        self.norm1 = build_norm(
            channels // 2, norm_layer, channels_first_in=True, channels_first_out=True
        )
        self.act = ACT_LAYERS[act_layer]()
        self.conv2 = nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1)
        self.norm2 = build_norm(channels, norm_layer, channels_first_in=True)

    def forward(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)  # like all that follows
        x = self.act(self.norm1(apply_conv(self.conv1, images)))  # (N, C/2, H/2, W/2)
        return self.norm2(apply_conv(self.conv2, x))  # (N, H/4, W/4, C)


class Downsample(nn.Module):
    """One 3x3 convolution of stride 2: (N, H, W, C) -> (N, H/2, W/2, 2C) (section 3.2)."""

    def __init__(self, channels: int, norm_layer: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.norm = build_norm(2 * channels, norm_layer, channels_first_in=True)

    def forward(self, x: Tensor) -> Tensor:
        x = apply_conv(self.conv, x.permute(0, 3, 1, 2))  # (N, 2C, H/2, W/2)
        return self.norm(x)  # (N, H/2, W/2, 2C)


class Block(nn.Module):
    """DCNv3 and an MLP, each with a norm and a residual connection (section 3.2, figure 4).

    Both branches ``f`` (DCNv3, then the MLP) are wrapped alike. In the order of precedence, with
    ``gamma`` the learned vector of ``layer_scale`` (1 without it):

        post_norm          x + gamma * norm(f(x))
        layer_scale        x + gamma * f(norm(x))        (res_post_norm has no effect then)
        res_post_norm      x + res_post_norm(f(norm(x)))
        otherwise          x + f(norm(x))
    """

    def __init__(
        self,
        dcn: DCNv3 | DCNv4,
        channels: int,
        *,
        mlp_ratio: float,
        mlp_fc2_bias: bool,
        act_layer: str,
        drop_rate: float,
        drop_path: float,
        layer_scale: float | None,
        post_norm: bool,
        res_post_norm: bool,
    ) -> None:
        super().__init__()
        self.post_norm = post_norm
        self.use_res_post_norm = res_post_norm and not post_norm and layer_scale is None
        self.norm1 = build_norm(channels, "LN")
        self.dcn = dcn
        self.norm2 = build_norm(channels, "LN")
        self.mlp = Mlp(
            channels,
            int(channels * mlp_ratio),
            act_layer=ACT_LAYERS[act_layer],
            bias=(True, mlp_fc2_bias),
            drop=drop_rate,
        )
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.gamma1 = self.gamma2 = None
        if layer_scale is not None:
            self.gamma1 = nn.Parameter(layer_scale * torch.ones(channels))
            self.gamma2 = nn.Parameter(layer_scale * torch.ones(channels))
        if res_post_norm:
            self.res_post_norm1 = build_norm(channels, "LN")
            self.res_post_norm2 = build_norm(channels, "LN")
            if not self.use_res_post_norm:  # DistributedDataParallel waits for every gradient
                self.res_post_norm1.requires_grad_(False)
                self.res_post_norm2.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        if self.post_norm:
            dcn_out = self.norm1(self.dcn(x))
        else:
            dcn_out = self.dcn(self.norm1(x))
        if self.use_res_post_norm:
            dcn_out = self.res_post_norm1(dcn_out)
        if self.gamma1 is not None:
            dcn_out = self.gamma1 * dcn_out
        x = x + self.drop_path(dcn_out)

        if self.post_norm:
            mlp_out = self.norm2(apply_mlp(self.mlp, x))
        else:
            mlp_out = apply_mlp(self.mlp, self.norm2(x))
        if self.use_res_post_norm:
            mlp_out = self.res_post_norm2(mlp_out)
        if self.gamma2 is not None:
            mlp_out = self.gamma2 * mlp_out
        return x + self.drop_path(mlp_out)


def apply_mlp(mlp: nn.Module, x: Tensor) -> Tensor:
    """``mlp(x)``; for inference on the CPU, GELU comes inside the first matrix product."""
    if (
        is_untouched(mlp, Mlp)
        and is_untouched(mlp.act, nn.GELU)
        and mlp.act.approximate == "none"
        and is_untouched(mlp.norm, nn.Identity)
        and all(is_untouched(drop, nn.Dropout) for drop in (mlp.drop1, mlp.drop2))
        and not (mlp.drop1.training or mlp.drop2.training)
    ):
        return apply_linear(mlp.fc2, apply_linear(mlp.fc1, x, gelu=True))
    return mlp(x)


class Level(nn.Module):
    """The blocks of one level, their last norm, and the downsampling to the next level.

    ``norm`` closes the level unless the blocks normalise their outputs themselves (``post_norm``);
    with ``center_feature_scale`` it is always there. ``post_norms`` (H and G) are further norms
    inside a long level: ``post_norms[i]`` follows block ``post_norm_block_ids[i]``.
    """

    def __init__(
        self,
        blocks: Iterable[Block],
        channels: int,
        *,
        norm_layer: str,
        final_norm: bool,
        post_norm_block_ids: Sequence[int],
        downsample: bool,
        with_cp: bool,
    ) -> None:
        super().__init__()
        self.with_cp = with_cp
        self.post_norm_block_ids = tuple(post_norm_block_ids)
        self.blocks = nn.ModuleList(blocks)
        self.norm = build_norm(channels, "LN") if final_norm else None
        self.post_norms = nn.ModuleList(build_norm(channels, "LN") for _ in post_norm_block_ids)
        self.downsample = Downsample(channels, norm_layer) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C): everything but the downsampling."""
        for index, block in enumerate(self.blocks):
            if self.with_cp and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
            if index in self.post_norm_block_ids:
                x = self.post_norms[self.post_norm_block_ids.index(index)](x)
        return x if self.norm is None else self.norm(x)


class InternImage(nn.Module):
    """The InternImage trunk: (N, 3, H, W) images -> a list of (N, C_i, H_i, W_i) feature maps.

    Args:
        core_op: 'DCNv3', 'DCNv3_pytorch' for its plain PyTorch implementation, or 'DCNv4' (see
            `flash_intern_image.py`, which has that variant's defaults).
        channels: C, the channels of the first level; level i has ``channels * 2**i``.
        depths: blocks per level. As many levels as there are entries.
        groups: DCNv3 groups per level.
        mlp_ratio: hidden width of the MLP over its input width.
        drop_rate: dropout after the stem and in the MLPs.
        drop_path_rate: stochastic depth (probability to drop a residual branch).
        drop_path_type: 'linear': from 0 in the first block to ``drop_path_rate`` in the last;
            'uniform': the same in every block.
        act_layer: 'GELU', 'ReLU' or 'SiLU'.
        norm_layer: 'LN' or 'BN', for the stem, the downsampling and DCNv3's depthwise branch. The
            norms of the blocks are always LayerNorm.
        layer_scale: initial value of the learned scale of each residual branch; None for no scale.
        offset_scale: factor on the sampling grid of DCNv3.
        post_norm: normalise the outputs of the residual branches instead of their inputs.
        with_cp: gradient checkpointing: recompute each block in the backward pass instead of
            keeping its activations.
        dw_kernel_size: depthwise kernel of the offset branch; None is the kernel size, 3, in DCNv3
            and no depthwise convolution in DCNv4.
        res_post_norm: a second norm at the end of each residual branch; has no effect together with
            ``layer_scale`` or ``post_norm`` (its parameters exist all the same, as upstream).
        level2_post_norm: extra norms inside level 2 (the long one) ...
        level2_post_norm_block_ids: ... after these of its blocks; ignored without the former.
        center_feature_scale: DCNv3 mixes its output with its unsampled input by a learned gate. As
            upstream, a model of DCNv4 gets no gate, only the last norm of every level.
        remove_center: DCNv3 without the central sampling point; no effect on DCNv4, as upstream.
        dcn_output_bias: whether the operator's last projection has a bias; None: True for DCNv3,
            which always has it, and False for DCNv4.
        mlp_fc2_bias: whether the second layer of the MLPs has a bias; None: True for DCNv3, False
            for DCNv4.
        use_dcn_v4_op: accepted because upstream's configs set it. There it computes the same sum
            with another library's kernel; here ``backend`` chooses the kernel, whatever its value.
        out_indices: the levels that ``forward`` returns, each before its downsampling.
        frozen_stages: -1: nothing; 0: the stem; k: the stem and the first k levels get no gradient
            and stay in evaluation mode.
        backend: name of an implementation of the operator, such as 'cpp' or 'cuda' (see
            :class:`ops_dcnv3.modules.DCNv3`); None picks the fastest that can run.
        in_chans: channels of the images.

    Raises:
        ValueError: an argument is out of range or does not fit another one; the message says which.
        TypeError: ``layer_scale`` is not a number.
    """

    def __init__(
        self,
        core_op: str = "DCNv3",
        channels: int = 64,
        depths: Sequence[int] = (4, 4, 18, 4),
        groups: Sequence[int] = (4, 8, 16, 32),
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        drop_path_type: str = "linear",
        act_layer: str = "GELU",
        norm_layer: str = "LN",
        layer_scale: float | None = None,
        offset_scale: float = 1.0,
        post_norm: bool = False,
        with_cp: bool = False,
        dw_kernel_size: int | None = None,
        res_post_norm: bool = False,
        level2_post_norm: bool = False,
        level2_post_norm_block_ids: Sequence[int] | None = None,
        center_feature_scale: bool = False,
        remove_center: bool = False,
        dcn_output_bias: bool | None = None,
        mlp_fc2_bias: bool | None = None,
        use_dcn_v4_op: bool = False,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        backend: str | None = None,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        check_choice("core_op", core_op, CORE_OPS)
        check_choice("act_layer", act_layer, ACT_LAYERS)
        check_choice("norm_layer", norm_layer, NORM_LAYERS)
        check_choice("drop_path_type", drop_path_type, DROP_PATH_TYPES)
        check_rate("drop_rate", drop_rate)
        check_rate("drop_path_rate", drop_path_rate)
        check_sizes(channels, depths, groups)
        if in_chans < 1:
            raise ValueError(f"in_chans must be at least 1, got {in_chans}.")
        if layer_scale is not None and not isinstance(layer_scale, (int, float)):
            raise TypeError(f"layer_scale must be a number or None, got {layer_scale!r}.")
        if core_op == "DCNv3_pytorch":
            if backend not in (None, "pytorch"):
                raise ValueError(
                    f"core_op='DCNv3_pytorch' contradicts backend={backend!r}; use core_op='DCNv3'."
                )
            backend = "pytorch"
        is_dcnv4 = core_op == "DCNv4"
        dcn_output_bias = not is_dcnv4 if dcn_output_bias is None else dcn_output_bias
        mlp_fc2_bias = not is_dcnv4 if mlp_fc2_bias is None else mlp_fc2_bias
        if is_dcnv4:
            if remove_center:
                logger.warning("remove_center=True has no effect with core_op='DCNv4'.")
            dcn_class = DCNv4
            dcn_options = {"output_bias": dcn_output_bias}
        else:
            if not dcn_output_bias:
                raise ValueError(
                    f"dcn_output_bias=False needs core_op='DCNv4': {core_op} always has that bias."
                )
            dcn_class = DCNv3
            dcn_options = {
                "act_layer": act_layer,
                "norm_layer": norm_layer,
                "center_feature_scale": center_feature_scale,
                "remove_center": remove_center,
            }
        post_norm_block_ids = level2_post_norm_block_ids if level2_post_norm else ()
        if level2_post_norm:
            check_level2_post_norm(level2_post_norm_block_ids, depths)
        out_indices = tuple(range(len(depths)) if out_indices is None else out_indices)
        check_out_indices(out_indices, len(depths))
        if not -1 <= frozen_stages <= len(depths):
            raise ValueError(
                f"frozen_stages must lie between -1 (nothing frozen) and {len(depths)} (the stem "
                f"and all {len(depths)} levels), got {frozen_stages}."
            )

        self.channels = channels
        self.depths = tuple(depths)
        self.groups = tuple(groups)
        self.level_channels = tuple(channels * 2**i for i in range(len(depths)))
        self.out_indices = out_indices
        self.frozen_stages = frozen_stages

        self.patch_embed = Stem(channels, act_layer, norm_layer, in_chans)
        self.pos_drop = nn.Dropout(drop_rate)
        drop_paths = drop_path_values(drop_path_rate, drop_path_type, self.depths)
        self.levels = nn.ModuleList()
        for i, width in enumerate(self.level_channels):
            blocks = [
                Block(
                    dcn_class(
                        channels=width,
                        kernel_size=3,
                        dw_kernel_size=dw_kernel_size,
                        group=self.groups[i],
                        offset_scale=offset_scale,
                        backend=backend,
                        **dcn_options,
                    ),
                    width,
                    mlp_ratio=mlp_ratio,
                    mlp_fc2_bias=mlp_fc2_bias,
                    act_layer=act_layer,
                    drop_rate=drop_rate,
                    drop_path=drop_path,
                    layer_scale=layer_scale,
                    post_norm=post_norm,
                    res_post_norm=res_post_norm,
                )
                for drop_path in drop_paths[i]
            ]
            self.levels.append(
                Level(
                    blocks,
                    width,
                    norm_layer=norm_layer,
                    final_norm=not post_norm or center_feature_scale,
                    post_norm_block_ids=post_norm_block_ids if i == 2 else (),
                    downsample=i < len(self.depths) - 1,
                    with_cp=with_cp,
                )
            )
        init_linear_layers(self)
        self._freeze()

    def forward_levels(self, images: Tensor, num_levels: int | None = None) -> list[Tensor]:
        """(N, 3, H, W) -> the output of every level, channels-last (N, H_i, W_i, C_i).

        Args:
            images: (N, 3, H, W).
            num_levels: compute only the first so many levels; None for all.
        """
        x = self.pos_drop(self.patch_embed(images))  # (N, H/4, W/4, C)
        outputs: list[Tensor] = []
        for level in self.levels[:num_levels]:
            if outputs:
                x = self.levels[len(outputs) - 1].downsample(x)
            x = level(x)
            outputs.append(x)
        return outputs

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> [(N, C_i, H_i, W_i) for i in out_indices]."""
        outputs = self.forward_levels(images, max(self.out_indices) + 1)
        return [outputs[i].permute(0, 3, 1, 2).contiguous() for i in self.out_indices]

    def train(self, mode: bool = True) -> InternImage:
        """As ``nn.Module.train``; the frozen stages stay in evaluation mode."""
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        for module in (self.patch_embed, self.pos_drop, *self.levels[: self.frozen_stages]):
            module.eval()
            module.requires_grad_(False)


def drop_path_values(rate: float, drop_path_type: str, depths: Sequence[int]) -> list[list[float]]:
    """Stochastic depth of each block, per level: from 0 to ``rate`` ('linear'), or constant."""
    if drop_path_type == "uniform":
        return [[rate] * depth for depth in depths]
    values = torch.linspace(0.0, rate, sum(depths), device="cpu").split(list(depths))
    return [level.tolist() for level in values]


def check_choice(argument: str, value: str, choices: Iterable[str]) -> None:
    """Raises ValueError naming the nearest choice, unless ``value`` is one of ``choices``."""
    choices = list(choices)
    if value in choices:
        return
    by_lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(str(value).lower(), by_lower, n=1, cutoff=0.4)
    hint = f" Did you mean {by_lower[near[0]]!r}?" if near else ""
    raise ValueError(f"Unknown {argument} {value!r}: it must be one of {choices}.{hint}")


def check_rate(argument: str, value: float) -> None:
    """Raises ValueError unless ``value`` is a probability below 1."""
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{argument} must be at least 0 and less than 1, got {value}.")


def check_sizes(channels: int, depths: Sequence[int], groups: Sequence[int]) -> None:
    """Raises ValueError unless channels, depths and groups describe a network."""
    if len(depths) == 0 or any(depth < 1 for depth in depths):
        raise ValueError(f"depths needs at least one block in each level, got {list(depths)}.")
    if len(depths) != len(groups):
        raise ValueError(
            f"depths and groups need one entry per level, got {len(depths)} depths {list(depths)} "
            f"and {len(groups)} groups {list(groups)}."
        )
    if channels < 2 or channels % 2:
        raise ValueError(f"channels must be even (the stem starts with half), got {channels}.")
    for i, group in enumerate(groups):
        width = channels * 2**i
        if group < 1 or width % group:
            raise ValueError(
                f"Level {i} has {width} channels (channels={channels} times 2**{i}), which cannot "
                f"be split into groups[{i}]={group} equal groups."
            )


def check_level2_post_norm(block_ids: Sequence[int] | None, depths: Sequence[int]) -> None:
    """Raises ValueError unless ``block_ids`` are distinct blocks of level 2."""
    if len(depths) < 3:
        raise ValueError(
            f"level2_post_norm=True needs a level 2, but depths={list(depths)} ends before it."
        )
    if not block_ids:
        raise ValueError(
            "level2_post_norm=True needs level2_post_norm_block_ids, the blocks of level 2 that "
            f"are followed by a norm, got {block_ids!r}."
        )
    bad = [b for b in block_ids if not 0 <= b < depths[2]]
    if bad or len(set(block_ids)) != len(block_ids):
        raise ValueError(
            f"level2_post_norm_block_ids must be distinct and between 0 and {depths[2] - 1} "
            f"(level 2 has {depths[2]} blocks), got {list(block_ids)}."
        )


def check_out_indices(out_indices: Sequence[int], num_levels: int) -> None:
    """Raises ValueError unless ``out_indices`` are distinct levels."""
    bad = [i for i in out_indices if not 0 <= i < num_levels]
    if bad or len(set(out_indices)) != len(out_indices) or len(out_indices) == 0:
        raise ValueError(
            f"out_indices must be distinct levels between 0 and {num_levels - 1}, got "
            f"{list(out_indices)}."
        )
