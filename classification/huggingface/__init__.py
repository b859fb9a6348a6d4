"""InternImage for transformers. Importing this package registers it with the Auto classes.

    import huggingface
    model = transformers.AutoModel.from_pretrained("converted-folder")

With it no `trust_remote_code` is needed. `convert.py` makes such folders. `save_pretrained`, too,
puts the code beside the weights, so that others can load them with `trust_remote_code`.
"""

from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification

from .configuration_internimage import InternImageConfig
from .modeling_internimage import (
    InternImageBackbone,
    InternImageForImageClassification,
    InternImageModel,
    InternImageModelForImageClassification,
)

__all__ = [
    "InternImageBackbone",
    "InternImageConfig",
    "InternImageForImageClassification",
    "InternImageModel",
    "InternImageModelForImageClassification",
]

AutoConfig.register(InternImageConfig.model_type, InternImageConfig, exist_ok=True)
InternImageConfig.register_for_auto_class()
for _auto, _model in (
    (AutoModel, InternImageModel),
    (AutoModelForImageClassification, InternImageForImageClassification),
    (AutoBackbone, InternImageBackbone),
):
    _auto.register(InternImageConfig, _model, exist_ok=True)
    _model.register_for_auto_class(_auto.__name__)
