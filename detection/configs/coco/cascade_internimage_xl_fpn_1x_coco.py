_base_ = [
    "../_base_/models/cascade_mask_rcnn_internimage_fpn.py",
    "../_base_/datasets/coco_instance.py",
    "../_base_/schedules/schedule_1x.py",
]
pretrained = (
    "https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_xl_22k_192to384.pth"
)
model = dict(
    backbone=dict(
        channels=192,
        depths=[5, 5, 24, 5],
        groups=[12, 24, 48, 96],
        drop_path_rate=0.4,
        init_cfg=dict(type="Pretrained", checkpoint=pretrained),
    ),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
optimizer = dict(paramwise_cfg=dict(num_layers=39, layer_decay_rate=0.94, depths=[5, 5, 24, 5]))
