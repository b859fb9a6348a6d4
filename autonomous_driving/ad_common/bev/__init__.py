"""BEV features from several cameras: BEVFormer's encoder, and the planes of VectorMapNet.

Everything is batch first. Grids: rows along y, columns along x, query = row * bev_w + column.

`builder.BEVBuilder(encoder, embed_dims, num_feature_levels, num_cams, rotate_prev_bev, use_shift,
use_can_bus, can_bus_norm, use_cams_embeds, rotate_center, legacy_shift_axes)` is the base class of
TransformerOcc and BEVFormerConstructer (a BaseModule with level_embeds, cams_embeds, can_bus_mlp
and encoder). Its `get_bev_features(mlvl_feats [(B, N, C, h, w)], bev_queries (Q, C), bev_h, bev_w,
grid_length (y, x), bev_pos (B, C, bev_h, bev_w), prev_bev (B, Q, C) or None, img_metas,
has_history (B,) bool or None)` gives (B, Q, C). img_metas have `lidar2img`, `pad_shape` or
`img_shape`, `can_bus` (18), and `ego2lidar` where lidar2img begins in the lidar's frame.

`ipm.plane_points(x_range, y_range, heights, size (rows, columns))` gives (planes, rows, columns,
3); `ipm.sample_cameras(features (B, N, C, h, w), points (..., 3), ego2img (B, N, 4, 4),
image_size)` gives the means (B, C, ...) and the numbers of cameras (B, ...).

Registered: TemporalSelfAttention, SpatialCrossAttention, MSDeformableAttention3D,
CustomMSDeformableAttention (ATTENTION), BEVFormerLayer (TRANSFORMER_LAYER), BEVFormerEncoder
(TRANSFORMER_LAYER_SEQUENCE), with the arguments of BEVFormer's configs.
"""

from .attention import MSDeformableAttention3D, SpatialCrossAttention, TemporalSelfAttention
from .builder import BEVBuilder
from .deformable import CustomMSDeformableAttention
from .encoder import BEVFormerEncoder, BEVFormerLayer

__all__ = [
    "BEVBuilder",
    "BEVFormerEncoder",
    "BEVFormerLayer",
    "CustomMSDeformableAttention",
    "MSDeformableAttention3D",
    "SpatialCrossAttention",
    "TemporalSelfAttention",
]
