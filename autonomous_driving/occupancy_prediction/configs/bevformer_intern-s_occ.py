# BEVFormerOcc with InternImage-S: 24 epochs on 8 GPUs, one queue of frames each.
_base_ = [
    "./_base_/bevformer_occ.py",
    "./_base_/occ3d_nuscenes.py",
    "./_base_/schedule_24e.py",
    "./_base_/default_runtime.py",
]
depths = [4, 4, 21, 4]
pretrained = (
    "https://huggingface.co/OpenGVLab/InternImage/resolve/main/"
    "mask_rcnn_internimage_s_fpn_3x_coco.pth"
)
model = dict(
    img_backbone=dict(
        type="InternImage",
        core_op="DCNv3",
        channels=80,
        depths=depths,
        groups=[5, 10, 20, 40],
        mlp_ratio=4.0,
        drop_path_rate=0.3,
        norm_layer="LN",
        layer_scale=1.0,
        offset_scale=1.0,
        post_norm=True,
        with_cp=True,
        out_indices=(1, 2, 3),
        init_cfg=dict(type="Pretrained", checkpoint=pretrained),
    ),
    img_neck=dict(
        type="FPN",
        in_channels=[160, 320, 640],
        out_channels=256,
        start_level=0,
        add_extra_convs="on_output",
        num_outs=4,
        relu_before_extra_convs=True,
    ),
)
optimizer = dict(
    type="AdamW",
    lr=2e-4,
    weight_decay=0.05,
    constructor="CustomLayerDecayOptimizerConstructor",
    paramwise_cfg=dict(num_layers=33, layer_decay_rate=1.0, depths=depths),
)
