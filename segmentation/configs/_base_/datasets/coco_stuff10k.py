# COCO-Stuff 10k: 171 classes, 0 in the files is "unlabeled" and ignored; crops of 512 x 512, one
# mask per class for Mask2Former. Needs tools/convert_datasets/coco_stuff10k.py.
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
crop_size = (512, 512)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="Resize", img_scale=(2048, 512), ratio_range=(0.5, 2.0)),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="Normalize", **img_norm_cfg),
    dict(type="Pad", size=crop_size, pad_val=0, seg_pad_val=255),
    dict(type="ToMask"),
    dict(type="DefaultFormatBundle"),
    dict(type="Collect", keys=["img", "gt_semantic_seg", "gt_masks", "gt_labels"]),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="MultiScaleFlipAug",
        img_scale=(2048, 512),
        flip=False,
        transforms=[
            dict(type="Resize", keep_ratio=True),
            dict(type="ResizeToMultiple", size_divisor=32),
            dict(type="RandomFlip"),
            dict(type="Normalize", **img_norm_cfg),
            dict(type="ImageToTensor", keys=["img"]),
            dict(type="Collect", keys=["img"]),
        ],
    ),
]
data = dict(
    samples_per_gpu=1,
    workers_per_gpu=4,
    train=dict(
        type="COCOStuffDataset",
        data_root="data/coco_stuff10k",
        img_dir="images/train2014",
        ann_dir="annotations/train2014",
        reduce_zero_label=True,
        pipeline=train_pipeline,
    ),
    val=dict(
        type="COCOStuffDataset",
        data_root="data/coco_stuff10k",
        img_dir="images/test2014",
        ann_dir="annotations/test2014",
        reduce_zero_label=True,
        pipeline=test_pipeline,
    ),
    test=dict(
        type="COCOStuffDataset",
        data_root="data/coco_stuff10k",
        img_dir="images/test2014",
        ann_dir="annotations/test2014",
        reduce_zero_label=True,
        pipeline=test_pipeline,
    ),
)
