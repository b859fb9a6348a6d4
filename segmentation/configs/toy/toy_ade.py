# Data, schedule and log of the toy models: images of 96 pixels, three textures and three shapes,
# written by
#   python ../tools/toy_ade.py --train 800 --val 100 --output data/toy_ade
_base_ = "../_base_/schedules/schedule_40k.py"
classes = ("ground", "stripes", "dots", "circle", "square", "triangle")
palette = [
    [128, 128, 128],
    [0, 114, 178],
    [0, 158, 115],
    [213, 94, 0],
    [240, 228, 66],
    [204, 121, 167],
]
data_root = "data/toy_ade"
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
crop_size = (96, 96)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="Resize", img_scale=(96, 96), ratio_range=(0.75, 1.5)),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.9),
    dict(type="RandomFlip", prob=0.5),
    dict(type="Normalize", **img_norm_cfg),
    dict(type="Pad", size=crop_size, pad_val=0, seg_pad_val=255),
    dict(type="DefaultFormatBundle"),
    dict(type="Collect", keys=["img", "gt_semantic_seg"]),
]
mask_steps = [  # one mask per class besides, for Mask2Former
    dict(type="ToMask"),
    dict(type="DefaultFormatBundle"),
    dict(type="Collect", keys=["img", "gt_semantic_seg", "gt_masks", "gt_labels"]),
]
mask_pipeline = train_pipeline[:-2] + mask_steps
plain_pipeline = [  # without random changes, to learn a few images by heart
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomFlip", prob=0.0),
    dict(type="Normalize", **img_norm_cfg),
    dict(type="DefaultFormatBundle"),
    dict(type="Collect", keys=["img", "gt_semantic_seg"]),
]
plain_mask_pipeline = plain_pipeline[:-2] + mask_steps
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="MultiScaleFlipAug",
        img_scale=(96, 96),
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
validation = dict(
    type="CustomDataset",
    classes=classes,
    palette=palette,
    data_root=data_root,
    img_dir="images/validation",
    ann_dir="annotations/validation",
    img_suffix=".jpg",
    seg_map_suffix=".png",
    pipeline=test_pipeline,
)
data = dict(
    samples_per_gpu=8,
    workers_per_gpu=0,
    train=dict(
        type="CustomDataset",
        classes=classes,
        palette=palette,
        data_root=data_root,
        img_dir="images/training",
        ann_dir="annotations/training",
        img_suffix=".jpg",
        seg_map_suffix=".png",
        pipeline=train_pipeline,
    ),
    val=validation,
    test=validation,
)
optimizer = dict(
    lr=2e-3, paramwise_cfg=dict(num_layers=5, layer_decay_rate=1.0, depths=[1, 1, 2, 1])
)
lr_config = dict(warmup_iters=100)
runner = dict(max_iters=3000)
checkpoint_config = dict(interval=500)
evaluation = dict(interval=500)
