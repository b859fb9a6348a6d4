# A model for the CPU and synthetic data (see README.md): small images, a BEV grid of 1.6 m cells.
_base_ = [
    "../_base_/bevformer_occ.py",
    "../_base_/occ3d_nuscenes.py",
    "../_base_/default_runtime.py",
]
data_root = "data/toy/occ3d-nus/"
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
dim = 64
bev = 50
levels = 1
model = dict(
    use_grid_mask=False,
    img_backbone=dict(
        type="InternImage",
        core_op="DCNv3",
        channels=32,
        depths=[2],
        groups=[2],
        mlp_ratio=2.0,
        drop_path_rate=0.0,
        out_indices=(0,),
    ),
    img_neck=dict(type="FPN", in_channels=[32], out_channels=dim, num_outs=levels),
    pts_bbox_head=dict(
        bev_h=bev,
        bev_w=bev,
        use_mask=True,
        label_size=(200, 200, 16),
        transformer=dict(
            embed_dims=dim,
            num_feature_levels=levels,
            out_dim=32,
            encoder=dict(
                num_layers=2,
                num_points_in_pillar=8,
                transformerlayers=dict(
                    attn_cfgs=[
                        dict(
                            type="TemporalSelfAttention", embed_dims=dim, num_heads=4, dropout=0.0
                        ),
                        dict(
                            type="SpatialCrossAttention",
                            embed_dims=dim,
                            num_cams=6,
                            dropout=0.0,
                            deformable_attention=dict(
                                type="MSDeformableAttention3D",
                                embed_dims=dim,
                                num_heads=4,
                                num_points=8,
                                num_levels=levels,
                            ),
                        ),
                    ],
                    feedforward_channels=dim * 2,
                    ffn_dropout=0.0,
                ),
            ),
        ),
        loss_occ=dict(class_weight=[1.0] * 17 + [0.2]),  # most voxels are free
        positional_encoding=dict(num_feats=dim // 2, row_num_embed=bev, col_num_embed=bev),
    ),
)

train_pipeline = [
    dict(type="LoadMultiViewImageFromFiles", to_float32=True),
    dict(type="LoadOccGTFromFile", data_root=data_root),
    dict(type="NormalizeMultiviewImage", **img_norm_cfg),
    dict(type="PadMultiViewImage", size_divisor=32),
    dict(type="DefaultFormatBundle3D"),
    dict(type="CustomCollect3D", keys=["img", "voxel_semantics", "mask_lidar", "mask_camera"]),
]
data = dict(
    samples_per_gpu=2,
    workers_per_gpu=0,
    train=dict(
        data_root=data_root,
        ann_file=data_root + "occ_infos_temporal_train.pkl",
        pipeline=train_pipeline,
        queue_length=2,
    ),
    val=dict(data_root=data_root, ann_file=data_root + "occ_infos_temporal_val.pkl"),
    test=dict(data_root=data_root, ann_file=data_root + "occ_infos_temporal_val.pkl"),
    val_dataloader=dict(workers_per_gpu=0),
    test_dataloader=dict(workers_per_gpu=0),
)
optimizer = dict(type="AdamW", lr=2e-3, weight_decay=0.01)
optimizer_config = dict(grad_clip=dict(max_norm=5, norm_type=2))
lr_config = dict(
    policy="CosineAnnealing",
    warmup="linear",
    warmup_iters=50,
    warmup_ratio=0.1,
    min_lr_ratio=1e-2,
)
runner = dict(type="EpochBasedRunner", max_epochs=15)
evaluation = dict(interval=3, metric="mIoU", save_best="mIoU", rule="greater")
log_config = dict(interval=20)
