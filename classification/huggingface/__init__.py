"""InternImage for transformers. Importing this package registers it with the Auto classes.

    import huggingface
    model = transformers.AutoModel.from_pretrained("converted-folder")

With it no `trust_remote_code` is needed. `convert.py` makes such folders.
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
AutoModel.register(InternImageConfig, InternImageModel, exist_ok=True)
AutoModelForImageClassification.register(
    InternImageConfig, InternImageForImageClassification, exist_ok=True
)
AutoBackbone.register(InternImageConfig, InternImageBackbone, exist_ok=True)
