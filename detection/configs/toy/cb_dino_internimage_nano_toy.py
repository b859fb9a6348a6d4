# CB-DINO on two nano InternImages.
_base_ = "./dino_internimage_nano_toy.py"
model = dict(
    type="CBDINO",
    backbone=dict(type="CBInternImage", out_indices=[(0, 1, 2, 3), (1, 2, 3)]),
    neck=[
        dict(
            type="CBChannelMapper",
            in_channels=[32, 64, 128],
            kernel_size=1,
            out_channels=64,
            act_cfg=None,
            norm_cfg=dict(type="GN", num_groups=8),
            num_outs=3,
        )
    ],
    bbox_head=dict(type="CBDINOHead"),
)
data = dict(samples_per_gpu=2)
