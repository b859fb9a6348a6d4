"""DCNv3 and DCNv4 as functions, their references, and the original package's names."""

from .backends import available_backends, choose_backend
from .context import is_untouched
from .cpu_conv import apply_conv, apply_head_conv
from .cpu_linear import apply_linear, linear
from .dcnv3_func import DCNv3Function, dcnv3, dcnv3_core_pytorch, dcnv3_fused
from .dcnv4_func import DCNv4Function, dcnv4
from .geometry import Geometry
from .reference import (
    dcnv3_backward_reference,
    dcnv3_fused_backward_reference,
    dcnv3_fused_reference,
    dcnv3_reference,
)

__all__ = [
    "DCNv3Function",
    "DCNv4Function",
    "Geometry",
    "apply_conv",
    "apply_head_conv",
    "apply_linear",
    "available_backends",
    "choose_backend",
    "dcnv3",
    "dcnv3_backward_reference",
    "dcnv3_core_pytorch",
    "dcnv3_fused",
    "dcnv3_fused_backward_reference",
    "dcnv3_fused_reference",
    "dcnv3_reference",
    "dcnv4",
    "is_untouched",
    "linear",
]
