_base_ = [
    "../_base_/models/dino_4scale_internimage.py",
    "../_base_/datasets/coco_detection.py",
    "../_base_/schedules/schedule_dino_1x.py",
]
pretrained = (
    "https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_l_22k_192to384.pth"
)
model = dict(
    backbone=dict(
        channels=160,
        depths=[5, 5, 22, 5],
        groups=[10, 20, 40, 80],
        drop_path_rate=0.4,
        layer_scale=1.0,
        offset_scale=2.0,
        post_norm=True,
        init_cfg=dict(type="Pretrained", checkpoint=pretrained),
    ),
    neck=dict(in_channels=[320, 640, 1280]),
)
optimizer = dict(paramwise_cfg=dict(num_layers=37, layer_decay_rate=0.9, depths=[5, 5, 22, 5]))
