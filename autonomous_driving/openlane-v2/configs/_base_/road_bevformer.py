# ROAD_BEVFormer of OpenLane-V2 (arXiv 2304.10440) without its image backbone and neck.
# Lengths in metres in the frame of the vehicle (x forward, y left, z up).
point_cloud_range = [-51.2, -25.6, -2.3, 51.2, 25.6, 1.7]
dim = 256
num_levels = 4
num_cams = 7
bev_h = 100  # cells along y
bev_w = 200  # cells along x

ffn_cfg = dict(
    type="FFN",
    embed_dims=dim,
    feedforward_channels=dim * 2,
    num_fcs=2,
    ffn_drop=0.1,
    act_cfg=dict(type="ReLU", inplace=True),
)
self_attention = dict(
    type="MultiheadAttention",
    embed_dims=dim,
    num_heads=8,
    attn_drop=0.1,
    dropout_layer=dict(type="Dropout", drop_prob=0.1),
)
encoder_order = ("self_attn", "norm", "ffn", "norm")
decoder_order = ("self_attn", "norm", "cross_attn", "norm", "ffn", "norm")

model = dict(
    type="ROAD_BEVFormer",
    bev_constructor=dict(
        type="BEVFormerConstructer",
        num_feature_levels=num_levels,
        num_cams=num_cams,
        embed_dims=dim,
        pc_range=point_cloud_range,
        bev_h=bev_h,
        bev_w=bev_w,
        encoder=dict(
            type="BEVFormerEncoder",
            num_layers=3,
            pc_range=point_cloud_range,
            num_points_in_pillar=4,
            return_intermediate=False,
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
                ffn_cfgs=ffn_cfg,
                operation_order=decoder_order,
            ),
        ),
        positional_encoding=dict(
            type="LearnedPositionalEncoding",
            num_feats=dim // 2,
            row_num_embed=bev_h,
            col_num_embed=bev_w,
        ),
    ),
    pts_bbox_head=dict(
        type="LCDeformableDETRHead",
        num_classes=1,
        in_channels=dim,
        num_query=100,
        pc_range=point_cloud_range,
        bev_h=bev_h,
        bev_w=bev_w,
        sync_cls_avg_factor=False,
        with_box_refine=False,
        transformer=dict(
            type="PerceptionTransformer",
            embed_dims=dim,
            decoder=dict(
                type="LaneDetectionTransformerDecoder",
                num_layers=6,
                return_intermediate=True,
                transformerlayers=dict(
                    type="CustomDetrTransformerDecoderLayer",
                    attn_cfgs=[
                        self_attention,
                        dict(type="CustomMSDeformableAttention", embed_dims=dim, num_levels=1),
                    ],
                    ffn_cfgs=ffn_cfg,
                    operation_order=decoder_order,
                ),
            ),
        ),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.5),
        loss_bbox=dict(type="L1Loss", loss_weight=0.0075),
    ),
    bbox_head=dict(
        type="TEDeformableDETRHead",
        num_classes=13,
        in_channels=dim,
        num_query=100,
        sync_cls_avg_factor=False,
        with_box_refine=True,
        as_two_stage=False,
        transformer=dict(
            type="DeformableDetrTransformer",
            num_feature_levels=num_levels,
            encoder=dict(
                type="DetrTransformerEncoder",
                num_layers=6,
                transformerlayers=dict(
                    type="BaseTransformerLayer",
                    attn_cfgs=dict(
                        type="MultiScaleDeformableAttention", embed_dims=dim, num_levels=num_levels
                    ),
                    ffn_cfgs=ffn_cfg,
                    operation_order=encoder_order,
                ),
            ),
            decoder=dict(
                type="DeformableDetrTransformerDecoder",
                num_layers=6,
                return_intermediate=True,
                transformerlayers=dict(
                    type="CustomDetrTransformerDecoderLayer",
                    attn_cfgs=[
                        self_attention,
                        dict(
                            type="MultiScaleDeformableAttention",
                            embed_dims=dim,
                            num_levels=num_levels,
                        ),
                    ],
                    ffn_cfgs=ffn_cfg,
                    operation_order=decoder_order,
                ),
            ),
        ),
        positional_encoding=dict(
            type="SinePositionalEncoding", num_feats=dim // 2, normalize=True, offset=-0.5
        ),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type="L1Loss", loss_weight=2.5),
        loss_iou=dict(type="GIoULoss", loss_weight=1.0),
    ),
    lclc_head=dict(
        type="RelationshipHead",
        in_channels_o1=dim,
        in_channels_o2=dim,
        shared_param=False,
        loss_rel=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=5.0),
    ),
    lcte_head=dict(
        type="RelationshipHead",
        in_channels_o1=dim,
        in_channels_o2=dim,
        shared_param=False,
        loss_rel=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=5.0),
    ),
    # the matcher's weights are those of the losses
    train_cfg=dict(
        pts=dict(
            assigner=dict(
                type="LaneHungarianAssigner",
                cls_cost=dict(type="FocalLossCost", weight=1.5),
                reg_cost=dict(type="LaneL1Cost", weight=0.0075),
                iou_cost=dict(type="IoUCost", weight=0.0),
            )
        ),
        bbox=dict(
            assigner=dict(
                type="HungarianAssigner",
                cls_cost=dict(type="FocalLossCost", weight=1.0),
                reg_cost=dict(type="BBoxL1Cost", weight=2.5, box_format="xywh"),
                iou_cost=dict(type="IoUCost", iou_mode="giou", weight=1.0),
            )
        ),
    ),
    test_cfg=None,
)
