_base_ = [
    "../_base_/models/mask2former_internimage_h.py",
    "../_base_/datasets/pascal_context_59.py",
    "../_base_/schedules/schedule_40k.py",
]
num_classes = 59
pretrained = (
    "https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_h_jointto22k_384.pth"
)
model = dict(
    backbone=dict(init_cfg=dict(type="Pretrained", checkpoint=pretrained)),
    decode_head=dict(
        num_classes=num_classes,
        loss_cls=dict(class_weight=[1.0] * num_classes + [0.1]),
    ),
)
optimizer = dict(
    lr=2e-5,
    paramwise_cfg=dict(
        num_layers=50, layer_decay_rate=0.95, depths=[6, 6, 32, 6], offset_lr_scale=1.0
    ),
)
