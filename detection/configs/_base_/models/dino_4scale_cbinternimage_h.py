# DINO on two InternImage-H, the second one fed by the first (CBNet, arXiv 2107.00420).
_base_ = "./dino_4scale_internimage_h.py"
model = dict(
    type="CBDINO",
    backbone=dict(type="CBInternImage", out_indices=[(0, 1, 2, 3), (1, 2, 3)]),
    neck=[
        dict(
            type="CBChannelMapper",
            in_channels=[640, 1280, 2560],
            kernel_size=1,
            out_channels=256,
            act_cfg=None,
            norm_cfg=dict(type="GN", num_groups=32),
            num_outs=4,
        )
    ],
    bbox_head=dict(type="CBDINOHead"),
)
