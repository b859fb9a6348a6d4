_base_ = [
    "../_base_/models/mask2former_internimage_h_1024.py",
    "../_base_/datasets/coco_stuff10k.py",
    "../_base_/schedules/schedule_40k.py",
]
num_classes = 171
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
load_from = "https://huggingface.co/OpenGVLab/InternImage/resolve/main/mask2former_internimage_h_896_80k_cocostuff164k.pth"
