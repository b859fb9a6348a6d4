_base_ = [
    "../_base_/models/dino_4scale_internimage.py",
    "../_base_/datasets/coco_detection.py",
    "../_base_/schedules/schedule_dino_1x.py",
]
pretrained = "https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_t_1k_224.pth"
model = dict(
    backbone=dict(
        channels=64,
        depths=[4, 4, 18, 4],
        groups=[4, 8, 16, 32],
        drop_path_rate=0.2,
        layer_scale=1.0,
        with_cp=True,
        init_cfg=dict(type="Pretrained", checkpoint=pretrained),
    ),
    neck=dict(in_channels=[128, 256, 512]),
    test_cfg=dict(max_per_img=100),
)
optimizer = dict(paramwise_cfg=dict(num_layers=30, layer_decay_rate=0.9, depths=[4, 4, 18, 4]))
