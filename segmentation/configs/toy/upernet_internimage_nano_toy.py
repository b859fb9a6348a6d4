# UPerNet on a nano InternImage.
_base_ = ["../_base_/models/upernet_internimage.py", "./toy_ade.py"]
model = dict(
    backbone=dict(
        channels=16, depths=[1, 1, 2, 1], groups=[1, 2, 4, 8], mlp_ratio=2.0, layer_scale=None
    ),
    decode_head=dict(in_channels=[16, 32, 64, 128], channels=48, num_classes=6),
    auxiliary_head=dict(in_channels=64, channels=32, num_classes=6),
)
runner = dict(max_iters=2000)
