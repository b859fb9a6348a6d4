"""The models of this folder: by name (`create_model`), or as a config describes (`build_model`).

Importing it also registers them with timm: `timm.create_model('internimage_t_1k_224')`.
"""

try:
    import ops_dcnv3  # noqa: F401
except ImportError as error:
    raise ImportError(
        "InternImage needs the operator package ops_dcnv3, which is part of the same repository: "
        "pip install --no-build-isolation ./ops_dcnv3 (in the repository's root)"
    ) from error

from . import timm_models  # noqa: F401  registers the models with timm
from .build import build_model
from .classifier import InternImageClassifier
from .flash_classifier import FlashInternImageClassifier
from .flash_intern_image import FlashInternImage
from .intern_image import InternImage
from .intern_image_meta_former import InternImageMetaFormer
from .registry import create_model, list_models

__version__ = "2.0.0"

__all__ = [
    "FlashInternImage",
    "FlashInternImageClassifier",
    "InternImage",
    "InternImageClassifier",
    "InternImageMetaFormer",
    "build_model",
    "create_model",
    "list_models",
]
