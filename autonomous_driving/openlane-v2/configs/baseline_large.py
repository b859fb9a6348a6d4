# ROAD_BEVFormer with ResNet-50, the baseline of OpenLane-V2: 24 epochs on 8 GPUs.
_base_ = [
    "./_base_/road_bevformer.py",
    "./_base_/openlane_v2_subset_A.py",
    "./_base_/schedule_24e.py",
    "./_base_/default_runtime.py",
]
model = dict(
    img_backbone=dict(
        type="ResNet",
        depth=50,
        num_stages=4,
        out_indices=(1, 2, 3),
        frozen_stages=1,
        norm_cfg=dict(type="BN", requires_grad=False),
        norm_eval=True,
        style="pytorch",
        init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet50"),
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
