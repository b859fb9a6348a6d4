_base_ = [
    "../_base_/models/mask2former_internimage_h_1024.py",
    "../_base_/datasets/ade20k_896x896_masks.py",
    "../_base_/schedules/schedule_80k.py",
]
num_classes = 150
model = dict(
    decode_head=dict(
        num_classes=num_classes,
        loss_cls=dict(class_weight=[1.0] * num_classes + [0.1]),
    ),
)
optimizer = dict(
    lr=1e-5,
    paramwise_cfg=dict(
        num_layers=50, layer_decay_rate=0.95, depths=[6, 6, 32, 6], offset_lr_scale=1.0
    ),
)
optimizer_config = dict(grad_clip=dict(max_norm=0.1, norm_type=2))
evaluation = dict(interval=2000)
load_from = "https://huggingface.co/OpenGVLab/InternImage/resolve/main/mask2former_internimage_h_896_80k_cocostuff164k.pth"
