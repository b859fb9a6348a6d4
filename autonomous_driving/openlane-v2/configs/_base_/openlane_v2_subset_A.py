# OpenLane-V2 subset A: seven cameras, the front view first. Collections: tools/preprocess.py
dataset_type = "OpenLaneV2SubsetADataset"
data_root = "data/OpenLane-V2/"
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)

meta_keys = (
    "token",
    "scene_token",
    "sample_idx",
    "img_paths",
    "img_shape",
    "pad_shape",
    "scale_factor",
    "lidar2img",
    "can_bus",
)
train_pipeline = [
    dict(type="CustomLoadMultiViewImageFromFiles", to_float32=True),
    dict(type="PhotoMetricDistortionMultiViewImage"),  # on pixels of 0 to 255
    dict(type="ResizeFrontView"),
    dict(type="NormalizeMultiviewImage", **img_norm_cfg),
    dict(type="CustomPadMultiViewImage", size_divisor=32),
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
        meta_keys=meta_keys,
    ),
]
test_pipeline = [
    dict(type="CustomLoadMultiViewImageFromFiles", to_float32=True),
    dict(type="ResizeFrontView"),
    dict(type="NormalizeMultiviewImage", **img_norm_cfg),
    dict(type="CustomPadMultiViewImage", size_divisor=32),
    dict(type="CustomDefaultFormatBundle"),
    dict(type="Collect", keys=["img"], meta_keys=meta_keys),
]
data = dict(
    samples_per_gpu=1,
    workers_per_gpu=8,
    train=dict(
        type=dataset_type,
        data_root=data_root,
        collection="data_dict_subset_A_train",
        pipeline=train_pipeline,
        test_mode=False,
    ),
    val=dict(
        type=dataset_type,
        data_root=data_root,
        collection="data_dict_subset_A_val",
        pipeline=test_pipeline,
        test_mode=True,
    ),
    test=dict(
        type=dataset_type,
        data_root=data_root,
        collection="data_dict_subset_A_val",
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
