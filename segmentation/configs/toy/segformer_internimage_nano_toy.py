# SegFormer's decoder on a nano InternImage.
_base_ = ["../_base_/models/segformer_internimage.py", "./toy_ade.py"]
model = dict(
    backbone=dict(
        channels=16, depths=[1, 1, 2, 1], groups=[1, 2, 4, 8], mlp_ratio=2.0, layer_scale=None
    ),
    decode_head=dict(in_channels=[16, 32, 64, 128], channels=64, num_classes=6),
)
