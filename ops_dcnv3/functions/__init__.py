"""DCNv3 as functions, their references, and the original package's names."""

from .backends import available_backends, choose_backend
from .dcnv3_func import DCNv3Function, dcnv3, dcnv3_core_pytorch, dcnv3_fused
from .geometry import Geometry
from .reference import (
    dcnv3_backward_reference,
    dcnv3_fused_backward_reference,
    dcnv3_fused_reference,
    dcnv3_reference,
)

__all__ = [
    "DCNv3Function",
    "Geometry",
    "available_backends",
    "choose_backend",
    "dcnv3",
    "dcnv3_backward_reference",
    "dcnv3_core_pytorch",
    "dcnv3_fused",
    "dcnv3_fused_backward_reference",
    "dcnv3_fused_reference",
    "dcnv3_reference",
]
