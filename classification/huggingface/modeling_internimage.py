"""InternImage (arXiv 2211.05778) for transformers: feature maps, classification, backbone.

The network itself is in `trunk_internimage.py` and `head_internimage.py`; the classes here give it
the interface of transformers. Every model keeps its network in `self.model`, so a file of the
classification model holds the keys of the other two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPoolingAndNoAttention,
    ModelOutput,
)

from .clip_projector_internimage import CrossAttention
from .configuration_internimage import InternImageConfig
from .head_internimage import InternImageClassifier
from .layers_internimage import DCNv3, DCNv4
from .trunk_internimage import Block, InternImage

try:  # transformers 5
    from transformers.backbone_utils import BackboneMixin
except ImportError:
    from transformers.utils.backbone_utils import BackboneMixin

if TYPE_CHECKING:
    # Imported by layers_internimage.py where ops_dcnv3 is missing. Named here as well because
    # transformers 4 copies only the files that this one names out of a local folder.
    from .dcnv3_internimage import DCNv3 as _DCNv3  # noqa: F401
    from .dcnv4_internimage import DCNv4 as _DCNv4  # noqa: F401
    from .plain_internimage import dcnv3_fused  # noqa: F401
    from .reference_internimage import dcnv3_plain  # noqa: F401

__all__ = [
    "InternImageBackbone",
    "InternImageForImageClassification",
    "InternImageModel",
    "InternImageModelForImageClassification",
]


class InternImagePreTrainedModel(PreTrainedModel):
    """What the three models share: loading, initial weights, gradient checkpointing."""

    config_class = InternImageConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    # Modules that mix outputs of their parts or use their parts' weights directly.
    _no_split_modules = ["Stem", "Block", "Downsample", "CrossAttention"]  # noqa: RUF012

    def _init_weights(self, module: nn.Module) -> None:
        """Gives the module's own parameters the initial values of the original network.

        Called for every module of a new model, and after loading for those whose weights were not
        in the file. Parameters that were loaded keep their values.
        """
        if isinstance(module, (DCNv3, DCNv4)):
            _fill(nn.init.zeros_, module, "center_feature_scale_proj_weight")
            _fill(nn.init.zeros_, module, "center_feature_scale_proj_bias")
        elif isinstance(module, Block):
            for name in ("layer_scale1", "layer_scale2"):
                _fill(nn.init.constant_, module, name, self.config.layer_scale)
        elif isinstance(module, CrossAttention):
            for name in ("q_bias", "k_bias", "v_bias"):
                _fill(nn.init.zeros_, module, name)
        elif isinstance(module, nn.Linear):
            _fill(*_INIT_OF_LINEAR[getattr(module, "_role", "other")](module))
            _fill(nn.init.zeros_, module, "bias")
        elif isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            _fill(nn.init.kaiming_uniform_, module, "weight", math.sqrt(5))
            bound = 1 / math.sqrt(fan_in)
            _fill(nn.init.uniform_, module, "bias", -bound, bound)
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            _fill(nn.init.ones_, module, "weight")
            _fill(nn.init.zeros_, module, "bias")
            _fill(nn.init.zeros_, module, "running_mean")
            _fill(nn.init.ones_, module, "running_var")
            _fill(nn.init.zeros_, module, "num_batches_tracked")

    def _use(self, network: InternImage) -> None:
        """Makes `network` the model's network and finishes the construction."""
        self.model = network
        for module in network.modules():
            for name, role in _ROLES_IN_DCN.items():
                if isinstance(module, (DCNv3, DCNv4)) and hasattr(module, name):
                    getattr(module, name)._role = role
        self.post_init()
        network.train(self.training)  # frozen stages; post_init leaves no trace of them

    def get_input_embeddings(self) -> nn.Module:
        """The stem."""
        return self.model.patch_embed

    def _maps(self, pixel_values: Tensor | None) -> list[Tensor]:
        """(N, 3, H, W) -> the maps of all stages, channels last (N, H_i, W_i, C_i)."""
        if pixel_values is None:
            raise ValueError("pixel_values is missing: pass images as a tensor (N, 3, H, W).")
        if not isinstance(pixel_values, Tensor):
            raise TypeError(
                f"pixel_values must be a tensor, got {type(pixel_values).__name__}: call the image "
                'processor with return_tensors="pt".'
            )
        channels = self.config.in_chans
        if pixel_values.dim() != 4 or pixel_values.shape[1] != channels:
            raise ValueError(
                f"pixel_values must be (N, {channels}, H, W), got {tuple(pixel_values.shape)}."
            )
        weight = self.model.patch_embed.conv1.weight
        return self.model.forward_levels(pixel_values.to(weight.dtype))


def _fill(init: Callable[..., Any], module: nn.Module, name: str, *arguments: Any) -> None:
    """`init` of one parameter or buffer, unless there is none or it was loaded from a file."""
    tensor = getattr(module, name, None)
    if tensor is not None and not getattr(tensor, "_is_hf_initialized", False):
        init(tensor, *arguments)


_ROLES_IN_DCN = {
    "offset": "zero",
    "mask": "zero",
    "offset_mask": "zero",
    "input_proj": "xavier",
    "value_proj": "xavier",
    "output_proj": "xavier",
}
_INIT_OF_LINEAR: dict[str, Callable[[nn.Linear], tuple[Any, ...]]] = {
    "zero": lambda layer: (nn.init.zeros_, layer, "weight"),
    "xavier": lambda layer: (nn.init.xavier_uniform_, layer, "weight"),
    "other": lambda layer: (nn.init.trunc_normal_, layer, "weight", 0.0, 0.02),
}


def _channels_first(maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """(N, H, W, C) -> (N, C, H, W), without copying."""
    return tuple(x.permute(0, 3, 1, 2) for x in maps)


class InternImageModel(InternImagePreTrainedModel):
    """The network without a head: feature maps."""

    # A file of the classification model has more.
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012
        r"^model\.(conv_head|head|dcnv3_head_x[34]|clip_projector|fc_norm)\."
    ]

    def __init__(self, config: InternImageConfig) -> None:
        super().__init__(config)
        self._use(InternImage(**config.trunk_arguments()))

    def forward(
        self,
        pixel_values: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPoolingAndNoAttention | tuple[Any, ...]:
        """Computes the feature maps.

        Args:
            pixel_values: (N, 3, H, W), normalised as `preprocessor_config.json` says.
            output_hidden_states: False leaves `hidden_states` out.
            return_dict: False returns a tuple of the same values.

        Returns:
            last_hidden_state: (N, C, H/32, W/32), the map of the last stage (it ends with a norm).
            pooler_output: (N, C), the mean of that map over height and width.
            hidden_states: the maps of all stages, (N, C_i, H_i, W_i) of strides 4, 8, 16, 32.
        """
        maps = _channels_first(self._maps(pixel_values))
        last = maps[-1]
        hidden_states = None if output_hidden_states is False else maps
        output = BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=last, pooler_output=last.mean((2, 3)), hidden_states=hidden_states
        )
        return output if _wants_dict(self.config, return_dict) else output.to_tuple()


@dataclass
class InternImageClassifierOutput(ModelOutput):
    """Output of :class:`InternImageForImageClassification`.

    Attributes:
        loss: of `labels`, if they were given.
        logits: (N, num_labels), before the softmax.
        hidden_states: the maps of all stages, (N, C_i, H_i, W_i).
        last_hidden_state: (N, C, H/32, W/32), the last of them.
        pooler_output: (N, num_features), what the last linear layer sees.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None


class InternImageForImageClassification(InternImagePreTrainedModel):
    """The network with its classification head: logits."""

    def __init__(self, config: InternImageConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self._use(InternImageClassifier(**config.classifier_arguments()))

    def get_output_embeddings(self) -> None:
        """None: the head is not an embedding."""

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> InternImageClassifierOutput | tuple[Any, ...]:
        """Classifies images.

        Args:
            pixel_values: (N, 3, H, W), normalised as `preprocessor_config.json` says.
            labels: (N,) class numbers for a cross entropy; (N, num_labels) floats of 0 and 1 for
                several classes per image; floats with `num_labels=1` for a regression. Without
                `config.problem_type` their dtype and `num_labels` decide.
            output_hidden_states: False leaves `hidden_states` out.
            return_dict: False returns a tuple of the same values.

        Returns:
            :class:`InternImageClassifierOutput`.
        """
        maps = self._maps(pixel_values)
        features = self.model.pool(maps)
        logits = self.model.head(features)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config)
        maps = _channels_first(maps)
        output = InternImageClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=None if output_hidden_states is False else maps,
            last_hidden_state=maps[-1],
            pooler_output=features,
        )
        return output if _wants_dict(self.config, return_dict) else output.to_tuple()

    def _maps(self, pixel_values: Tensor | None) -> list[Tensor]:
        if self.config.use_clip_projector and isinstance(pixel_values, Tensor):
            self.model._check_clip_image(pixel_values)
        return super()._maps(pixel_values)


# The name in the configurations of the originally published folders.
InternImageModelForImageClassification = InternImageForImageClassification


class InternImageBackbone(BackboneMixin, InternImagePreTrainedModel):
    """The feature maps of chosen stages, for detectors and segmenters of transformers."""

    has_attentions = False
    _keys_to_ignore_on_load_unexpected = InternImageModel._keys_to_ignore_on_load_unexpected

    def __init__(self, config: InternImageConfig) -> None:
        super().__init__(config)
        if hasattr(self, "_init_backbone"):  # transformers 4
            self._init_backbone(config)
        self.num_features = config.hidden_sizes
        self._use(InternImage(**config.trunk_arguments()))

    def forward(
        self,
        pixel_values: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BackboneOutput | tuple[Any, ...]:
        """Computes the maps of `config.out_features`.

        Args:
            pixel_values: (N, 3, H, W).
            output_hidden_states: True adds the maps of all stages.
            output_attentions: no effect, there are none.
            return_dict: False returns a tuple of the same values.

        Returns:
            feature_maps: (N, C_i, H_i, W_i) for each of `out_features`; hidden_states.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        maps = tuple(x.contiguous() for x in _channels_first(self._maps(pixel_values)))
        chosen = zip(self.stage_names, maps)
        output = BackboneOutput(
            feature_maps=tuple(x for name, x in chosen if name in self.out_features),
            hidden_states=maps if output_hidden_states else None,
        )
        return output if _wants_dict(self.config, return_dict) else output.to_tuple()


def _wants_dict(config: InternImageConfig, return_dict: bool | None) -> bool:
    return config.return_dict if return_dict is None else return_dict
