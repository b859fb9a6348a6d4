# CrowdHuman full-body boxes (one class); tools/create_crowd_anno.py writes the json files.
data_root = "data/CrowdHuman/"
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="RandomFlip", flip_ratio=0.5),
    dict(
        type="AutoAugment",
        policies=[
            [
                dict(
                    type="Resize",
                    img_scale=[(side, 1333) for side in range(480, 801, 32)],
                    multiscale_mode="value",
                    keep_ratio=True,
                )
            ],
            [
                dict(
                    type="Resize",
                    img_scale=[(side, 1333) for side in (400, 500, 600)],
                    multiscale_mode="value",
                    keep_ratio=True,
                ),
                dict(
                    type="RandomCrop",
                    crop_type="absolute_range",
                    crop_size=(384, 600),
                    allow_negative_crop=True,
                ),
                dict(
                    type="Resize",
                    img_scale=[(side, 1333) for side in range(480, 801, 32)],
                    multiscale_mode="value",
                    override=True,
                    keep_ratio=True,
                ),
            ],
        ],
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
        img_scale=(1333, 800),
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
    samples_per_gpu=2,
    workers_per_gpu=2,
    train=dict(
        type="CrowdHumanDataset",
        ann_file=data_root + "annotations/annotation_train.json",
        img_prefix=data_root + "Images",
        pipeline=train_pipeline,
    ),
    val=dict(
        type="CrowdHumanDataset",
        ann_file=data_root + "annotations/annotation_val.json",
        img_prefix=data_root + "Images",
        pipeline=test_pipeline,
    ),
    test=dict(
        type="CrowdHumanDataset",
        ann_file=data_root + "annotations/annotation_val.json",
        img_prefix=data_root + "Images",
        pipeline=test_pipeline,
    ),
)
# the published value: more than the 36 epochs, so nothing is evaluated during training
evaluation = dict(interval=100, metric="bbox", save_best="auto")
