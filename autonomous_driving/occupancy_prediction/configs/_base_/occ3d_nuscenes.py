# nuScenes with the labels of Occ3D (arXiv 2304.14365). Info files: tools/create_data.py
dataset_type = "NuSceneOcc"
data_root = "data/occ3d-nus/"
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
queue_length = 4  # frames of a training sample

train_pipeline = [
    dict(type="LoadMultiViewImageFromFiles", to_float32=True),
    dict(type="PhotoMetricDistortionMultiViewImage"),
    dict(type="LoadOccGTFromFile", data_root=data_root),
    dict(type="NormalizeMultiviewImage", **img_norm_cfg),
    dict(type="PadMultiViewImage", size_divisor=32),
    dict(type="DefaultFormatBundle3D"),
    dict(type="CustomCollect3D", keys=["img", "voxel_semantics", "mask_lidar", "mask_camera"]),
]
test_pipeline = [
    dict(type="LoadMultiViewImageFromFiles", to_float32=True),
    dict(type="NormalizeMultiviewImage", **img_norm_cfg),
    dict(type="PadMultiViewImage", size_divisor=32),
    dict(type="DefaultFormatBundle3D"),
    dict(type="CustomCollect3D", keys=["img"]),
]
data = dict(
    samples_per_gpu=1,
    workers_per_gpu=4,
    train=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file=data_root + "occ_infos_temporal_train.pkl",
        pipeline=train_pipeline,
        queue_length=queue_length,
        test_mode=False,
    ),
    val=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file=data_root + "occ_infos_temporal_val.pkl",
        pipeline=test_pipeline,
        test_mode=True,
    ),
    test=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file=data_root + "occ_infos_temporal_val.pkl",
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
