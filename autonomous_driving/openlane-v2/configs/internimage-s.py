# ROAD_BEVFormer with InternImage-S: 24 epochs on 8 GPUs, one frame of seven images each.
_base_ = [
    "./_base_/road_bevformer.py",
    "./_base_/openlane_v2_subset_A.py",
    "./_base_/schedule_24e.py",
    "./_base_/default_runtime.py",
]
pretrained = "https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_s_1k_224.pth"
model = dict(
    img_backbone=dict(
        type="InternImage",
        core_op="DCNv3",
        channels=80,
        depths=[4, 4, 21, 4],
        groups=[5, 10, 20, 40],
        mlp_ratio=4.0,
        drop_path_rate=0.3,
        norm_layer="LN",
        layer_scale=1.0,
        offset_scale=1.0,
        post_norm=True,
        with_cp=False,
        out_indices=(0, 1, 2, 3),
        init_cfg=dict(type="Pretrained", checkpoint=pretrained),
    ),
    img_neck=dict(type="FPN", in_channels=[80, 160, 320, 640], out_channels=256, num_outs=4),
)
