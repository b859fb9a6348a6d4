# BEVFormerOcc (arXiv 2203.17270, 2304.14365) without its image backbone.
# Lengths in metres in the frame of the vehicle (x forward, y left, z up).
point_cloud_range = [-40.0, -40.0, -1.0, 40.0, 40.0, 5.4]
dim = 256
num_levels = 4
num_cams = 6
bev_h = 200  # cells along y
bev_w = 200  # cells along x

model = dict(
    type="BEVFormerOcc",
    use_grid_mask=True,
    video_test_mode=True,
    pts_bbox_head=dict(
        type="BEVFormerOccHead",
        pc_range=point_cloud_range,
        bev_h=bev_h,
        bev_w=bev_w,
        num_classes=18,
        use_mask=False,
        transformer=dict(
            type="TransformerOcc",
            embed_dims=dim,
            num_feature_levels=num_levels,
            num_cams=num_cams,
            pillar_h=16,
            out_dim=32,
            norm_cfg_3d=dict(type="BN3d"),
            rotate_prev_bev=True,
            use_shift=True,
            use_can_bus=True,
            legacy_shift_axes=False,  # True for the published checkpoints
            encoder=dict(
                type="BEVFormerEncoder",
                num_layers=4,
                pc_range=point_cloud_range,
                num_points_in_pillar=8,
                return_intermediate=False,
                legacy_shift_alias=False,  # True for the published checkpoints
                transformerlayers=dict(
                    type="BEVFormerLayer",
                    attn_cfgs=[
                        dict(type="TemporalSelfAttention", embed_dims=dim, num_levels=1),
                        dict(
                            type="SpatialCrossAttention",
                            embed_dims=dim,
                            num_cams=num_cams,
                            pc_range=point_cloud_range,
                            deformable_attention=dict(
                                type="MSDeformableAttention3D",
                                embed_dims=dim,
                                num_points=8,
                                num_levels=num_levels,
                            ),
                        ),
                    ],
                    feedforward_channels=dim * 2,
                    ffn_dropout=0.1,
                    operation_order=("self_attn", "norm", "cross_attn", "norm", "ffn", "norm"),
                ),
            ),
        ),
        positional_encoding=dict(
            type="LearnedPositionalEncoding",
            num_feats=dim // 2,
            row_num_embed=bev_h,
            col_num_embed=bev_w,
        ),
        loss_occ=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
)
