from .dino_decoder import DinoTransformerDecoder
from .dino_transformer import DinoTransformer
from .efficient_ffn import EfficientFFN
from .query_denoising import CdnQueryGenerator, DenoisingQueries

__all__ = [
    "CdnQueryGenerator",
    "DenoisingQueries",
    "DinoTransformer",
    "DinoTransformerDecoder",
    "EfficientFFN",
]
