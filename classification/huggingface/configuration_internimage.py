"""Configuration of InternImage (arXiv 2211.05778) for transformers."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig
from transformers.utils import logging

try:  # transformers 5
    from transformers.backbone_utils import BackboneConfigMixin
except ImportError:
    from transformers.utils.backbone_utils import BackboneConfigMixin

logger = logging.get_logger(__name__)

# The arguments of the network that a configuration holds under the same name.
TRUNK_FIELDS = (
    "core_op",
    "channels",
    "depths",
    "groups",
    "mlp_ratio",
    "drop_rate",
    "drop_path_rate",
    "drop_path_type",
    "act_layer",
    "norm_layer",
    "layer_scale",
    "offset_scale",
    "post_norm",
    "with_cp",
    "dw_kernel_size",
    "res_post_norm",
    "level2_post_norm",
    "level2_post_norm_block_ids",
    "center_feature_scale",
    "remove_center",
    "dcn_output_bias",
    "mlp_fc2_bias",
    "use_dcn_v4_op",
    "frozen_stages",
    "backend",
    "in_chans",
)
HEAD_FIELDS = ("cls_scale", "use_clip_projector")


class InternImageConfig(BackboneConfigMixin, PretrainedConfig):
    """What an InternImage model is made of. The defaults are those of InternImage-T.

    Args:
        core_op: 'DCNv3', 'DCNv3_pytorch' for its plain PyTorch implementation, or 'DCNv4'.
        channels: channels of the first stage; stage i has ``channels * 2**i``.
        depths: blocks per stage.
        groups: DCNv3 groups per stage.
        mlp_ratio: hidden width of the MLPs over their input width.
        drop_rate: dropout after the stem and in the MLPs.
        drop_path_rate: stochastic depth.
        drop_path_type: 'linear' (growing with the depth) or 'uniform'.
        act_layer: 'GELU', 'ReLU' or 'SiLU'.
        norm_layer: 'LN' or 'BN'.
        layer_scale: initial value of the learned scale of each branch; None for no scale.
        offset_scale: factor on the sampling grid.
        post_norm: normalise the outputs of the branches instead of their inputs.
        with_cp: start with gradient checkpointing on.
        dw_kernel_size: depthwise kernel of the offset branch; None is 3.
        res_post_norm: a second norm at the end of each branch.
        level2_post_norm: extra norms inside the third stage ...
        level2_post_norm_block_ids: ... after these of its blocks.
        center_feature_scale: mix the undeformed features in by a learned gate.
        remove_center: DCNv3 without its central point.
        dcn_output_bias: bias of the operator's last projection; None: True, with DCNv4 False.
        mlp_fc2_bias: bias of the MLPs' second layer; None: True, with DCNv4 False.
        use_dcn_v4_op: accepted for old files; no effect.
        frozen_stages: -1: nothing; 0: the stem; k: the stem and the first k stages are not trained.
        backend: name of a kernel of `ops_dcnv3`; None picks the fastest.
        in_chans: channels of the images.
        cls_scale: width of the classification head over the width of the last stage.
        use_clip_projector: attention pooling in the classification head (H, G).
        num_classes: older files have it in the place of `num_labels` and `id2label`, which win.
        out_features: stages that the backbone returns, of 'stage1' to 'stage4'; default: the last.
        out_indices: the same by number, from 0.

    Raises:
        ValueError: an unknown stage. All other values are checked when a model is made.
    """

    model_type = "internimage"
    attribute_map = {"num_classes": "num_labels", "num_channels": "in_chans"}  # noqa: RUF012
    # Trainer collects all outputs of an evaluation but these.
    keys_to_ignore_at_inference = [  # noqa: RUF012
        "hidden_states",
        "last_hidden_state",
        "pooler_output",
    ]

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
        frozen_stages: int = -1,
        backend: str | None = None,
        in_chans: int = 3,
        cls_scale: float = 1.5,
        use_clip_projector: bool = False,
        num_classes: int | None = None,
        out_features: Sequence[str] | None = None,
        out_indices: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        in_chans = kwargs.pop("num_channels", in_chans)
        if num_classes is not None and kwargs.get("id2label") is None:
            kwargs.setdefault("num_labels", num_classes)
        values = locals()
        for name in (*TRUNK_FIELDS, *HEAD_FIELDS):
            value = values[name]
            setattr(self, name, list(value) if isinstance(value, (tuple, list)) else value)
        self.stage_names = [f"stage{i + 1}" for i in range(len(self.depths))]
        kwargs.pop("stage_names", None)
        _warn_of_misspelt(kwargs)
        super().__init__(**kwargs)
        out_features = list(out_features) if out_features is not None else None
        if out_indices is not None:
            out_indices = list(out_indices)
        self._set_outputs(out_features, out_indices)

    @property
    def hidden_sizes(self) -> list[int]:
        """Channels of the stages."""
        return [self.channels * 2**i for i in range(len(self.depths))]

    def trunk_arguments(self) -> dict[str, Any]:
        """Arguments of the network without a head."""
        return {name: getattr(self, name) for name in TRUNK_FIELDS}

    def classifier_arguments(self) -> dict[str, Any]:
        """Arguments of the network with a classification head."""
        head = {name: getattr(self, name) for name in HEAD_FIELDS}
        return {**self.trunk_arguments(), **head, "num_classes": self.num_labels}

    def _set_outputs(self, features: list[str] | None, indices: list[int] | None) -> None:
        if hasattr(self, "set_output_features_output_indices"):  # transformers 5
            self.set_output_features_output_indices(out_features=features, out_indices=indices)
            return
        from transformers.utils.backbone_utils import get_aligned_output_features_output_indices

        self._out_features, self._out_indices = get_aligned_output_features_output_indices(
            out_features=features, out_indices=indices, stage_names=self.stage_names
        )


def _warn_of_misspelt(kwargs: Mapping[str, Any]) -> None:
    """transformers keeps unknown fields without a word; a near miss is worth one."""
    known = (*TRUNK_FIELDS, *HEAD_FIELDS, "num_classes", "out_features", "out_indices")
    for name in kwargs:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        if near:
            logger.warning(
                "InternImageConfig has no field %r, which has no effect; did you mean %r?",
                name,
                near[0],
            )
