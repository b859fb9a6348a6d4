# DINO on InternImage-H, pre-trained on Objects365: more denoising queries than for T and L.
# The original's `snip_cfg`, `fed_loss_cfg` and the `use_checkpoint` of plain FFNs are not here: no
# code ever read them.
_base_ = "./dino_4scale_internimage.py"
model = dict(
    backbone=dict(
        channels=320,
        depths=[6, 6, 32, 6],
        groups=[10, 20, 40, 80],
        drop_path_rate=0.5,
        dw_kernel_size=5,
        res_post_norm=True,
        level2_post_norm=True,
        level2_post_norm_block_ids=[5, 11, 17, 23, 29],
        center_feature_scale=True,
        with_cp=True,
    ),
    neck=dict(in_channels=[640, 1280, 2560]),
    bbox_head=dict(dn_cfg=dict(group_cfg=dict(num_dn_queries=1000))),
)
