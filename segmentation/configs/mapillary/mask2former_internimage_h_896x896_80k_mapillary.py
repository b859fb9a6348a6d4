_base_ = [
    "../_base_/models/mask2former_internimage_h.py",
    "../_base_/datasets/mapillary_896x896_masks.py",
    "../_base_/schedules/schedule_80k.py",
]
num_classes = 19
pretrained = (
    "https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_h_jointto22k_384.pth"
)
model = dict(
    backbone=dict(init_cfg=dict(type="Pretrained", checkpoint=pretrained)),
    decode_head=dict(
        num_classes=num_classes,
        loss_cls=dict(class_weight=[1.0] * num_classes + [0.1]),
    ),
    test_cfg=dict(mode="slide", crop_size=(896, 896), stride=(512, 512)),
)
optimizer = dict(
    lr=2e-5,
    paramwise_cfg=dict(
        num_layers=50, layer_decay_rate=0.95, depths=[6, 6, 32, 6], offset_lr_scale=1.0
    ),
)
optimizer_config = dict(grad_clip=dict(max_norm=0.1, norm_type=2))
evaluation = dict(interval=2000)
