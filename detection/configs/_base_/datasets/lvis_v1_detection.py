# LVIS v1 boxes (1203 classes, images of COCO 2017); rare classes are repeated in training.
data_root = "data/lvis_v1/"
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="RandomFlip", flip_ratio=0.5),
    dict(
        type="Resize",
        img_scale=[(2000, 600), (2000, 1200)],
        multiscale_mode="range",
        keep_ratio=True,
    ),
    dict(type="Normalize", **img_norm_cfg),
    dict(type="Pad", size_divisor=32),
    dict(type="DefaultFormatBundle"),
    dict(type="Collect", keys=["img", "gt_bboxes", "gt_labels"]),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="MultiScaleFlipAug",
        img_scale=(2000, 1000),
        flip=False,
        transforms=[
            dict(type="Resize", keep_ratio=True),
            dict(type="RandomFlip"),
            dict(type="Normalize", **img_norm_cfg),
            dict(type="Pad", size_divisor=32),
            dict(type="ImageToTensor", keys=["img"]),
            dict(type="Collect", keys=["img"]),
        ],
    ),
]
data = dict(
    samples_per_gpu=1,
    workers_per_gpu=1,
    train=dict(
        type="ClassBalancedDataset",
        oversample_thr=1e-3,
        dataset=dict(
            type="LVISV1Dataset",
            ann_file=data_root + "annotations/lvis_v1_train.json",
            img_prefix=data_root,
            pipeline=train_pipeline,
        ),
    ),
    val=dict(
        type="LVISV1Dataset",
        ann_file=data_root + "annotations/lvis_v1_val.json",
        img_prefix=data_root,
        pipeline=test_pipeline,
    ),
    test=dict(
        type="LVISV1Dataset",
        ann_file=data_root + "annotations/lvis_v1_val.json",
        img_prefix=data_root,
        pipeline=test_pipeline,
    ),
)
evaluation = dict(interval=500, metric=["bbox"], classwise=True)
