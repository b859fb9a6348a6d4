# A very small ROAD_BEVFormer for synthetic data, trained on a CPU in about half an hour.
#
#   python ../tools/make_synthetic.py openlane data/toy --train 500 --val 50 --frames 1
#   python tools/preprocess.py data/toy/OpenLane-V2
#   python tools/train.py configs/toy/olv2_nano.py
#
# Beside being small it differs from the full one in what makes a DETR learn quickly: the map is a
# little larger than the annotated area (a lane that ends at the border of the map would need an
# infinite output), the L1 loss is larger, there is no dropout, and the position of the car in the
# world (can_bus) is left out.
_base_ = ["../_base_/openlane_v2_subset_A.py", "../_base_/default_runtime.py"]

point_cloud_range = [-56.32, -28.16, -2.0, 56.32, 28.16, 2.0]
dim = 48
num_levels = 3
num_cams = 7
bev_h = 22
bev_w = 44

ffn_cfg = dict(
    type="FFN",
    embed_dims=dim,
    feedforward_channels=dim * 2,
    num_fcs=2,
    ffn_drop=0.0,
    act_cfg=dict(type="ReLU", inplace=True),
)
self_attention = dict(type="MultiheadAttention", embed_dims=dim, num_heads=3)
encoder_order = ("self_attn", "norm", "ffn", "norm")
decoder_order = ("self_attn", "norm", "cross_attn", "norm", "ffn", "norm")

model = dict(
    type="ROAD_BEVFormer",
    img_backbone=dict(
        type="InternImage",
        core_op="DCNv3",
        channels=16,
        depths=[1, 1, 1],
        groups=[1, 2, 4],
        mlp_ratio=4.0,
        drop_path_rate=0.0,
        norm_layer="LN",
        layer_scale=1.0,
        offset_scale=1.0,
        post_norm=True,
        with_cp=False,
        out_indices=(0, 1, 2),
    ),
    img_neck=dict(type="FPN", in_channels=[16, 32, 64], out_channels=dim, num_outs=num_levels),
    bev_constructor=dict(
        type="BEVFormerConstructer",
        num_feature_levels=num_levels,
        num_cams=num_cams,
        embed_dims=dim,
        use_can_bus=False,
        use_shift=False,
        pc_range=point_cloud_range,
        bev_h=bev_h,
        bev_w=bev_w,
        encoder=dict(
            type="BEVFormerEncoder",
            num_layers=2,
            pc_range=point_cloud_range,
            num_points_in_pillar=3,  # at -1.5, 0 and 1.5 m
            transformerlayers=dict(
                type="BEVFormerLayer",
                attn_cfgs=[
                    dict(
                        type="TemporalSelfAttention",
                        embed_dims=dim,
                        num_heads=3,
                        num_levels=1,
                        dropout=0.0,
                    ),
                    dict(
                        type="SpatialCrossAttention",
                        embed_dims=dim,
                        num_cams=num_cams,
                        pc_range=point_cloud_range,
                        dropout=0.0,
                        deformable_attention=dict(
                            type="MSDeformableAttention3D",
                            embed_dims=dim,
                            num_heads=3,
                            num_points=3,
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
        num_query=30,
        pc_range=point_cloud_range,
        bev_h=bev_h,
        bev_w=bev_w,
        with_box_refine=False,
        transformer=dict(
            type="PerceptionTransformer",
            embed_dims=dim,
            decoder=dict(
                type="LaneDetectionTransformerDecoder",
                num_layers=4,
                return_intermediate=True,
                transformerlayers=dict(
                    type="CustomDetrTransformerDecoderLayer",
                    attn_cfgs=[
                        self_attention,
                        dict(
                            type="CustomMSDeformableAttention",
                            embed_dims=dim,
                            num_heads=6,
                            num_levels=1,
                            num_points=8,
                            dropout=0.0,
                        ),
                    ],
                    ffn_cfgs=ffn_cfg,
                    operation_order=decoder_order,
                ),
            ),
        ),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.5),
        loss_bbox=dict(type="L1Loss", loss_weight=0.05),
    ),
    bbox_head=dict(
        type="TEDeformableDETRHead",
        num_classes=13,
        in_channels=dim,
        num_query=10,
        with_box_refine=True,
        as_two_stage=False,
        transformer=dict(
            type="DeformableDetrTransformer",
            num_feature_levels=num_levels,
            encoder=dict(
                type="DetrTransformerEncoder",
                num_layers=1,
                transformerlayers=dict(
                    type="BaseTransformerLayer",
                    attn_cfgs=dict(
                        type="MultiScaleDeformableAttention",
                        embed_dims=dim,
                        num_heads=3,
                        num_levels=num_levels,
                        num_points=2,
                        dropout=0.0,
                    ),
                    ffn_cfgs=ffn_cfg,
                    operation_order=encoder_order,
                ),
            ),
            decoder=dict(
                type="DeformableDetrTransformerDecoder",
                num_layers=2,
                return_intermediate=True,
                transformerlayers=dict(
                    type="CustomDetrTransformerDecoderLayer",
                    attn_cfgs=[
                        self_attention,
                        dict(
                            type="MultiScaleDeformableAttention",
                            embed_dims=dim,
                            num_heads=3,
                            num_levels=num_levels,
                            num_points=4,
                            dropout=0.0,
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
        loss_rel=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.6, loss_weight=5.0),
    ),
    lcte_head=dict(
        type="RelationshipHead",
        in_channels_o1=dim,
        in_channels_o2=dim,
        loss_rel=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.6, loss_weight=5.0),
    ),
    train_cfg=dict(
        pts=dict(
            assigner=dict(
                type="LaneHungarianAssigner",
                cls_cost=dict(type="FocalLossCost", weight=1.5),
                reg_cost=dict(type="LaneL1Cost", weight=0.05),
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
)

data_root = "data/toy/OpenLane-V2/"
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
load_images = [
    dict(type="CustomLoadMultiViewImageFromFiles", to_float32=True),
    dict(type="RandomScaleImageMultiViewImage", scales=[0.64]),
    dict(type="ResizeFrontView"),
    dict(type="NormalizeMultiviewImage", **img_norm_cfg),
    dict(type="CustomPadMultiViewImage", size_divisor=8),
]
format_targets = [
    dict(type="CustomParameterizeLane", method="bezier_Endpointfixed", n_control=5),
    dict(type="CustomDefaultFormatBundle"),
    dict(
        type="Collect",
        keys=[
            "img",
            "gt_lc",
            "gt_lc_labels",
            "gt_te",
            "gt_te_labels",
            "gt_topology_lclc",
            "gt_topology_lcte",
        ],
        meta_keys={{_base_.meta_keys}},
    ),
]
format_images = [
    dict(type="CustomDefaultFormatBundle"),
    dict(type="Collect", keys=["img"], meta_keys={{_base_.meta_keys}}),
]
data = dict(
    samples_per_gpu=2,
    workers_per_gpu=0,
    train=dict(data_root=data_root, pipeline=load_images + format_targets),
    val=dict(data_root=data_root, pipeline=load_images + format_images),
    test=dict(data_root=data_root, pipeline=load_images + format_images),
)
optimizer = dict(type="AdamW", lr=1e-3, weight_decay=0.01, fused=True)
optimizer_config = dict(grad_clip=dict(max_norm=10, norm_type=2))
lr_config = dict(
    policy="CosineAnnealing", by_epoch=False, warmup="linear", warmup_iters=150, min_lr_ratio=0.02
)
runner = dict(type="EpochBasedRunner", max_epochs=16)
evaluation = dict(interval=2, save_best="DET_l")
checkpoint_config = dict(interval=2, max_keep_ckpts=2)
