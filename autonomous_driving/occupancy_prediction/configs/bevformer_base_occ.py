# BEVFormerOcc with ResNet-101 and deformable convolutions: the baseline of the challenge.
_base_ = [
    "./_base_/bevformer_occ.py",
    "./_base_/occ3d_nuscenes.py",
    "./_base_/schedule_24e.py",
    "./_base_/default_runtime.py",
]
model = dict(
    img_backbone=dict(
        type="ResNet",
        depth=101,
        num_stages=4,
        out_indices=(1, 2, 3),
        frozen_stages=1,
        norm_cfg=dict(type="BN2d", requires_grad=False),
        norm_eval=True,
        style="caffe",
        dcn=dict(type="DCNv2", deform_groups=1, fallback_on_stride=False),
        stage_with_dcn=(False, False, True, True),
    ),
    img_neck=dict(
        type="FPN",
        in_channels=[512, 1024, 2048],
        out_channels=256,
        start_level=0,
        add_extra_convs="on_output",
        num_outs=4,
        relu_before_extra_convs=True,
    ),
)

img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
data_root = "data/occ3d-nus/"
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
    train=dict(pipeline=train_pipeline),
    val=dict(pipeline=test_pipeline),
    test=dict(pipeline=test_pipeline),
)
optimizer = dict(
    type="AdamW",
    lr=2e-4,
    weight_decay=0.01,
    paramwise_cfg=dict(custom_keys={"img_backbone": dict(lr_mult=0.1)}),
)
load_from = "ckpts/r101_dcn_fcos3d_pretrain.pth"
