_base_ = [
    "../_base_/models/cascade_mask_rcnn_internimage_fpn.py",
    "../_base_/datasets/coco_instance.py",
    "../_base_/schedules/schedule_1x.py",
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
        init_cfg=dict(type="Pretrained", checkpoint=pretrained),
    ),
    neck=dict(in_channels=[160, 320, 640, 1280]),
)
optimizer = dict(paramwise_cfg=dict(num_layers=37, layer_decay_rate=0.94, depths=[5, 5, 22, 5]))
