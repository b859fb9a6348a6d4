# The images of Argoverse 2 and the annotations of the online HD map challenge.
roi_size = (60, 30)  # metres along x (forward) and y
canvas_size = (200, 100)  # cells along x and y

# True only to test the published checkpoints. They were trained with projections that stretch with
# the padding (455 to 480 columns) and with coordinates cut off to cells instead of rounded.
# Testing alone: --cfg-options data.val.pipeline.3.change_intrinsics=True
legacy = False

data_root = "data/"
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
images = [
    dict(type="LoadMultiViewImagesFromFiles"),
    dict(type="ResizeMultiViewImages", size=(256, 455), change_intrinsics=True),
    dict(type="Normalize3D", **img_norm_cfg),
    dict(type="PadMultiViewImages", size_divisor=32, change_intrinsics=legacy),
    dict(type="FormatBundleMap"),
]
train_pipeline = [
    dict(type="VectorizeMap", roi_size=roi_size, simplify=0.2),
    dict(type="PolygonizeLocalMapBbox", canvas_size=canvas_size, legacy_truncate=legacy),
    *images,
    dict(type="Collect3D", keys=["img", "polys"]),
]
test_pipeline = [*images, dict(type="Collect3D", keys=["img"])]
dataset_type = "AV2Dataset"
data = dict(
    samples_per_gpu=5,
    workers_per_gpu=8,
    train=dict(
        type=dataset_type,
        ann_file=data_root + "train_annotations.json",
        data_root=data_root + "argoverse2",
        pipeline=train_pipeline,
    ),
    val=dict(
        type=dataset_type,
        ann_file=data_root + "val_annotations.json",
        data_root=data_root + "argoverse2",
        pipeline=test_pipeline,
        test_mode=True,
    ),
    test=dict(
        type=dataset_type,
        ann_file=data_root + "test_annotations.json",
        data_root=data_root + "argoverse2",
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
evaluation = dict(interval=10, metric="mAP", save_best="mAP")
