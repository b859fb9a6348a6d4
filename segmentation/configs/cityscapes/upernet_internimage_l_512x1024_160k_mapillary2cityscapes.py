_base_ = [
    "../_base_/models/upernet_internimage.py",
    "../_base_/datasets/cityscapes_extra.py",
    "../_base_/schedules/schedule_160k.py",
    "../_base_/released_head_150.py",
]
model = dict(
    backbone=dict(
        channels=160,
        depths=[5, 5, 22, 5],
        groups=[10, 20, 40, 80],
        drop_path_rate=0.4,
        offset_scale=2.0,
        post_norm=True,
    ),
    decode_head=dict(in_channels=[160, 320, 640, 1280], num_classes=19),
    auxiliary_head=dict(in_channels=640, num_classes=19),
)
optimizer = dict(
    lr=2e-5,
    paramwise_cfg=dict(
        num_layers=37, layer_decay_rate=0.94, depths=[5, 5, 22, 5], offset_lr_scale=1.0
    ),
)
optimizer_config = dict(grad_clip=dict(max_norm=0.1, norm_type=2))
evaluation = dict(interval=4000)
load_from = "https://huggingface.co/OpenGVLab/InternImage/resolve/main/segformer_internimage_l_512x1024_80k_mapillary.pth"
