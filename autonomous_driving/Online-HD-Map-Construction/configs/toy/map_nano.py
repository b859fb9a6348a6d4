# VectorMapNet with a nano InternImage on synthetic drives.
# python ../tools/make_synthetic.py hdmap data/toy --train 160 --val 20 --frames 2
_base_ = ["../vectormapnet_intern.py"]
data_root = "data/toy/"
roi_size = (60, 30)
canvas_size = (200, 100)
dims = 64
attention = dict(embed_dims=dims, num_heads=4)
model = dict(
    backbone=dict(
        img_backbone=dict(
            channels=16,
            depths=[1, 1, 2, 1],
            groups=[1, 2, 4, 8],
            mlp_ratio=2.0,
            drop_path_rate=0.0,
            init_cfg=None,
        ),
        img_neck=dict(
            in_channels=[16, 32, 64, 128],
            out_channels=32,
            norm_cfg=dict(_delete_=True, type="GN", num_groups=4),
        ),
        in_channels=32,
        out_channels=32,
        num_groups=4,
        heights=(0.0,),  # the ground of these drives is flat
        grid_size=(80, 40),
    ),
    neck=dict(in_channels=32, mid_channels=32, out_channels=64, pool=False),
    head=dict(
        augmentation=dict(p=0.3, scale=0.01),
        det_net=dict(
            in_channels=64,
            num_query=24,
            max_lines=20,
            transformer=dict(
                encoder=dict(embed_dims=dims),
                decoder=dict(
                    num_layers=3,
                    transformerlayers=dict(
                        attn_cfgs=[
                            dict(type="MultiheadAttention", **attention),
                            dict(
                                type="MultiScaleDeformableAttention",
                                num_levels=1,
                                dropout=0.0,
                                **attention,
                            ),
                        ],
                        ffn_cfgs=dict(embed_dims=dims, feedforward_channels=128, ffn_drop=0.0),
                    ),
                ),
            ),
        ),
        gen_net=dict(
            in_channels=64,
            decoder=dict(
                num_layers=2, embed_dims=dims, num_heads=4, feedforward_dims=128, dropout=0.0
            ),
        ),
    ),
    test_cfg=dict(max_points=40, top_p=0.0),
)
images = [
    dict(type="LoadMultiViewImagesFromFiles"),
    dict(type="ResizeMultiViewImages", size=(128, 128), change_intrinsics=True),
    dict(
        type="Normalize3D",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    dict(type="PadMultiViewImages", size_divisor=32),
    dict(type="FormatBundleMap"),
]
train_pipeline = [
    dict(type="VectorizeMap", roi_size=roi_size, simplify=0.2),
    dict(type="PolygonizeLocalMapBbox", canvas_size=canvas_size),
    *images,
    dict(type="Collect3D", keys=["img", "polys"]),
]
test_pipeline = [*images, dict(type="Collect3D", keys=["img"])]
data = dict(
    samples_per_gpu=2,
    workers_per_gpu=0,
    train=dict(
        ann_file=data_root + "train_annotations.json",
        data_root=data_root + "argoverse2",
        pipeline=train_pipeline,
    ),
    val=dict(
        ann_file=data_root + "val_annotations.json",
        data_root=data_root + "argoverse2",
        pipeline=test_pipeline,
    ),
    test=dict(
        ann_file=data_root + "test_annotations.json",
        data_root=data_root + "argoverse2",
        pipeline=test_pipeline,
    ),
)
optimizer = dict(  # the generator's residual weights start at 0 and are its bottleneck
    lr=2e-3,
    weight_decay=1e-4,
    paramwise_cfg=dict(_delete_=True, custom_keys={"res_weight": dict(lr_mult=10)}),
)
optimizer_config = dict(grad_clip=dict(max_norm=5.0, norm_type=2))
lr_config = dict(
    _delete_=True,
    policy="CosineAnnealing",
    warmup="linear",
    warmup_iters=200,
    warmup_ratio=0.01,
    min_lr_ratio=0.01,
)
runner = dict(max_epochs=48)
evaluation = dict(interval=4)
log_config = dict(interval=40)
